/* See pages.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "pages.h"

#include <errno.h>
#include <immintrin.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define POPULATE_BYTES (2u << 20) /* at once: one huge page, which takes up to 10 ms where the host has to find it */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define HOLE_PAGES 512u /* asked about at once */
#define AVX2 __attribute__((target("avx2")))

uint64_t tvmm_bits_count(const uint64_t *words, uint64_t count)
{
    uint64_t sum = 0;
    for (uint64_t index = 0; index < count; index++) {
        uint64_t word = __atomic_load_n(&words[index], __ATOMIC_RELAXED);
        if (word)
            sum += (uint64_t)__builtin_popcountll(word);
    }
    return sum;
}

/* OR `from` into `into`; how many bits are new there. */
uint64_t tvmm_bits_merge(uint64_t *into, const uint64_t *from, uint64_t count)
{
    uint64_t added = 0;
    for (uint64_t index = 0; index < count; index++)
        added += (uint64_t)__builtin_popcountll(tvmm_bits_or(&into[index], from[index]));
    return added;
}

void tvmm_bits_set(uint64_t *words, uint64_t first, uint64_t count)
{
    while (count) {
        uint64_t bit = first % 64, run = 64 - bit < count ? 64 - bit : count;
        tvmm_bits_or(&words[first / 64], (run == 64 ? ~0ull : (1ull << run) - 1) << bit);
        first += run;
        count -= run;
    }
}

AVX2 static int zero_avx2(const uint8_t *page)
{
    for (uint32_t at = 0; at < TVMM_PAGE; at += 128) {
        const __m256i *from = (const __m256i *)(page + at);
        __m256i all = _mm256_or_si256(_mm256_or_si256(from[0], from[1]), _mm256_or_si256(from[2], from[3]));
        if (!_mm256_testz_si256(all, all))
            return 0;
    }
    return 1;
}

static int zero_words(const uint8_t *page)
{
    for (uint32_t at = 0; at < TVMM_PAGE; at += 64) {
        uint64_t words[8], all = 0;
        memcpy(words, page + at, sizeof words);
        for (uint32_t index = 0; index < 8; index++)
            all |= words[index];
        if (all)
            return 0;
    }
    return 1;
}

/* `page` is aligned to a page. */
int tvmm_page_is_zero(const uint8_t *page)
{
    return __builtin_cpu_supports("avx2") ? zero_avx2(page) : zero_words(page);
}

/* NH of UMAC (RFC 4418, section 5.2.2) with words of 64 bits: two pages that differ have the same sum in one of 2^64
 * keys, whatever a guest puts into them, as long as it does not know the key. Folded to 64 bits with two words more. */
uint64_t tvmm_page_hash(const uint8_t *page, const uint64_t *key)
{
    const uint64_t *words = (const uint64_t *)page;
    unsigned __int128 sum = 0;
    for (uint32_t index = 0; index < TVMM_PAGE / 8; index += 2)
        sum += (unsigned __int128)(words[index] + key[index]) * (words[index + 1] + key[index + 1]);
    unsigned __int128 fold = (unsigned __int128)((uint64_t)sum + key[TVMM_PAGE / 8])
                             * ((uint64_t)(sum >> 64) + key[TVMM_PAGE / 8 + 1]);
    return (uint64_t)fold ^ (uint64_t)(fold >> 64);
}

/* Have the host allocate all of it now, from the first page on. 0, -errno, or -EINTR when woken. */
int tvmm_ram_populate(const struct tvmm_ram_pages *ram, const struct tvmm_waker *waker)
{
    for (uint32_t index = 0; index < ram->count; index++) {
        const struct tvmm_page_block *block = &ram->blocks[index];
        uint64_t bytes = block->pages * TVMM_PAGE;
        for (uint64_t at = 0; at < bytes; at += POPULATE_BYTES) {
            uint64_t part = bytes - at < POPULATE_BYTES ? bytes - at : POPULATE_BYTES;
            if (tvmm_woken(waker))
                return -EINTR;
            if (madvise(block->base + at, part, MADV_POPULATE_WRITE) < 0 && errno != EINTR)
                return -errno;
        }
    }
    return 0;
}

/* Which of `count` pages from `first` on of a file that is mapped at `base` as a whole were never written, as bits from the
 * first one on; others are left alone. What is in memory is no hole. SEEK_HOLE would tell the end of all data that follows,
 * each time anew. */
void tvmm_file_holes(uint8_t *base, int fd, uint64_t first, uint32_t count, uint64_t *holes)
{
    unsigned char resident[HOLE_PAGES];
    for (uint32_t done = 0; done < count; done += HOLE_PAGES) {
        uint32_t pages = count - done < HOLE_PAGES ? count - done : HOLE_PAGES;
        if (mincore(base + (first + done) * TVMM_PAGE, pages * (size_t)TVMM_PAGE, resident) < 0)
            return;
        for (uint32_t page = 0; page < pages;) {
            if (resident[page] & 1) {
                page++;
                continue;
            }
            uint64_t at = first + done + page, until = pages;
            off_t data = lseek(fd, (off_t)(at * TVMM_PAGE), SEEK_DATA);
            if (data < 0 && errno != ENXIO)
                return;
            if (data >= 0 && (uint64_t)data / TVMM_PAGE < first + done + until)
                until = (uint64_t)data / TVMM_PAGE - first - done;
            if (until > page)
                tvmm_bits_set(holes, done + page, until - page);
            page = until > page ? (uint32_t)until : page + 1;
        }
    }
}
