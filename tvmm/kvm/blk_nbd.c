/* The engine that has an NBD server make the steps: see blk.h and nbd.h. */
#include "nbd.h"

#include <errno.h>
#include <stdlib.h>

struct blk_nbd {
    struct tvmm_nbd_link *links[TVMM_NBD_LINKS_MAX];
    uint32_t link_count, slot_count;
    struct tvmm_nbd_slot *slots, *free;
};

static void nbd_attach(struct tvmm_nbd_link *link, struct tvmm_blk *blk, struct blk_nbd *nbd)
{
    pthread_mutex_lock(&link->lock);
    link->waker = blk ? blk->waker : NULL;
    pthread_mutex_unlock(&link->lock);
    link->blk = blk;
    link->slots = nbd ? nbd->slots : NULL;
    link->slot_count = nbd ? nbd->slot_count : 0;
}

static int blk_nbd_open(struct tvmm_blk *blk)
{
    uint32_t count = blk->setup.link_count, depth = blk->setup.depth;
    if (!count || count > TVMM_NBD_LINKS_MAX)
        return -EINVAL;
    for (uint32_t index = 0; index < count; index++)
        if (blk->setup.links[index]->blk)
            return -EBUSY;
    struct blk_nbd *nbd = calloc(1, sizeof *nbd);
    struct tvmm_nbd_slot *slots = calloc(depth ? depth : 1, sizeof *slots);
    if (!nbd || !slots) {
        free(nbd);
        free(slots);
        return -ENOMEM;
    }
    nbd->slots = slots;
    nbd->slot_count = depth;
    for (uint32_t index = depth; index--;) {
        slots[index].next = nbd->free;
        nbd->free = &slots[index];
    }
    nbd->link_count = count;
    for (uint32_t index = 0; index < count; index++) {
        nbd->links[index] = blk->setup.links[index];
        nbd_attach(nbd->links[index], blk, nbd);
    }
    /* An answer takes a server longer than a wake-up takes the kernel, and on this host it may want this processor. */
    blk->busy_spin.max_ns = 0;
    blk->setup.links = NULL; /* the caller's */
    blk->engine_state = nbd;
    return 0;
}

/* Nothing is outstanding. */
static void blk_nbd_close(struct tvmm_blk *blk)
{
    struct blk_nbd *nbd = blk->engine_state;
    for (uint32_t index = 0; index < nbd->link_count; index++)
        nbd_attach(nbd->links[index], NULL, NULL);
    free(nbd->slots);
    free(nbd);
}

/* --- slots -------------------------------------------------------------------------------------------------------- */

static void nbd_release(struct blk_nbd *nbd, struct tvmm_nbd_slot *slot)
{
    free(slot->spans);
    slot->spans = NULL;
    slot->request = NULL;
    slot->next = nbd->free;
    nbd->free = slot;
}

/* A request of which nothing is outstanding any more. */
/* Before the driver hears of it. A write that is stable counts as a change too: that errs on the safe side. */
static void nbd_count_change(struct tvmm_blk_file *file, const struct tvmm_nbd_slot *slot)
{
    if (slot->command == TVMM_NBD_FLUSH) {
        uint64_t covered = __atomic_load_n(&file->covered, __ATOMIC_RELAXED);
        while (covered < slot->covers && !__atomic_compare_exchange_n(&file->covered, &covered, slot->covers, 0,
                                                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            ;
    } else if (slot->command != TVMM_NBD_READ) {
        __atomic_fetch_add(&file->changed, 1, __ATOMIC_RELEASE);
    }
}

void tvmm_nbd_finish(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot, int64_t result)
{
    struct tvmm_blk_request *request = slot->request;
    link->completed++;
    if (result >= 0 && link->blk)
        nbd_count_change(link->blk->file, slot);
    if (!request) {
        slot->error = (int32_t)result;
        return;
    }
    nbd_release(link->blk->engine_state, slot);
    tvmm_blk_returned(link->blk, request, result);
}

/* After a link was given a connection, or the order to fail: all that is outstanding, in order, once more. */
void tvmm_nbd_again(struct tvmm_nbd_link *link)
{
    struct tvmm_nbd_slot *slot = link->first;
    link->first = link->last = link->unsent = NULL;
    link->outstanding = link->large = 0;
    while (slot) {
        struct tvmm_nbd_slot *next = slot->next;
        int64_t result = link->state == TVMM_NBD_UP ? tvmm_nbd_encode(link, slot) : -link->failing;
        slot->link = NULL;
        if (result == 1)
            tvmm_nbd_append(link, slot);
        else
            tvmm_nbd_finish(link, slot, result);
        slot = next;
    }
}

/* --- links -------------------------------------------------------------------------------------------------------- */

/* A connection, the one with the least to do; if there is none, a link that waits for one; if there is none, any. */
static struct tvmm_nbd_link *nbd_choose(const struct blk_nbd *nbd)
{
    static const uint8_t ranks[] = {[TVMM_NBD_LOST] = 1, [TVMM_NBD_UP] = 2, [TVMM_NBD_FAILING] = 0};
    struct tvmm_nbd_link *best = nbd->links[0];
    for (uint32_t index = 1; index < nbd->link_count; index++) {
        struct tvmm_nbd_link *link = nbd->links[index];
        uint8_t rank = ranks[link->state], best_rank = ranks[best->state];
        if (rank > best_rank || (rank == best_rank && link->outstanding < best->outstanding))
            best = link;
    }
    return best;
}

/* What waits at links without a connection, and no server has seen, need not wait for theirs. The others must: the
 * server of the old connection may still be at them, and what the driver does next is not to be overtaken. */
static void nbd_take_over(const struct blk_nbd *nbd, struct tvmm_nbd_link *link)
{
    for (uint32_t index = 0; index < nbd->link_count; index++) {
        struct tvmm_nbd_link *other = nbd->links[index];
        struct tvmm_nbd_slot *slot = other->state == TVMM_NBD_LOST ? other->first : NULL;
        while (slot) {
            struct tvmm_nbd_slot *next = slot->next;
            if (!slot->sent_before) {
                tvmm_nbd_remove(other, slot);
                int result = tvmm_nbd_encode(link, slot);
                if (result == 1)
                    tvmm_nbd_append(link, slot);
                else
                    tvmm_nbd_finish(link, slot, result);
            }
            slot = next;
        }
    }
}

static int blk_nbd_start(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    struct blk_nbd *nbd = blk->engine_state;
    request->result = tvmm_blk_may_start(blk, &request->step);
    if (request->result)
        return 0;
    struct tvmm_nbd_link *link = nbd_choose(nbd);
    if (link->state == TVMM_NBD_FAILING) {
        request->result = -link->failing;
        return 0;
    }
    /* There is one: a request has one step at a time, and a queue no more requests than `depth`. */
    struct tvmm_nbd_slot *slot = nbd->free;
    slot->request = request;
    slot->sent_before = 0;
    if (link->state == TVMM_NBD_UP) {
        int result = tvmm_nbd_encode(link, slot);
        if (result != 1) {
            slot->request = NULL;
            request->result = result;
            return 0;
        }
    }
    nbd->free = slot->next;
    tvmm_nbd_append(link, slot);
    return 1;
}

static int blk_nbd_submit(struct tvmm_blk *blk)
{
    struct blk_nbd *nbd = blk->engine_state;
    for (uint32_t index = 0; index < nbd->link_count; index++) {
        struct tvmm_nbd_link *link = nbd->links[index];
        if (link->unsent && !link->blocked) {
            link->fresh = link->unsent == link->first;
            tvmm_nbd_send(link);
        }
    }
    return 0;
}

static int blk_nbd_reap(struct tvmm_blk *blk)
{
    struct blk_nbd *nbd = blk->engine_state;
    uint64_t completed = 0;
    for (uint32_t index = 0; index < nbd->link_count; index++) {
        struct tvmm_nbd_link *link = nbd->links[index];
        uint64_t before = link->completed;
        if (__atomic_load_n(&link->orders, __ATOMIC_RELAXED)) {
            tvmm_nbd_take_orders(link);
            if (link->state == TVMM_NBD_UP)
                nbd_take_over(nbd, link);
        }
        if (link->state == TVMM_NBD_UP && (blk->news || (link->outstanding && !link->fresh)))
            tvmm_nbd_receive(link);
        link->fresh = 0;
        if (link->blocked)
            tvmm_nbd_send(link);
        completed += link->completed - before;
    }
    blk->news = 0;
    return completed != 0;
}

static uint32_t blk_nbd_waits(struct tvmm_blk *blk, struct pollfd *waits)
{
    struct blk_nbd *nbd = blk->engine_state;
    uint32_t count = 0;
    for (uint32_t index = 0; index < nbd->link_count; index++) {
        const struct tvmm_nbd_link *link = nbd->links[index];
        if (link->state == TVMM_NBD_UP)
            waits[count++] = (struct pollfd){link->fd, (short)(POLLIN | (link->blocked ? POLLOUT : 0)), 0};
    }
    return count;
}

static void blk_nbd_give_up(struct tvmm_blk *blk, int late)
{
    struct blk_nbd *nbd = blk->engine_state;
    for (uint32_t index = 0; index < nbd->link_count; index++) {
        struct tvmm_nbd_link *link = nbd->links[index];
        if (link->outstanding && late)
            tvmm_nbd_drop(link, "the server does not answer");
        while (link->state != TVMM_NBD_UP && link->first) {
            struct tvmm_nbd_slot *slot = link->first;
            struct tvmm_blk_request *request = slot->request;
            tvmm_nbd_remove(link, slot);
            nbd_release(nbd, slot);
            if (blk->abandoning)
                tvmm_blk_returned(blk, request, -ECANCELED);
            else
                tvmm_blk_put_back(blk, request);
        }
    }
}

const struct tvmm_blk_engine tvmm_blk_nbd_engine = {
    blk_nbd_open,   blk_nbd_close, blk_nbd_start,   blk_nbd_submit,
    blk_nbd_reap,   blk_nbd_waits, blk_nbd_give_up,
};
