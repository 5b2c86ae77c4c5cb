/* Giving pages of guest RAM back to the host while the guest runs: it reads zeros there from then on.
 *
 * Nobody else needs to be told: KVM lets go of the pages when the kernel takes them out of the mapping, and a vCPU that
 * touches one again faults a new one in. Whoever copies RAM meanwhile is told by a mark in the devices' log, afterwards. */
#ifndef TVMM_DISCARD_H
#define TVMM_DISCARD_H

#include <stdint.h>

struct tvmm_run {
    uint64_t first, count; /* pages of a block */
};

int tvmm_discard(uint8_t *base, uint64_t pages, const struct tvmm_run *runs, uint32_t count, int shared);
int tvmm_populate(uint8_t *base, uint64_t pages, const struct tvmm_run *runs, uint32_t count);

#endif
