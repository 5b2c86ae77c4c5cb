/* How much of a mapping the host holds pages for. */
#ifndef TVMM_RESIDENT_H
#define TVMM_RESIDENT_H

#include <stdint.h>

uint64_t tvmm_resident(uint8_t *start, uint64_t length);

#endif
