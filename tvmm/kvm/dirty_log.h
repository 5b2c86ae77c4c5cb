/* Which pages the vCPUs wrote: KVM's dirty bitmap with manual protection, and its dirty rings.
 *
 * Both keep one order, from which it follows that no write is lost: first a page's mark is taken and the page is
 * protected again, then the page is read. A write in between is marked anew. */
#ifndef TVMM_DIRTY_LOG_H
#define TVMM_DIRTY_LOG_H

#include "pages.h"

#include <linux/kvm.h>
#include <pthread.h>

/* The most pages that are protected again in one call, and the most that a lane takes at once. */
#define TVMM_CLEAR_PAGES 16384u

/* A memory slot, and the part of a block behind it. Slots start anywhere in a block, not only at each 64th page. */
struct tvmm_log_slot {
    uint32_t slot, block;
    uint64_t first, pages;
    uint64_t *scratch; /* the bitmap as KVM gives it */
};

struct tvmm_dirty_log {
    int vm_fd;
    uint32_t manual; /* bits stay set in KVM until tvmm_log_clear */
    uint64_t clears, clear_ns, cleared_pages;
    uint32_t count;
    struct tvmm_log_slot slots[];
};

int64_t tvmm_log_sync(struct tvmm_dirty_log *log, struct tvmm_bitmap *bitmap);
int tvmm_log_peek(struct tvmm_dirty_log *log);
uint64_t tvmm_log_spare(const struct tvmm_dirty_log *log, struct tvmm_bitmap *bitmap, uint32_t block, uint64_t first,
                        uint64_t pages, const uint64_t *devices);
int tvmm_log_clear(struct tvmm_dirty_log *log, uint32_t block, uint64_t first, uint64_t pages, const uint64_t *words);

/* One vCPU's ring as it is mapped. `count` is of all entries so far. */
struct tvmm_ring {
    struct kvm_dirty_gfn *entries;
    uint32_t next;
    uint64_t count;
};

/* All rings of a VM. Entries are collected into `pending`, by whoever comes by: a vCPU whose ring is full, or a
 * look at the whole. */
struct tvmm_rings {
    int vm_fd;
    uint32_t size; /* entries in each, a power of two */
    pthread_mutex_t lock;
    struct tvmm_bitmap *pending; /* NULL while nobody tracks: entries are dropped */
    uint32_t slot_count;
    struct tvmm_log_slot *slots;
    uint64_t full_exits, strays;
    uint32_t overflowed; /* see take_entries */
    uint32_t count;
    struct tvmm_ring rings[];
};

struct tvmm_rings *tvmm_rings_new(int vm_fd, uint32_t size, uint32_t vcpus);
void tvmm_rings_free(struct tvmm_rings *rings);
int tvmm_rings_map(struct tvmm_rings *rings, uint32_t index, int vcpu_fd);
void tvmm_rings_track(struct tvmm_rings *rings, struct tvmm_bitmap *pending, struct tvmm_log_slot *slots,
                      uint32_t slot_count);
int64_t tvmm_rings_sync(struct tvmm_rings *rings, struct tvmm_bitmap *bitmap);
int tvmm_rings_full(struct tvmm_rings *rings, uint32_t index);

#endif
