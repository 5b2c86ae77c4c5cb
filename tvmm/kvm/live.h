/* A snapshot of RAM as it is at one moment, taken while its owner goes on writing to it: userfaultfd write protection.
 *
 *     tvmm_live_arm      RAM is protected, piece by piece. A write traps, is noted and let through: nothing is saved yet.
 *     tvmm_live_rearm    what was noted is protected again, to leave less for the next step.
 *     tvmm_live_freeze   the same while nobody writes; from here on each page is to be saved as it is now.
 *     tvmm_live_take     a chunk is copied out and its protection lifted. Several threads do it until none is left.
 *     tvmm_live_end      nothing is protected any more, whether all was taken or not.
 *
 * A write to a page that is not copied yet wakes the handler, a thread of its own. It keeps a copy of the page in a
 * pool of bounded size, and lets the write through. When the pool is empty the writer waits for the page's chunk, which
 * is taken next: that is what slows a guest down that writes faster than the disk. Chunks that are written to are taken
 * before others, so that the pool is given back early and the rest of the chunk causes no traps.
 *
 * The handler and the takers read RAM and never write to it, and need no lock that a writer may hold: not the
 * interpreter's, above all.
 *
 * Not seen are writes that do not go through the mapping: by other mappings of a block's file, in this process or
 * another one, and by pages that were pinned before the freeze, of which there are none while devices are held. */
#ifndef TVMM_LIVE_H
#define TVMM_LIVE_H

#include "pages.h"
#include "snapshot.h"

#include <pthread.h>

/* Pages in a chunk: 2 MiB, a huge page of x86. Protection that is lifted from the whole of one does not split it. */
#define TVMM_LIVE_CHUNK 512u
#define TVMM_LIVE_WORDS (TVMM_LIVE_CHUNK / 64)
/* Pages that are let through at once where writes come in rising order. */
#define TVMM_LIVE_AROUND_MAX 64u
/* Rising sequences that are known at a time. */
#define TVMM_LIVE_STREAMS 8u
#define TVMM_LIVE_NONE UINT32_MAX

enum tvmm_live_phase { TVMM_LIVE_ARMING, TVMM_LIVE_SAVING, TVMM_LIVE_ENDED };
enum tvmm_live_state { TVMM_LIVE_UNSAVED, TVMM_LIVE_COPYING, TVMM_LIVE_SAVED };
enum tvmm_live_queue { TVMM_LIVE_COLD, TVMM_LIVE_HOT, TVMM_LIVE_URGENT };
enum tvmm_live_answer {
    TVMM_LIVE_LIFT, /* let the run be written */
    TVMM_LIVE_WAIT, /* whoever takes the chunk will do so */
};

struct tvmm_live_chunk {
    uint32_t block, slots; /* the first of its kept pages in the pool; TVMM_LIVE_NONE */
    uint64_t first;        /* page of the block */
    uint32_t pages;
    uint8_t state, queue;
};

/* A page in the pool: its place in its chunk. */
struct tvmm_live_slot {
    uint32_t page, next;
};

struct tvmm_live_block {
    uint8_t *base;
    uint64_t pages;
    int32_t fd;           /* as in tvmm_page_block */
    uint32_t grain;       /* pages that are protected as one: 1, or those of a huge page of hugetlbfs */
    uint64_t first_chunk; /* its place in `chunks` */
    uint64_t *noted;      /* written since it was protected */
    uint64_t *kept;       /* a copy is in the pool; or none, and it is a page of zeros */
    uint32_t registered;
};

/* FIFO of chunk numbers; each is in each of them once at most. */
struct tvmm_live_list {
    uint32_t *numbers;
    uint32_t head, tail;
};

struct tvmm_live_counters {
    uint64_t faults;   /* writes that trapped, in both phases */
    uint64_t kept;     /* pages that were copied for them */
    uint64_t waits;    /* writes that waited since the pool was empty */
    uint64_t handled_ns_max;
    uint64_t frozen;   /* pages that tvmm_live_freeze protected again */
};

struct tvmm_live {
    int32_t uffd;      /* -1: nothing traps; for tests of what is decided */
    int32_t stop_fd, pagemap_fd;
    uint32_t phase;
    int32_t failure;   /* the handler's, -errno */
    uint32_t populate; /* the kernel protects no pages that are not there */
    uint64_t marker;   /* what /proc/self/pagemap says of such a page when it is protected; 0: not known */
    pthread_mutex_t lock;
    pthread_cond_t news; /* a chunk was saved, or the phase is another one */
    pthread_t handler;
    uint32_t handling;
    uint32_t chunk_count, left, cursor; /* chunks in all, those nobody has taken, and the next in order */
    struct tvmm_live_chunk *chunks;
    struct tvmm_live_list hot, urgent;
    uint32_t pool_pages, pool_free, pool_next; /* free list, and slots that were never used */
    uint8_t *pool;
    struct tvmm_live_slot *slots;
    uint64_t streams[TVMM_LIVE_STREAMS]; /* chunk number * CHUNK + page where each is expected to go on */
    uint32_t around[TVMM_LIVE_STREAMS], stream_turn;
    struct tvmm_live_counters counters;
    uint32_t count;
    struct tvmm_live_block blocks[];
};

/* What was taken. `data`: a bit for each page that is not known to be zero; the others are zeros in the buffer too. */
struct tvmm_live_piece {
    uint32_t block, pages;
    uint64_t first;
    uint64_t data[TVMM_LIVE_WORDS];
};

struct tvmm_live *tvmm_live_new(const struct tvmm_ram_pages *ram, const uint32_t *grains, uint32_t pool_pages);
int tvmm_live_open(struct tvmm_live *live);
int tvmm_live_arm(struct tvmm_live *live);
int64_t tvmm_live_rearm(struct tvmm_live *live);
int64_t tvmm_live_freeze(struct tvmm_live *live);
int tvmm_live_take(struct tvmm_live *live, uint8_t *buffer, struct tvmm_live_piece *piece);
int tvmm_live_write(struct tvmm_live *live, struct tvmm_snapshot *snapshot);
int tvmm_live_secure(struct tvmm_live *live, uint32_t block, uint64_t first, uint64_t count);
void tvmm_live_abandon(struct tvmm_live *live);
int tvmm_live_end(struct tvmm_live *live);
void tvmm_live_free(struct tvmm_live *live);

/* live_handler.c */
int tvmm_live_protect(struct tvmm_live *live, uint32_t block, uint64_t first, uint64_t count, int on);

/* live_claims.c: who does what with a page; no system calls. */
enum tvmm_live_answer tvmm_live_fault(struct tvmm_live *live, uint32_t block, uint64_t page, uint64_t *first,
                                      uint32_t *count);
uint32_t tvmm_live_claim(struct tvmm_live *live);
void tvmm_live_fill(struct tvmm_live *live, uint32_t number, uint8_t *buffer, struct tvmm_live_piece *piece,
                    const uint64_t *absent);
void tvmm_live_saved(struct tvmm_live *live, uint32_t number);
void tvmm_live_hurry(struct tvmm_live *live, uint32_t number);

#endif
