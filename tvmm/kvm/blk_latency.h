/* How long a disk's requests take, by operation: from being taken off the ring to being shown in the used ring.
 *
 * Requests that were taken together have the same beginning, and requests that are shown together the same end: that is
 * when the guest gets them. A request that was kept over an error has waited all that time. What is not in it: the time
 * from the driver's kick until the server looks, and from the interrupt until the driver does.
 */
#ifndef TVMM_BLK_LATENCY_H
#define TVMM_BLK_LATENCY_H

#include "histogram.h"
#include "serve.h"

/* `now_ns` is the clock as it was last read, 0 if too much may have happened since; `batch_ns` what it was when the batch
 * was taken. */
struct tvmm_blk_latency {
    uint64_t now_ns, batch_ns;
    uint32_t ended_count;
    struct {
        uint64_t since_ns;
        uint32_t operation;
    } ended[TVMM_BLK_USED_MAX];
    struct tvmm_histogram histograms[TVMM_BLK_OPERATIONS];
};

static inline uint64_t tvmm_blk_latency_now(struct tvmm_blk_latency *latency)
{
    if (!latency->now_ns)
        latency->now_ns = tvmm_now_ns();
    return latency->now_ns;
}

/* A batch is about to be taken. */
static inline void tvmm_blk_latency_begin(struct tvmm_blk_latency *latency)
{
    if (tvmm_timing)
        latency->batch_ns = tvmm_blk_latency_now(latency);
}

/* A request that began at `since_ns` is complete, and shown with the next ones. */
static inline void tvmm_blk_latency_end(struct tvmm_blk_latency *latency, uint64_t since_ns, uint32_t operation)
{
    /* As many as can be complete and not shown. */
    if (!tvmm_timing || latency->ended_count == TVMM_BLK_USED_MAX)
        return;
    latency->ended[latency->ended_count].since_ns = since_ns;
    latency->ended[latency->ended_count++].operation = operation;
}

/* What is complete is about to be shown. Not after that: whoever knows that a request came back finds it counted. */
static inline void tvmm_blk_latency_show(struct tvmm_blk_latency *latency)
{
    if (!tvmm_timing)
        return;
    uint64_t now = latency->now_ns = tvmm_now_ns();
    for (uint32_t index = 0; index < latency->ended_count; index++)
        tvmm_histogram_add(&latency->histograms[latency->ended[index].operation], now - latency->ended[index].since_ns);
    latency->ended_count = 0;
}

#endif
