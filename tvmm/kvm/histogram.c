/* See histogram.h. */
#include "histogram.h"

int tvmm_timing = 1;

/* For tests, which have the same in Python. */
void tvmm_histogram_count(struct tvmm_histogram *histogram, uint64_t ns) { tvmm_histogram_add(histogram, ns); }
