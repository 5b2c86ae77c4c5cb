/* Blocks that were written, as bits: see blk_dirty.h. The twin in Python is tests/support/plain_dirty.py. */
#include "blk_dirty.h"

#include <string.h>

#define BLK_MAP_WORD 64u

static uint64_t blk_map_words(const struct tvmm_blk_dirty *dirty) { return (dirty->blocks + BLK_MAP_WORD - 1) / BLK_MAP_WORD; }

/* Bits `from` to `to` - 1 of one word. */
static uint64_t blk_map_mask(uint64_t from, uint64_t to)
{
    uint64_t above = to == BLK_MAP_WORD ? 0 : ~0ull << to;
    return (~0ull << from) & ~above;
}

static void blk_map_set(uint64_t *word, uint64_t mask)
{
    /* A full fence, in words: the look at the bits must not come before the call whose blocks are marked. */
    if ((__atomic_load_n(word, __ATOMIC_SEQ_CST) & mask) != mask)
        __atomic_fetch_or(word, mask, __ATOMIC_SEQ_CST);
}

/* Bytes behind the last block are nobody's: a disk does not grow while it is copied. */
void tvmm_blk_dirty_mark(struct tvmm_blk_dirty *dirty, uint64_t offset, uint64_t length)
{
    uint64_t block = offset >> dirty->shift;
    if (!length || block >= dirty->blocks)
        return;
    uint64_t last = (offset + length - 1) >> dirty->shift;
    if (last >= dirty->blocks)
        last = dirty->blocks - 1;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    while (block <= last) {
        uint64_t word = block / BLK_MAP_WORD, from = block % BLK_MAP_WORD;
        uint64_t to = last / BLK_MAP_WORD == word ? last % BLK_MAP_WORD + 1 : BLK_MAP_WORD;
        blk_map_set(&dirty->words[word], blk_map_mask(from, to));
        block += to - from;
    }
}

void tvmm_blk_dirty_fill(struct tvmm_blk_dirty *dirty)
{
    tvmm_blk_dirty_mark(dirty, 0, dirty->blocks << dirty->shift);
}

/* Clear the first run of set bits from block `from` on, `limit` at most, and say where it begins. How many; 0: there are
 * none up to the end. A run may end early at the end of a word. For one thread at a time. */
uint64_t tvmm_blk_dirty_take(struct tvmm_blk_dirty *dirty, uint64_t from, uint64_t limit, uint64_t *first)
{
    uint64_t words = blk_map_words(dirty), taken = 0;

    for (uint64_t word = from / BLK_MAP_WORD; word < words; word++, from = 0) {
        uint64_t bits = __atomic_load_n(&dirty->words[word], __ATOMIC_SEQ_CST) & (~0ull << from % BLK_MAP_WORD);
        if (!taken) {
            if (!bits)
                continue;
            *first = word * BLK_MAP_WORD + (uint64_t)__builtin_ctzll(bits);
        }
        uint64_t start = taken ? 0 : *first % BLK_MAP_WORD;
        uint64_t clear = ~(bits >> start);
        uint64_t run = clear ? (uint64_t)__builtin_ctzll(clear) : BLK_MAP_WORD;
        if (run > BLK_MAP_WORD - start)
            run = BLK_MAP_WORD - start;
        if (run > limit - taken)
            run = limit - taken;
        if (!run)
            break;
        __atomic_fetch_and(&dirty->words[word], ~blk_map_mask(start, start + run), __ATOMIC_SEQ_CST);
        taken += run;
        if (start + run < BLK_MAP_WORD || taken == limit)
            break;
    }
    return taken;
}

uint64_t tvmm_blk_dirty_count(const struct tvmm_blk_dirty *dirty)
{
    uint64_t count = 0;
    for (uint64_t word = 0; word < blk_map_words(dirty); word++)
        count += (uint64_t)__builtin_popcountll(__atomic_load_n(&dirty->words[word], __ATOMIC_RELAXED));
    return count;
}

/* Whether there is nothing but zeroes. */
int tvmm_all_zero(const uint8_t *data, uint64_t length)
{
    return !length || (!data[0] && !memcmp(data, data + 1, length - 1));
}
