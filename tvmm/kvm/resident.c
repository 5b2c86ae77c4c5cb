/* See resident.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "resident.h"

#include <sys/mman.h>

#define RESIDENT_PAGE 4096u
/* Pages of one call: the kernel holds the address space's lock for reading that long. */
#define RESIDENT_CHUNK 4096u

/* Bytes of `length` at `start`, both of whole pages, that are in memory; the part up to the first address that is not
 * mapped. Anonymous pages that were only read count too, though they are all the kernel's one page of zeros. */
uint64_t tvmm_resident(uint8_t *start, uint64_t length)
{
    unsigned char present[RESIDENT_CHUNK];
    uint64_t pages = 0;

    for (uint64_t done = 0; done < length; done += (uint64_t)RESIDENT_CHUNK * RESIDENT_PAGE) {
        uint64_t left = (length - done) / RESIDENT_PAGE, count = left < RESIDENT_CHUNK ? left : RESIDENT_CHUNK;
        if (mincore(start + done, count * RESIDENT_PAGE, present) < 0)
            break;
        for (uint64_t page = 0; page < count; page++)
            pages += present[page] & 1;
    }
    return pages * RESIDENT_PAGE;
}
