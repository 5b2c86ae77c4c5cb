/* The server of a block device's queue: chains in, system calls, status bytes out (Virtio 1.3, 5.2.6).
 *
 * A chain becomes a request (blk_request.c), which is all that is known of it from then on: whatever the guest wrote was
 * loaded once and checked. A request is carried out in steps, each one system call (blk_step.c says which), and an
 * engine makes the calls: at once on the server's thread or on a pool of threads (blk_engine.c), by io_uring
 * (blk_uring.c), or has an NBD server make them (blk_nbd.c). Short reads and writes, ranges one after the other, and other ways after "not supported" are further
 * steps of the same request.
 * blk.c is the loop around that: what to take, what an error means, when to tell the driver, when to sleep; blk_life.c
 * is what comes before and after.
 *
 * Data goes between guest memory and file without a copy. With O_DIRECT the kernel wants places and lengths aligned;
 * drivers need not care, so a request that does not fit goes through a second, buffered descriptor of the same file:
 * the kernel keeps the two coherent, and no bounce buffers are needed.
 */
#ifndef TVMM_BLK_H
#define TVMM_BLK_H

#include "blk_dirty.h"
#include "limit.h"
#include "serve.h"

#define TVMM_BLK_SECTOR 512u
#define TVMM_BLK_ID_LENGTH 20u
/* In one discard or write-zeroes request, whatever the device says: a chain of 4 GiB of ranges would have to be kept. */
#define TVMM_BLK_RANGES_MAX 256u
/* Pieces of one chain. They are copied for the time of the request: with indirect tables of 32768 entries each, a queue
 * of 1024 requests would take half a gigabyte of the host. Drivers keep to seg_max, a few hundred. */
#define TVMM_BLK_IOVECS_MAX 4096u
/* Pieces of one system call (IOV_MAX). */
#define TVMM_BLK_STEP_IOVECS 1024u
/* Most of the pieces that drivers use have room in the request itself; zeroes are written in as many. */
#define TVMM_BLK_FEW_IOVECS 8u
#define TVMM_BLK_THREADS_MAX 16u
/* Completions are shown to the driver at the end of a batch, and after that many or that much within one. */
#define TVMM_BLK_USED_MAX 64u
#define TVMM_BLK_USED_BYTES (512u << 10)
#define TVMM_BLK_BATCH 64u
/* What a reset, a pause or the end wait for an engine whose steps may not come back, a server's. */
#define TVMM_BLK_PATIENCE_NS 5000000000u
/* Descriptors that an engine has polled. */
#define TVMM_BLK_WAITS_MAX 16u

enum tvmm_blk_operation {
    TVMM_BLK_READ,
    TVMM_BLK_WRITE,
    TVMM_BLK_FLUSH,
    TVMM_BLK_DISCARD,
    TVMM_BLK_ZEROES,
    TVMM_BLK_GET_ID,
    TVMM_BLK_OPERATIONS,
};

enum tvmm_blk_status { TVMM_BLK_OK, TVMM_BLK_IO_ERROR, TVMM_BLK_UNSUPPORTED };

/* What parsing comes to: a request to carry out, one that only gets a status, or a chain that cannot have one. */
enum tvmm_blk_verdict { TVMM_BLK_RUN, TVMM_BLK_REFUSE, TVMM_BLK_NO_STATUS, TVMM_BLK_NO_HEADER };

/* Why a server gave its queue up. */
enum tvmm_blk_broken {
    TVMM_BLK_WORKS,
    TVMM_BLK_BROKEN_RING, /* the ring says why */
    TVMM_BLK_BROKEN_STATUS,
    TVMM_BLK_BROKEN_HEADER,
    TVMM_BLK_BROKEN_USED, /* the ring did not take a chain back: a mistake of ours */
};

enum tvmm_blk_policy { TVMM_BLK_REPORT, TVMM_BLK_IGNORE, TVMM_BLK_STOP, TVMM_BLK_ENOSPC };

enum tvmm_blk_engine_kind { TVMM_BLK_SYNC, TVMM_BLK_THREADS, TVMM_BLK_URING, TVMM_BLK_NBD };

enum tvmm_blk_call {
    TVMM_BLK_CALL_READ,
    TVMM_BLK_CALL_WRITE,
    TVMM_BLK_CALL_SYNC,
    TVMM_BLK_CALL_PUNCH,
    TVMM_BLK_CALL_ZERO,
    TVMM_BLK_CALL_DISCARD, /* of a block device, or a server */
};

/* As blk_request.Limits has them. `capacity` changes at any time. */
struct tvmm_blk_limits {
    uint64_t capacity;
    uint32_t read_only, flush;
    uint32_t max_discard, discard_ranges, max_zeroes, zeroes_ranges;
    uint8_t serial[TVMM_BLK_ID_LENGTH];
};

#include "blk_latency.h"

/* In bytes. */
struct tvmm_blk_range {
    uint64_t offset, length;
    uint32_t unmap;
};

struct tvmm_blk_step {
    uint32_t call, flags; /* enum tvmm_blk_call; RWF_ */
    uint32_t plain;       /* by the buffered descriptor */
    uint32_t iovec_count;
    struct iovec *iovecs;
    uint64_t offset, length;
};

/* What the disk's limits have had to do with a request. */
enum tvmm_blk_limited { TVMM_BLK_NEW, TVMM_BLK_PARKED, TVMM_BLK_CHARGED };

struct tvmm_blk_request {
    struct tvmm_blk_request *next;
    uint64_t number; /* in the order of the ring */
    uint64_t since_ns;
    uint32_t id, operation, code, adjacent;
    uint8_t *status;
    uint64_t offset, length, done; /* of data */
    struct iovec *iovecs;
    uint32_t iovec_count, iovec_first;
    struct tvmm_blk_range *ranges;
    uint32_t range_count, range_first;
    uint32_t method; /* of the range under way */
    uint32_t limited; /* enum tvmm_blk_limited */
    uint32_t hopeless; /* failed in a way that no repetition mends */
    uint32_t stable; /* WRITE, ZEROES: has to be stable when it completes; ZEROES: 2 when it is */
    struct tvmm_blk_step step;
    int64_t result;
    struct iovec few[TVMM_BLK_FEW_IOVECS];
};

/* `refused`: requests that only got a status. `cached`: reads that the page cache had at once (threads). `retried`: kept
 * over an error. */
struct tvmm_blk_counters {
    uint64_t requests[TVMM_BLK_OPERATIONS], errors[TVMM_BLK_OPERATIONS];
    uint64_t read_bytes, written_bytes, unmapped_bytes;
    uint64_t refused, ignored, stops, retried, cached, plain, stable, steps;
};

struct tvmm_blk;
struct tvmm_nbd_link;

/* start: make the step's call. 0: done, the result is in the request; 1: it comes back through tvmm_blk_returned in a
 * later reap. submit: the end of a batch. waits: what to poll for reap to find something, and how many that are.
 * give_up: of what will not come back, or, with `late`, has not for long enough, return the steps or put them back. NULL
 * where everything comes back. */
struct tvmm_blk_engine {
    int (*open)(struct tvmm_blk *blk);
    void (*close)(struct tvmm_blk *blk);
    int (*start)(struct tvmm_blk *blk, struct tvmm_blk_request *request);
    int (*submit)(struct tvmm_blk *blk);
    int (*reap)(struct tvmm_blk *blk);
    uint32_t (*waits)(struct tvmm_blk *blk, struct pollfd *waits);
    void (*give_up)(struct tvmm_blk *blk, int late);
};

extern const struct tvmm_blk_engine tvmm_blk_sync_engine, tvmm_blk_threads_engine, tvmm_blk_uring_engine,
    tvmm_blk_nbd_engine;

/* What the queues of one image share. `sync_error`: the errno of a sync that failed. The kernel says so once, to whoever
 * asks first, and has dropped the data by then: no later sync of this image can promise anything, so all of them fail.
 * (Past the page cache the data was never the kernel's, and a server has its own: there each sync speaks for itself.) */
struct tvmm_blk_file {
    int32_t sync_error;
    /* Of an NBD server: how often something was changed, and how often of that a flush that succeeded has covered. */
    uint64_t changed, covered;
    /* What a mirror of the image has to copy again; NULL while there is none. Set while no queue is served, and
     * taken away at any time: it stays in memory as long as a queue may look at it. */
    struct tvmm_blk_dirty *dirty;
};

/* What the owner says once. `plain_fd` is the same file without O_DIRECT, or `fd` itself. Alignments are 1 without.
 * `links` are those of the NBD engine, up to TVMM_BLK_WAITS_MAX; they outlive the queue. */
struct tvmm_blk_setup {
    int fd, plain_fd;
    uint32_t memory_align, offset_align;
    uint32_t is_device;
    uint32_t engine, depth;
    uint32_t read_policy, write_policy;
    uint32_t ignore_flush;
    uint32_t fault_ppm; /* of a million steps so many fail with EIO: to try a guest's manners with errors */
    uint32_t link_count;
    struct tvmm_nbd_link **links;
};

/* An error for the owner to hear of. */
struct tvmm_blk_notice {
    uint32_t pending, operation, action;
    int32_t error;
    uint64_t at_ns;
};

struct tvmm_blk {
    struct tvmm_served queue;
    struct tvmm_waker *waker;
    struct tvmm_spin spin, busy_spin; /* with nothing at the engine, and with something */
    struct tvmm_blk_setup setup;
    struct tvmm_blk_file *file;
    struct tvmm_blk_limits limits;
    struct tvmm_blk_counters counters;
    struct tvmm_blk_latency latency;
    struct tvmm_blk_notice notice;
    uint32_t write_through; /* changed by any thread at any time */
    uint32_t broken, given_up; /* enum tvmm_blk_broken; the owner knows */
    uint32_t call_pending; /* Python is to interrupt the driver */
    int32_t stopped;       /* errno that waits for the owner; what failed is in `kept` */
    uint32_t abandoning;   /* a reset: no further steps */
    uint32_t at_engine;
    uint32_t news; /* a descriptor of the engine's is ready; the engine takes note */
    uint32_t no_punch, no_zero; /* the file has not got that; learned from the first try */
    uint32_t no_peek;
    uint32_t chance; /* the state of what decides about faults */
    uint64_t next_number;
    struct tvmm_limit *limit; /* NULL: nothing is limited; changed by any thread at any time */
    struct tvmm_limit *limiter; /* what `limit` is when it is not NULL */
    struct tvmm_limit_member limit_member;
    uint32_t parked_count;
    struct tvmm_blk_request *parked[2], *parked_last[2]; /* reads, others */
    struct tvmm_blk_request *requests, *free, *kept;
    const struct tvmm_blk_engine *engine;
    void *engine_state;
    struct tvmm_batch batch;
    uint32_t position; /* in the batch: what was not looked at yet */
    uint32_t used_count;
    uint64_t used_bytes;
    struct tvmm_used used[TVMM_BLK_USED_MAX];
    struct tvmm_chain chains[TVMM_BLK_BATCH];
    struct tvmm_used unused[TVMM_BLK_BATCH]; /* the batch wants to have it */
    struct iovec iovecs[TVMM_BLK_IOVECS_MAX];
};

/* blk_life.c */
struct tvmm_blk *tvmm_blk_new(const struct tvmm_blk_setup *setup, struct tvmm_blk_file *file,
                              struct tvmm_waker *waker, int kick_fd, uint64_t spin_max_ns, int *error);
void tvmm_blk_free(struct tvmm_blk *blk);
int tvmm_blk_start(struct tvmm_blk *blk, struct tvmm_vring *ring);
void tvmm_blk_stop(struct tvmm_blk *blk);
void tvmm_blk_drain(struct tvmm_blk *blk);
int tvmm_blk_active(const struct tvmm_blk *blk);
void tvmm_blk_resume(struct tvmm_blk *blk);
void tvmm_blk_set_capacity(struct tvmm_blk *blk, uint64_t sectors);
void tvmm_blk_set_write_through(struct tvmm_blk *blk, uint32_t on);

/* blk_request.c */
enum tvmm_blk_verdict tvmm_blk_parse(const struct tvmm_blk_limits *limits, const struct tvmm_chain *chain,
                                     const struct iovec *iovecs, struct tvmm_blk_request *request);
void tvmm_blk_forget(struct tvmm_blk_request *request);
uint32_t tvmm_blk_used_length(const struct tvmm_blk_request *request, int ok);
void tvmm_blk_answer_id(const struct tvmm_blk_limits *limits, const struct tvmm_blk_request *request);

/* blk_step.c */
int tvmm_blk_next_step(struct tvmm_blk *blk, struct tvmm_blk_request *request);
int tvmm_blk_step_done(struct tvmm_blk *blk, struct tvmm_blk_request *request);
int64_t tvmm_blk_execute(const struct tvmm_blk *blk, const struct tvmm_blk_step *step);
int tvmm_blk_may_start(const struct tvmm_blk *blk, const struct tvmm_blk_step *step);
int tvmm_blk_is_fault(struct tvmm_blk *blk);

/* blk_limit.c */
int tvmm_blk_admit(struct tvmm_blk *blk, struct tvmm_blk_request *request);
int tvmm_blk_closed(struct tvmm_blk *blk);
struct tvmm_blk_request *tvmm_blk_next_parked(struct tvmm_blk *blk);
struct tvmm_blk_request *tvmm_blk_any_parked(struct tvmm_blk *blk);
int64_t tvmm_blk_limit_wait(struct tvmm_blk *blk, uint64_t now_ns);
void tvmm_blk_set_limit(struct tvmm_blk *blk, struct tvmm_limit *limit, uint32_t on);
void tvmm_blk_limit_leave(struct tvmm_blk *blk);

/* blk_kept.c */
void tvmm_blk_keep(struct tvmm_blk *blk, struct tvmm_blk_request *request);
int tvmm_blk_keep_again(struct tvmm_blk *blk, const struct tvmm_blk_request *request);

/* blk_image.c */
int tvmm_direct_alignment(int fd, uint32_t *memory, uint32_t *offset);
int tvmm_in_memory(int fd);
int tvmm_can_punch(int fd, uint64_t end);
int tvmm_zero_range(int fd, uint64_t offset, uint64_t length);

/* blk.c; the last two are for engines */
uint32_t tvmm_blk_serve(struct tvmm_blk *blk);
void tvmm_blk_show(struct tvmm_blk *blk);
void tvmm_blk_release(struct tvmm_blk *blk, struct tvmm_blk_request *request);
void tvmm_blk_news(struct tvmm_blk *blk, const struct pollfd *waits, uint32_t count);
void tvmm_blk_returned(struct tvmm_blk *blk, struct tvmm_blk_request *request, int64_t result);
void tvmm_blk_put_back(struct tvmm_blk *blk, struct tvmm_blk_request *request);

#endif
