/* The device's half of a virtqueue, split and packed (Virtio 1.3, 2.7 and 2.8), without the interpreter lock.
 *
 * A ring belongs to one thread at a time; the other side is the guest, which writes the same memory whenever it likes.
 * Hence: whatever the guest wrote is loaded once into a local variable, checked there and used from there. No walk is
 * longer than the queue, than TVMM_RING_INDIRECT_MAX, or than the iovecs that the caller has room for. A ring that breaks
 * the rules is stopped: `error` names the rule, nothing is taken from it and nothing is written into it any more.
 *
 * Guest memory is little-endian and so is every host that has KVM for x86.
 */
#ifndef TVMM_VRING_H
#define TVMM_VRING_H

#include "dirty.h"

#include <stdint.h>
#include <sys/uio.h>

/* Entries of an indirect table: the specification's bound for a chain is the queue size, which drivers with small queues
 * exceed in practice, so the bound is the largest queue. Without one a table of 4 GiB would be walked in one call. */
#define TVMM_RING_INDIRECT_MAX 32768u
#define TVMM_RING_SIZE_MAX 32768u
/* 2.7.5: no chain is longer than 2^32 bytes. Used lengths have 32 bits. */
#define TVMM_RING_BYTES_MAX (1ull << 32)
/* Buffer ids of the packed ring are any 16-bit numbers. */
#define TVMM_RING_PACKED_IDS 65536u

#define TVMM_RING_F_INDIRECT (1ull << 28)
#define TVMM_RING_F_EVENT_IDX (1ull << 29)
#define TVMM_RING_F_PACKED (1ull << 34)
#define TVMM_RING_F_IN_ORDER (1ull << 35)

enum tvmm_ring_error {
    TVMM_RING_NONE,
    /* when it is configured */
    TVMM_RING_QUEUE_SIZE,
    TVMM_RING_AREA_MISALIGNED,
    TVMM_RING_AREA_OUTSIDE_RAM,
    TVMM_RING_AREA_DIVIDED,
    TVMM_RING_AREA_READ_ONLY,
    TVMM_RING_AREAS_OVERLAP,
    /* when a chain is taken */
    TVMM_RING_INDEX_JUMP,
    TVMM_RING_HEAD_RANGE,
    TVMM_RING_ID_IN_FLIGHT,
    TVMM_RING_NEXT_RANGE,
    TVMM_RING_CHAIN_TOO_LONG,
    TVMM_RING_INDIRECT_REFUSED,
    TVMM_RING_INDIRECT_NESTED,
    TVMM_RING_INDIRECT_LINKED,
    TVMM_RING_INDIRECT_LENGTH,
    TVMM_RING_INDIRECT_TOO_LONG,
    TVMM_RING_INDIRECT_OUTSIDE_RAM,
    TVMM_RING_READABLE_AFTER_WRITABLE,
    TVMM_RING_BUFFER_EMPTY,
    TVMM_RING_BUFFER_WRAPS,
    TVMM_RING_BUFFER_OUTSIDE_RAM,
    TVMM_RING_BUFFER_READ_ONLY,
    TVMM_RING_TOO_MANY_IOVECS,
    TVMM_RING_TOO_MANY_BYTES,
};

#define TVMM_REGION_READ_ONLY 1u

/* Regions ascend and do not overlap; those that continue each other in both address spaces have been made one. A map does
 * not change while a ring uses it. `log`: where writes to this memory are marked; may be NULL. */
struct tvmm_region {
    uint64_t gpa, size;
    uint8_t *hva;
    uint32_t flags;
};

/* Of the whole memory. Who reads a page that is elsewhere waits for it; when that is given up, who waits gets zeros. The
 * guest never wrote them: they must not reach a disk. */
#define TVMM_MEMORY_COMING 1 /* some of it may be elsewhere */
#define TVMM_MEMORY_LOST 2   /* what was elsewhere will not come, and is zeros */

struct tvmm_memory_map {
    uint32_t count;
    struct tvmm_device_log *log;
    const int32_t *presence; /* TVMM_MEMORY_..., or 0: all is here. NULL is 0 for good */
    struct tvmm_region regions[];
};

/* The iovecs of a chain follow each other from `first` on, those that the device reads before those that it writes. */
struct tvmm_chain {
    uint32_t id, first, readable_count, writable_count;
    uint64_t readable_bytes, writable_bytes;
};

struct tvmm_used {
    uint32_t id, length;
};

/* `used` starts as {id, 0} for each chain, which is what a device that only reads gives back. */
struct tvmm_batch {
    uint32_t chain_limit, iovec_limit;
    uint32_t count, iovec_count;
    struct tvmm_chain *chains;
    struct tvmm_used *used;
    struct iovec *iovecs;
};

enum { TVMM_CHAIN_FREE, TVMM_CHAIN_IN_FLIGHT, TVMM_CHAIN_DONE };

/* What the device has of a chain, by id. `slots`: how far the ring moves with it (1 on a split ring). DONE: given back by
 * the device and not yet told to the driver, because an older one is still out (IN_ORDER) or the ring is stopped. A free
 * entry is all zeros. */
struct tvmm_in_flight {
    uint64_t writable;
    uint32_t length;
    uint16_t slots, status;
};

struct tvmm_vring_counters {
    uint64_t pops, empty_pops, chains, returned, used_entries, kicks, interrupts, suppressed, errors;
};

struct tvmm_vring {
    /* configuration */
    uint64_t features, descriptor_area, driver_area, device_area;
    uint32_t size;
    /* state; split rings count modulo 2^16 and have no wrap bits */
    uint32_t error;
    uint64_t error_value;
    uint32_t next_avail, avail_wrap, next_used, used_wrap;
    uint32_t unsignalled;       /* ring positions used since the last decision on an interrupt, at most 65536 */
    uint32_t kicks_wanted, kick_event;
    uint32_t in_flight_count, slots_in_flight;
    uint32_t order_head;        /* IN_ORDER: the oldest is order[order_head] */
    struct tvmm_vring_counters counters; /* since the ring was made */
    /* derived */
    const struct tvmm_memory_map *map;
    const struct tvmm_batch *last_batch;
    uint8_t *descriptors, *driver, *device;
    struct tvmm_in_flight *in_flight;
    uint16_t *order;
};

struct tvmm_vring *tvmm_vring_new(void);
void tvmm_vring_free(struct tvmm_vring *ring);
void tvmm_vring_reset(struct tvmm_vring *ring);
int tvmm_vring_configure(struct tvmm_vring *ring, const struct tvmm_memory_map *map);
uint32_t tvmm_vring_pop(struct tvmm_vring *ring, struct tvmm_batch *batch);
int tvmm_iovecs_are_real(const struct tvmm_vring *ring, const struct iovec *iovecs, uint32_t count);
int tvmm_vring_unpop(struct tvmm_vring *ring, struct tvmm_batch *batch, uint32_t count);
int tvmm_vring_push(struct tvmm_vring *ring, const struct tvmm_used *used, uint32_t count);
int tvmm_vring_should_notify(struct tvmm_vring *ring);
int tvmm_vring_ready(const struct tvmm_vring *ring);
void tvmm_vring_disable_kicks(struct tvmm_vring *ring);
int tvmm_vring_enable_kicks(struct tvmm_vring *ring);

/* Where a device marks what it has written into the buffers of a ring that has been configured. */
static inline struct tvmm_device_log *tvmm_ring_log(const struct tvmm_vring *ring) { return ring->map->log; }

#endif
