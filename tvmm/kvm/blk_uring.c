/* The engine on io_uring, by its system calls alone (io_uring(7), linux/io_uring.h): see blk.h.
 *
 * A request has one step at a time and a queue no more requests than the submission ring has entries, so neither ring can
 * overflow. Completions are looked for in shared memory; the kernel is entered to submit, and where it has work to finish on
 * this thread first (TASKRUN).
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "blk.h"

#include <errno.h>
#include <linux/falloc.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* SUBMIT_STABLE: iovecs may go after submission. RW_CUR_POS came with IORING_OP_READ. */
#define BLK_URING_NEEDS \
    (IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_RW_CUR_POS)
#define BLK_URING_MAX 4096u

/* Requests one at a time that make a habit. */
#define BLK_URING_ALONE 32u

struct blk_uring {
    int fd;
    uint8_t *rings;
    size_t rings_size, sqes_size;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    uint32_t *sq_head, *sq_tail, *sq_flags, *cq_head, *cq_tail;
    uint32_t sq_mask, cq_mask, tail; /* `tail`: entries that the kernel does not know yet are behind *sq_tail */
    int fixed;                       /* descriptors are registered: 0 is fd, 1 is plain_fd */
    uint32_t alone; /* requests without another beside them, up to BLK_URING_ALONE */
};

static long blk_uring_enter(const struct blk_uring *ring, uint32_t count, uint32_t flags)
{
    return syscall(__NR_io_uring_enter, ring->fd, count, 0, flags, NULL, 0);
}

static int blk_uring_setup(struct io_uring_params *params, uint32_t depth)
{
    int fd = -1;
#if defined(IORING_SETUP_COOP_TASKRUN) && defined(IORING_SETUP_TASKRUN_FLAG)
    *params = (struct io_uring_params){
        .flags = IORING_SETUP_CLAMP | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG};
    fd = (int)syscall(__NR_io_uring_setup, depth, params);
    if (fd >= 0 || errno != EINVAL)
        return fd;
#endif
    *params = (struct io_uring_params){.flags = IORING_SETUP_CLAMP};
    fd = (int)syscall(__NR_io_uring_setup, depth, params);
    return fd;
}

static int blk_uring_map(struct blk_uring *ring, const struct io_uring_params *params)
{
    size_t sq = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
    size_t cq = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
    int protection = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;

    ring->rings_size = sq > cq ? sq : cq;
    ring->sqes_size = params->sq_entries * sizeof(struct io_uring_sqe);
    void *rings = mmap(NULL, ring->rings_size, protection, flags, ring->fd, IORING_OFF_SQ_RING);
    if (rings == MAP_FAILED)
        return -errno;
    void *sqes = mmap(NULL, ring->sqes_size, protection, flags, ring->fd, IORING_OFF_SQES);
    if (sqes == MAP_FAILED) {
        int error = -errno;
        munmap(rings, ring->rings_size);
        return error;
    }
    ring->rings = rings;
    ring->sqes = sqes;
    ring->sq_head = (uint32_t *)(ring->rings + params->sq_off.head);
    ring->sq_tail = (uint32_t *)(ring->rings + params->sq_off.tail);
    ring->sq_flags = (uint32_t *)(ring->rings + params->sq_off.flags);
    ring->cq_head = (uint32_t *)(ring->rings + params->cq_off.head);
    ring->cq_tail = (uint32_t *)(ring->rings + params->cq_off.tail);
    ring->cqes = (struct io_uring_cqe *)(ring->rings + params->cq_off.cqes);
    ring->sq_mask = params->sq_entries - 1;
    ring->cq_mask = params->cq_entries - 1;
    ring->tail = *ring->sq_tail;
    uint32_t *array = (uint32_t *)(ring->rings + params->sq_off.array);
    for (uint32_t index = 0; index < params->sq_entries; index++)
        array[index] = index;
    return 0;
}

static int blk_uring_open(struct tvmm_blk *blk)
{
    struct io_uring_params params;
    struct blk_uring *ring = calloc(1, sizeof *ring);
    int files[2] = {blk->setup.fd, blk->setup.plain_fd}, error;

    if (!ring)
        return -ENOMEM;
    ring->fd = blk->setup.depth > BLK_URING_MAX ? (errno = EINVAL, -1) : blk_uring_setup(&params, blk->setup.depth);
    error = ring->fd < 0 ? -errno : (params.features & BLK_URING_NEEDS) != BLK_URING_NEEDS ? -ENOSYS : 0;
    if (!error)
        error = blk_uring_map(ring, &params);
    if (error) {
        if (ring->fd >= 0)
            close(ring->fd);
        free(ring);
        return error;
    }
    ring->fixed = !syscall(__NR_io_uring_register, ring->fd, IORING_REGISTER_FILES, files, 2);
    blk->engine_state = ring;
    return 0;
}

static void blk_uring_close(struct tvmm_blk *blk)
{
    struct blk_uring *ring = blk->engine_state;
    /* The kernel takes a ring apart some time after the last close; the files are to be free at once. */
    if (ring->fixed)
        syscall(__NR_io_uring_register, ring->fd, IORING_UNREGISTER_FILES, NULL, 0);
    munmap(ring->sqes, ring->sqes_size);
    munmap(ring->rings, ring->rings_size);
    close(ring->fd);
    free(ring);
}

static void blk_uring_fill(const struct tvmm_blk *blk, const struct blk_uring *ring, struct io_uring_sqe *sqe,
                           struct tvmm_blk_request *request)
{
    const struct tvmm_blk_step *step = &request->step;
    int write = step->call == TVMM_BLK_CALL_WRITE;

    *sqe = (struct io_uring_sqe){.off = step->offset, .user_data = (uintptr_t)request};
    if (ring->fixed) {
        sqe->flags = IOSQE_FIXED_FILE;
        sqe->fd = (int32_t)step->plain;
    } else {
        sqe->fd = step->plain ? blk->setup.plain_fd : blk->setup.fd;
    }
    switch (step->call) {
    case TVMM_BLK_CALL_READ:
    case TVMM_BLK_CALL_WRITE:
        sqe->rw_flags = (int)step->flags;
        if (step->iovec_count == 1) {
            sqe->opcode = write ? IORING_OP_WRITE : IORING_OP_READ;
            sqe->addr = (uintptr_t)step->iovecs->iov_base;
            /* Lengths here have 32 bits; what is cut off is the next step's. */
            sqe->len = step->length < (1u << 30) ? (uint32_t)step->length : 1u << 30;
        } else {
            sqe->opcode = write ? IORING_OP_WRITEV : IORING_OP_READV;
            sqe->addr = (uintptr_t)step->iovecs;
            sqe->len = step->iovec_count;
        }
        return;
    case TVMM_BLK_CALL_SYNC:
        sqe->opcode = IORING_OP_FSYNC;
        sqe->fsync_flags = IORING_FSYNC_DATASYNC;
        sqe->off = 0;
        return;
    default:
        sqe->opcode = IORING_OP_FALLOCATE;
        sqe->addr = step->length;
        sqe->len = FALLOC_FL_KEEP_SIZE
                   | (step->call == TVMM_BLK_CALL_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
    }
}

/* A driver that has sent one request at a time for a while: there is nothing to do beside it, and a call that waits is
 * back sooner than a completion that has to wake a sleeper. The first request that has company ends it. */
static int blk_uring_is_alone(struct tvmm_blk *blk, struct blk_uring *ring)
{
    if (blk->at_engine || blk->batch.count > 1)
        ring->alone = 0;
    else if (ring->alone < BLK_URING_ALONE)
        ring->alone++;
    return ring->alone == BLK_URING_ALONE;
}

static int blk_uring_start(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    struct blk_uring *ring = blk->engine_state;
    if (blk_uring_is_alone(blk, ring) || request->step.call == TVMM_BLK_CALL_DISCARD)
        return tvmm_blk_sync_engine.start(blk, request);
    request->result = tvmm_blk_may_start(blk, &request->step);
    if (request->result)
        return 0;
    blk_uring_fill(blk, ring, &ring->sqes[ring->tail & ring->sq_mask], request);
    ring->tail++;
    return 1;
}

/* What the kernel does not take, by plain calls, until nothing is left. */
static void blk_uring_refused(struct tvmm_blk *blk, struct blk_uring *ring)
{
    while (ring->tail != __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE)) {
        ring->tail--;
        __atomic_store_n(ring->sq_tail, ring->tail, __ATOMIC_RELEASE);
        uint64_t data = ring->sqes[ring->tail & ring->sq_mask].user_data;
        struct tvmm_blk_request *request = (struct tvmm_blk_request *)(uintptr_t)data;
        tvmm_blk_returned(blk, request, tvmm_blk_execute(blk, &request->step));
    }
}

/* 1: some could not be submitted yet. */
static int blk_uring_submit(struct tvmm_blk *blk)
{
    struct blk_uring *ring = blk->engine_state;
    for (;;) {
        uint32_t count = ring->tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
        if (!count)
            return 0;
        __atomic_store_n(ring->sq_tail, ring->tail, __ATOMIC_RELEASE);
        long taken = blk_uring_enter(ring, count, 0);
        if (taken >= 0 || errno == EINTR)
            continue;
        if (errno == EAGAIN || errno == EBUSY)
            return 1;
        blk_uring_refused(blk, ring);
        return 0;
    }
}

static int blk_uring_reap(struct tvmm_blk *blk)
{
    struct blk_uring *ring = blk->engine_state;
    int reaped = 0;

    if (!blk->at_engine)
        return 0;
#ifdef IORING_SQ_TASKRUN
    if (__atomic_load_n(ring->sq_flags, __ATOMIC_RELAXED) & IORING_SQ_TASKRUN)
        blk_uring_enter(ring, 0, IORING_ENTER_GETEVENTS);
#endif
    uint32_t head = *ring->cq_head, tail = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
    while (head != tail) {
        const struct io_uring_cqe *cqe = &ring->cqes[head & ring->cq_mask];
        struct tvmm_blk_request *request = (struct tvmm_blk_request *)(uintptr_t)cqe->user_data;
        int64_t result = cqe->res;
        __atomic_store_n(ring->cq_head, ++head, __ATOMIC_RELEASE);
        /* It has not waited where it should have. */
        if (result == -EAGAIN || result == -EINTR)
            result = tvmm_blk_execute(blk, &request->step);
        tvmm_blk_returned(blk, request, result);
        reaped++;
    }
    return reaped;
}

static uint32_t blk_uring_waits(struct tvmm_blk *blk, struct pollfd *waits)
{
    *waits = (struct pollfd){.fd = ((const struct blk_uring *)blk->engine_state)->fd, .events = POLLIN};
    return blk->at_engine != 0;
}

const struct tvmm_blk_engine tvmm_blk_uring_engine = {
    blk_uring_open, blk_uring_close, blk_uring_start, blk_uring_submit, blk_uring_reap, blk_uring_waits,
    NULL,
};
