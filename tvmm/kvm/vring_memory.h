/* What both C files of the ring need: layout, single loads from and stores to guest memory, look-up of addresses. */
#ifndef TVMM_VRING_MEMORY_H
#define TVMM_VRING_MEMORY_H

#include "vring.h"

#include <stddef.h>

#define DESC_SIZE 16u
#define DESC_NEXT 1u
#define DESC_WRITE 2u
#define DESC_INDIRECT 4u
#define DESC_AVAIL (1u << 7)
#define DESC_USED (1u << 15)

#define SPLIT_FLAGS 0u
#define SPLIT_INDEX 2u
#define SPLIT_ENTRIES 4u
#define SPLIT_NO_NOTIFY 1u

#define EVENT_DISABLE 1u
#define EVENT_DESCRIPTOR 2u

static inline uint16_t load16(const uint8_t *at) { return __atomic_load_n((const uint16_t *)at, __ATOMIC_RELAXED); }
static inline uint16_t load16_acquire(const uint8_t *at)
{
    return __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE);
}
static inline void store16(uint8_t *at, uint32_t value)
{
    __atomic_store_n((uint16_t *)at, (uint16_t)value, __ATOMIC_RELAXED);
}
static inline void store32(uint8_t *at, uint32_t value)
{
    __atomic_store_n((uint32_t *)at, value, __ATOMIC_RELAXED);
}
static inline void store16_release(uint8_t *at, uint32_t value)
{
    __atomic_store_n((uint16_t *)at, (uint16_t)value, __ATOMIC_RELEASE);
}

static inline const struct tvmm_region *find_region(const struct tvmm_memory_map *map, uint64_t gpa)
{
    uint32_t low = 0, high = map->count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        const struct tvmm_region *region = &map->regions[middle];
        if (gpa < region->gpa)
            high = middle;
        else if (gpa - region->gpa >= region->size)
            low = middle + 1;
        else
            return region;
    }
    return NULL;
}

/* How many of `length` bytes the region of `gpa` has. */
static inline uint64_t part_of(const struct tvmm_region *region, uint64_t gpa, uint64_t length)
{
    uint64_t left = region->size - (gpa - region->gpa);
    return left < length ? left : length;
}

static inline int covered(const struct tvmm_memory_map *map, uint64_t gpa, uint64_t length)
{
    while (length) {
        const struct tvmm_region *region = find_region(map, gpa);
        if (!region)
            return 0;
        uint64_t part = part_of(region, gpa, length);
        gpa += part;
        length -= part;
    }
    return 1;
}

static inline int ring_has(const struct tvmm_vring *ring, uint64_t feature) { return (ring->features & feature) != 0; }

static inline int ring_stopped(const struct tvmm_vring *ring) { return ring->error != TVMM_RING_NONE || !ring->size; }

static inline int packed_available(const struct tvmm_vring *ring, uint32_t flags)
{
    int avail = (flags & DESC_AVAIL) != 0, used = (flags & DESC_USED) != 0;
    return avail != used && avail == (int)ring->avail_wrap;
}

static inline void write_kick_event(struct tvmm_vring *ring, uint32_t event)
{
    ring->kick_event = (uint16_t)event;
    uint8_t *at = ring->device + SPLIT_ENTRIES + 8 * (size_t)ring->size;
    store16(at, event);
    tvmm_mark(tvmm_ring_log(ring), at, 2);
}

#endif
