/* Which pages go into the next batch of a lane: chunks of the bitmap, holes and zeros, pages that are as they were sent
 * last. See lanes.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "lanes.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define NEVER_SENT 0u          /* in place of a hash */
#define SENT_UNHASHED 1u
#define SENT_ZERO 2u

/* The next chunk that has bits, of any block. 0: there is none. -errno: KVM refuses. */
static int next_chunk(struct tvmm_lane *lane)
{
    struct tvmm_lane_group *group = lane->group;
    for (;;) {
        if (tvmm_lanes_stopped(group))
            return 0;
        uint64_t number = __atomic_fetch_add(&group->cursor, 1, __ATOMIC_ACQ_REL);
        uint32_t block = 0;
        for (; block < group->ram->count; block++) {
            uint64_t chunks = (group->ram->blocks[block].pages + group->chunk_pages - 1) / group->chunk_pages;
            if (number < chunks)
                break;
            number -= chunks;
        }
        if (block == group->ram->count)
            return 0;
        uint64_t first = number * group->chunk_pages, left = group->ram->blocks[block].pages - first;
        uint64_t pages = left < group->chunk_pages ? left : group->chunk_pages, any = 0;
        uint64_t *from = group->bitmap->blocks[block].words + first / 64;
        uint32_t words = (uint32_t)tvmm_bits_words(pages);
        for (uint32_t word = 0; word < words; word++) {
            uint64_t bits = __atomic_load_n(&from[word], __ATOMIC_RELAXED);
            lane->words[word] = bits ? __atomic_exchange_n(&from[word], 0, __ATOMIC_ACQ_REL) : 0;
            any |= lane->words[word];
        }
        if (!any)
            continue;
        lane->block = block;
        lane->chunk_first = first;
        lane->word = 0;
        lane->word_count = words;
        lane->have_chunk = 1;
        lane->hole_end = 0;
        /* Before the first of the pages is looked at: see lanes.h. */
        int error = group->log ? tvmm_log_clear(group->log, block, first, pages, lane->words) : 0;
        return error < 0 ? error : 1;
    }
}

/* Whether a page of the chunk was never written, or was given back: to read it through the mapping would have the host
 * allocate it. What was found out before this chunk's pages were protected again is of no use: it may have been written. */
static int is_hole(struct tvmm_lane *lane, uint64_t page)
{
    const struct tvmm_page_block *block = &lane->group->ram->blocks[lane->block];
    if (block->fd < 0 || (lane->block == lane->data_block && page >= lane->data_first && page < lane->data_end))
        return 0;
    if (page < lane->hole_end)
        return 1;
    off_t at = (off_t)(page * TVMM_PAGE), data = lseek(block->fd, at, SEEK_DATA);
    if (data < 0 && errno != ENXIO)
        return 0;
    if (data < 0 || data >= at + (off_t)TVMM_PAGE) {
        lane->hole_end = data < 0 ? block->pages : (uint64_t)data / TVMM_PAGE;
        return 1;
    }
    off_t hole = lseek(block->fd, at, SEEK_HOLE);
    lane->data_block = lane->block;
    lane->data_first = page;
    lane->data_end = hole > at ? (uint64_t)hole / TVMM_PAGE : page + 1;
    return 0;
}

static int is_zero(struct tvmm_lane *lane, uint64_t page, const uint8_t *from)
{
    return is_hole(lane, page) || tvmm_page_is_zero(from);
}

static uint64_t *hash_of(const struct tvmm_lane_group *group, uint32_t block, uint32_t page)
{
    uint64_t *hashes = group->hashes;
    for (uint32_t before = 0; before < block; before++)
        hashes += group->ram->blocks[before].pages;
    return hashes + page;
}

/* With hashes: what is hashed is a copy, and the copy is sent, because the page may change at any moment. */
static void look_hashed(struct tvmm_lane *lane, uint32_t page, const uint8_t *from)
{
    uint64_t *known = hash_of(lane->group, lane->batch_block, page), before = *known;
    uint8_t *copy = lane->copies + (size_t)TVMM_PAGE * lane->normal_count;
    if (is_zero(lane, page, from)) {
        if (before == SENT_ZERO) {
            lane->counters.unchanged++;
            return;
        }
        *known = SENT_ZERO;
        lane->zero[lane->zero_count++] = page;
        return;
    }
    if (before == NEVER_SENT) {
        *known = SENT_UNHASHED;
    } else {
        memcpy(copy, from, TVMM_PAGE);
        uint64_t hash = tvmm_page_hash(copy, lane->group->key);
        hash = hash <= SENT_ZERO ? hash + SENT_ZERO + 1 : hash;
        if (hash == before) {
            lane->counters.unchanged++;
            return;
        }
        *known = hash;
        lane->copied[lane->normal_count / 64] |= 1ull << lane->normal_count % 64;
    }
    lane->normal[lane->normal_count++] = page;
}

/* Take pages until the batch has `limit` of those that travel, its block ends, or somebody wakes us. 0, or -errno. */
int tvmm_lane_gather(struct tvmm_lane *lane, uint32_t limit)
{
    struct tvmm_lane_group *group = lane->group;
    while (lane->normal_count < limit && lane->zero_count < TVMM_LANE_COUNT_MAX && !tvmm_lane_woken(lane)) {
        if (!lane->have_chunk) {
            int found = next_chunk(lane);
            if (found <= 0)
                return found;
        }
        if (lane->normal_count + lane->zero_count == 0)
            lane->batch_block = lane->block;
        else if (lane->batch_block != lane->block)
            return 0;
        const uint8_t *base = group->ram->blocks[lane->block].base;
        uint64_t bits = lane->words[lane->word];
        while (bits && lane->normal_count < limit && lane->zero_count < TVMM_LANE_COUNT_MAX) {
            uint32_t page = (uint32_t)(lane->chunk_first + 64 * lane->word) + (uint32_t)__builtin_ctzll(bits);
            const uint8_t *from = base + (uint64_t)page * TVMM_PAGE;
            bits &= bits - 1;
            if (group->hashes)
                look_hashed(lane, page, from);
            else if (is_zero(lane, page, from))
                lane->zero[lane->zero_count++] = page;
            else
                lane->normal[lane->normal_count++] = page;
        }
        lane->words[lane->word] = bits;
        if (!bits && ++lane->word == lane->word_count)
            lane->have_chunk = 0;
    }
    return 0;
}

static void give_back(struct tvmm_lane *lane, const uint32_t *pages, uint32_t count)
{
    for (uint32_t index = 0; index < count; index++) {
        tvmm_bits_set(lane->group->bitmap->blocks[lane->batch_block].words, pages[index], 1);
        if (lane->group->hashes)
            *hash_of(lane->group, lane->batch_block, pages[index]) = SENT_UNHASHED;
    }
}

void tvmm_lane_forget_batch(struct tvmm_lane *lane)
{
    lane->normal_count = lane->zero_count = lane->charged = 0;
    memset(lane->copied, 0, sizeof lane->copied);
}

/* The round stops: what was taken and is not on its way goes back into the bitmap. */
void tvmm_lane_give_back(struct tvmm_lane *lane)
{
    give_back(lane, lane->normal, lane->normal_count);
    give_back(lane, lane->zero, lane->zero_count);
    tvmm_lane_forget_batch(lane);
    if (lane->have_chunk) {
        uint64_t *words = lane->group->bitmap->blocks[lane->block].words + lane->chunk_first / 64;
        for (uint32_t word = lane->word; word < lane->word_count; word++)
            tvmm_bits_or(&words[word], lane->words[word]);
        lane->have_chunk = 0;
    }
}
