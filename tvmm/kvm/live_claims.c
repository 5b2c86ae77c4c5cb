/* See live.h: who does what with a page of a snapshot. Nothing here makes a system call but for the lock's. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "live.h"

#include <string.h>

static inline int live_bit(const uint64_t *words, uint64_t page) { return words[page / 64] >> page % 64 & 1; }

static inline void live_set(uint64_t *words, uint64_t page) { words[page / 64] |= (uint64_t)1 << page % 64; }

static uint32_t live_chunk_of(const struct tvmm_live *live, uint32_t block, uint64_t page)
{
    return (uint32_t)(live->blocks[block].first_chunk + page / TVMM_LIVE_CHUNK);
}

static void live_push(struct tvmm_live_list *list, uint32_t number) { list->numbers[list->tail++] = number; }

/* With the lock: let a chunk be taken before others. */
static void live_raise(struct tvmm_live *live, uint32_t number, enum tvmm_live_queue queue)
{
    struct tvmm_live_chunk *chunk = &live->chunks[number];
    if (chunk->queue >= queue)
        return;
    chunk->queue = queue;
    live_push(queue == TVMM_LIVE_URGENT ? &live->urgent : &live->hot, number);
}

static uint32_t live_slot(struct tvmm_live *live)
{
    uint32_t slot = live->pool_free;
    if (slot != TVMM_LIVE_NONE) {
        live->pool_free = live->slots[slot].next;
        return slot;
    }
    return live->pool_next < live->pool_pages ? live->pool_next++ : TVMM_LIVE_NONE;
}

/* How many pages from `place` on are to be let through: more each time that a fault comes where the last one ended. */
static uint32_t live_around(struct tvmm_live *live, uint64_t place, uint32_t *stream)
{
    for (uint32_t index = 0; index < TVMM_LIVE_STREAMS; index++) {
        if (live->streams[index] == place) {
            uint32_t twice = 2 * live->around[index];
            *stream = index;
            return live->around[index] = twice < TVMM_LIVE_AROUND_MAX ? twice : TVMM_LIVE_AROUND_MAX;
        }
    }
    *stream = live->stream_turn++ % TVMM_LIVE_STREAMS;
    return live->around[*stream] = 1;
}

/* With the lock: have the pool keep a page of an unsaved chunk. False when it is full. */
static int live_keep(struct tvmm_live *live, struct tvmm_live_chunk *chunk, uint64_t page)
{
    struct tvmm_live_block *block = &live->blocks[chunk->block];
    const uint8_t *bytes = block->base + page * TVMM_PAGE;
    if (live_bit(block->kept, page))
        return 1;
    if (!tvmm_page_is_zero(bytes)) {
        uint32_t slot = live_slot(live);
        if (slot == TVMM_LIVE_NONE)
            return 0;
        memcpy(live->pool + (uint64_t)slot * TVMM_PAGE, bytes, TVMM_PAGE);
        live->slots[slot] = (struct tvmm_live_slot){(uint32_t)(page - chunk->first), chunk->slots};
        chunk->slots = slot;
        live->counters.kept++;
    }
    live_set(block->kept, page);
    return 1;
}

static enum tvmm_live_answer live_keep_run(struct tvmm_live *live, uint32_t number, uint64_t first, uint32_t *count)
{
    struct tvmm_live_chunk *chunk = &live->chunks[number];
    uint32_t done = 0;
    live_raise(live, number, TVMM_LIVE_HOT);
    while (done < *count && live_keep(live, chunk, first + done))
        done++;
    done -= done % live->blocks[chunk->block].grain;
    if (!done) {
        live->counters.waits++;
        live_raise(live, number, TVMM_LIVE_URGENT);
        return TVMM_LIVE_WAIT;
    }
    *count = done;
    return TVMM_LIVE_LIFT;
}

/* A write to a page has trapped. With the lock, until what is answered has been done. Pages `first` to `first + count`
 * of the block, this one among them, are what may be written from now on. */
enum tvmm_live_answer tvmm_live_fault(struct tvmm_live *live, uint32_t index, uint64_t page, uint64_t *first,
                                      uint32_t *count)
{
    struct tvmm_live_block *block = &live->blocks[index];
    uint32_t number = live_chunk_of(live, index, page), stream;
    const struct tvmm_live_chunk *chunk = &live->chunks[number];
    uint64_t end = chunk->first + chunk->pages;
    live->counters.faults++;
    *first = page - page % block->grain;
    *count = live_around(live, (uint64_t)number * TVMM_LIVE_CHUNK + *first - chunk->first, &stream);
    if (*count < block->grain)
        *count = block->grain;
    if (*count > end - *first)
        *count = (uint32_t)(end - *first);
    enum tvmm_live_answer answer = TVMM_LIVE_LIFT;
    if (live->phase == TVMM_LIVE_ARMING)
        tvmm_bits_set(block->noted, *first, *count);
    else if (live->phase == TVMM_LIVE_SAVING && chunk->state == TVMM_LIVE_COPYING)
        answer = TVMM_LIVE_WAIT;
    else if (live->phase == TVMM_LIVE_SAVING && chunk->state == TVMM_LIVE_UNSAVED)
        answer = live_keep_run(live, number, *first, count);
    if (answer == TVMM_LIVE_LIFT)
        live->streams[stream] = (uint64_t)number * TVMM_LIVE_CHUNK + *first - chunk->first + *count;
    return answer;
}

static uint32_t live_pop(struct tvmm_live *live, struct tvmm_live_list *list)
{
    while (list->head < list->tail) {
        uint32_t number = list->numbers[list->head++];
        if (live->chunks[number].state == TVMM_LIVE_UNSAVED)
            return number;
    }
    return TVMM_LIVE_NONE;
}

/* The next chunk to copy, which is the caller's from now on; TVMM_LIVE_NONE when none is left. */
uint32_t tvmm_live_claim(struct tvmm_live *live)
{
    pthread_mutex_lock(&live->lock);
    uint32_t number = TVMM_LIVE_NONE;
    if (live->phase == TVMM_LIVE_SAVING && live->left) {
        number = live_pop(live, &live->urgent);
        if (number == TVMM_LIVE_NONE)
            number = live_pop(live, &live->hot);
        while (number == TVMM_LIVE_NONE && live->cursor < live->chunk_count) {
            if (live->chunks[live->cursor].state == TVMM_LIVE_UNSAVED)
                number = live->cursor;
            live->cursor++;
        }
    }
    if (number != TVMM_LIVE_NONE) {
        live->chunks[number].state = TVMM_LIVE_COPYING;
        live->left--;
    }
    pthread_mutex_unlock(&live->lock);
    return number;
}

/* The content of a claimed chunk. Pages with a bit in `absent` are zeros that are not to be looked at. */
void tvmm_live_fill(struct tvmm_live *live, uint32_t number, uint8_t *buffer, struct tvmm_live_piece *piece,
                    const uint64_t *absent)
{
    const struct tvmm_live_chunk *chunk = &live->chunks[number];
    const struct tvmm_live_block *block = &live->blocks[chunk->block];
    *piece = (struct tvmm_live_piece){chunk->block, chunk->pages, chunk->first, {0}};
    for (uint32_t page = 0; page < chunk->pages; page++) {
        const uint8_t *bytes = block->base + (chunk->first + page) * TVMM_PAGE;
        uint8_t *to = buffer + (uint64_t)page * TVMM_PAGE;
        /* A page that was kept may be written at this moment; the copy comes below. */
        if (live_bit(absent, page) || live_bit(block->kept, chunk->first + page) || tvmm_page_is_zero(bytes)) {
            memset(to, 0, TVMM_PAGE);
            continue;
        }
        memcpy(to, bytes, TVMM_PAGE);
        live_set(piece->data, page);
    }
    for (uint32_t slot = chunk->slots; slot != TVMM_LIVE_NONE; slot = live->slots[slot].next) {
        uint32_t page = live->slots[slot].page;
        memcpy(buffer + (uint64_t)page * TVMM_PAGE, live->pool + (uint64_t)slot * TVMM_PAGE, TVMM_PAGE);
        live_set(piece->data, page);
    }
}

/* Nothing of a claimed chunk is needed any more, and it is no longer protected. */
void tvmm_live_saved(struct tvmm_live *live, uint32_t number)
{
    struct tvmm_live_chunk *chunk = &live->chunks[number];
    pthread_mutex_lock(&live->lock);
    for (uint32_t slot = chunk->slots, next; slot != TVMM_LIVE_NONE; slot = next) {
        next = live->slots[slot].next;
        live->slots[slot].next = live->pool_free;
        live->pool_free = slot;
    }
    chunk->slots = TVMM_LIVE_NONE;
    chunk->state = TVMM_LIVE_SAVED;
    pthread_cond_broadcast(&live->news);
    pthread_mutex_unlock(&live->lock);
}

/* With the lock: have a chunk taken as soon as anybody has time. */
void tvmm_live_hurry(struct tvmm_live *live, uint32_t number)
{
    if (live->chunks[number].state == TVMM_LIVE_UNSAVED)
        live_raise(live, number, TVMM_LIVE_URGENT);
}
