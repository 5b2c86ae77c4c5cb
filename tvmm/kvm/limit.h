/* Limits of a device's rate: token buckets for bytes and operations, shared by all servers (threads) of one device.
 *
 * A bucket is filled with `rate` tokens a second up to its size, and is full at first. Work may begin while no bucket
 * that it concerns is in debt, and then takes what it costs, however much that is: a request that is larger than the
 * bucket passes, and whoever is next waits until the debt is paid. So the mean over any time is at most the rate plus
 * one bucket plus one piece of work for each server.
 *
 * Buckets stand in three lanes: one for both directions together, one for each. A server asks the lanes whether work may
 * begin, and charges them for it. Servers that have to wait stand in line, each lane's own: whoever has its turn keeps it
 * for TVMM_LIMIT_TURN_NS as long as it has work, then it is the next one's.
 *
 * Tokens are counted in billionths, as integers, so that nothing is ever rounded away. The time is an argument
 * everywhere (CLOCK_MONOTONIC, in ns). The twin in Python is tests/support/plain_limit.py.
 */
#ifndef TVMM_LIMIT_H
#define TVMM_LIMIT_H

#include <poll.h>
#include <pthread.h>
#include <stdint.h>

/* Lanes, and (without the first) directions: what goes into the guest is read or received. */
enum { TVMM_LIMIT_TOTAL, TVMM_LIMIT_IN, TVMM_LIMIT_OUT, TVMM_LIMIT_LANES };
enum { TVMM_LIMIT_BYTES, TVMM_LIMIT_OPERATIONS, TVMM_LIMIT_UNITS };

/* Rates as they are given: one for each unit in each lane, lane by lane. */
#define TVMM_LIMIT_RATES (TVMM_LIMIT_LANES * TVMM_LIMIT_UNITS)
/* The rate itself, and for long bursts the rate within the burst. */
#define TVMM_LIMIT_BUCKETS (2 * TVMM_LIMIT_RATES)
#define TVMM_LIMIT_TURN_NS 10000000u
/* Who does not come for its turn in that time has lost it. */
#define TVMM_LIMIT_GRACE_NS 2000000u
/* Nobody is told to wait longer at once; 1 s, and then asks again. */
#define TVMM_LIMIT_WAIT_NS 1000000000

/* Tokens a second, 0 for no limit. `burst` 0: the bucket has 100 ms of `rate`; otherwise it has `burst` times `seconds`
 * tokens, and with `seconds` above 1 no more than `burst` of them a second, give or take 100 ms. */
struct tvmm_limit_rate {
    uint64_t rate, burst;
    uint32_t seconds;
};

/* `level` and `size` in billionths of a token; a level below 0 is debt. */
struct tvmm_bucket {
    uint64_t rate, at_ns;
    __int128 size, level;
};

/* A server in the lines of its device's lanes. */
struct tvmm_limit_member {
    struct tvmm_limit_member *next[TVMM_LIMIT_LANES];
    uint8_t queued[TVMM_LIMIT_LANES];
};

struct tvmm_limit_lane {
    struct tvmm_limit_member *first, *last, *owner;
    uint64_t turn_ends_ns, yielded_ns; /* of `owner`; since when the first in line is waited for, 0 for not at all */
    uint32_t limited;
};

struct tvmm_limit {
    uint32_t generation; /* of the rates; read by any thread */
    uint64_t waits[TVMM_LIMIT_LANES]; /* how often somebody had to stand in line */
    /* the rest is not for Python */
    pthread_mutex_t lock;
    uint64_t operation_size;
    struct tvmm_limit_lane lanes[TVMM_LIMIT_LANES];
    struct tvmm_bucket buckets[TVMM_LIMIT_BUCKETS];
};

struct tvmm_limit *tvmm_limit_new(void);
void tvmm_limit_free(struct tvmm_limit *limit);
void tvmm_limit_set(struct tvmm_limit *limit, const struct tvmm_limit_rate *rates, uint64_t operation_size,
                    uint64_t now_ns);
int64_t tvmm_limit_ask(struct tvmm_limit *limit, struct tvmm_limit_member *member, uint32_t lane, uint64_t now_ns);
int64_t tvmm_limit_ask_both(struct tvmm_limit *limit, struct tvmm_limit_member *member, uint32_t direction,
                            uint64_t now_ns);
void tvmm_limit_charge(struct tvmm_limit *limit, uint32_t direction, uint64_t operations, uint64_t bytes,
                       uint64_t now_ns);
void tvmm_limit_forget(struct tvmm_limit *limit, struct tvmm_limit_member *member);
void tvmm_limit_level(struct tvmm_limit *limit, uint32_t bucket, uint64_t now_ns, int64_t *tokens,
                      uint32_t *billionths);
int tvmm_limit_poll(struct pollfd *waits, uint32_t count, int64_t wait_ns);

/* Whether anything is limited: what the servers ask all the time, and what is all that a device without limits pays. */
static inline struct tvmm_limit *tvmm_limit_of(struct tvmm_limit *const *place)
{
#ifdef TVMM_NO_LIMITS /* by bench/limits.py, to see what the question costs */
    (void)place;
    return NULL;
#else
    struct tvmm_limit *limit = __atomic_load_n(place, __ATOMIC_ACQUIRE);
    return __builtin_expect(limit != NULL, 0) ? limit : NULL;
#endif
}

#endif
