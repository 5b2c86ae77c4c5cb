/*
 * The virtio block device (5.2): up to BLK_SLOTS requests at a time, in slots of the caller's choice. One queue, or
 * with `mq` on the kernel command line up to BLK_MAX_QUEUES, which the slots are dealt out to.
 */
#ifndef GUEST_VIRTIO_BLK_H
#define GUEST_VIRTIO_BLK_H

#include "virtio.h"

#define BLK_SLOTS  256
#define BLK_MAX_PIECES 256
#define BLK_MAX_QUEUES 4
#define SECTOR     512
#define BLK_ID_BYTES 20

enum { BLK_READ = 0, BLK_WRITE = 1, BLK_FLUSH = 4, BLK_GET_ID = 8, BLK_DISCARD = 11, BLK_ZEROES = 13 };
enum { BLK_OK, BLK_IOERR, BLK_UNSUPP, BLK_NO_ANSWER = 0x100 };

#define BLK_F_SIZE_MAX FEATURE(1)
#define BLK_F_SEG_MAX  FEATURE(2)
#define BLK_F_RO       FEATURE(5)
#define BLK_F_BLK_SIZE FEATURE(6)
#define BLK_F_FLUSH    FEATURE(9)
#define BLK_F_TOPOLOGY FEATURE(10)
#define BLK_F_WCE      FEATURE(11)
#define BLK_F_MQ       FEATURE(12)
#define BLK_F_DISCARD  FEATURE(13)
#define BLK_F_ZEROES   FEATURE(14)

struct blk_request { /* one slot: what the device reads, and the status that it writes */
    u32 type, reserved;
    u64 sector;
    struct {
        u64 sector;
        u32 sectors, flags;
    } range; /* the data of BLK_DISCARD and BLK_ZEROES */
    u8 status, padding[31];
};

struct blk {
    struct virtio *device;
    struct virtq *queues[BLK_MAX_QUEUES];
    u16 queue_count, next_queue;
    struct blk_request *requests;
    u64 capacity; /* sectors */
    u32 block_size;
    u16 pieces_max; /* of data, in one request */
    bool in_pieces; /* data goes out as pieces of 4 KiB, not as one */
    struct buffer buffers[BLK_MAX_PIECES + 2]; /* of the request that is being added */
};

/* Block device `number`, set up if it is not yet; NULL, with a line printed, if that fails. */
struct blk *blk_open(u64 number);
bool blk_start(struct blk *blk); /* after a reset: from the beginning */

/* Puts a request into the ring (and no more); false if there is no room. Ranges have `length` bytes and no data. */
bool blk_add(struct blk *blk, u32 slot, u32 type, u64 sector, u64 address, u32 length);
void blk_kick(struct blk *blk);
/* The next finished request's slot and status; false if there is none. */
bool blk_pop(struct blk *blk, u32 *slot, u32 *status);
/* One request in slot 0 while nothing else is going on. BLK_NO_ANSWER after BLK_TIMEOUT_MS, or by Ctrl-C. */
u32 blk_do(struct blk *blk, u32 type, u64 sector, u64 address, u32 length);
/* Waits for all that is in flight; what does not come in time is done away with by a reset. False in that case. */
bool blk_drain(struct blk *blk);

u32 blk_in_flight(const struct blk *blk);
bool blk_broken(const struct blk *blk);             /* a queue has had an answer that makes no sense */
bool blk_interrupts(struct blk *blk, bool on);      /* as virtq_interrupts(), of all queues */
bool blk_reset_queues(struct blk *blk);             /* with F_RING_RESET: each queue by itself */
void blk_start_counts(struct blk *blk);
u64 blk_kicks(const struct blk *blk);
u64 blk_interrupt_count(const struct blk *blk);

/* Longer than anybody lets a guest wait whose disk is full. */
#define BLK_TIMEOUT_MS 60000

/* Memory for data that all disk commands share: page-aligned, at least that long; 0, with a line printed. */
u64 blk_memory(u64 bytes);

#endif
