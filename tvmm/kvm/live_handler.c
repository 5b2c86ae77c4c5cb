/* See live.h: protection, and the thread that answers the writes that trap. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "live.h"
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13) /* Linux 6.4 */
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12) /* Linux 5.19 */
#endif
#define LIVE_HANDLER_NICE (-10)
#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_FRAME ((1ull << 55) - 1) /* zero for who may not see it */

/* Protect pages, or let them be written and wake who waits for that. */
int tvmm_live_protect(struct tvmm_live *live, uint32_t index, uint64_t first, uint64_t count, int on)
{
    const struct tvmm_live_block *block = &live->blocks[index];
    if (live->uffd < 0 || !block->registered)
        return 0;
    return tvmm_uffd_protect(live->uffd, block->base + first * TVMM_PAGE, count * TVMM_PAGE,
                             on ? UFFDIO_WRITEPROTECT_MODE_WP : 0);
}

/* What pagemap says of a page that is protected and not there: found out with one of our own. */
static void live_find_marker(struct tvmm_live *live)
{
    uint64_t entry = 0, calls;
    uint8_t *page = mmap(NULL, TVMM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return;
    off_t at = (off_t)((uintptr_t)page / TVMM_PAGE * sizeof entry);
    if (!tvmm_uffd_register(live->uffd, page, TVMM_PAGE, UFFDIO_REGISTER_MODE_WP, &calls) &&
        !tvmm_uffd_protect(live->uffd, page, TVMM_PAGE, UFFDIO_WRITEPROTECT_MODE_WP) &&
        pread(live->pagemap_fd, &entry, sizeof entry, at) == sizeof entry && !(entry & PAGEMAP_PRESENT) &&
        (entry & PAGEMAP_FRAME))
        live->marker = entry;
    munmap(page, TVMM_PAGE);
}

static void *live_handle(void *argument);

static int live_register(struct tvmm_live *live)
{
    for (uint32_t index = 0; index < live->count; index++) {
        struct tvmm_live_block *block = &live->blocks[index];
        uint64_t calls = 0;
        int error = tvmm_uffd_register(live->uffd, block->base, block->pages * TVMM_PAGE, UFFDIO_REGISTER_MODE_WP,
                                       &calls);
        if (error)
            return error;
        block->registered = 1;
        if (!(calls & (uint64_t)1 << _UFFDIO_WRITEPROTECT))
            return -EOPNOTSUPP;
    }
    return 0;
}

/* Register all blocks and start the handler; nothing is protected yet. 0 or -errno: EPERM without the right to handle
 * faults in the kernel, EINVAL when a block is memory of a kind that the kernel does not protect. */
int tvmm_live_open(struct tvmm_live *live)
{
    sigset_t all, before;
    uint64_t wanted = UFFD_FEATURE_PAGEFAULT_FLAG_WP;
    int error;
    for (uint32_t index = 0; index < live->count; index++)
        if (live->blocks[index].fd >= 0)
            wanted |= UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    live->uffd = tvmm_uffd_open(wanted | UFFD_FEATURE_WP_UNPOPULATED);
    if (live->uffd == -EOPNOTSUPP) {
        live->populate = 1;
        live->uffd = tvmm_uffd_open(wanted);
    }
    if (live->uffd < 0)
        return live->uffd;
    live->stop_fd = eventfd(0, EFD_CLOEXEC);
    live->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (live->stop_fd < 0)
        return -errno;
    if (live->pagemap_fd >= 0 && !live->populate)
        live_find_marker(live);
    error = live_register(live);
    if (error)
        return error;
    /* Signals are for the threads that they are sent to. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = -pthread_create(&live->handler, NULL, live_handle, live);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    live->handling = !error;
    return error;
}

static int live_find(const struct tvmm_live *live, uint64_t address, uint32_t *block, uint64_t *page)
{
    for (uint32_t index = 0; index < live->count; index++) {
        uint64_t offset = address - (uintptr_t)live->blocks[index].base;
        if (offset / TVMM_PAGE < live->blocks[index].pages) {
            *block = index;
            *page = offset / TVMM_PAGE;
            return 1;
        }
    }
    return 0;
}

static void live_answer(struct tvmm_live *live, uint64_t address)
{
    uint32_t block, count;
    uint64_t page, first, began = tvmm_now_ns(), took;
    if (!live_find(live, address, &block, &page))
        return;
    pthread_mutex_lock(&live->lock);
    /* Lifted under the lock, so that no page is protected again between being noted and being lifted. */
    if (tvmm_live_fault(live, block, page, &first, &count) == TVMM_LIVE_LIFT) {
        int error = tvmm_live_protect(live, block, first, count, 0);
        if (error && !live->failure)
            live->failure = error;
    }
    took = tvmm_now_ns() - began;
    if (took > live->counters.handled_ns_max)
        live->counters.handled_ns_max = took;
    pthread_mutex_unlock(&live->lock);
}

static void *live_handle(void *argument)
{
    struct tvmm_live *live = argument;
    struct pollfd wait[2] = {{.fd = live->uffd, .events = POLLIN}, {.fd = live->stop_fd, .events = POLLIN}};
    struct tvmm_uffd_fault faults[TVMM_UFFD_READ_MAX];
    /* A guest waits for each answer. Not allowed to everybody. */
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), LIVE_HANDLER_NICE);
    for (;;) {
        int have;
        if (poll(wait, 2, -1) < 0 && errno != EINTR)
            break;
        if (wait[1].revents)
            break;
        have = tvmm_uffd_read(live->uffd, faults, TVMM_UFFD_READ_MAX);
        for (int index = 0; index < have; index++)
            live_answer(live, faults[index].address);
    }
    return NULL;
}
