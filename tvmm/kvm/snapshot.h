/* Pages of guest RAM into and out of a snapshot file: chunks of 1 MiB at fixed places, holes where all is zero, and one
 * checksum for each chunk (docs/snapshots.md has the layout of the file).
 *
 * Several threads share one `tvmm_snapshot`. Each takes the next chunk until none is left, so that a slow one holds
 * nobody up and the disk has as many requests as there are threads.
 *
 * A chunk's checksum is the sum of one number for each page of it that is not zero; pages of zeros count 0. So it does not
 * matter in which order pages come, and a page may be written by itself (`tvmm_snapshot_put`, for a guest that runs while
 * it is saved): whoever does that writes each page once, and no `tvmm_snapshot_write` takes its chunk. */
#ifndef TVMM_SNAPSHOT_H
#define TVMM_SNAPSHOT_H

#include "pages.h"
#include "serve.h"

#include <stdint.h>

#define TVMM_SNAPSHOT_CHUNK 256u /* pages */
/* Pages of zeros between two others that are written with them: one request more costs as much. */
#define TVMM_SNAPSHOT_GAP 8u

enum tvmm_snapshot_failure {
    TVMM_SNAPSHOT_FINE,
    TVMM_SNAPSHOT_ERRNO,  /* `error` */
    TVMM_SNAPSHOT_SHORT,  /* the file ends before a chunk of `bad_block` does */
    TVMM_SNAPSHOT_DIFFERS /* chunk `bad_chunk` of `bad_block` has another checksum than the table says */
};

struct tvmm_snapshot_block {
    uint64_t offset; /* of its first page in the file */
    uint64_t *sums;  /* one for each chunk */
    uint32_t sparse; /* private memory without a file: the kernel can tell what was never written */
    uint32_t skip;   /* not to be looked at by `write`, `read` and `verify` */
};

struct tvmm_snapshot {
    struct tvmm_ram_pages *ram;
    struct tvmm_snapshot_block *blocks; /* one for each of `ram` */
    uint64_t *key;                      /* TVMM_PAGE_KEY words */
    int32_t fd, direct_fd;              /* the same file; -1: no O_DIRECT */
    uint64_t cursor;                    /* the next chunk, counted over all blocks */
    uint32_t stop, failure;
    int32_t error;
    uint32_t bad_block;
    uint64_t bad_chunk;
    uint64_t pages_done, pages_data, bytes_done; /* looked at; not zero among them; moved to or from the file */
};

/* Take chunks until there are no more, or something is wrong, or the waker is woken. 0: done; -EINTR: woken; else what is
 * in `failure`, which ends all other threads too. */
int tvmm_snapshot_write(struct tvmm_snapshot *snapshot, struct tvmm_waker *waker);
/* From the file into `ram`, which must be zero; checksums are compared. `scratch`: TVMM_SNAPSHOT_CHUNK pages to read into in
 * place of `ram`, NULL for none. */
int tvmm_snapshot_read(struct tvmm_snapshot *snapshot, struct tvmm_waker *waker, uint8_t *scratch);
/* `count` pages from `first` on of a block, whose bytes are at `from` (aligned to a page), of which each was not put before.
 * From any thread. 0, or -errno. */
int tvmm_snapshot_put(struct tvmm_snapshot *snapshot, uint32_t block, uint64_t first, uint32_t count, const uint8_t *from);
/* What a page adds to its chunk's checksum; `number` is its offset in the file in pages. */
uint64_t tvmm_snapshot_sum(const uint8_t *page, uint64_t number, const uint64_t *key);

/* For others that put pages (rounds.h). `pagemap`: /proc/self/pagemap, or -1. */
int tvmm_snapshot_pwrite(struct tvmm_snapshot *snapshot, int direct, const uint8_t *from, uint64_t length, uint64_t offset);
void tvmm_snapshot_holes(const struct tvmm_snapshot *snapshot, int pagemap, uint32_t block, uint64_t first, uint32_t count,
                         uint64_t *holes);

#endif
