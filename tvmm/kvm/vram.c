/* See vram.h. */
#include "vram.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

/* Take what KVM knows into `touched` and `pending`, and have it protect these pages again: after this they may be read, and
 * what is written later is found the next time. How many they were, or -errno.
 *
 * Where KVM protects in the look itself (no manual protection) the second call finds nothing to do, or takes a mark that
 * was made in between: its page is in the list already, and is read later. */
int64_t tvmm_vram_collect(struct tvmm_vram_log *log)
{
    uint64_t words = log->pages / 64, first = words, end = 0, count = 0;
    struct kvm_dirty_log request = {.slot = log->slot, .dirty_bitmap = log->scratch};
    if (ioctl(log->vm_fd, KVM_GET_DIRTY_LOG, &request) < 0)
        return -errno;
    for (uint64_t word = 0; word < words; word++) {
        uint64_t bits = log->scratch[word];
        if (!bits)
            continue;
        if (first == words)
            first = word;
        end = word + 1;
        count += (uint64_t)__builtin_popcountll(bits);
        log->pending[word] |= bits;
        if (bits == ~0ull) {
            memset(log->touched + 64 * word, 1, 64);
            continue;
        }
        for (; bits; bits &= bits - 1)
            log->touched[64 * word + (uint64_t)__builtin_ctzll(bits)] = 1;
    }
    if (!count)
        return 0;
    struct kvm_clear_dirty_log clear = {.slot = log->slot,
                                        .first_page = 64 * first,
                                        .num_pages = (uint32_t)(64 * (end - first)),
                                        .dirty_bitmap = log->scratch + first};
    if (ioctl(log->vm_fd, KVM_CLEAR_DIRTY_LOG, &clear) < 0)
        return -errno;
    return (int64_t)count;
}
