/* Token buckets: see limit.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "limit.h"

#include <stdlib.h>
#include <time.h>

#define LIMIT_BILLION 1000000000u

struct tvmm_limit *tvmm_limit_new(void)
{
    struct tvmm_limit *limit = calloc(1, sizeof *limit);
    if (limit)
        pthread_mutex_init(&limit->lock, NULL);
    return limit;
}

/* Nobody asks any more. */
void tvmm_limit_free(struct tvmm_limit *limit)
{
    if (!limit)
        return;
    pthread_mutex_destroy(&limit->lock);
    free(limit);
}

/* --- buckets ------------------------------------------------------------------------------------------------------ */

/* Threads look at the clock before they have the lock: `now_ns` may be older than what another one came with. */
static void bucket_fill(struct tvmm_bucket *bucket, uint64_t now_ns)
{
    if (now_ns <= bucket->at_ns)
        return;
    bucket->level += (__int128)bucket->rate * (now_ns - bucket->at_ns);
    if (bucket->level > bucket->size)
        bucket->level = bucket->size;
    bucket->at_ns = now_ns;
}

/* Full, unless it is a bucket of these numbers already. */
static void bucket_set(struct tvmm_bucket *bucket, uint64_t rate, __int128 size, uint64_t now_ns)
{
    if (bucket->rate != rate || bucket->size != size)
        *bucket = (struct tvmm_bucket){rate, now_ns, size, size};
}

/* How long until the debt is paid; 0: there is none. */
static int64_t bucket_wait(struct tvmm_bucket *bucket, uint64_t now_ns)
{
    if (!bucket->rate)
        return 0;
    bucket_fill(bucket, now_ns);
    if (bucket->level >= 0)
        return 0;
    __int128 wait = (-bucket->level + bucket->rate - 1) / bucket->rate;
    return wait < TVMM_LIMIT_WAIT_NS ? (int64_t)wait : TVMM_LIMIT_WAIT_NS;
}

static void bucket_charge(struct tvmm_bucket *bucket, __int128 billionths, uint64_t now_ns)
{
    if (!bucket->rate)
        return;
    bucket_fill(bucket, now_ns);
    bucket->level -= billionths;
}

static struct tvmm_bucket *lane_buckets(struct tvmm_limit *limit, uint32_t lane)
{
    return limit->buckets + 2 * TVMM_LIMIT_UNITS * lane;
}

static int64_t lane_wait(struct tvmm_limit *limit, uint32_t lane, uint64_t now_ns)
{
    struct tvmm_bucket *buckets = lane_buckets(limit, lane);
    int64_t longest = 0;
    for (uint32_t index = 0; index < 2 * TVMM_LIMIT_UNITS; index++) {
        int64_t wait = bucket_wait(&buckets[index], now_ns);
        longest = wait > longest ? wait : longest;
    }
    return longest;
}

/* --- lines -------------------------------------------------------------------------------------------------------- */

static void lane_queue(struct tvmm_limit *limit, uint32_t lane, struct tvmm_limit_member *member)
{
    struct tvmm_limit_lane *line = &limit->lanes[lane];
    if (member->queued[lane])
        return;
    limit->waits[lane]++;
    member->queued[lane] = 1;
    member->next[lane] = NULL;
    if (line->first)
        line->last->next[lane] = member;
    else
        line->first = member;
    line->last = member;
}

static void lane_leave(struct tvmm_limit *limit, uint32_t lane, struct tvmm_limit_member *member)
{
    struct tvmm_limit_lane *line = &limit->lanes[lane];
    struct tvmm_limit_member **at = &line->first, *before = NULL;
    if (!member->queued[lane])
        return;
    while (*at != member) {
        before = *at;
        at = &before->next[lane];
    }
    *at = member->next[lane];
    if (line->last == member)
        line->last = before;
    member->queued[lane] = 0;
}

/* How long to let others go first, in a lane that has no debt; 0: it is this member's turn. */
static int64_t lane_turn(struct tvmm_limit *limit, uint32_t lane, struct tvmm_limit_member *member, uint64_t now_ns)
{
    struct tvmm_limit_lane *line = &limit->lanes[lane];
    if (line->owner && now_ns >= line->turn_ends_ns)
        line->owner = NULL;
    if (line->owner == member)
        return 0;
    if (line->owner && line->owner->queued[lane]) {
        uint64_t left = line->turn_ends_ns - now_ns;
        return left < TVMM_LIMIT_GRACE_NS ? (int64_t)left : TVMM_LIMIT_GRACE_NS;
    }
    while (line->first && line->first != member) {
        if (!line->yielded_ns)
            line->yielded_ns = now_ns;
        uint64_t waited = now_ns > line->yielded_ns ? now_ns - line->yielded_ns : 0;
        if (waited < TVMM_LIMIT_GRACE_NS)
            return (int64_t)(TVMM_LIMIT_GRACE_NS - waited);
        lane_leave(limit, lane, line->first);
        line->yielded_ns = 0;
    }
    return 0;
}

/* --- for servers -------------------------------------------------------------------------------------------------- */

/* Whether this lane lets work begin: 0, or for how many ns at most it does not. */
int64_t tvmm_limit_ask(struct tvmm_limit *limit, struct tvmm_limit_member *member, uint32_t lane, uint64_t now_ns)
{
    struct tvmm_limit_lane *line = &limit->lanes[lane];
    int64_t wait = 0;

    pthread_mutex_lock(&limit->lock);
    if (line->limited) {
        wait = lane_wait(limit, lane, now_ns);
        if (!wait)
            wait = lane_turn(limit, lane, member, now_ns);
        if (wait) {
            lane_queue(limit, lane, member);
        } else {
            lane_leave(limit, lane, member);
            line->yielded_ns = 0;
            if (line->owner != member)
                line->turn_ends_ns = now_ns + TVMM_LIMIT_TURN_NS;
            line->owner = member;
        }
    }
    pthread_mutex_unlock(&limit->lock);
    return wait;
}

/* The same of all that work in one direction concerns. */
int64_t tvmm_limit_ask_both(struct tvmm_limit *limit, struct tvmm_limit_member *member, uint32_t direction,
                            uint64_t now_ns)
{
    int64_t wait = tvmm_limit_ask(limit, member, TVMM_LIMIT_TOTAL, now_ns);
    return wait ? wait : tvmm_limit_ask(limit, member, direction, now_ns);
}

/* Work has begun. With a size for operations a larger one counts as a part more. */
void tvmm_limit_charge(struct tvmm_limit *limit, uint32_t direction, uint64_t operations, uint64_t bytes,
                       uint64_t now_ns)
{
    pthread_mutex_lock(&limit->lock);
    __int128 costs[TVMM_LIMIT_UNITS] = {(__int128)bytes * LIMIT_BILLION, (__int128)operations * LIMIT_BILLION};
    uint32_t lanes[2] = {TVMM_LIMIT_TOTAL, direction};
    if (limit->operation_size && bytes > limit->operation_size)
        costs[TVMM_LIMIT_OPERATIONS] = costs[TVMM_LIMIT_BYTES] / limit->operation_size;
    for (uint32_t index = 0; index < 2; index++) {
        struct tvmm_bucket *buckets = lane_buckets(limit, lanes[index]);
        for (uint32_t bucket = 0; bucket < 2 * TVMM_LIMIT_UNITS; bucket++)
            bucket_charge(&buckets[bucket], costs[bucket / 2], now_ns);
    }
    pthread_mutex_unlock(&limit->lock);
}

/* The member wants nothing for now, and nobody is to wait for it. */
void tvmm_limit_forget(struct tvmm_limit *limit, struct tvmm_limit_member *member)
{
    pthread_mutex_lock(&limit->lock);
    for (uint32_t lane = 0; lane < TVMM_LIMIT_LANES; lane++) {
        lane_leave(limit, lane, member);
        if (limit->lanes[lane].owner == member)
            limit->lanes[lane].owner = NULL;
    }
    pthread_mutex_unlock(&limit->lock);
}

/* --- for the owner ------------------------------------------------------------------------------------------------ */

/* TVMM_LIMIT_RATES of them, checked; from now on. What is changed begins with a full bucket, and everybody asks anew. */
void tvmm_limit_set(struct tvmm_limit *limit, const struct tvmm_limit_rate *rates, uint64_t operation_size,
                    uint64_t now_ns)
{
    pthread_mutex_lock(&limit->lock);
    limit->operation_size = operation_size;
    for (uint32_t lane = 0; lane < TVMM_LIMIT_LANES; lane++) {
        struct tvmm_limit_lane *line = &limit->lanes[lane];
        while (line->first)
            lane_leave(limit, lane, line->first);
        *line = (struct tvmm_limit_lane){NULL};
        for (uint32_t unit = 0; unit < TVMM_LIMIT_UNITS; unit++) {
            const struct tvmm_limit_rate *given = &rates[TVMM_LIMIT_UNITS * lane + unit];
            struct tvmm_bucket *buckets = lane_buckets(limit, lane) + 2 * unit;
            int is_long = given->rate && given->burst && given->seconds > 1;
            __int128 size = given->burst ? (__int128)given->burst * given->seconds * LIMIT_BILLION
                                         : (__int128)given->rate * (LIMIT_BILLION / 10);
            bucket_set(&buckets[0], given->rate, given->rate ? size : 0, now_ns);
            bucket_set(&buckets[1], is_long ? given->burst : 0,
                       is_long ? (__int128)given->burst * (LIMIT_BILLION / 10) : 0, now_ns);
            line->limited |= given->rate != 0;
        }
    }
    __atomic_store_n(&limit->generation, limit->generation + 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&limit->lock);
}

/* What a bucket (lane by lane: bytes, bytes within a burst, operations, operations within a burst) has: whole tokens,
 * rounded down, and the rest in billionths. */
void tvmm_limit_level(struct tvmm_limit *limit, uint32_t bucket, uint64_t now_ns, int64_t *tokens,
                      uint32_t *billionths)
{
    pthread_mutex_lock(&limit->lock);
    bucket_fill(&limit->buckets[bucket], now_ns);
    __int128 level = limit->buckets[bucket].level, rest = level % LIMIT_BILLION;
    if (rest < 0)
        rest += LIMIT_BILLION;
    *tokens = (int64_t)((level - rest) / LIMIT_BILLION);
    *billionths = (uint32_t)rest;
    pthread_mutex_unlock(&limit->lock);
}

/* poll, for `wait_ns` at most; below 0 for ever. */
int tvmm_limit_poll(struct pollfd *waits, uint32_t count, int64_t wait_ns)
{
    struct timespec wait = {wait_ns / LIMIT_BILLION, wait_ns % LIMIT_BILLION};
    return wait_ns < 0 ? poll(waits, count, -1) : ppoll(waits, count, &wait, NULL);
}
