/* Lanes: connections over which pages of guest RAM move from one process to another, and the frames on them.
 *
 * A frame is a header of 24 bytes, `count` page numbers of 4 bytes in strictly ascending order, and for PAGES as many
 * times 4096 bytes; everything little endian:
 *
 *     0 magic u32    4 kind u8    5 encoding u8 (0)    6 block u16    8 count u32    12 payload u32    16 number u64
 *
 * `payload` is what follows the header, in bytes. `number` is that of the round in ROUND_END, where block and count are
 * 0, and 0 elsewhere. A lane's sender ends each round with a ROUND_END.
 *
 * Senders of one migration share a cursor over the bitmap. Each takes a chunk's bits, has KVM protect those pages again,
 * and only then looks at the pages: what is written from there on is marked anew and comes again, so that neither a page
 * that changes on its way nor one that is no longer zero can be lost. */
#ifndef TVMM_LANES_H
#define TVMM_LANES_H

#include "dirty_log.h"
#include "pages.h"
#include "serve.h"

#include <sys/uio.h>

#define TVMM_LANE_MAGIC 0x4c505654u /* "TVPL" */
#define TVMM_LANE_HEADER 24u
/* Page numbers in one frame. A peer that says more is refused, so that it cannot have us keep more than 4 KiB of them or
 * busy with one frame for more than 4 MiB. */
#define TVMM_LANE_COUNT_MAX 1024u
/* Pages that our sender puts into one frame, and so into one sendmsg(2), which takes 1024 pieces at most. */
#define TVMM_LANE_BATCH 512u
/* Pages that a receiver keeps, at most, before the pager puts them into memory: they stay in the caches. */
#define TVMM_LANE_BOUNCE 64u

enum tvmm_lane_kind { TVMM_LANE_PAGES = 1, TVMM_LANE_ZEROS, TVMM_LANE_ROUND_END };

enum tvmm_lane_stop {
    TVMM_LANE_STOP_ROUND_END, /* the round is over on this lane */
    TVMM_LANE_STOP_CLOSED,    /* the peer ended the stream, between two frames */
    TVMM_LANE_STOP_WOKEN,
    TVMM_LANE_STOP_STALLED,   /* nothing moved for as long as was said */
    TVMM_LANE_STOP_FAILED,    /* errno in `failure`: the connection's, or the pager's */
    TVMM_LANE_STOP_REFUSED,   /* what came is no frame: `refusal` */
    TVMM_LANE_STOP_MORE,      /* of a buffer: it is used up */
};

enum tvmm_lane_refusal {
    TVMM_LANE_FINE,
    TVMM_LANE_BAD_MAGIC,
    TVMM_LANE_BAD_KIND,
    TVMM_LANE_BAD_ENCODING,
    TVMM_LANE_BAD_BLOCK,
    TVMM_LANE_BAD_COUNT,
    TVMM_LANE_BAD_PAYLOAD,
    TVMM_LANE_BAD_NUMBER,
    TVMM_LANE_BAD_ORDER,
    TVMM_LANE_BAD_RANGE,
    TVMM_LANE_TRUNCATED,
};

struct tvmm_lane_counters {
    uint64_t normal, zero, unchanged; /* pages */
    uint64_t bytes, frames;
};

/* What the senders of one migration share. */
struct tvmm_lane_group {
    struct tvmm_ram_pages *ram;
    struct tvmm_bitmap *bitmap;
    struct tvmm_dirty_log *log; /* NULL: nothing is to be protected again */
    uint64_t *hashes;           /* of all pages in order, of what was sent last; NULL: unchanged pages are sent */
    uint64_t *key;
    uint32_t chunk_pages;       /* a multiple of 64, at most TVMM_CLEAR_PAGES */
    uint32_t stop;
    uint64_t cursor;            /* the next chunk, counted over all blocks */
    uint64_t bandwidth;         /* bytes/s, 0: as fast as it goes */
    uint64_t next_ns;           /* when the bytes charged so far will have been sent at that rate */
};

struct tvmm_frame_head {
    uint8_t bytes[TVMM_LANE_HEADER + 4 * TVMM_LANE_COUNT_MAX];
};

/* One sender. Its state outlives a wake-up, which may come in the middle of a frame. */
struct tvmm_lane {
    struct tvmm_lane_group *group;
    struct tvmm_waker *waker;
    int fd;
    int32_t failure;
    struct tvmm_lane_counters counters;
    /* The chunk that is being taken apart: `words` has the bits that are left from `word` on. */
    uint32_t block, word, word_count, have_chunk;
    uint64_t chunk_first;
    uint64_t words[TVMM_CLEAR_PAGES / 64];
    /* Of a block with a file: pages known to be there, which only makes it faster; and behind which page of this very
     * chunk there are none up to `hole_end`. */
    uint32_t data_block;
    uint64_t data_first, data_end, hole_end;
    /* Pages that are ready to be sent, all of one block. */
    uint32_t batch_block, normal_count, zero_count, charged;
    uint32_t normal[TVMM_LANE_BATCH], zero[TVMM_LANE_COUNT_MAX];
    uint8_t *copies; /* TVMM_LANE_BATCH pages, for those that are hashed: what was hashed is what must be sent */
    uint64_t copied[TVMM_LANE_BATCH / 64];
    /* What is on its way to the socket. */
    struct tvmm_frame_head zero_head, normal_head;
    struct iovec pieces[TVMM_LANE_BATCH + 3];
    uint32_t piece, piece_count, ending;
    uint64_t progress_ns;
};

struct tvmm_pager;

/* One receiver, of a socket or of buffers. With a pager, pages of its blocks go through it and not straight into RAM. */
struct tvmm_intake {
    struct tvmm_ram_pages *ram;
    struct tvmm_pager *pager; /* NULL: none; changes between two frames */
    uint32_t urgent;          /* whether the pages are those that somebody waits for */
    struct tvmm_waker *waker;
    int fd;
    int32_t failure;
    uint32_t refusal;
    uint64_t refused_value, refused_limit;
    uint64_t number;
    struct tvmm_lane_counters counters;
    uint32_t part; /* of the frame: 0 header, 1 page numbers, 2 pages */
    uint32_t have; /* bytes of the header or of the page numbers */
    uint32_t kind, block, count;
    uint8_t header[TVMM_LANE_HEADER];
    uint32_t numbers[TVMM_LANE_COUNT_MAX];
    struct iovec pieces[TVMM_LANE_COUNT_MAX + 1];
    uint32_t piece, piece_count;
    /* Of a frame of pages that goes through the pager: pages of it that did, and where the next ones are put together. */
    uint32_t paged, placed;
    uint32_t batch, batch_placed; /* pages of the bounce buffer: of this filling, and those that are done with */
    uint32_t batch_bytes;         /* that have come of it */
    uint8_t *bounce;
};

/* Whether the round is to stop: what was taken and is not on its way is given back. */
static inline int tvmm_lanes_stopped(const struct tvmm_lane_group *group)
{
    return __atomic_load_n(&group->stop, __ATOMIC_ACQUIRE) != 0;
}

/* A lane that fills buffers has no waker: its caller has the thread back after each. */
static inline int tvmm_lane_woken(const struct tvmm_lane *lane) { return lane->waker && tvmm_woken(lane->waker); }

/* lanes_gather.c */
int tvmm_lane_gather(struct tvmm_lane *lane, uint32_t limit);
void tvmm_lane_give_back(struct tvmm_lane *lane);
void tvmm_lane_forget_batch(struct tvmm_lane *lane);

/* lanes.c */
struct tvmm_lane *tvmm_lane_new(struct tvmm_lane_group *group, struct tvmm_waker *waker, int fd);
void tvmm_lane_free(struct tvmm_lane *lane);
enum tvmm_lane_stop tvmm_lane_send(struct tvmm_lane *lane, uint64_t number, uint32_t stall_ms);
uint64_t tvmm_lane_pack(struct tvmm_lane *lane, uint8_t *buffer, uint64_t size, uint64_t number, uint32_t *ended);
int tvmm_lane_wait(int fd, short events, struct tvmm_waker *waker, uint32_t stall_ms, uint64_t progress_ns);
uint64_t tvmm_lanes_charge(struct tvmm_lane_group *group, uint64_t bytes);

/* lanes_receive.c */
enum tvmm_lane_stop tvmm_intake_receive(struct tvmm_intake *intake, uint32_t stall_ms);
enum tvmm_lane_stop tvmm_intake_take(struct tvmm_intake *intake, const uint8_t *buffer, uint64_t length,
                                     uint64_t *consumed);
void tvmm_intake_close(struct tvmm_intake *intake);

#endif
