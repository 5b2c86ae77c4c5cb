/*
 * A disk area whose every block of 4 KiB tells what it is: see README.md for the pattern. Passes from end to end,
 * and random requests, all verified.
 */
#ifndef GUEST_BLKDATA_H
#define GUEST_BLKDATA_H

#include "virtio_blk.h"

#define BLOCK          4096
#define BLKDATA_DEPTH  16 /* requests in flight at most */

struct blkdata_job { /* one request in flight; its slot is its index */
    bool busy;
    u8 tries;
    u32 type, blocks, rest; /* rest: blocks to read one by one after this one */
    u64 block;
    u64 added; /* whatever clock the caller of blkdata_add() has */
};

struct blkdata {
    struct blk *blk;
    u64 number, seed, blocks; /* the area that the generations are of */
    u32 *certain, *possible;  /* generations by block: last that is known to be there, last that was tried */
    u64 memory, table_pages;
    u64 position, left, random; /* of the current pass */
    u64 writes, reads, flushes; /* requests begun */
    u64 done, wrong, failed, unreadable;
    bool stuck;
    struct blkdata_job jobs[BLKDATA_DEPTH];
};

/* The area's generations, made anew for another area or seed. NULL, with a line that `who` says, if there is none. */
struct blkdata *blkdata_open(const char *who, u64 number, u64 mib, u64 seed);

/*
 * `left` requests, at random or, with `type`, from end to end, until all are done; none is added after `end` (TSC;
 * 0: no end). True if it was not broken off.
 */
bool blkdata_pass(struct blkdata *c, u32 type, bool random, u64 left, u64 end);

/* One random request, to be kicked by the caller, if one of the first `depth` slots is free. */
bool blkdata_add(struct blkdata *c, u32 depth, u64 now);
u32 blkdata_reap(struct blkdata *c); /* verifies what is done; a failed request is added again. Returns how many */

#endif
