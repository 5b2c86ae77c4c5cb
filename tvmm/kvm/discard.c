/* See discard.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "discard.h"
#include "pages.h"

#include <errno.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

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

/* Give the pages of these runs back; `shared` if the mapping is, and so the file behind it has to lose them. 0 or -errno:
 * then some of them may be there still, with what was in them. */
int tvmm_discard(uint8_t *base, uint64_t pages, const struct tvmm_run *runs, uint32_t count, int shared)
{
    return advise(base, pages, runs, count, shared ? MADV_REMOVE : MADV_DONTNEED);
}

/* Have the host allocate them now. 0 or -errno. */
int tvmm_populate(uint8_t *base, uint64_t pages, const struct tvmm_run *runs, uint32_t count)
{
    return advise(base, pages, runs, count, MADV_POPULATE_WRITE);
}
