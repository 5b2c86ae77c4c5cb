/* See remap.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "remap.h"

#include <errno.h>
#include <sys/mman.h>

/* The file's bytes from `offset` on; what is written stays in this process unless `shared`. 0 or -errno: then what was there
 * is there still. */
int tvmm_map_file(uint8_t *at, uint64_t length, int fd, uint64_t offset, int shared)
{
    int flags = MAP_FIXED | (shared ? MAP_SHARED : MAP_PRIVATE | MAP_NORESERVE);
    return mmap(at, length, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset) == MAP_FAILED ? -errno : 0;
}

/* Zeros that take no memory before they are written. 0 or -errno. */
int tvmm_map_anonymous(uint8_t *at, uint64_t length)
{
    if (mmap(at, length, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
        return -errno;
    /* As a block has it from the start; advice and no more. */
    madvise(at, length, MADV_HUGEPAGE);
    return 0;
}
