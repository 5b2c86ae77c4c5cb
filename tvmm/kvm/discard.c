/* See discard.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "discard.h"
#include "pages.h"
#include "remap.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* Runs of a file's private copy that are shorter are zeroed and not unmapped: each piece of a mapping costs the kernel memory,
 * and a process has some 65,000 at most. */
#define UNMAP_PAGES 64u

static int advise(uint8_t *base, uint64_t pages, const struct tvmm_run *runs, uint32_t count, int advice)
{
    for (uint32_t index = 0; index < count; index++) {
        const struct tvmm_run *run = &runs[index];
        if (run->first > pages || run->count > pages - run->first)
            return -EINVAL;
        while (madvise(base + run->first * TVMM_PAGE, run->count * TVMM_PAGE, advice) < 0)
            if (errno != EINTR)
                return -errno;
    }
    return 0;
}

static int forget_file(uint8_t *base, uint64_t pages, const struct tvmm_run *runs, uint32_t count)
{
    for (uint32_t index = 0; index < count; index++) {
        const struct tvmm_run *run = &runs[index];
        if (run->first > pages || run->count > pages - run->first)
            return -EINVAL;
        uint8_t *at = base + run->first * TVMM_PAGE;
        uint64_t length = run->count * TVMM_PAGE;
        if (run->count < UNMAP_PAGES || tvmm_map_anonymous(at, length))
            memset(at, 0, length);
    }
    return 0;
}

/* Give the pages of these runs back. 0 or -errno: then some of them may be there still, with what was in them. */
int tvmm_discard(uint8_t *base, uint64_t pages, const struct tvmm_run *runs, uint32_t count, int backing)
{
    if (backing == TVMM_BACKED_FILE)
        return forget_file(base, pages, runs, count);
    return advise(base, pages, runs, count, backing == TVMM_BACKED_SHARED ? MADV_REMOVE : MADV_DONTNEED);
}

/* Have the host allocate them now. 0 or -errno. */
int tvmm_populate(uint8_t *base, uint64_t pages, const struct tvmm_run *runs, uint32_t count)
{
    return advise(base, pages, runs, count, MADV_POPULATE_WRITE);
}
