/* How long things took, counted in buckets: what a device's server can afford to keep for each request.
 *
 * Two buckets for each power of two, from 512 ns to 34 s, so that a quantile is known to a fifth or better. A bucket holds
 * what is above the bound before it and up to its own, as Prometheus has it. One thread writes a histogram, and any thread
 * may read it at any time: a reader may find the sum of one value more than the counts.
 *
 * What costs is the clock, some 25 ns for a look. Servers look once for a batch, and use that look twice: as the end of
 * what was just done, and as the beginning of what comes next.
 */
#ifndef TVMM_HISTOGRAM_H
#define TVMM_HISTOGRAM_H

#include <stdint.h>

/* Bucket 0 ends at 2^FIRST ns, the last but one at 2^LAST ns. */
#define TVMM_HISTOGRAM_FIRST 9u
#define TVMM_HISTOGRAM_LAST 35u
#define TVMM_HISTOGRAM_BUCKETS (2u * (TVMM_HISTOGRAM_LAST - TVMM_HISTOGRAM_FIRST) + 2u)

struct tvmm_histogram {
    uint64_t sum_ns;
    uint64_t counts[TVMM_HISTOGRAM_BUCKETS];
};

/* 0: nothing is timed, in the whole process. It is there to measure what timing costs, and changed before servers run. */
extern int tvmm_timing;

static inline uint32_t tvmm_histogram_bucket(uint64_t ns)
{
    uint64_t below = ns ? ns - 1 : 0;
    if (!(below >> TVMM_HISTOGRAM_FIRST))
        return 0;
    if (below >> TVMM_HISTOGRAM_LAST)
        return TVMM_HISTOGRAM_BUCKETS - 1;
    uint32_t exponent = 63u - (uint32_t)__builtin_clzll(below);
    return 1u + 2u * (exponent - TVMM_HISTOGRAM_FIRST) + (uint32_t)(below >> (exponent - 1) & 1);
}

static inline void tvmm_histogram_add(struct tvmm_histogram *histogram, uint64_t ns)
{
    histogram->sum_ns += ns;
    histogram->counts[tvmm_histogram_bucket(ns)]++;
}

#endif
