/* Requests as steps, each one system call, and that call: see blk.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "blk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define BLK_ZEROES_PIECE (128u << 10)

enum blk_method { BLK_BY_PUNCH, BLK_BY_ZERO, BLK_BY_WRITE };

/* Never written. Not const: it would be in the file. */
static uint8_t blk_zeroes[BLK_ZEROES_PIECE] __attribute__((aligned(4096)));

static int blk_unaligned(const struct tvmm_blk_setup *setup, const struct tvmm_blk_step *step)
{
    uint64_t places = 0, lengths = step->offset;
    if (setup->memory_align <= 1 && setup->offset_align <= 1)
        return 0;
    for (uint32_t index = 0; index < step->iovec_count; index++) {
        places |= (uintptr_t)step->iovecs[index].iov_base;
        lengths |= step->iovecs[index].iov_len;
    }
    return (places & (setup->memory_align - 1)) || (lengths & (setup->offset_align - 1));
}

static void blk_transfer_step(struct tvmm_blk *blk, struct tvmm_blk_request *request, enum tvmm_blk_call call)
{
    struct tvmm_blk_step *step = &request->step;
    step->call = call;
    step->flags = request->stable ? RWF_DSYNC : 0;
    step->plain = (uint32_t)blk_unaligned(&blk->setup, step);
    blk->counters.plain += step->plain;
}

static void blk_range_step(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    const struct tvmm_blk_range *range = &request->ranges[request->range_first];
    struct tvmm_blk_step *step = &request->step;

    *step = (struct tvmm_blk_step){.offset = range->offset, .length = range->length};
    if (request->operation == TVMM_BLK_DISCARD) {
        step->call = blk->setup.is_device ? TVMM_BLK_CALL_DISCARD : TVMM_BLK_CALL_PUNCH;
        return;
    }
    if (request->method == BLK_BY_PUNCH && (!range->unmap || blk->no_punch))
        request->method = BLK_BY_ZERO;
    if (request->method == BLK_BY_ZERO && blk->no_zero)
        request->method = BLK_BY_WRITE;
    if (request->method != BLK_BY_WRITE) {
        step->call = request->method == BLK_BY_PUNCH ? TVMM_BLK_CALL_PUNCH : TVMM_BLK_CALL_ZERO;
        return;
    }
    step->iovecs = request->few;
    uint64_t left = range->length;
    for (; left && step->iovec_count < TVMM_BLK_FEW_IOVECS; step->iovec_count++) {
        size_t part = left < BLK_ZEROES_PIECE ? left : BLK_ZEROES_PIECE;
        request->few[step->iovec_count] = (struct iovec){blk_zeroes, part};
        left -= part;
    }
    step->length = range->length - left;
    blk_transfer_step(blk, request, TVMM_BLK_CALL_WRITE);
    step->flags = 0; /* one sync at the end */
}

/* What to do next for a request; 0: nothing, it is complete. */
int tvmm_blk_next_step(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    struct tvmm_blk_step *step = &request->step;
    uint32_t count = request->iovec_count - request->iovec_first;

    switch (request->operation) {
    case TVMM_BLK_READ:
    case TVMM_BLK_WRITE:
        if (request->done == request->length)
            return 0;
        if (count > TVMM_BLK_STEP_IOVECS)
            count = TVMM_BLK_STEP_IOVECS;
        *step = (struct tvmm_blk_step){.iovecs = request->iovecs + request->iovec_first, .iovec_count = count,
                                       .offset = request->offset + request->done};
        for (uint32_t index = 0; index < count; index++)
            step->length += step->iovecs[index].iov_len;
        blk_transfer_step(blk, request,
                          request->operation == TVMM_BLK_READ ? TVMM_BLK_CALL_READ : TVMM_BLK_CALL_WRITE);
        return 1;
    case TVMM_BLK_FLUSH:
        if (request->done || blk->setup.ignore_flush)
            return 0;
        break;
    case TVMM_BLK_DISCARD:
    case TVMM_BLK_ZEROES:
        if (request->range_first < request->range_count) {
            blk_range_step(blk, request);
            return 1;
        }
        if (request->stable != 1 || blk->setup.ignore_flush)
            return 0;
        break;
    default:
        return 0;
    }
    *step = (struct tvmm_blk_step){.call = TVMM_BLK_CALL_SYNC};
    return 1;
}

/* `count` bytes of the data have moved. */
static void blk_consume(struct tvmm_blk_request *request, uint64_t count)
{
    request->done += count;
    while (count) {
        struct iovec *iovec = &request->iovecs[request->iovec_first];
        if (count < iovec->iov_len) {
            iovec->iov_base = (uint8_t *)iovec->iov_base + count;
            iovec->iov_len -= count;
            return;
        }
        count -= iovec->iov_len;
        request->iovec_first++;
    }
}

static void blk_next_range(struct tvmm_blk_request *request)
{
    request->range_first++;
    request->method = BLK_BY_PUNCH;
}

static int blk_not_supported(int64_t result)
{
    return result == -EOPNOTSUPP || result == -ENOSYS || result == -ENOTTY || result == -ENODEV;
}

static int blk_range_done(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    struct tvmm_blk_range *range = &request->ranges[request->range_first];
    int64_t result = request->result;

    if (request->operation == TVMM_BLK_DISCARD) {
        /* A hint: who cannot follow it, or not for less than a block (EINVAL), has done it. */
        if (result < 0 && !blk_not_supported(result) && result != -EINVAL)
            return (int)result;
        blk->counters.unmapped_bytes += result < 0 ? 0 : range->length;
        blk_next_range(request);
        return 0;
    }
    if (request->method == BLK_BY_WRITE) {
        if (result <= 0)
            return result ? (int)result : -EIO;
        blk->counters.written_bytes += (uint64_t)result;
        range->offset += (uint64_t)result;
        range->length -= (uint64_t)result;
        if (!range->length)
            blk_next_range(request);
        return 0;
    }
    /* A block device that has larger blocks than the range says EINVAL. */
    if (blk_not_supported(result))
        *(request->method == BLK_BY_PUNCH ? &blk->no_punch : &blk->no_zero) = 1;
    else if (result < 0 && result != -EINVAL)
        return (int)result;
    if (result < 0) {
        request->method++;
        return 0;
    }
    if (request->method == BLK_BY_PUNCH)
        blk->counters.unmapped_bytes += range->length;
    blk_next_range(request);
    return 0;
}

/* All that the call was given, whatever it says: one that failed may have changed some of it. See blk_dirty.h. */
static void blk_mark_changed(struct tvmm_blk_dirty *dirty, const struct tvmm_blk_step *step)
{
    if (step->call != TVMM_BLK_CALL_READ && step->call != TVMM_BLK_CALL_SYNC)
        tvmm_blk_dirty_mark(dirty, step->offset, step->length);
}

/* Take the result of a step in. 0, or the -errno that the request has failed with. */
int tvmm_blk_step_done(struct tvmm_blk *blk, struct tvmm_blk_request *request)
{
    int64_t result = request->result;
    struct tvmm_blk_dirty *dirty = __atomic_load_n(&blk->file->dirty, __ATOMIC_ACQUIRE);
    blk->counters.steps++;
    if (__builtin_expect(dirty != NULL, 0))
        blk_mark_changed(dirty, &request->step);
    switch (request->step.call) {
    case TVMM_BLK_CALL_SYNC:
        if (result < 0 && blk->setup.fd == blk->setup.plain_fd && blk->setup.engine != TVMM_BLK_NBD)
            __atomic_store_n(&blk->file->sync_error, (int32_t)-result, __ATOMIC_RELAXED);
        if (!result) {
            result = -__atomic_load_n(&blk->file->sync_error, __ATOMIC_RELAXED);
            request->hopeless = result != 0;
        }
        if (result < 0)
            return (int)result;
        request->done = 1;
        request->stable = 2;
        return 0;
    case TVMM_BLK_CALL_READ:
        /* All that the call was given, whatever it says: one that fails or falls short may have written behind what it
         * says, as parts of a direct read do that were under way together. */
        tvmm_mark_iovecs(tvmm_ring_log(blk->queue.ring), request->step.iovecs, request->step.iovec_count,
                         request->step.length);
        /* fall through */
    case TVMM_BLK_CALL_WRITE:
        if (request->operation == TVMM_BLK_ZEROES)
            break;
        /* 0: the file ends here. It was longer when it was opened; zeroes would be a lie. */
        if (result <= 0)
            return result ? (int)result : -EIO;
        *(request->operation == TVMM_BLK_READ ? &blk->counters.read_bytes : &blk->counters.written_bytes) +=
            (uint64_t)result;
        blk_consume(request, (uint64_t)result);
        return 0;
    }
    return blk_range_done(blk, request);
}

/* 0; or -ECANCELED for what would change the image by what the guest has not written, since its memory was lost. May wait
 * for memory that is still to come. Engines ask before they make the call. */
int tvmm_blk_may_start(const struct tvmm_blk *blk, const struct tvmm_blk_step *step)
{
    if (step->call == TVMM_BLK_CALL_READ || step->call == TVMM_BLK_CALL_SYNC)
        return 0;
    return tvmm_iovecs_are_real(blk->queue.ring, step->iovecs, step->iovec_count) ? 0 : -ECANCELED;
}

/* The step's call on this thread: bytes, 0 for calls that move none, or -errno. */
int64_t tvmm_blk_execute(const struct tvmm_blk *blk, const struct tvmm_blk_step *step)
{
    int refused = tvmm_blk_may_start(blk, step);
    if (refused)
        return refused;
    int fd = step->plain ? blk->setup.plain_fd : blk->setup.fd;
    uint64_t range[2] = {step->offset, step->length};
    int64_t result;

    do {
        switch (step->call) {
        case TVMM_BLK_CALL_READ:
            result = preadv2(fd, step->iovecs, (int)step->iovec_count, (off_t)step->offset, (int)step->flags);
            break;
        case TVMM_BLK_CALL_WRITE:
            result = pwritev2(fd, step->iovecs, (int)step->iovec_count, (off_t)step->offset, (int)step->flags);
            break;
        case TVMM_BLK_CALL_SYNC:
            result = fdatasync(fd);
            break;
        case TVMM_BLK_CALL_PUNCH:
            result = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)range[0], (off_t)range[1]);
            break;
        case TVMM_BLK_CALL_ZERO:
            result = fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)range[0], (off_t)range[1]);
            break;
        default:
            result = ioctl(fd, BLKDISCARD, range);
        }
    } while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

/* Whether this step is to fail, by a sequence that is the same in each run (Marsaglia's xorshift, 32 bits). */
int tvmm_blk_is_fault(struct tvmm_blk *blk)
{
    uint32_t x = blk->chance ? blk->chance : 2463534242u;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    blk->chance = x;
    return x % 1000000u < blk->setup.fault_ppm;
}
