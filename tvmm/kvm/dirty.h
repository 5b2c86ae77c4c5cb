/* Which pages of guest RAM tvmm itself has written, for whoever copies the RAM while the machine runs. What vCPUs write is
 * in KVM's own log.
 *
 * Write, then mark; whoever takes marks takes a bit first and reads its page afterwards. So a write is either in what was
 * read, or its bit is there for the next time. Two places want a full barrier for that, because a processor may load
 * before a store of its own is to be seen by others:
 *   - a bit that is set already is not set again. Between the write and that look there is a barrier: the bit is either
 *     one that will be taken after the write, or it is found to be gone.
 *   - `on` is not set: nothing is marked. A barrier there would cost everybody, always, so tvmm_device_log_start has all
 *     threads of the process make one, by membarrier(2), before it returns. Who saw `on` unset did so before that barrier,
 *     and what it wrote before it looked is to be seen after it, by the first pass, which reads every page. What the
 *     kernel writes for a device (read(2), io_uring on whatever thread) is to be seen before the device learns that it is
 *     done, and that is before it looks at `on`.
 */
#ifndef TVMM_DIRTY_H
#define TVMM_DIRTY_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define TVMM_DIRTY_PAGE_SHIFT 12u

/* `words`: a bit for each page, the lowest first, as KVM has them; NULL until the log was started. They stay when it is
 * stopped, because a thread may just have seen that it was on. */
struct tvmm_dirty_block {
    uint8_t *base;
    uint64_t pages;
    uint64_t *words;
};

struct tvmm_device_log {
    uint32_t on;
    uint32_t count;
    struct tvmm_dirty_block blocks[];
};

int tvmm_device_log_start(struct tvmm_device_log *log);
void tvmm_device_log_stop(struct tvmm_device_log *log);
void tvmm_device_log_free(struct tvmm_device_log *log);
uint64_t tvmm_device_log_take(struct tvmm_device_log *log, uint32_t index, uint64_t *into);
void tvmm_device_log_mark(struct tvmm_device_log *log, const void *hva, uint64_t length);
void tvmm_device_log_mark_iovecs(struct tvmm_device_log *log, const struct iovec *iovecs, uint32_t count,
                                 uint64_t length);

/* The acquire: who sees `on` sees `words`. */
static inline int tvmm_marks(const struct tvmm_device_log *log)
{
    return __builtin_expect(log && __atomic_load_n(&log->on, __ATOMIC_ACQUIRE), 0);
}

/* After `length` bytes at `hva` were written, or may have been. Where no block is nothing is marked. */
static inline void tvmm_mark(struct tvmm_device_log *log, const void *hva, uint64_t length)
{
    if (tvmm_marks(log))
        tvmm_device_log_mark(log, hva, length);
}

/* The same for the first `length` bytes of `count` iovecs. */
static inline void tvmm_mark_iovecs(struct tvmm_device_log *log, const struct iovec *iovecs, uint32_t count,
                                    uint64_t length)
{
    if (tvmm_marks(log))
        tvmm_device_log_mark_iovecs(log, iovecs, count, length);
}

#endif
