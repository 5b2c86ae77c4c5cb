/* See snapshot.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define SNAPSHOT_PRESENT (1ull << 63)
#define SNAPSHOT_SWAPPED (1ull << 62)

uint64_t tvmm_snapshot_sum(const uint8_t *page, uint64_t number, const uint64_t *key)
{
    /* The finalizer of SplitMix64: a page in another's place has another number. */
    uint64_t mixed = tvmm_page_hash(page, key) + (number + 1) * 0x9e3779b97f4a7c15ull;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ull;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebull;
    return mixed ^ (mixed >> 31);
}

/* The first thing that is wrong counts, and ends the other threads. */
static int snapshot_fail(struct tvmm_snapshot *snapshot, uint32_t failure, int error, uint32_t block, uint64_t chunk)
{
    uint32_t fine = TVMM_SNAPSHOT_FINE;
    if (__atomic_compare_exchange_n(&snapshot->failure, &fine, failure, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        snapshot->error = error;
        snapshot->bad_block = block;
        snapshot->bad_chunk = chunk;
    }
    __atomic_store_n(&snapshot->stop, 1, __ATOMIC_RELEASE);
    return error ? -error : -EBADMSG;
}

/* The next chunk of any block. 0: there is none. */
static int snapshot_next(struct tvmm_snapshot *snapshot, uint32_t *block, uint64_t *first, uint32_t *count)
{
    for (;;) {
        if (__atomic_load_n(&snapshot->stop, __ATOMIC_ACQUIRE))
            return 0;
        uint64_t number = __atomic_fetch_add(&snapshot->cursor, 1, __ATOMIC_ACQ_REL);
        uint32_t at = 0;
        for (; at < snapshot->ram->count; at++) {
            uint64_t chunks = (snapshot->ram->blocks[at].pages + TVMM_SNAPSHOT_CHUNK - 1) / TVMM_SNAPSHOT_CHUNK;
            if (number < chunks)
                break;
            number -= chunks;
        }
        if (at == snapshot->ram->count)
            return 0;
        uint64_t left = snapshot->ram->blocks[at].pages - number * TVMM_SNAPSHOT_CHUNK;
        *block = at;
        *first = number * TVMM_SNAPSHOT_CHUNK;
        *count = left < TVMM_SNAPSHOT_CHUNK ? (uint32_t)left : TVMM_SNAPSHOT_CHUNK;
        if (!snapshot->blocks[at].skip)
            return 1;
    }
}

/* At an offset of the file, past the page cache or through it. 0 or -errno. */
int tvmm_snapshot_pwrite(struct tvmm_snapshot *snapshot, int direct, const uint8_t *from, uint64_t length, uint64_t offset)
{
    int fd = direct && snapshot->direct_fd >= 0 ? snapshot->direct_fd : snapshot->fd;
    while (length) {
        ssize_t done = pwrite(fd, from, length, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        /* What cannot be done without the page cache, for whatever reason, can be done with it. */
        if (done < 0 && errno == EINVAL && fd != snapshot->fd) {
            fd = snapshot->fd;
            continue;
        }
        if (done <= 0)
            return done ? -errno : -EIO;
        if (done % TVMM_PAGE)
            fd = snapshot->fd;
        from += done;
        offset += (uint64_t)done;
        length -= (uint64_t)done;
        __atomic_fetch_add(&snapshot->bytes_done, (uint64_t)done, __ATOMIC_RELAXED);
    }
    return 0;
}

/* Pages of one chunk, of which those whose bit is set in `holes` are known to be zero. */
static int snapshot_put_pages(struct tvmm_snapshot *snapshot, uint32_t block, uint64_t first, uint32_t count,
                              const uint8_t *from, const uint64_t *holes)
{
    const struct tvmm_snapshot_block *place = &snapshot->blocks[block];
    uint64_t sum = 0, offset = place->offset + first * TVMM_PAGE, data = 0;
    uint32_t start = 0, end = 0; /* of what is to be written, empty at first */
    for (uint32_t page = 0; page < count; page++) {
        if (holes && (holes[page / 64] >> page % 64 & 1))
            continue;
        const uint8_t *bytes = from + (uint64_t)page * TVMM_PAGE;
        if (tvmm_page_is_zero(bytes))
            continue;
        sum += tvmm_snapshot_sum(bytes, offset / TVMM_PAGE + page, snapshot->key);
        data++;
        if (end && page - end > TVMM_SNAPSHOT_GAP) {
            int error = tvmm_snapshot_pwrite(snapshot, 1, from + (uint64_t)start * TVMM_PAGE,
                                             (uint64_t)(end - start) * TVMM_PAGE, offset + (uint64_t)start * TVMM_PAGE);
            if (error)
                return error;
            end = 0;
        }
        if (!end)
            start = page;
        end = page + 1;
    }
    if (sum)
        __atomic_fetch_add(&place->sums[first / TVMM_SNAPSHOT_CHUNK], sum, __ATOMIC_RELAXED);
    __atomic_fetch_add(&snapshot->pages_done, count, __ATOMIC_RELAXED);
    __atomic_fetch_add(&snapshot->pages_data, data, __ATOMIC_RELAXED);
    if (!end)
        return 0;
    return tvmm_snapshot_pwrite(snapshot, 1, from + (uint64_t)start * TVMM_PAGE, (uint64_t)(end - start) * TVMM_PAGE,
                                offset + (uint64_t)start * TVMM_PAGE);
}

int tvmm_snapshot_put(struct tvmm_snapshot *snapshot, uint32_t block, uint64_t first, uint32_t count, const uint8_t *from)
{
    if (block >= snapshot->ram->count || first > snapshot->ram->blocks[block].pages
        || count > snapshot->ram->blocks[block].pages - first)
        return -EINVAL;
    while (count) {
        uint32_t room = TVMM_SNAPSHOT_CHUNK - (uint32_t)(first % TVMM_SNAPSHOT_CHUNK), part = count < room ? count : room;
        int error = snapshot_put_pages(snapshot, block, first, part, from, NULL);
        if (error)
            return error;
        first += part;
        from += (uint64_t)part * TVMM_PAGE;
        count -= part;
    }
    return 0;
}

/* Mark those pages of a chunk that nobody ever wrote. To read them would have the kernel set up tables for them, or, of a
 * file, allocate them. What cannot be found out is read. */
void tvmm_snapshot_holes(const struct tvmm_snapshot *snapshot, int pagemap, uint32_t block, uint64_t first,
                         uint32_t count, uint64_t *holes)
{
    const struct tvmm_page_block *ram = &snapshot->ram->blocks[block];
    if (ram->fd >= 0) {
        tvmm_file_holes(ram->base, ram->fd, first, count, holes);
        return;
    }
    if (!snapshot->blocks[block].sparse || pagemap < 0)
        return;
    uint64_t entries[TVMM_SNAPSHOT_CHUNK];
    off_t at = (off_t)(((uintptr_t)ram->base / TVMM_PAGE + first) * sizeof *entries);
    if (pread(pagemap, entries, count * sizeof *entries, at) != (ssize_t)(count * sizeof *entries))
        return;
    for (uint32_t page = 0; page < count; page++)
        if (!(entries[page] & (SNAPSHOT_PRESENT | SNAPSHOT_SWAPPED)))
            tvmm_bits_set(holes, page, 1);
}

int tvmm_snapshot_write(struct tvmm_snapshot *snapshot, struct tvmm_waker *waker)
{
    uint32_t block, count;
    uint64_t first;
    int error = 0, pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    while (!error && snapshot_next(snapshot, &block, &first, &count)) {
        uint64_t holes[TVMM_SNAPSHOT_CHUNK / 64] = {0};
        if (tvmm_woken(waker)) {
            error = -EINTR;
            break;
        }
        tvmm_snapshot_holes(snapshot, pagemap, block, first, count, holes);
        error = snapshot_put_pages(snapshot, block, first, count,
                                   snapshot->ram->blocks[block].base + first * TVMM_PAGE, holes);
        if (error)
            snapshot_fail(snapshot, TVMM_SNAPSHOT_ERRNO, -error, block, first / TVMM_SNAPSHOT_CHUNK);
    }
    if (pagemap >= 0)
        close(pagemap);
    return error;
}

/* Bytes of the file, all of them. 0, -errno, or -ENODATA when the file ends before. */
static int snapshot_pread(struct tvmm_snapshot *snapshot, uint8_t *into, uint64_t length, uint64_t offset)
{
    int fd = snapshot->direct_fd >= 0 ? snapshot->direct_fd : snapshot->fd;
    while (length) {
        ssize_t done = pread(fd, into, length, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && errno == EINVAL && fd != snapshot->fd) {
            fd = snapshot->fd;
            continue;
        }
        if (done <= 0)
            return done ? -errno : -ENODATA;
        if (done % TVMM_PAGE)
            fd = snapshot->fd;
        into += done;
        offset += (uint64_t)done;
        length -= (uint64_t)done;
        __atomic_fetch_add(&snapshot->bytes_done, (uint64_t)done, __ATOMIC_RELAXED);
    }
    return 0;
}

/* One chunk into `into`, and the sum of what has come. Holes of the file are left out, so that no memory is allocated for
 * them. */
static int snapshot_pull(struct tvmm_snapshot *snapshot, uint64_t offset, uint32_t count, uint8_t *into, uint64_t *sum)
{
    uint64_t at = offset, end = offset + (uint64_t)count * TVMM_PAGE, data_pages = 0;
    *sum = 0;
    while (at < end) {
        off_t data = lseek(snapshot->fd, (off_t)at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break; /* a hole to the end of the file */
        uint64_t from = data < 0 ? at : (uint64_t)data / TVMM_PAGE * TVMM_PAGE;
        if (from >= end)
            break;
        off_t hole = data < 0 ? (off_t)end : lseek(snapshot->fd, data, SEEK_HOLE);
        uint64_t until = hole < 0 ? end : ((uint64_t)hole + TVMM_PAGE - 1) / TVMM_PAGE * TVMM_PAGE;
        if (until > end)
            until = end;
        uint8_t *pages = into + (from - offset);
        int error = snapshot_pread(snapshot, pages, until - from, from);
        if (error)
            return error;
        for (uint64_t page = from; page < until; page += TVMM_PAGE, pages += TVMM_PAGE)
            if (!tvmm_page_is_zero(pages)) {
                *sum += tvmm_snapshot_sum(pages, page / TVMM_PAGE, snapshot->key);
                data_pages++;
            }
        at = until;
    }
    __atomic_fetch_add(&snapshot->pages_data, data_pages, __ATOMIC_RELAXED);
    return 0;
}

int tvmm_snapshot_read(struct tvmm_snapshot *snapshot, struct tvmm_waker *waker, uint8_t *scratch)
{
    uint32_t block, count;
    uint64_t first;
    while (snapshot_next(snapshot, &block, &first, &count)) {
        const struct tvmm_snapshot_block *place = &snapshot->blocks[block];
        uint64_t chunk = first / TVMM_SNAPSHOT_CHUNK, sum;
        if (tvmm_woken(waker))
            return -EINTR;
        uint8_t *into = scratch ? scratch : snapshot->ram->blocks[block].base + first * TVMM_PAGE;
        int error = snapshot_pull(snapshot, place->offset + first * TVMM_PAGE, count, into, &sum);
        if (error == -ENODATA)
            return snapshot_fail(snapshot, TVMM_SNAPSHOT_SHORT, 0, block, chunk);
        if (error)
            return snapshot_fail(snapshot, TVMM_SNAPSHOT_ERRNO, -error, block, chunk);
        if (sum != place->sums[chunk])
            return snapshot_fail(snapshot, TVMM_SNAPSHOT_DIFFERS, 0, block, chunk);
        __atomic_fetch_add(&snapshot->pages_done, count, __ATOMIC_RELAXED);
    }
    return 0;
}
