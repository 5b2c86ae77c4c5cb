/* See rounds.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "rounds.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static uint8_t *memory_for(uint64_t pages, int flags)
{
    void *memory = mmap(NULL, pages * TVMM_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

/* `bitmap` and `snapshot` outlive it. NULL: no memory. */
struct tvmm_rounds *tvmm_rounds_new(struct tvmm_snapshot *snapshot, struct tvmm_bitmap *bitmap, uint64_t room)
{
    struct tvmm_rounds *rounds = calloc(1, sizeof *rounds);
    uint64_t total = 0;
    if (!rounds)
        return NULL;
    for (uint32_t block = 0; block < bitmap->count; block++)
        total += bitmap->blocks[block].pages;
    rounds->snapshot = snapshot;
    rounds->bitmap = bitmap;
    rounds->first = 1;
    rounds->room = room;
    rounds->sums = calloc(total ? total : 1, sizeof *rounds->sums);
    rounds->places = calloc(room ? room : 1, sizeof *rounds->places);
    /* There before the pause. */
    rounds->copies = memory_for(room ? room : 1, MAP_POPULATE);
    if (rounds->sums && rounds->places && rounds->copies)
        return rounds;
    tvmm_rounds_free(rounds);
    return NULL;
}

/* No thread is in here any more. */
void tvmm_rounds_free(struct tvmm_rounds *rounds)
{
    if (rounds->copies)
        munmap(rounds->copies, (rounds->room ? rounds->room : 1) * TVMM_PAGE);
    free(rounds->places);
    free(rounds->sums);
    free(rounds);
}

/* The next unit of any block. 0: there is none. */
static int next_unit(struct tvmm_rounds *rounds, uint32_t *block, uint64_t *first, uint32_t *count)
{
    if (__atomic_load_n(&rounds->stop, __ATOMIC_ACQUIRE))
        return 0;
    uint64_t number = __atomic_fetch_add(&rounds->cursor, 1, __ATOMIC_ACQ_REL);
    for (*block = 0; *block < rounds->bitmap->count; ++*block) {
        uint64_t pages = rounds->bitmap->blocks[*block].pages;
        uint64_t units = (pages + TVMM_ROUNDS_UNIT - 1) / TVMM_ROUNDS_UNIT;
        if (number >= units) {
            number -= units;
            continue;
        }
        *first = number * TVMM_ROUNDS_UNIT;
        *count = pages - *first < TVMM_ROUNDS_UNIT ? (uint32_t)(pages - *first) : TVMM_ROUNDS_UNIT;
        return 1;
    }
    return 0;
}

static uint64_t *sum_of(const struct tvmm_rounds *rounds, const struct tvmm_place *place)
{
    uint64_t *sums = rounds->sums;
    for (uint32_t before = 0; before < place->block; before++)
        sums += rounds->bitmap->blocks[before].pages;
    return sums + place->page;
}

/* The first round goes past the page cache. Pages that come again are few and scattered, and will come once more: to write
 * each to the disk at once would take longer than the guest takes to write the next ones. */
static int write_run(struct tvmm_rounds *rounds, const struct tvmm_place *place, const uint8_t *from, uint64_t count)
{
    uint64_t offset = rounds->snapshot->blocks[place->block].offset + (uint64_t)place->page * TVMM_PAGE;
    __atomic_fetch_add(&rounds->bytes, count * TVMM_PAGE, __ATOMIC_RELAXED);
    return tvmm_snapshot_pwrite(rounds->snapshot, (int)rounds->first, from, count * TVMM_PAGE, offset);
}

/* Copies of `count` pages at `places`, in rising order, one behind the other from `from` on. 0 or -errno. */
static int put_copies(struct tvmm_rounds *rounds, const struct tvmm_place *places, uint32_t count, const uint8_t *from)
{
    struct tvmm_snapshot *snapshot = rounds->snapshot;
    uint32_t start = 0, end = 0; /* of what is to be written, empty at first */
    for (uint32_t at = 0; at < count; at++) {
        const struct tvmm_place *place = &places[at];
        const struct tvmm_snapshot_block *block = &snapshot->blocks[place->block];
        const uint8_t *bytes = from + (uint64_t)at * TVMM_PAGE;
        uint64_t *known = sum_of(rounds, place), before = *known, sum = 0;
        int apart = at && (place->block != place[-1].block || place->page != place[-1].page + 1);
        if (!tvmm_page_is_zero(bytes))
            sum = tvmm_snapshot_sum(bytes, block->offset / TVMM_PAGE + place->page, snapshot->key);
        if (sum != before) {
            *known = sum;
            __atomic_fetch_add(&block->sums[place->page / TVMM_SNAPSHOT_CHUNK], sum - before, __ATOMIC_RELAXED);
            __atomic_fetch_add(&snapshot->pages_data, (uint64_t)(sum != 0) - (before != 0), __ATOMIC_RELAXED);
        }
        if (end && (apart || (sum != before && at - end > TVMM_SNAPSHOT_GAP))) {
            int error = write_run(rounds, &places[start], from + (uint64_t)start * TVMM_PAGE, end - start);
            if (error)
                return error;
            end = 0;
        }
        /* Of the same sum: zeros in a hole, or what the file has already. */
        if (sum == before)
            continue;
        if (!end)
            start = at;
        end = at + 1;
    }
    return end ? write_run(rounds, &places[start], from + (uint64_t)start * TVMM_PAGE, end - start) : 0;
}

/* Of one thread: pages of one chunk, packed. */
struct packed {
    uint8_t *copies;
    uint32_t count, zeros; /* and how many zeros there are at the end of them */
    struct tvmm_place places[TVMM_SNAPSHOT_CHUNK];
};

static void pack_page(const struct tvmm_rounds *rounds, struct packed *packed, struct tvmm_place place, int hole)
{
    const uint8_t *from = rounds->snapshot->ram->blocks[place.block].base + (uint64_t)place.page * TVMM_PAGE;
    uint8_t *to = packed->copies + (uint64_t)packed->count * TVMM_PAGE;
    if (hole || tvmm_page_is_zero(from)) {
        /* A few are written with those around them. */
        if (!*sum_of(rounds, &place) && ++packed->zeros > TVMM_SNAPSHOT_GAP)
            return;
        memset(to, 0, TVMM_PAGE);
    } else {
        packed->zeros = 0;
        memcpy(to, from, TVMM_PAGE);
    }
    packed->places[packed->count++] = place;
}

/* Pages of a unit whose bits are in `words`. 0 or -errno. */
static int put_unit(struct tvmm_rounds *rounds, struct packed *packed, int pagemap, uint32_t block, uint64_t first,
                    uint32_t count, const uint64_t *words)
{
    for (uint32_t chunk = 0; chunk < count; chunk += TVMM_SNAPSHOT_CHUNK) {
        uint32_t pages = count - chunk < TVMM_SNAPSHOT_CHUNK ? count - chunk : TVMM_SNAPSHOT_CHUNK, taken = 0;
        uint64_t holes[TVMM_SNAPSHOT_CHUNK / 64] = {0};
        for (uint32_t word = 0; word < tvmm_bits_words(pages); word++)
            taken += (uint32_t)__builtin_popcountll(words[chunk / 64 + word]);
        if (!taken)
            continue;
        tvmm_snapshot_holes(rounds->snapshot, pagemap, block, first + chunk, pages, holes);
        packed->count = packed->zeros = 0;
        for (uint32_t word = 0; word < tvmm_bits_words(pages); word++)
            for (uint64_t bits = words[chunk / 64 + word]; bits; bits &= bits - 1) {
                uint32_t page = word * 64 + (uint32_t)__builtin_ctzll(bits);
                struct tvmm_place place = {block, (uint32_t)(first + chunk + page)};
                pack_page(rounds, packed, place, (int)(holes[word] >> page % 64 & 1));
            }
        int error = put_copies(rounds, packed->places, packed->count, packed->copies);
        if (error)
            return error;
        __atomic_fetch_add(&rounds->pages, taken, __ATOMIC_RELAXED);
        if (rounds->first)
            __atomic_fetch_add(&rounds->snapshot->pages_done, taken, __ATOMIC_RELAXED);
    }
    return 0;
}

/* Take units until there are no more, beside other threads. 0; -EINTR: woken; -errno: the first error, which ends the
 * other threads too. What was taken then is lost. */
int tvmm_rounds_write(struct tvmm_rounds *rounds, struct tvmm_waker *waker)
{
    struct packed packed = {.copies = memory_for(TVMM_SNAPSHOT_CHUNK, 0)};
    uint64_t words[TVMM_ROUNDS_UNIT / 64], first;
    uint32_t block, count;
    int error = 0, pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (!packed.copies)
        error = -ENOMEM;
    while (!error && next_unit(rounds, &block, &first, &count)) {
        uint64_t *from = rounds->bitmap->blocks[block].words + first / 64, any = 0;
        for (uint32_t word = 0; word < tvmm_bits_words(count); word++) {
            words[word] = __atomic_load_n(&from[word], __ATOMIC_RELAXED);
            if (words[word])
                words[word] = __atomic_exchange_n(&from[word], 0, __ATOMIC_ACQ_REL);
            any |= words[word];
        }
        if (!any)
            continue;
        if (tvmm_woken(waker))
            error = -EINTR;
        /* Before the first of the pages is looked at, nor whether it is there: see lanes.h. */
        if (!error && rounds->log)
            error = tvmm_log_clear(rounds->log, block, first, count, words);
        if (!error)
            error = put_unit(rounds, &packed, pagemap, block, first, count, words);
    }
    if (error)
        __atomic_store_n(&rounds->stop, 1, __ATOMIC_RELEASE);
    if (pagemap >= 0)
        close(pagemap);
    if (packed.copies)
        munmap(packed.copies, (uint64_t)TVMM_SNAPSHOT_CHUNK * TVMM_PAGE);
    return error;
}

/* Room for `count` pages behind those that are kept; UINT64_MAX: there is none. */
static uint64_t take_room(struct tvmm_rounds *rounds, uint64_t count)
{
    uint64_t kept = __atomic_load_n(&rounds->kept, __ATOMIC_RELAXED);
    do {
        if (count > rounds->room - kept)
            return UINT64_MAX;
    } while (!__atomic_compare_exchange_n(&rounds->kept, &kept, kept + count, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return kept;
}

/* While nobody writes: copy units that are marked, beside other threads, as long as there is room. How many pages this
 * thread left, whose bits stay set. */
uint64_t tvmm_rounds_keep(struct tvmm_rounds *rounds)
{
    uint64_t first, left = 0;
    uint32_t block, count;
    while (next_unit(rounds, &block, &first, &count)) {
        uint64_t *words = rounds->bitmap->blocks[block].words + first / 64;
        uint64_t marked = tvmm_bits_count(words, tvmm_bits_words(count));
        uint64_t slot = marked ? take_room(rounds, marked) : 0;
        if (slot == UINT64_MAX) {
            left += marked;
            continue;
        }
        const uint8_t *base = rounds->snapshot->ram->blocks[block].base + first * TVMM_PAGE;
        for (uint32_t word = 0; marked && word < tvmm_bits_words(count); word++) {
            for (uint64_t bits = words[word]; bits; bits &= bits - 1, slot++) {
                uint32_t page = word * 64 + (uint32_t)__builtin_ctzll(bits);
                memcpy(rounds->copies + slot * TVMM_PAGE, base + (uint64_t)page * TVMM_PAGE, TVMM_PAGE);
                rounds->places[slot] = (struct tvmm_place){block, (uint32_t)(first + page)};
            }
            words[word] = 0;
        }
    }
    return left;
}

/* Write what was kept, beside other threads. As tvmm_rounds_write. */
int tvmm_rounds_put(struct tvmm_rounds *rounds, struct tvmm_waker *waker)
{
    int error = 0;
    while (!error && !__atomic_load_n(&rounds->stop, __ATOMIC_ACQUIRE)) {
        uint64_t at = __atomic_fetch_add(&rounds->cursor, TVMM_SNAPSHOT_CHUNK, __ATOMIC_ACQ_REL);
        if (at >= rounds->kept)
            break;
        uint64_t left = rounds->kept - at;
        uint32_t count = left < TVMM_SNAPSHOT_CHUNK ? (uint32_t)left : TVMM_SNAPSHOT_CHUNK;
        error = tvmm_woken(waker)
                    ? -EINTR
                    : put_copies(rounds, rounds->places + at, count, rounds->copies + at * TVMM_PAGE);
        __atomic_fetch_add(&rounds->pages, count, __ATOMIC_RELAXED);
    }
    if (error)
        __atomic_store_n(&rounds->stop, 1, __ATOMIC_RELEASE);
    return error;
}
