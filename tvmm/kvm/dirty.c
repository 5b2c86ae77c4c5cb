/* The log of pages that tvmm has written: see dirty.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "dirty.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static size_t dirty_words(const struct tvmm_dirty_block *block) { return (size_t)((block->pages + 63) / 64); }

/* Every thread of this process makes a full barrier, those that run at once and the others before they run again. */
static int dirty_barrier(void)
{
    /* Again and again does no harm. */
    if (syscall(__NR_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) < 0
        || syscall(__NR_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) < 0)
        return -errno;
    return 0;
}

/* Of a log that is off: no page marked, and from now on those that are written. 0; or a -errno, and the log is off. A thread
 * that began to mark when the log was on before may set a bit too many. */
int tvmm_device_log_start(struct tvmm_device_log *log)
{
    for (uint32_t index = 0; index < log->count; index++) {
        struct tvmm_dirty_block *block = &log->blocks[index];
        if (!block->words) {
            block->words = calloc(dirty_words(block), sizeof *block->words);
            if (!block->words)
                return -ENOMEM;
        } else {
            for (size_t word = 0; word < dirty_words(block); word++)
                __atomic_store_n(&block->words[word], 0, __ATOMIC_RELAXED);
        }
    }
    __atomic_store_n(&log->on, 1, __ATOMIC_SEQ_CST);
    int error = dirty_barrier();
    if (error)
        tvmm_device_log_stop(log);
    return error;
}

/* Marks that are there can be taken still. */
void tvmm_device_log_stop(struct tvmm_device_log *log) { __atomic_store_n(&log->on, 0, __ATOMIC_SEQ_CST); }

/* No thread uses the log any more. */
void tvmm_device_log_free(struct tvmm_device_log *log)
{
    tvmm_device_log_stop(log);
    for (uint32_t index = 0; index < log->count; index++) {
        free(log->blocks[index].words);
        log->blocks[index].words = NULL;
    }
    log->count = 0;
}

/* Take the marks of a block, and add them to `into`, which has as many words. How many there were. */
uint64_t tvmm_device_log_take(struct tvmm_device_log *log, uint32_t index, uint64_t *into)
{
    struct tvmm_dirty_block *block = &log->blocks[index];
    uint64_t taken = 0;

    if (!block->words)
        return 0;
    for (size_t word = 0; word < dirty_words(block); word++) {
        if (!__atomic_load_n(&block->words[word], __ATOMIC_RELAXED))
            continue;
        uint64_t bits = __atomic_exchange_n(&block->words[word], 0, __ATOMIC_SEQ_CST);
        into[word] |= bits;
        taken += (uint64_t)__builtin_popcountll(bits);
    }
    return taken;
}

/* Behind a barrier, and `length` is not 0. */
static void dirty_mark(struct tvmm_device_log *log, const void *hva, uint64_t length)
{
    for (uint32_t index = 0; index < log->count; index++) {
        struct tvmm_dirty_block *block = &log->blocks[index];
        uint64_t offset = (uintptr_t)hva - (uintptr_t)block->base, size = block->pages << TVMM_DIRTY_PAGE_SHIFT;
        if (offset >= size)
            continue;
        uint64_t first = offset >> TVMM_DIRTY_PAGE_SHIFT, left = size - offset;
        uint64_t last = (offset + (length < left ? length : left) - 1) >> TVMM_DIRTY_PAGE_SHIFT;
        for (uint64_t word = first / 64; word <= last / 64; word++) {
            uint64_t mask = ~0ull;
            if (word == first / 64)
                mask &= ~0ull << first % 64;
            if (word == last / 64)
                mask &= ~0ull >> (63 - last % 64);
            if ((__atomic_load_n(&block->words[word], __ATOMIC_RELAXED) & mask) != mask)
                __atomic_fetch_or(&block->words[word], mask, __ATOMIC_SEQ_CST);
        }
        return;
    }
}

/* See tvmm_mark. */
void tvmm_device_log_mark(struct tvmm_device_log *log, const void *hva, uint64_t length)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (length)
        dirty_mark(log, hva, length);
}

/* See tvmm_mark_iovecs. */
void tvmm_device_log_mark_iovecs(struct tvmm_device_log *log, const struct iovec *iovecs, uint32_t count,
                                 uint64_t length)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    for (; count-- && length; iovecs++) {
        uint64_t part = iovecs->iov_len < length ? iovecs->iov_len : length;
        if (part)
            dirty_mark(log, iovecs->iov_base, part);
        length -= part;
    }
}
