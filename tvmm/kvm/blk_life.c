/* How a block device's queue is made, started, brought to rest and let go of: see blk.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "blk.h"

#include <errno.h>
#include <stdlib.h>

/* How often somebody who waits for an engine looks whether it is too late. */
#define BLK_SETTLE_MS 500

static const struct tvmm_blk_engine *const blk_engines[] = {
    [TVMM_BLK_SYNC] = &tvmm_blk_sync_engine,
    [TVMM_BLK_THREADS] = &tvmm_blk_threads_engine,
    [TVMM_BLK_URING] = &tvmm_blk_uring_engine,
    [TVMM_BLK_NBD] = &tvmm_blk_nbd_engine,
};

/* NULL, with *error a -errno: the engine is not to be had. */
struct tvmm_blk *tvmm_blk_new(const struct tvmm_blk_setup *setup, struct tvmm_blk_file *file,
                              struct tvmm_waker *waker, int kick_fd, uint64_t spin_max_ns, int *error)
{
    struct tvmm_blk *blk = calloc(1, sizeof *blk);
    *error = -ENOMEM;
    if (!blk)
        return NULL;
    blk->setup = *setup;
    blk->file = file;
    blk->waker = waker;
    blk->queue = (struct tvmm_served){NULL, kick_fd, TVMM_CALL_NONE, 0};
    blk->spin.max_ns = blk->busy_spin.max_ns = spin_max_ns;
    blk->batch = (struct tvmm_batch){
        .chain_limit = TVMM_BLK_BATCH, .iovec_limit = TVMM_BLK_IOVECS_MAX,
        .chains = blk->chains, .used = blk->unused, .iovecs = blk->iovecs};
    blk->engine = blk_engines[setup->engine];
    *error = blk->engine->open(blk);
    if (!*error)
        return blk;
    free(blk);
    return NULL;
}

void tvmm_blk_free(struct tvmm_blk *blk)
{
    if (!blk)
        return;
    tvmm_blk_stop(blk);
    blk->engine->close(blk);
    free(blk);
}

void tvmm_blk_set_capacity(struct tvmm_blk *blk, uint64_t sectors)
{
    __atomic_store_n(&blk->limits.capacity, sectors, __ATOMIC_RELAXED);
}

void tvmm_blk_set_write_through(struct tvmm_blk *blk, uint32_t on)
{
    __atomic_store_n(&blk->write_through, on, __ATOMIC_RELAXED);
}

/* Serve `ring`, which was configured. 0, -ENOMEM, or -EINVAL for one that is larger than `depth`. */
int tvmm_blk_start(struct tvmm_blk *blk, struct tvmm_vring *ring)
{
    if (ring->size > blk->setup.depth)
        return -EINVAL;
    blk->requests = calloc(ring->size ? ring->size : 1, sizeof *blk->requests);
    if (!blk->requests)
        return -ENOMEM;
    blk->free = NULL;
    for (uint32_t index = ring->size; index--;) {
        blk->requests[index].next = blk->free;
        blk->free = &blk->requests[index];
    }
    blk->queue.ring = ring;
    /* Unless they are: a ring of a saved machine goes on without a write to the guest's memory. */
    if (ring->kicks_wanted)
        tvmm_vring_disable_kicks(ring);
    return 0;
}

/* Wait until nothing is at the engine. */
static void blk_settle(struct tvmm_blk *blk)
{
    uint64_t late = tvmm_now_ns() + TVMM_BLK_PATIENCE_NS;
    while (blk->at_engine) {
        blk->engine->submit(blk);
        if (blk->engine->reap(blk))
            continue;
        if (blk->engine->give_up)
            blk->engine->give_up(blk, tvmm_now_ns() >= late);
        struct pollfd waits[TVMM_BLK_WAITS_MAX];
        uint32_t count = blk->at_engine ? blk->engine->waits(blk, waits) : 0;
        if (count)
            poll(waits, count, BLK_SETTLE_MS);
        tvmm_blk_news(blk, waits, count);
    }
}

/* Everything that was begun is done and shown; what was taken and not begun goes back. Requests that were kept over an
 * error stay, and so do those that a limit has set aside: the ring may have given others after them. */
void tvmm_blk_drain(struct tvmm_blk *blk)
{
    struct tvmm_blk_request *parked;
    if (!blk->queue.ring)
        return;
    blk_settle(blk);
    tvmm_blk_show(blk);
    while ((parked = tvmm_blk_any_parked(blk)))
        tvmm_blk_keep(blk, parked);
    tvmm_blk_limit_leave(blk);
    tvmm_vring_unpop(blk->queue.ring, &blk->batch, blk->batch.count - blk->position);
    blk->position = blk->batch.count;
}

/* Whether there is anything to serve, or to be told. */
int tvmm_blk_active(const struct tvmm_blk *blk)
{
    return blk->queue.ring && !blk->given_up && (!blk->stopped || blk->notice.pending);
}

/* What stopped the queue has been mended: the next serve repeats what was kept. */
void tvmm_blk_resume(struct tvmm_blk *blk)
{
    /* If the owner has not heard of it yet: it is on record again if it fails again. */
    if (blk->stopped)
        blk->notice.pending = 0;
    blk->stopped = 0;
}

/* Let go of the ring. What is at the engine is waited for, and no longer than a step takes; nothing else is begun. */
void tvmm_blk_stop(struct tvmm_blk *blk)
{
    if (!blk->queue.ring)
        return;
    struct tvmm_blk_request *request;
    blk->abandoning = 1;
    blk_settle(blk);
    tvmm_blk_show(blk);
    tvmm_blk_limit_leave(blk);
    while ((request = tvmm_blk_any_parked(blk)))
        tvmm_blk_release(blk, request);
    while ((request = blk->kept)) {
        blk->kept = request->next;
        tvmm_blk_release(blk, request);
    }
    free(blk->requests);
    blk->requests = blk->free = NULL;
    blk->queue.ring = NULL;
    blk->position = blk->batch.count = 0;
    blk->abandoning = blk->broken = blk->given_up = blk->call_pending = 0;
    blk->stopped = 0;
    blk->notice.pending = 0;
}
