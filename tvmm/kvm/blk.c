/* The loop of a block device's queue: see blk.h. How it begins and ends is in blk_life.c. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "blk.h"

#include <errno.h>

/* The owner hears of errors that stop nothing no more often than that: a guest can make as many as it likes. */
#define BLK_NOTICE_NS 1000000000u
/* --- completion --------------------------------------------------------------------------------------------------- */

/* What is done becomes visible to the driver. */
void tvmm_blk_show(struct tvmm_blk *blk)
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

void tvmm_blk_release(struct tvmm_blk *blk, struct tvmm_blk_request *request)
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
    tvmm_blk_release(blk, request);
    if (blk->used_count == TVMM_BLK_USED_MAX || blk->used_bytes >= TVMM_BLK_USED_BYTES)
        tvmm_blk_show(blk);
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
            tvmm_blk_keep(blk, request);
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
    tvmm_blk_keep(blk, request);
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
    tvmm_blk_release(blk, request);
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
void tvmm_blk_news(struct tvmm_blk *blk, const struct pollfd *waits, uint32_t count)
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
    tvmm_blk_news(blk, waits + 2, count);
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
            tvmm_blk_keep(blk, request);
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
        tvmm_blk_show(blk);
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
