/* What it costs to time a request of a disk, by itself: nanoseconds for batches of 1 to 64 requests, each batch with its
 * look at the clock. Built and run by bench/metrics_cost.py, with tvmm/kvm in the include path. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "blk.h"

#include <stdio.h>
#include <time.h>

#define ROUNDS 100000u
#define TRIES 15u

int tvmm_timing = 1;

uint64_t tvmm_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The best of some tries: what others do on this host only adds. */
static double per_request(uint32_t batch)
{
    static struct tvmm_blk_latency latency;
    uint64_t best = UINT64_MAX;

    for (uint32_t attempt = 0; attempt < TRIES; attempt++) {
        uint64_t began = tvmm_now_ns();
        for (uint32_t round = 0; round < ROUNDS; round++) {
            tvmm_blk_latency_begin(&latency);
            for (uint32_t request = 0; request < batch; request++)
                tvmm_blk_latency_end(&latency, latency.batch_ns, request & 1);
            tvmm_blk_latency_show(&latency);
        }
        uint64_t took = tvmm_now_ns() - began;
        if (took < best)
            best = took;
    }
    return (double)best / ROUNDS / batch;
}

int main(void)
{
    for (uint32_t batch = 1; batch <= TVMM_BLK_USED_MAX; batch *= 2)
        printf("%u %.1f\n", batch, per_request(batch));
    return 0;
}
