/* The loop of a block device's queue: see blk.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "blk.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

/* The owner hears of errors that stop nothing no more often than that: a guest can make as many as it likes. */
#define BLK_NOTICE_NS 1000000000u
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

/* --- completion --------------------------------------------------------------------------------------------------- */

/* What is done becomes visible to the driver. */
static void blk_show(struct tvmm_blk *blk)
{
    if (!blk->used_count)
        return;
    tvmm_blk_latency_show(&blk->latency);
    if (tvmm_vring_push(blk->queue.ring, blk->used, blk->used_count) < 0)
        blk->broken = TVMM_BLK_BROKEN_USED;
    blk->used_count = 0;
    blk->used_bytes = 0;
    if (tvmm_served_call(&blk->queue))
        blk->call_pending = 1;
}

static void blk_release(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    tvmm_blk_forget(request);
    request->next = blk->free;
    blk->free = request;
}

static void blk_complete(struct tvmm_blk *blk, struct tvmm_blk_request *request, enum tvmm_blk_status code,
                         uint32_t length)
{
    *request->status = (uint8_t)code;
    tvmm_mark(tvmm_ring_log(blk->queue.ring), request->status, 1);
    blk->used[blk->used_count++] = (struct tvmm_used){request->id, length};
    blk->used_bytes += request->length;
    blk_release(blk, request);
    if (blk->used_count == TVMM_BLK_USED_MAX || blk->used_bytes >= TVMM_BLK_USED_BYTES)
        blk_show(blk);
}

/* --- errors ------------------------------------------------------------------------------------------------------- */

static enum tvmm_blk_policy blk_action(const struct tvmm_blk *blk, const struct tvmm_blk_request *request, int error)
{
    uint32_t policy = request->operation == TVMM_BLK_READ ? blk->setup.read_policy : blk->setup.write_policy;
    if (request->hopeless && policy != TVMM_BLK_IGNORE)
        return TVMM_BLK_REPORT;
    if (policy != TVMM_BLK_ENOSPC)
        return policy;
    return error == ENOSPC || error == EDQUOT ? TVMM_BLK_STOP : TVMM_BLK_REPORT;
}

static void blk_note(struct tvmm_blk *blk, uint32_t operation, int error, enum tvmm_blk_policy action)
{
    struct tvmm_blk_notice *notice = &blk->notice;
    uint64_t now = tvmm_now_ns();
    if (notice->pending && notice->action == TVMM_BLK_STOP)
        return;
    if (action != TVMM_BLK_STOP && notice->at_ns && now - notice->at_ns < BLK_NOTICE_NS)
        return;
    *notice = (struct tvmm_blk_notice){1, operation, action, error, now};
}

/* Until the owner has mended what is wrong; in the order of the ring, so that they are repeated in it. */
static void blk_keep(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    struct tvmm_blk_request **at = &blk->kept;
    while (*at && (*at)->number < request->number)
        at = &(*at)->next;
    request->next = *at;
    *at = request;
}

static void blk_finish(struct tvmm_blk *blk, struct tvmm_blk_request *request, int error)
{
    uint32_t operation = request->operation;
    if (error && !blk->abandoning) {
        enum tvmm_blk_policy action = blk_action(blk, request, error);
        blk->counters.errors[operation]++;
        blk_note(blk, operation, error, action);
        if (action == TVMM_BLK_STOP) {
            blk->counters.stops += !blk->stopped;
            blk->stopped = error;
            blk_keep(blk, request);
            return;
        }
        if (action == TVMM_BLK_IGNORE) {
            blk->counters.ignored++;
            error = 0;
        }
    }
    blk->counters.requests[operation] += !error;
    if (!blk->abandoning)
        tvmm_blk_latency_end(&blk->latency, request->since_ns, operation);
    blk_complete(blk, request, error ? TVMM_BLK_IO_ERROR : TVMM_BLK_OK, tvmm_blk_used_length(request, !error));
}

/* --- steps -------------------------------------------------------------------------------------------------------- */

/* As far as it goes without waiting. */
static void blk_advance(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    while (tvmm_blk_next_step(blk, request)) {
        if (blk->abandoning) {
            blk_finish(blk, request, ECANCELED);
            return;
        }
        if (blk->setup.fault_ppm && tvmm_blk_is_fault(blk)) {
            blk_finish(blk, request, EIO);
            return;
        }
        if (blk->engine->start(blk, request)) {
            blk->at_engine++;
            return;
        }
        int error = tvmm_blk_step_done(blk, request);
        if (error) {
            blk_finish(blk, request, -error);
            return;
        }
    }
    blk_finish(blk, request, 0);
}

/* By an engine: the step's call has been made. */
void tvmm_blk_returned(struct tvmm_blk *blk, struct tvmm_blk_request *request, int64_t result)
{
    blk->at_engine--;
    request->result = result;
    int error = tvmm_blk_step_done(blk, request);
    if (error)
        blk_finish(blk, request, -error);
    else
        blk_advance(blk, request);
}

/* By an engine: the step will not come back, and was not undone. It is repeated when the queue is served next. */
void tvmm_blk_put_back(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    blk->at_engine--;
    if (request->step.call == TVMM_BLK_CALL_READ)
        tvmm_mark_iovecs(tvmm_ring_log(blk->queue.ring), request->step.iovecs, request->step.iovec_count,
                         request->step.length);
    blk_keep(blk, request);
}

/* --- taking ------------------------------------------------------------------------------------------------------- */

static void blk_answer_id(struct tvmm_blk *blk, const struct tvmm_blk_request *request)
{
    tvmm_blk_answer_id(&blk->limits, request);
    tvmm_mark_iovecs(tvmm_ring_log(blk->queue.ring), request->iovecs, request->iovec_count, request->length);
}

static void blk_take_one(struct tvmm_blk *blk, const struct tvmm_chain *chain)
{
    /* There is one: as many chains are out as the ring has entries, and a ring that gives another one is stopped. */
    struct tvmm_blk_request *request = blk->free;
    blk->free = request->next;
    enum tvmm_blk_verdict verdict = tvmm_blk_parse(&blk->limits, chain, blk->iovecs + chain->first, request);
    request->number = blk->next_number++;
    request->since_ns = blk->latency.batch_ns;
    switch (verdict) {
    case TVMM_BLK_RUN:
        if (request->operation == TVMM_BLK_GET_ID)
            blk_answer_id(blk, request);
        else if (request->operation == TVMM_BLK_WRITE || request->operation == TVMM_BLK_ZEROES)
            request->stable = __atomic_load_n(&blk->write_through, __ATOMIC_RELAXED) && !blk->setup.ignore_flush;
        blk->counters.stable += request->stable;
        if (!tvmm_limit_of(&blk->limit) || tvmm_blk_admit(blk, request))
            blk_advance(blk, request);
        return;
    case TVMM_BLK_REFUSE:
        blk->counters.refused++;
        blk_complete(blk, request, request->code, 0);
        return;
    case TVMM_BLK_NO_STATUS:
        blk->broken = TVMM_BLK_BROKEN_STATUS;
        break;
    case TVMM_BLK_NO_HEADER:
        blk->broken = TVMM_BLK_BROKEN_HEADER;
        break;
    }
    blk_release(blk, request);
}

/* The rest of the batch, or a new one; how many chains that were. */
static uint32_t blk_take(struct tvmm_blk *blk)
{
    struct tvmm_vring *ring = blk->queue.ring;
    uint32_t taken = 0;

    if (blk->broken)
        return 0;
    if (blk->position == blk->batch.count && tvmm_vring_ready(ring)) {
        blk->position = 0;
        tvmm_blk_latency_begin(&blk->latency);
        tvmm_vring_pop(ring, &blk->batch);
    }
    while (blk->position < blk->batch.count && !blk->stopped && !blk->broken && !blk->call_pending
           && !tvmm_woken(blk->waker) && !(tvmm_limit_of(&blk->limit) && tvmm_blk_closed(blk))) {
        blk_take_one(blk, &blk->chains[blk->position++]);
        taken++;
    }
    if (ring->error && blk->position == blk->batch.count && !blk->broken)
        blk->broken = TVMM_BLK_BROKEN_RING;
    return taken;
}

/* What had to wait for a limit, as far as it may go on. */
static int blk_begin_parked(struct tvmm_blk *blk)
{
    struct tvmm_blk_request *request;
    int begun = 0;
    while (!blk->stopped && !tvmm_woken(blk->waker) && (request = tvmm_blk_next_parked(blk))) {
        blk_advance(blk, request);
        begun++;
    }
    return begun;
}

/* --- sleeping ----------------------------------------------------------------------------------------------------- */

/* Whether an engine that expects nothing has something to look at. */
static void blk_news(struct tvmm_blk *blk, const struct pollfd *waits, uint32_t count)
{
    for (uint32_t index = 0; index < count; index++)
        blk->news |= waits[index].revents != 0;
}

static struct tvmm_spin *blk_spin(struct tvmm_blk *blk) { return blk->at_engine ? &blk->busy_spin : &blk->spin; }

/* Until there may be something to do. `idle_ns`: since when there is nothing, 0 if there was. */
static void blk_idle(struct tvmm_blk *blk, uint64_t *idle_ns)
{
    struct tvmm_spin *spin = blk_spin(blk);
    struct tvmm_vring *ring = blk->queue.ring;
    uint64_t now = blk->latency.now_ns = tvmm_now_ns();
    int takes = !blk->stopped && !blk->broken;
    int64_t wait_ns = takes ? tvmm_blk_limit_wait(blk, now) : -1;

    if (!wait_ns)
        return;
    if (!*idle_ns)
        *idle_ns = now;
    if (wait_ns < 0 && now - *idle_ns < spin->window_ns) {
        tvmm_relax();
        return;
    }
    /* With chains at hand that have to wait, no more are wanted. */
    takes &= blk->position == blk->batch.count;
    if (takes && !tvmm_vring_enable_kicks(ring))
        return;
    struct pollfd waits[2 + TVMM_BLK_WAITS_MAX] = {
        {.fd = blk->waker->event_fd, .events = POLLIN},
        {.fd = takes ? blk->queue.kick_fd : -1, .events = POLLIN},
    };
    spin->sleeps++;
    uint32_t count = blk->engine->waits(blk, waits + 2);
    tvmm_limit_poll(waits, 2 + count, wait_ns);
    blk_news(blk, waits + 2, count);
    if (waits[1].revents)
        tvmm_served_take_kick(&blk->queue);
    tvmm_vring_disable_kicks(ring);
    blk->latency.now_ns = tvmm_now_ns();
    if (wait_ns < 0)
        tvmm_spin_adapt(spin, blk->latency.now_ns - *idle_ns);
    *idle_ns = 0;
}

/* The disk may have shrunk since the request was checked. */
static int blk_is_outside(const struct tvmm_blk *blk, const struct tvmm_blk_request *request)
{
    uint64_t end = TVMM_BLK_SECTOR * __atomic_load_n(&blk->limits.capacity, __ATOMIC_RELAXED);
    for (uint32_t index = 0; index < request->range_count; index++)
        if (request->ranges[index].offset + request->ranges[index].length > end)
            return 1;
    return request->offset + request->length > end;
}

static void blk_repeat_kept(struct tvmm_blk *blk)
{
    struct tvmm_blk_request *request = blk->kept;
    blk->kept = NULL;
    while (request) {
        struct tvmm_blk_request *next = request->next;
        blk->counters.retried += request->limited != TVMM_BLK_PARKED;
        if (blk->stopped)
            blk_keep(blk, request);
        else if (blk_is_outside(blk, request))
            blk_complete(blk, request, TVMM_BLK_IO_ERROR, tvmm_blk_used_length(request, 0));
        else if (tvmm_blk_admit(blk, request))
            blk_advance(blk, request);
        request = next;
    }
}

/* Serve the queue, which has a ring, until Python is needed: one of enum tvmm_serve. */
uint32_t tvmm_blk_serve(struct tvmm_blk *blk)
{
    uint64_t idle_ns = 0;
    blk->latency.now_ns = 0;
    for (;;) {
        if (tvmm_woken(blk->waker))
            return TVMM_SERVE_CONTROL;
        struct tvmm_spin *spin = blk_spin(blk);
        int worked = blk->engine->reap(blk);
        if (!blk->stopped) {
            if (blk->kept)
                blk_repeat_kept(blk);
            if (blk->parked_count)
                worked += blk_begin_parked(blk);
            worked += (int)blk_take(blk);
        }
        if (worked)
            blk->latency.now_ns = 0;
        int unsubmitted = blk->engine->submit(blk);
        blk_show(blk);
        if (blk->call_pending) {
            blk->call_pending = 0;
            return TVMM_SERVE_INTERRUPT;
        }
        if (blk->broken && !blk->at_engine) {
            blk->given_up = 1;
            return TVMM_SERVE_BROKEN;
        }
        if (blk->notice.pending && (!blk->stopped || !blk->at_engine))
            return TVMM_SERVE_FAILED;
        if (!worked && !unsubmitted) {
            blk_idle(blk, &idle_ns);
        } else if (idle_ns) {
            spin->hits++;
            tvmm_spin_adapt(spin, tvmm_blk_latency_now(&blk->latency) - idle_ns);
            idle_ns = 0;
        }
    }
}

/* --- starting and stopping ---------------------------------------------------------------------------------------- */

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
        blk_news(blk, waits, count);
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
    blk_show(blk);
    while ((parked = tvmm_blk_any_parked(blk)))
        blk_keep(blk, parked);
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
    blk_show(blk);
    tvmm_blk_limit_leave(blk);
    while ((request = tvmm_blk_any_parked(blk)))
        blk_release(blk, request);
    while ((request = blk->kept)) {
        blk->kept = request->next;
        blk_release(blk, request);
    }
    free(blk->requests);
    blk->requests = blk->free = NULL;
    blk->queue.ring = NULL;
    blk->position = blk->batch.count = 0;
    blk->abandoning = blk->broken = blk->given_up = blk->call_pending = 0;
    blk->stopped = 0;
    blk->notice.pending = 0;
}
