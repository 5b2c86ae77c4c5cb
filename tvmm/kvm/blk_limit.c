/* A disk's queue within the limits of its disk: see limit.h and blk.h.
 *
 * A request is charged once, whole, before its first step. While a limit for both directions is exceeded nothing is taken
 * off the ring. A limit of one direction is not to hold the other one up, so requests that have to wait for it alone are
 * set aside, `parked`, one list for each direction; they are as many as the ring has entries at most.
 */
#include "blk.h"

static uint32_t blk_direction(const struct tvmm_blk_request *request)
{
    return request->operation == TVMM_BLK_READ ? TVMM_LIMIT_IN : TVMM_LIMIT_OUT;
}

/* Zeroes are data, since they may have to be written; what is discarded is none. */
static uint64_t blk_bytes(const struct tvmm_blk_request *request)
{
    uint64_t bytes = request->length;
    if (request->operation == TVMM_BLK_ZEROES)
        for (uint32_t index = request->range_first; index < request->range_count; index++)
            bytes += request->ranges[index].length;
    return bytes;
}

static void blk_charge(struct tvmm_limit *limit, struct tvmm_blk_request *request, uint64_t now_ns)
{
    tvmm_limit_charge(limit, blk_direction(request), 1, blk_bytes(request), now_ns);
}

static void blk_park(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    uint32_t list = blk_direction(request) - TVMM_LIMIT_IN;
    request->next = NULL;
    request->limited = TVMM_BLK_PARKED;
    if (blk->parked[list])
        blk->parked_last[list]->next = request;
    else
        blk->parked[list] = request;
    blk->parked_last[list] = request;
    blk->parked_count++;
}

static struct tvmm_blk_request *blk_unpark(struct tvmm_blk *blk, uint32_t list)
{
    struct tvmm_blk_request *request = blk->parked[list];
    blk->parked[list] = request->next;
    blk->parked_count--;
    return request;
}

/* Whether the request may begin; 0: it is set aside until it may. */
int tvmm_blk_admit(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    struct tvmm_limit *limit = tvmm_limit_of(&blk->limit);
    uint32_t direction = blk_direction(request);

    if (!limit || request->limited == TVMM_BLK_CHARGED || request->operation == TVMM_BLK_GET_ID)
        return 1;
    uint64_t now = tvmm_now_ns();
    if (blk->parked[direction - TVMM_LIMIT_IN]
        || tvmm_limit_ask_both(limit, &blk->limit_member, direction, now)) {
        blk_park(blk, request);
        return 0;
    }
    blk_charge(limit, request, now);
    request->limited = TVMM_BLK_CHARGED;
    return 1;
}

/* Whether nothing may be taken off the ring, whatever it is. */
int tvmm_blk_closed(struct tvmm_blk *blk)
{
    struct tvmm_limit *limit = tvmm_limit_of(&blk->limit);
    return limit && tvmm_limit_ask(limit, &blk->limit_member, TVMM_LIMIT_TOTAL, tvmm_now_ns()) != 0;
}

/* One of those set aside that may begin now, or NULL. */
struct tvmm_blk_request *tvmm_blk_next_parked(struct tvmm_blk *blk)
{
    struct tvmm_limit *limit = tvmm_limit_of(&blk->limit);
    uint64_t now = tvmm_now_ns();
    for (uint32_t list = 0; list < 2; list++) {
        if (!blk->parked[list])
            continue;
        if (limit && tvmm_limit_ask_both(limit, &blk->limit_member, TVMM_LIMIT_IN + list, now))
            continue;
        struct tvmm_blk_request *request = blk_unpark(blk, list);
        if (limit) {
            blk_charge(limit, request, now);
            request->limited = TVMM_BLK_CHARGED;
        }
        return request;
    }
    return NULL;
}

/* One of those set aside, whether it may begin or not, or NULL. */
struct tvmm_blk_request *tvmm_blk_any_parked(struct tvmm_blk *blk)
{
    for (uint32_t list = 0; list < 2; list++)
        if (blk->parked[list])
            return blk_unpark(blk, list);
    return NULL;
}

/* For how many ns at most nothing may begin that is there; 0: something may. -1: nothing that is there waits. */
int64_t tvmm_blk_limit_wait(struct tvmm_blk *blk, uint64_t now_ns)
{
    struct tvmm_limit *limit = tvmm_limit_of(&blk->limit);
    int64_t least = -1;

    if (!limit)
        return blk->parked_count || blk->position < blk->batch.count ? 0 : -1;
    if (blk->position < blk->batch.count)
        least = tvmm_limit_ask(limit, &blk->limit_member, TVMM_LIMIT_TOTAL, now_ns);
    for (uint32_t list = 0; list < 2 && least; list++) {
        if (!blk->parked[list])
            continue;
        int64_t wait = tvmm_limit_ask_both(limit, &blk->limit_member, TVMM_LIMIT_IN + list, now_ns);
        if (least < 0 || wait < least)
            least = wait;
    }
    return least;
}

/* By any thread, which wakes the server afterwards. `limit` is the same each time, and outlives the queue. */
void tvmm_blk_set_limit(struct tvmm_blk *blk, struct tvmm_limit *limit, uint32_t on)
{
    blk->limiter = limit;
    __atomic_store_n(&blk->limit, on ? limit : NULL, __ATOMIC_RELEASE);
}

/* The queue is not served for now: nobody is to wait for it. */
void tvmm_blk_limit_leave(struct tvmm_blk *blk)
{
    if (blk->limiter)
        tvmm_limit_forget(blk->limiter, &blk->limit_member);
}
