/* Pages of guest RAM as migration sees them: where they lie, one bit for each, whether they are zero, what they hash to.
 *
 * A block's number is its place in the table; a page's number is its place in the block. Bitmaps have bit 0 of word 0
 * first. All of it may be used by several threads at once: bits are set and taken with atomic operations. */
#ifndef TVMM_PAGES_H
#define TVMM_PAGES_H

#include "serve.h"

#include <stddef.h>
#include <stdint.h>

#define TVMM_PAGE 4096u
#define TVMM_PAGE_KEY 514u /* words: one for each of a page's, and two to fold the sum */

struct tvmm_page_block {
    uint8_t *base;
    uint64_t pages;
    uint64_t *written; /* a bit for each page that is no longer zero for sure; NULL: nothing is known */
    int32_t fd;        /* of the file that is mapped there as a whole: its holes are zero; -1: no file */
};

struct tvmm_ram_pages {
    uint32_t count;
    struct tvmm_page_block blocks[];
};

struct tvmm_bitmap_block {
    uint64_t pages;
    uint64_t *words;
};

struct tvmm_bitmap {
    uint32_t count;
    struct tvmm_bitmap_block blocks[];
};

uint64_t tvmm_bits_count(const uint64_t *words, uint64_t count);
uint64_t tvmm_bits_merge(uint64_t *into, const uint64_t *from, uint64_t count);
void tvmm_bits_set(uint64_t *words, uint64_t first, uint64_t count);
void tvmm_file_holes(uint8_t *base, int fd, uint64_t first, uint32_t count, uint64_t *holes);
int tvmm_page_is_zero(const uint8_t *page);
uint64_t tvmm_page_hash(const uint8_t *page, const uint64_t *key);
int tvmm_ram_populate(const struct tvmm_ram_pages *ram, const struct tvmm_waker *waker);

static inline uint64_t tvmm_bits_words(uint64_t pages) { return (pages + 63) / 64; }

/* OR `bits` into a word; those that were not set before. */
static inline uint64_t tvmm_bits_or(uint64_t *word, uint64_t bits)
{
    return bits ? bits & ~__atomic_fetch_or(word, bits, __ATOMIC_ACQ_REL) : 0;
}

#endif
