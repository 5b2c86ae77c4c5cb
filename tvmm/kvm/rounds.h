/* Pages of a guest that runs into a snapshot file, round after round: each time those that were written since.
 *
 * Threads of a round share a cursor over a bitmap, as lanes do (lanes.h): a unit's bits are taken, KVM protects those
 * pages again, and only then they are read. What is written from there on is marked anew and comes in the next round.
 *
 * A page is copied, and the copy is what is looked at, added to the checksum and written: so the file agrees with its
 * checksums at any moment, whatever is written to the guest's memory meanwhile, or dropped from it. What a page has
 * added to its chunk's checksum is remembered, and taken away when the page comes again.
 *
 * In the pause pages are copied to memory that is there for them and written afterwards (tvmm_rounds_keep,
 * tvmm_rounds_put). */
#ifndef TVMM_ROUNDS_H
#define TVMM_ROUNDS_H

#include "dirty_log.h"
#include "snapshot.h"

/* Pages whose bits are taken at once. Each time KVM may have all vCPUs forget their translations. */
#define TVMM_ROUNDS_UNIT 2048u

struct tvmm_place {
    uint32_t block, page;
};

struct tvmm_rounds {
    struct tvmm_snapshot *snapshot;
    struct tvmm_bitmap *bitmap;  /* of its first blocks: pages that are to be written */
    struct tvmm_dirty_log *log;  /* NULL: nothing is to be protected again */
    uint32_t first;              /* no page was put before */
    uint32_t stop;
    uint64_t cursor;             /* the next unit, counted over all blocks of the bitmap; or the next pages kept */
    uint64_t pages, bytes;       /* of this round: taken, and written to the file */
    uint64_t *sums;              /* of all pages of these blocks, in order; 0: zeros, and never anything else */
    uint64_t room, kept;         /* pages that can be kept, and that are */
    uint8_t *copies;
    struct tvmm_place *places;
};

struct tvmm_rounds *tvmm_rounds_new(struct tvmm_snapshot *snapshot, struct tvmm_bitmap *bitmap, uint64_t room);
void tvmm_rounds_free(struct tvmm_rounds *rounds);
int tvmm_rounds_write(struct tvmm_rounds *rounds, struct tvmm_waker *waker);
uint64_t tvmm_rounds_keep(struct tvmm_rounds *rounds);
int tvmm_rounds_put(struct tvmm_rounds *rounds, struct tvmm_waker *waker);

#endif
