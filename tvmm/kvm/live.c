/* See live.h: the steps of a snapshot, and what can be known of pages that are not there. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "live.h"
#include "uffd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
/* Pages that are protected in one call: the guest's next write anywhere may have to wait for it. */
#define LIVE_PIECE TVMM_LIVE_CHUNK
/* Between two noted pages: fewer are protected along with them, which costs less than another call. */
#define LIVE_GAP 16u

void tvmm_live_free(struct tvmm_live *live)
{
    for (uint32_t index = 0; index < live->count; index++) {
        free(live->blocks[index].noted);
        free(live->blocks[index].kept);
    }
    int fds[] = {live->uffd, live->stop_fd, live->pagemap_fd};
    for (uint32_t index = 0; index < sizeof fds / sizeof fds[0]; index++)
        if (fds[index] >= 0)
            close(fds[index]);
    if (live->pool)
        munmap(live->pool, (uint64_t)live->pool_pages * TVMM_PAGE);
    free(live->slots);
    free(live->chunks);
    free(live->hot.numbers);
    free(live->urgent.numbers);
    pthread_mutex_destroy(&live->lock);
    pthread_cond_destroy(&live->news);
    free(live);
}

static int live_make_blocks(struct tvmm_live *live, const struct tvmm_ram_pages *ram, const uint32_t *grains)
{
    uint64_t chunks = 0;
    for (uint32_t index = 0; index < ram->count; index++) {
        struct tvmm_live_block *block = &live->blocks[index];
        uint64_t words = tvmm_bits_words(ram->blocks[index].pages) + TVMM_LIVE_WORDS;
        *block = (struct tvmm_live_block){ram->blocks[index].base, ram->blocks[index].pages, ram->blocks[index].fd,
                                          grains[index], chunks, calloc(words, 8), calloc(words, 8), 0};
        if (!block->noted || !block->kept)
            return -ENOMEM;
        chunks += (block->pages + TVMM_LIVE_CHUNK - 1) / TVMM_LIVE_CHUNK;
    }
    if (chunks >= TVMM_LIVE_NONE)
        return -E2BIG;
    live->chunk_count = live->left = (uint32_t)chunks;
    live->chunks = calloc(chunks, sizeof *live->chunks);
    live->hot.numbers = calloc(chunks, sizeof(uint32_t));
    live->urgent.numbers = calloc(chunks, sizeof(uint32_t));
    if (!live->chunks || !live->hot.numbers || !live->urgent.numbers)
        return -ENOMEM;
    for (uint32_t index = 0; index < live->count; index++) {
        const struct tvmm_live_block *block = &live->blocks[index];
        for (uint64_t first = 0; first < block->pages; first += TVMM_LIVE_CHUNK) {
            uint64_t pages = block->pages - first;
            live->chunks[block->first_chunk + first / TVMM_LIVE_CHUNK] = (struct tvmm_live_chunk){
                index, TVMM_LIVE_NONE, first, (uint32_t)(pages < TVMM_LIVE_CHUNK ? pages : TVMM_LIVE_CHUNK),
                TVMM_LIVE_UNSAVED, TVMM_LIVE_COLD};
        }
    }
    return 0;
}

/* For the blocks of `ram`, whose pages are protected `grains` at a time, with a pool of so many pages. NULL without
 * memory. */
struct tvmm_live *tvmm_live_new(const struct tvmm_ram_pages *ram, const uint32_t *grains, uint32_t pool_pages)
{
    struct tvmm_live *live = calloc(1, sizeof *live + ram->count * sizeof live->blocks[0]);
    if (!live)
        return NULL;
    live->uffd = live->stop_fd = live->pagemap_fd = -1;
    live->count = ram->count;
    live->pool_pages = pool_pages;
    live->pool_free = TVMM_LIVE_NONE;
    for (uint32_t index = 0; index < TVMM_LIVE_STREAMS; index++)
        live->streams[index] = UINT64_MAX;
    pthread_mutex_init(&live->lock, NULL);
    pthread_cond_init(&live->news, NULL);
    live->slots = calloc(pool_pages ? pool_pages : 1, sizeof *live->slots);
    void *pool = mmap(NULL, (uint64_t)(pool_pages ? pool_pages : 1) * TVMM_PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    live->pool = pool == MAP_FAILED ? NULL : pool;
    if (!live->slots || !live->pool || live_make_blocks(live, ram, grains)) {
        tvmm_live_free(live);
        return NULL;
    }
    return live;
}

/* Protect all of it, while it is written to. 0 or -errno. */
int tvmm_live_arm(struct tvmm_live *live)
{
    for (uint32_t index = 0; index < live->count; index++) {
        const struct tvmm_live_block *block = &live->blocks[index];
        for (uint64_t first = 0; first < block->pages; first += LIVE_PIECE) {
            uint64_t count = block->pages - first < LIVE_PIECE ? block->pages - first : LIVE_PIECE;
            int error = 0;
            if (__atomic_load_n(&live->phase, __ATOMIC_ACQUIRE) == TVMM_LIVE_ENDED)
                return -ECANCELED;
            if (live->populate && block->fd < 0 &&
                madvise(block->base + first * TVMM_PAGE, count * TVMM_PAGE, MADV_POPULATE_READ) < 0)
                error = -errno;
            if (!error)
                error = tvmm_live_protect(live, index, first, count, 1);
            if (error)
                return error;
        }
    }
    return 0;
}

/* With the lock: protect the noted pages of a block again, in runs, and forget that they were. How many, or -errno. */
static int64_t live_again(struct tvmm_live *live, uint32_t index, uint64_t start, uint64_t end)
{
    struct tvmm_live_block *block = &live->blocks[index];
    int64_t done = 0;
    uint64_t run = 0, last = 0, any = 0;
    for (uint64_t word = start / 64; word * 64 < end; word++) {
        for (uint64_t bits = block->noted[word]; bits; bits &= bits - 1) {
            uint64_t page = word * 64 + (uint64_t)__builtin_ctzll(bits);
            if (any && page - last > LIVE_GAP) {
                int error = tvmm_live_protect(live, index, run, last + 1 - run, 1);
                if (error)
                    return error;
                run = page;
            } else if (!any) {
                run = page;
            }
            any = 1;
            last = page;
            done++;
        }
        block->noted[word] = 0;
    }
    if (any) {
        uint64_t past = last + 1;
        int error = tvmm_live_protect(live, index, run, past - run, 1);
        if (error)
            return error;
    }
    return done;
}

/* Protect what was noted again, chunk by chunk, while it is written to. How many pages those were, or -errno. */
int64_t tvmm_live_rearm(struct tvmm_live *live)
{
    int64_t sum = 0;
    for (uint32_t number = 0; number < live->chunk_count; number++) {
        const struct tvmm_live_chunk *chunk = &live->chunks[number];
        int64_t done;
        if (__atomic_load_n(&live->phase, __ATOMIC_ACQUIRE) == TVMM_LIVE_ENDED)
            return -ECANCELED;
        pthread_mutex_lock(&live->lock);
        done = live_again(live, chunk->block, chunk->first, chunk->first + chunk->pages);
        pthread_mutex_unlock(&live->lock);
        if (done < 0)
            return done;
        sum += done;
    }
    return sum;
}

/* While nobody writes: this is the moment. How many pages had to be protected for it, or -errno. */
int64_t tvmm_live_freeze(struct tvmm_live *live)
{
    int64_t sum = 0, done = 0;
    pthread_mutex_lock(&live->lock);
    for (uint32_t index = 0; index < live->count && done >= 0; index++) {
        done = live_again(live, index, 0, live->blocks[index].pages);
        sum += done;
    }
    if (done >= 0 && live->failure)
        done = live->failure;
    if (done >= 0 && live->phase == TVMM_LIVE_ENDED)
        done = -ECANCELED;
    if (done >= 0)
        __atomic_store_n(&live->phase, TVMM_LIVE_SAVING, __ATOMIC_RELEASE);
    live->counters.frozen = (uint64_t)sum;
    pthread_mutex_unlock(&live->lock);
    return done < 0 ? done : sum;
}

/* Which pages of a claimed chunk are not there, so that reading them would be in vain, or even allocate them. */
static void live_absent(const struct tvmm_live *live, const struct tvmm_live_chunk *chunk, uint64_t *absent)
{
    const struct tvmm_live_block *block = &live->blocks[chunk->block];
    uint64_t entries[TVMM_LIVE_CHUNK];
    ssize_t size = (ssize_t)(chunk->pages * sizeof entries[0]);
    memset(absent, 0, TVMM_LIVE_WORDS * sizeof *absent);
    if (block->fd >= 0) {
        tvmm_file_holes(block->base, block->fd, chunk->first, chunk->pages, absent);
        return;
    }
    if (live->pagemap_fd < 0 ||
        pread(live->pagemap_fd, entries, (size_t)size,
              (off_t)(((uintptr_t)block->base / TVMM_PAGE + chunk->first) * sizeof entries[0])) != size)
        return;
    for (uint32_t page = 0; page < chunk->pages; page++)
        if (!entries[page] || (live->marker && entries[page] == live->marker))
            absent[page / 64] |= (uint64_t)1 << page % 64;
}

/* Copy the next chunk to `buffer`, which has room for TVMM_LIVE_CHUNK pages, and lift its protection. 1; 0 when there is
 * none left; -errno. Without the interpreter lock. */
int tvmm_live_take(struct tvmm_live *live, uint8_t *buffer, struct tvmm_live_piece *piece)
{
    uint64_t absent[TVMM_LIVE_WORDS];
    uint32_t number = tvmm_live_claim(live);
    const struct tvmm_live_chunk *chunk;
    int error;
    if (number == TVMM_LIVE_NONE) {
        if (__atomic_load_n(&live->failure, __ATOMIC_ACQUIRE))
            return live->failure;
        return __atomic_load_n(&live->phase, __ATOMIC_ACQUIRE) == TVMM_LIVE_SAVING ? 0 : -ECANCELED;
    }
    chunk = &live->chunks[number];
    live_absent(live, chunk, absent);
    tvmm_live_fill(live, number, buffer, piece, absent);
    error = tvmm_live_protect(live, chunk->block, chunk->first, chunk->pages, 0);
    tvmm_live_saved(live, number);
    if (error)
        return error;
    return __atomic_load_n(&live->phase, __ATOMIC_ACQUIRE) == TVMM_LIVE_SAVING ? 1 : -ECANCELED;
}

/* Take chunks and write them to a file until there are none. 0, or -errno: then nothing more is taken by anybody. */
int tvmm_live_write(struct tvmm_live *live, struct tvmm_snapshot *snapshot)
{
    struct tvmm_live_piece piece;
    size_t size = (size_t)TVMM_LIVE_CHUNK * TVMM_PAGE;
    int result;
    uint8_t *buffer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED)
        return -errno;
    while ((result = tvmm_live_take(live, buffer, &piece)) > 0) {
        result = tvmm_snapshot_put(snapshot, piece.block, piece.first, piece.pages, buffer);
        if (result < 0)
            break;
    }
    if (result < 0)
        tvmm_live_abandon(live);
    munmap(buffer, size);
    return result;
}

/* Somebody is about to drop these pages, which traps nothing: return when they may. Waits for takers. 0, or -EINVAL. */
int tvmm_live_secure(struct tvmm_live *live, uint32_t index, uint64_t first, uint64_t count)
{
    struct tvmm_live_block *block;
    if (index >= live->count || first > live->blocks[index].pages || count > live->blocks[index].pages - first)
        return -EINVAL;
    if (!count)
        return 0;
    block = &live->blocks[index];
    uint32_t begin = (uint32_t)(block->first_chunk + first / TVMM_LIVE_CHUNK);
    uint32_t end = (uint32_t)(block->first_chunk + (first + count - 1) / TVMM_LIVE_CHUNK);
    pthread_mutex_lock(&live->lock);
    if (live->phase == TVMM_LIVE_ARMING)
        tvmm_bits_set(block->noted, first, count);
    for (uint32_t number = begin; number <= end && live->phase == TVMM_LIVE_SAVING; number++)
        tvmm_live_hurry(live, number);
    for (uint32_t number = begin; number <= end; number++)
        while (live->phase == TVMM_LIVE_SAVING && live->chunks[number].state != TVMM_LIVE_SAVED)
            pthread_cond_wait(&live->news, &live->lock);
    pthread_mutex_unlock(&live->lock);
    return 0;
}

/* From now on every write is let through, and takers come back. From any thread. */
void tvmm_live_abandon(struct tvmm_live *live)
{
    pthread_mutex_lock(&live->lock);
    __atomic_store_n(&live->phase, TVMM_LIVE_ENDED, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&live->news);
    pthread_mutex_unlock(&live->lock);
}

/* Lift all protection and stop the handler; no taker is left. 0, or -errno: then closing the descriptor, which
 * tvmm_live_free does, still lets every write through. */
int tvmm_live_end(struct tvmm_live *live)
{
    int worst = 0;
    tvmm_live_abandon(live);
    for (uint32_t number = 0; number < live->chunk_count; number++) {
        const struct tvmm_live_chunk *chunk = &live->chunks[number];
        if (chunk->state != TVMM_LIVE_SAVED) {
            int error = tvmm_live_protect(live, chunk->block, chunk->first, chunk->pages, 0);
            worst = worst ? worst : error;
        }
    }
    for (uint32_t index = 0; index < live->count; index++) {
        struct tvmm_live_block *block = &live->blocks[index];
        if (block->registered) {
            int error = tvmm_uffd_unregister(live->uffd, block->base, block->pages * TVMM_PAGE);
            worst = worst ? worst : error;
            block->registered = 0;
        }
    }
    if (live->handling) {
        uint64_t one = 1;
        while (write(live->stop_fd, &one, sizeof one) < 0 && errno == EINTR) {
        }
        pthread_join(live->handler, NULL);
        live->handling = 0;
    }
    return worst;
}
