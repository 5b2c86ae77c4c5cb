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

/* What is mapped there. */
enum tvmm_backing {
    TVMM_BACKED_PRIVATE, /* anonymous memory */
    TVMM_BACKED_SHARED,  /* a file that others may have too: it loses the pages */
    TVMM_BACKED_FILE,    /* a file of which this process has a private copy: what is discarded must not come back from it */
};

int tvmm_discard(uint8_t *base, uint64_t pages, const struct tvmm_run *runs, uint32_t count, int backing);
int tvmm_populate(uint8_t *base, uint64_t pages, const struct tvmm_run *runs, uint32_t count);

#endif
