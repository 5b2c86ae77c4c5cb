/* Which pages are where, and putting them into memory: see pager.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pager.h"
#include "uffd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define DISCARD_PIECES 1024u /* runs for one call; the kernel takes no more */

struct tvmm_pager *tvmm_pager_new(struct tvmm_ram_pages *ram, struct tvmm_bitmap *claimed, struct tvmm_bitmap *received,
                                  struct tvmm_bitmap *requested, const uint8_t *paged, int uffd, int *error)
{
    struct tvmm_pager *pager = calloc(1, sizeof *pager);
    if (!pager) {
        *error = -ENOMEM;
        return NULL;
    }
    pager->nudge_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (pager->nudge_fd < 0) {
        *error = -errno;
        free(pager);
        return NULL;
    }
    pthread_mutex_init(&pager->lock, NULL);
    pager->ram = ram;
    pager->claimed = claimed;
    pager->received = received;
    pager->requested = requested;
    pager->paged = paged;
    pager->uffd = uffd;
    pager->fd = -2; /* as no caller says it */
    return pager;
}

void tvmm_pager_free(struct tvmm_pager *pager)
{
    tvmm_intake_close(&pager->intake);
    pthread_mutex_destroy(&pager->lock);
    close(pager->nudge_fd);
    free(pager);
}

static void pager_nudge(const struct tvmm_pager *pager)
{
    uint64_t one = 1;
    if (write(pager->nudge_fd, &one, sizeof one) < 0)
        return;
}

static void pager_count(uint64_t *counter, uint64_t more) { __atomic_fetch_add(counter, more, __ATOMIC_RELAXED); }

/* --- pages that are to be absent ----------------------------------------------------------------------------------- */

/* Runs on their way into the kernel. One call for many of them saves most of what flushing of the processors' tables costs;
 * kernels before 6.13 do not let a process do that to itself. */
struct discard {
    int pidfd, advice, error;
    uint32_t count;
    struct iovec runs[DISCARD_PIECES];
};

static void discard_now(struct discard *discard)
{
    uint32_t at = 0;
    while (at < discard->count && discard->pidfd >= 0) {
        ssize_t done = syscall(SYS_process_madvise, discard->pidfd, discard->runs + at, discard->count - at,
                               discard->advice, 0);
        if (done < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (done <= 0) {
            close(discard->pidfd);
            discard->pidfd = -1;
            break;
        }
        while (at < discard->count && (size_t)done >= discard->runs[at].iov_len)
            done -= (ssize_t)discard->runs[at++].iov_len;
        if (at < discard->count) {
            discard->runs[at].iov_base = (uint8_t *)discard->runs[at].iov_base + done;
            discard->runs[at].iov_len -= (size_t)done;
        }
    }
    for (; at < discard->count; at++)
        while (madvise(discard->runs[at].iov_base, discard->runs[at].iov_len, discard->advice) < 0)
            if (errno != EINTR && errno != EAGAIN) {
                discard->error = discard->error ? discard->error : -errno;
                break;
            }
    discard->count = 0;
}

static void discard_pages(struct discard *discard, const struct tvmm_page_block *block, uint64_t first, uint64_t pages)
{
    uint8_t *base = block->base + first * TVMM_PAGE;
    struct iovec *last = discard->count ? &discard->runs[discard->count - 1] : NULL;
    if (last && (uint8_t *)last->iov_base + last->iov_len == base) {
        last->iov_len += pages * TVMM_PAGE;
        return;
    }
    if (discard->count == DISCARD_PIECES)
        discard_now(discard);
    discard->runs[discard->count++] = (struct iovec){base, pages * TVMM_PAGE};
}

/* The pages of `bitmap` are absent from now on, whatever they were. No lane may be in a round. 0 or -errno. */
int tvmm_pager_expect(struct tvmm_pager *pager, const struct tvmm_bitmap *bitmap)
{
    struct discard *discard = calloc(1, sizeof *discard);
    if (!discard)
        return -ENOMEM;
    discard->pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    for (uint32_t index = 0; index < pager->ram->count; index++) {
        const struct tvmm_page_block *block = &pager->ram->blocks[index];
        uint64_t words = pager->paged[index] ? tvmm_bits_words(block->pages) : 0;
        discard->advice = block->fd >= 0 ? MADV_REMOVE : MADV_DONTNEED;
        for (uint64_t word = 0; word < words; word++) {
            uint64_t bits = bitmap->blocks[index].words[word];
            if (!bits)
                continue;
            uint64_t were = __atomic_fetch_and(&pager->received->blocks[index].words[word], ~bits, __ATOMIC_SEQ_CST);
            __atomic_fetch_and(&pager->claimed->blocks[index].words[word], ~bits, __ATOMIC_SEQ_CST);
            pager_count(&pager->remaining, (uint64_t)__builtin_popcountll(were & bits));
            while (bits) {
                uint32_t from = (uint32_t)__builtin_ctzll(bits);
                uint64_t rest = ~(bits >> from);
                uint32_t run = rest ? (uint32_t)__builtin_ctzll(rest) : 64;
                run = run < 64 - from ? run : 64 - from;
                discard_pages(discard, block, 64 * word + from, run);
                bits &= run == 64 ? 0 : ~(((1ull << run) - 1) << from);
            }
        }
        discard_now(discard);
    }
    if (discard->pidfd >= 0)
        close(discard->pidfd);
    int error = discard->error;
    free(discard);
    return error;
}

/* --- pages that come ----------------------------------------------------------------------------------------------- */

/* A page that is here, and not mapped: the guest gave it back to the host. Zeros, for whoever waits. 0 or -errno. */
int tvmm_pager_give_back(struct tvmm_pager *pager, uint32_t block, uint64_t page)
{
    uint8_t *at = pager->ram->blocks[block].base + page * TVMM_PAGE;
    int64_t done = tvmm_uffd_zero(pager->uffd, at, TVMM_PAGE, 0);
    if (done == -EEXIST)
        done = tvmm_uffd_wake(pager->uffd, at, TVMM_PAGE);
    /* Unregistered meanwhile: then nobody waits. */
    return done >= 0 || done == -ENOENT || done == -EINVAL || done == -ESRCH ? 0 : (int)done;
}

/* A page that somebody was read to wait for is here now. Whoever sees both of its bits, received and requested, calls
 * this; called twice it does no harm. */
void tvmm_pager_settle(struct tvmm_pager *pager, uint32_t block, uint64_t page)
{
    int look = 1;
    pthread_mutex_lock(&pager->lock);
    __atomic_fetch_and(&pager->requested->blocks[block].words[page / 64], ~(1ull << page % 64), __ATOMIC_SEQ_CST);
    for (uint32_t index = 0; index < pager->waits_count; index++) {
        struct tvmm_wait *wait = &pager->waits[index];
        if (wait->block != block || wait->page != page)
            continue;
        tvmm_histogram_add(&pager->service, tvmm_now_ns() - wait->since_ns);
        look = wait->late;
        *wait = pager->waits[--pager->waits_count];
        break;
    }
    pthread_mutex_unlock(&pager->lock);
    /* Who began to wait when the page's bytes were on their way into memory may have done so behind them, at a page that
     * the guest had used and given back already. */
    if (look)
        tvmm_pager_give_back(pager, block, page);
}

static void now_here(struct tvmm_pager *pager, uint32_t block, uint64_t first, uint64_t pages)
{
    uint64_t *received = pager->received->blocks[block].words, *requested = pager->requested->blocks[block].words;
    uint64_t added = 0;
    while (pages) {
        uint64_t bit = first % 64, run = 64 - bit < pages ? 64 - bit : pages;
        uint64_t mask = (run == 64 ? ~0ull : (1ull << run) - 1) << bit;
        uint64_t before = __atomic_fetch_or(&received[first / 64], mask, __ATOMIC_SEQ_CST);
        added += (uint64_t)__builtin_popcountll(mask & ~before);
        uint64_t asked = __atomic_load_n(&requested[first / 64], __ATOMIC_SEQ_CST) & mask;
        for (; asked; asked &= asked - 1)
            tvmm_pager_settle(pager, block, first / 64 * 64 + (uint64_t)__builtin_ctzll(asked));
        first += run;
        pages -= run;
    }
    if (added && __atomic_sub_fetch(&pager->remaining, added, __ATOMIC_SEQ_CST) == 0)
        pager_nudge(pager);
}

static int pager_claim(struct tvmm_pager *pager, uint32_t block, uint64_t page)
{
    uint64_t bit = 1ull << page % 64;
    uint64_t *word = &pager->claimed->blocks[block].words[page / 64];
    return !(__atomic_load_n(word, __ATOMIC_RELAXED) & bit) && !(__atomic_fetch_or(word, bit, __ATOMIC_SEQ_CST) & bit);
}

/* Into memory, wherever they can go. `overwrite`: also onto pages that are there. How many, all of them unless the memory is
 * released; or -errno. */
static int64_t pager_fill(struct tvmm_pager *pager, uint32_t block, uint64_t first, uint64_t pages, const uint8_t *from,
                    int overwrite)
{
    uint8_t *to = pager->ram->blocks[block].base + first * TVMM_PAGE;
    uint64_t at = 0, bytes = pages * TVMM_PAGE;
    while (at < bytes) {
        int64_t done = from ? tvmm_uffd_copy(pager->uffd, to + at, from + at, bytes - at, 0)
                            : tvmm_uffd_zero(pager->uffd, to + at, bytes - at, 0);
        if (done == -EEXIST) {
            if (overwrite && from)
                memcpy(to + at, from + at, TVMM_PAGE);
            else if (overwrite && !tvmm_page_is_zero(to + at))
                memset(to + at, 0, TVMM_PAGE);
            tvmm_uffd_wake(pager->uffd, to + at, TVMM_PAGE);
            done = TVMM_PAGE;
        }
        if (done < 0) {
            if (__atomic_load_n(&pager->released, __ATOMIC_SEQ_CST) || done == -ESRCH)
                break;
            return done;
        }
        at += (uint64_t)done;
    }
    return (int64_t)(at / TVMM_PAGE);
}

/* Pages in ascending order, with their bytes in one piece, or zeros if `from` is NULL. What is here already is left alone,
 * or while `overwriting` replaced. 0 or -errno. */
int tvmm_pager_place(struct tvmm_pager *pager, uint32_t block, const uint32_t *pages, uint32_t page_count,
                     const uint8_t *from, int urgent)
{
    uint64_t *written = pager->ram->blocks[block].written;
    int overwriting = __atomic_load_n(&pager->overwriting, __ATOMIC_RELAXED) != 0;
    for (uint32_t at = 0, end; at < page_count; at = end) {
        uint32_t limit = page_count - at < TVMM_PLACE_RUN ? page_count : at + TVMM_PLACE_RUN;
        const uint8_t *bytes = from ? from + (size_t)at * TVMM_PAGE : NULL;
        for (end = at; end < limit && pages[end] - pages[at] == end - at && pager_claim(pager, block, pages[end]); end++)
            ;
        uint32_t claimed = end - at;
        if (!claimed) {
            end = at + 1;
            if (!overwriting) {
                pager_count(&pager->counters.duplicates, 1);
                continue;
            }
            if (!from && written && !(__atomic_load_n(&written[pages[at] / 64], __ATOMIC_RELAXED) >> pages[at] % 64 & 1))
                continue;
        }
        if (from && written)
            tvmm_bits_set(written, pages[at], end - at);
        int64_t done = pager_fill(pager, block, pages[at], end - at, bytes, overwriting);
        if (done < 0)
            return (int)done;
        if (claimed && done) {
            pager_count(urgent ? &pager->counters.urgent : &pager->counters.pushed, (uint64_t)done);
            now_here(pager, block, pages[at], (uint64_t)done);
        }
    }
    return 0;
}

/* --- what any thread may do ---------------------------------------------------------------------------------------- */

/* Who waits, and who would, goes on; pages that are absent are zeros from now on. */
void tvmm_pager_release(struct tvmm_pager *pager)
{
    __atomic_store_n(&pager->released, 1, __ATOMIC_SEQ_CST);
    for (uint32_t index = 0; index < pager->ram->count; index++) {
        const struct tvmm_page_block *block = &pager->ram->blocks[index];
        if (pager->paged[index])
            tvmm_uffd_unregister(pager->uffd, block->base, block->pages * TVMM_PAGE);
    }
    pager_nudge(pager);
}

/* Until these bytes of a block are here. */
void tvmm_pager_touch(const struct tvmm_pager *pager, uint32_t block, uint64_t offset, uint64_t length)
{
    const volatile uint8_t *base = pager->ram->blocks[block].base;
    for (uint64_t at = offset; at < offset + length; at = (at / TVMM_PAGE + 1) * TVMM_PAGE)
        (void)base[at];
}
