/* See dirty_log.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "dirty_log.h"
#include "serve.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* OR a slot's bitmap into its block's, wherever the slot starts; how many bits are new there. */
static uint64_t merge_slot(const struct tvmm_log_slot *slot, struct tvmm_bitmap *bitmap)
{
    uint64_t *into = bitmap->blocks[slot->block].words + slot->first / 64;
    uint32_t shift = slot->first % 64;
    uint64_t added = 0, words = tvmm_bits_words(slot->pages);
    for (uint64_t index = 0; index < words; index++) {
        uint64_t bits = slot->scratch[index];
        if (!bits)
            continue;
        if (index == words - 1 && slot->pages % 64)
            bits &= (1ull << slot->pages % 64) - 1;
        added += (uint64_t)__builtin_popcountll(tvmm_bits_or(&into[index], bits << shift));
        if (shift && bits >> (64 - shift))
            added += (uint64_t)__builtin_popcountll(tvmm_bits_or(&into[index + 1], bits >> (64 - shift)));
    }
    return added;
}

/* KVM_GET_DIRTY_LOG of all slots into `bitmap`: how many bits are new there, or -errno. */
int64_t tvmm_log_sync(struct tvmm_dirty_log *log, struct tvmm_bitmap *bitmap)
{
    uint64_t added = 0;
    for (uint32_t index = 0; index < log->count; index++) {
        const struct tvmm_log_slot *slot = &log->slots[index];
        struct kvm_dirty_log request = {.slot = slot->slot, .dirty_bitmap = slot->scratch};
        if (ioctl(log->vm_fd, KVM_GET_DIRTY_LOG, &request) < 0)
            return -errno;
        added += merge_slot(slot, bitmap);
    }
    return (int64_t)added;
}

/* Look at what was written since the log began, and leave it there: 0 or -errno. For a log with manual protection, whose
 * bits were all clear when it began. */
int tvmm_log_peek(struct tvmm_dirty_log *log)
{
    if (!log->manual)
        return -EOPNOTSUPP;
    for (uint32_t index = 0; index < log->count; index++) {
        const struct tvmm_log_slot *slot = &log->slots[index];
        struct kvm_dirty_log request = {.slot = slot->slot, .dirty_bitmap = slot->scratch};
        if (ioctl(log->vm_fd, KVM_GET_DIRTY_LOG, &request) < 0)
            return -errno;
    }
    return 0;
}

/* Pages that are free need not be sent: clear the bits of `pages` pages from `first` of `block`, but for those that were
 * written before the last peek, by a vCPU or by a device (`devices`, a bit for each page of the block, or NULL). Who
 * writes to one of the others later is found by the next sync. How many bits were cleared. */
uint64_t tvmm_log_spare(const struct tvmm_dirty_log *log, struct tvmm_bitmap *bitmap, uint32_t block, uint64_t first,
                        uint64_t pages, const uint64_t *devices)
{
    uint64_t *words = bitmap->blocks[block].words, spared = 0;
    for (uint32_t index = 0; index < log->count; index++) {
        const struct tvmm_log_slot *slot = &log->slots[index];
        if (slot->block != block)
            continue;
        uint64_t from = slot->first > first ? slot->first : first, end = first + pages;
        if (end > slot->first + slot->pages)
            end = slot->first + slot->pages;
        for (uint64_t page = from; page < end; page++) {
            uint64_t own = page - slot->first, bit = 1ull << page % 64;
            if (slot->scratch[own / 64] >> own % 64 & 1)
                continue;
            if (devices && __atomic_load_n(&devices[page / 64], __ATOMIC_ACQUIRE) & bit)
                continue;
            spared += (__atomic_fetch_and(&words[page / 64], ~bit, __ATOMIC_ACQ_REL) & bit) != 0;
        }
    }
    return spared;
}

/* 64 bits from `at` on, which may start before the first of `pages` and end behind the last: those are 0. */
static uint64_t bits_at(const uint64_t *words, uint64_t pages, int64_t at)
{
    uint64_t word = 0;
    int64_t index = at >> 6, last = (int64_t)tvmm_bits_words(pages);
    uint32_t shift = (uint32_t)(at & 63);
    if (index >= 0 && index < last)
        word = words[index] >> shift;
    if (shift && index + 1 >= 0 && index + 1 < last)
        word |= words[index + 1] << (64 - shift);
    return word;
}

/* Protect those of the `pages` pages from `first` of `block` again whose bits are set in `words`, which are about to be
 * read. 0 or -errno. */
int tvmm_log_clear(struct tvmm_dirty_log *log, uint32_t block, uint64_t first, uint64_t pages, const uint64_t *words)
{
    uint64_t bits[TVMM_CLEAR_PAGES / 64 + 2];
    if (!log->manual)
        return 0;
    if (pages > TVMM_CLEAR_PAGES)
        return -EINVAL;
    for (uint32_t index = 0; index < log->count; index++) {
        const struct tvmm_log_slot *slot = &log->slots[index];
        if (slot->block != block || slot->first >= first + pages || slot->first + slot->pages <= first)
            continue;
        uint64_t start = slot->first > first ? 0 : first - slot->first;
        uint64_t end = slot->first + slot->pages < first + pages ? slot->pages : first + pages - slot->first;
        /* KVM takes whole words, and an end that is none only where the slot ends. */
        start &= ~63ull;
        end = (end + 63) & ~63ull;
        if (end > slot->pages)
            end = slot->pages;
        uint64_t any = 0, set = 0, count = tvmm_bits_words(end - start);
        for (uint64_t word = 0; word < count; word++) {
            bits[word] = bits_at(words, pages, (int64_t)(slot->first + start + 64 * word) - (int64_t)first);
            any |= bits[word];
            set += (uint64_t)__builtin_popcountll(bits[word]);
        }
        if (!any)
            continue;
        struct kvm_clear_dirty_log request = {
            .slot = slot->slot, .first_page = start, .num_pages = (uint32_t)(end - start), .dirty_bitmap = bits};
        uint64_t before = tvmm_now_ns();
        if (ioctl(log->vm_fd, KVM_CLEAR_DIRTY_LOG, &request) < 0)
            return -errno;
        __atomic_fetch_add(&log->clear_ns, tvmm_now_ns() - before, __ATOMIC_RELAXED);
        __atomic_fetch_add(&log->clears, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&log->cleared_pages, set, __ATOMIC_RELAXED);
    }
    return 0;
}

/* --- rings -------------------------------------------------------------------------------------------------------- */

struct tvmm_rings *tvmm_rings_new(int vm_fd, uint32_t size, uint32_t vcpus)
{
    struct tvmm_rings *rings = calloc(1, sizeof *rings + vcpus * sizeof rings->rings[0]);
    if (!rings)
        return NULL;
    rings->vm_fd = vm_fd;
    rings->size = size;
    rings->count = vcpus;
    pthread_mutex_init(&rings->lock, NULL);
    return rings;
}

/* No vCPU may run any more. */
void tvmm_rings_free(struct tvmm_rings *rings)
{
    for (uint32_t index = 0; index < rings->count; index++)
        if (rings->rings[index].entries)
            munmap(rings->rings[index].entries, rings->size * sizeof(struct kvm_dirty_gfn));
    pthread_mutex_destroy(&rings->lock);
    free(rings);
}

/* 0 or -errno. */
int tvmm_rings_map(struct tvmm_rings *rings, uint32_t index, int vcpu_fd)
{
    if (index >= rings->count)
        return -EINVAL;
    void *mapped = mmap(NULL, rings->size * sizeof(struct kvm_dirty_gfn), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd,
                        KVM_DIRTY_LOG_PAGE_OFFSET * (off_t)TVMM_PAGE);
    if (mapped == MAP_FAILED)
        return -errno;
    rings->rings[index].entries = mapped;
    return 0;
}

/* From now on entries go to `pending`; with NULL they are dropped. */
void tvmm_rings_track(struct tvmm_rings *rings, struct tvmm_bitmap *pending, struct tvmm_log_slot *slots,
                      uint32_t slot_count)
{
    pthread_mutex_lock(&rings->lock);
    rings->pending = pending;
    rings->slots = slots;
    rings->slot_count = slot_count;
    pthread_mutex_unlock(&rings->lock);
}

static void note_page(struct tvmm_rings *rings, uint32_t slot, uint64_t offset)
{
    if (!rings->pending)
        return;
    for (uint32_t index = 0; index < rings->slot_count; index++) {
        const struct tvmm_log_slot *known = &rings->slots[index];
        if (known->slot == slot && offset < known->pages) {
            tvmm_bits_set(rings->pending->blocks[known->block].words, known->first + offset, 1);
            return;
        }
    }
    rings->strays++;
}

/* With the lock held: one ring's entries into `pending`. How many.
 *
 * A vCPU leaves the guest with 64 entries to spare. A ring without a free one has overflowed: KVM went on over entries
 * that nobody had seen, and its count and ours never meet again. That happens where KVM emulates guest kernel mode, which
 * it does for thousands of instructions without looking. Nothing that comes out of the rings is complete any more. */
static uint32_t take_entries(struct tvmm_rings *rings, struct tvmm_ring *ring)
{
    uint32_t taken = 0;
    if (!ring->entries)
        return 0;
    while (taken < rings->size) {
        struct kvm_dirty_gfn *entry = &ring->entries[ring->next & (rings->size - 1)];
        if (__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY)
            break;
        note_page(rings, entry->slot & 0xffff, entry->offset);
        __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        ring->next++;
        taken++;
    }
    ring->count += taken;
    if (taken == rings->size)
        rings->overflowed = 1;
    return taken;
}

/* With the lock held: protect what was taken again. 0 or -errno. */
static int reset_rings(struct tvmm_rings *rings, uint64_t taken)
{
    if (rings->overflowed)
        return -EOVERFLOW;
    return taken && ioctl(rings->vm_fd, KVM_RESET_DIRTY_RINGS, 0) < 0 ? -errno : 0;
}

/* All rings, and what was pending, into `bitmap`: how many bits are new there, or -errno. */
int64_t tvmm_rings_sync(struct tvmm_rings *rings, struct tvmm_bitmap *bitmap)
{
    uint64_t taken = 0, added = 0;
    pthread_mutex_lock(&rings->lock);
    for (uint32_t index = 0; index < rings->count; index++)
        taken += take_entries(rings, &rings->rings[index]);
    int error = reset_rings(rings, taken);
    if (!error && rings->pending && bitmap) {
        for (uint32_t block = 0; block < rings->pending->count; block++) {
            struct tvmm_bitmap_block *from = &rings->pending->blocks[block];
            uint64_t words = tvmm_bits_words(from->pages);
            added += tvmm_bits_merge(bitmap->blocks[block].words, from->words, words);
            memset(from->words, 0, words * sizeof *from->words);
        }
    }
    pthread_mutex_unlock(&rings->lock);
    return error ? error : (int64_t)added;
}

/* By the vCPU that left the guest with KVM_EXIT_DIRTY_RING_FULL. 0 or -errno. */
int tvmm_rings_full(struct tvmm_rings *rings, uint32_t index)
{
    if (index >= rings->count)
        return -EINVAL;
    pthread_mutex_lock(&rings->lock);
    rings->full_exits++;
    int error = reset_rings(rings, take_entries(rings, &rings->rings[index]));
    pthread_mutex_unlock(&rings->lock);
    return error;
}
