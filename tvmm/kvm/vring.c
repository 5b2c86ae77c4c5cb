/* Configuration of a ring and the walk over what the driver offers: see vring.h. */
#include "vring.h"
#include "vring_memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A suppressed split ring with EVENT_IDX has its event index just behind the driver. The driver comes round to it after
 * 2^16 buffers, so it is moved along; this far it may stay behind: with a full queue of 2^15 on top it is not reached. */
#define KICK_EVENT_LAG 0x2000u

/* Both formats: the last word is `next` or flags, the one before flags or id. */
struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t word12, word14;
};

struct table {
    const uint8_t *hva; /* NULL if regions divide it */
    uint64_t gpa;
    uint32_t count;
};

enum outcome { TAKEN, NO_ROOM, FAILED };

/* The one copy that is then checked and used: the compiler must not go back to guest memory for a field. */
static void load_descriptor(struct descriptor *into, const uint8_t *from)
{
    memcpy(into, from, DESC_SIZE);
    __asm__ volatile("" ::: "memory");
}

static enum outcome fail(struct tvmm_vring *ring, enum tvmm_ring_error error, uint64_t value)
{
    ring->error = error;
    ring->error_value = value;
    ring->counters.errors++;
    return FAILED;
}

/* --- configuration ------------------------------------------------------------------------------------------------ */

struct tvmm_vring *tvmm_vring_new(void) { return calloc(1, sizeof(struct tvmm_vring)); }

/* Back to a ring that nobody configured; the counters go on. */
void tvmm_vring_reset(struct tvmm_vring *ring)
{
    struct tvmm_vring_counters counters = ring->counters;
    free(ring->in_flight);
    free(ring->order);
    *ring = (struct tvmm_vring){.counters = counters};
}

void tvmm_vring_free(struct tvmm_vring *ring)
{
    if (!ring)
        return;
    tvmm_vring_reset(ring);
    free(ring);
}

struct area {
    uint64_t gpa, length;
    uint32_t align;
    int written;
    uint8_t **hva;
};

static enum outcome place(struct tvmm_vring *ring, const struct area *area)
{
    const struct tvmm_region *region = find_region(ring->map, area->gpa);
    if (area->gpa % area->align)
        return fail(ring, TVMM_RING_AREA_MISALIGNED, area->gpa);
    if (!region || !covered(ring->map, area->gpa, area->length))
        return fail(ring, TVMM_RING_AREA_OUTSIDE_RAM, area->gpa);
    if (part_of(region, area->gpa, area->length) < area->length)
        return fail(ring, TVMM_RING_AREA_DIVIDED, area->gpa);
    if (area->written && region->flags & TVMM_REGION_READ_ONLY)
        return fail(ring, TVMM_RING_AREA_READ_ONLY, area->gpa);
    *area->hva = region->hva + (area->gpa - region->gpa);
    return TAKEN;
}

/* With the configuration fields set on a ring that was reset: make it ready, or stop it. 0, or -ENOMEM. */
int tvmm_vring_configure(struct tvmm_vring *ring, const struct tvmm_memory_map *map)
{
    uint32_t size = ring->size;
    int packed = ring_has(ring, TVMM_RING_F_PACKED);
    struct area areas[3] = {
        {ring->descriptor_area, (uint64_t)DESC_SIZE * size, 16, packed, &ring->descriptors},
        {ring->driver_area, packed ? 4 : 6 + 2ull * size, packed ? 4 : 2, 0, &ring->driver},
        {ring->device_area, packed ? 4 : 6 + 8ull * size, 4, 1, &ring->device},
    };

    ring->map = map;
    ring->avail_wrap = ring->used_wrap = packed;
    ring->kicks_wanted = 1;
    if (!size || size > TVMM_RING_SIZE_MAX || (!packed && size & (size - 1))) {
        fail(ring, TVMM_RING_QUEUE_SIZE, size);
        return 0;
    }
    for (int index = 0; index < 3; index++)
        if (place(ring, &areas[index]) != TAKEN)
            return 0;
    for (int index = 0; index < 3; index++) {
        const struct area *one = &areas[index], *other = &areas[(index + 1) % 3];
        if (one->gpa < other->gpa + other->length && other->gpa < one->gpa + one->length) {
            fail(ring, TVMM_RING_AREAS_OVERLAP, one->gpa);
            return 0;
        }
    }
    ring->in_flight = calloc(packed ? TVMM_RING_PACKED_IDS : size, sizeof *ring->in_flight);
    ring->order = calloc(size, sizeof *ring->order);
    return ring->in_flight && ring->order ? 0 : -ENOMEM;
}

/* --- taking chains ------------------------------------------------------------------------------------------------ */

static enum outcome add_buffer(struct tvmm_vring *ring, struct tvmm_batch *batch, struct tvmm_chain *chain, uint64_t gpa,
                               uint32_t length, int writable)
{
    if (!length)
        return fail(ring, TVMM_RING_BUFFER_EMPTY, gpa);
    if (!writable && chain->writable_count)
        return fail(ring, TVMM_RING_READABLE_AFTER_WRITABLE, gpa);
    if (gpa + (length - 1) < gpa)
        return fail(ring, TVMM_RING_BUFFER_WRAPS, gpa);
    if (chain->readable_bytes + chain->writable_bytes + length > TVMM_RING_BYTES_MAX)
        return fail(ring, TVMM_RING_TOO_MANY_BYTES, gpa);
    *(writable ? &chain->writable_bytes : &chain->readable_bytes) += length;
    while (length) {
        const struct tvmm_region *region = find_region(ring->map, gpa);
        if (!region)
            return fail(ring, TVMM_RING_BUFFER_OUTSIDE_RAM, gpa);
        if (writable && region->flags & TVMM_REGION_READ_ONLY)
            return fail(ring, TVMM_RING_BUFFER_READ_ONLY, gpa);
        if (batch->iovec_count == batch->iovec_limit)
            return NO_ROOM;
        uint32_t part = (uint32_t)part_of(region, gpa, length);
        struct iovec *iovec = &batch->iovecs[batch->iovec_count++];
        iovec->iov_base = region->hva + (gpa - region->gpa);
        iovec->iov_len = part;
        (*(writable ? &chain->writable_count : &chain->readable_count))++;
        gpa += part;
        length -= part;
    }
    return TAKEN;
}

static enum outcome open_table(struct tvmm_vring *ring, const struct descriptor *from, struct table *table)
{
    uint64_t gpa = from->address;
    uint32_t length = from->length;
    const struct tvmm_region *region = find_region(ring->map, gpa);

    if (!length || length % DESC_SIZE)
        return fail(ring, TVMM_RING_INDIRECT_LENGTH, length);
    if (length / DESC_SIZE > TVMM_RING_INDIRECT_MAX)
        return fail(ring, TVMM_RING_INDIRECT_TOO_LONG, length);
    if (!region || !covered(ring->map, gpa, length))
        return fail(ring, TVMM_RING_INDIRECT_OUTSIDE_RAM, gpa);
    table->hva = part_of(region, gpa, length) == length ? region->hva + (gpa - region->gpa) : NULL;
    table->gpa = gpa;
    table->count = length / DESC_SIZE;
    return TAKEN;
}

static void read_table(const struct tvmm_vring *ring, const struct table *table, uint32_t index, struct descriptor *into)
{
    uint64_t gpa = table->gpa + (uint64_t)DESC_SIZE * index;
    uint8_t copy[DESC_SIZE];

    if (table->hva) {
        load_descriptor(into, table->hva + (size_t)DESC_SIZE * index);
        return;
    }
    for (uint64_t done = 0; done < DESC_SIZE;) {
        const struct tvmm_region *region = find_region(ring->map, gpa + done);
        uint64_t part = part_of(region, gpa + done, DESC_SIZE - done);
        memcpy(copy + done, region->hva + (gpa + done - region->gpa), part);
        done += part;
    }
    load_descriptor(into, copy);
}

/* A split chain: descriptors of the ring, of which the last may be a table that takes over. */
static enum outcome walk_split(struct tvmm_vring *ring, struct tvmm_batch *batch, struct tvmm_chain *chain)
{
    struct table table = {ring->descriptors, ring->descriptor_area, ring->size};
    uint32_t index = chain->id, walked = 0;
    int indirect = 0;
    struct descriptor desc;

    for (;;) {
        if (walked++ == table.count)
            return fail(ring, TVMM_RING_CHAIN_TOO_LONG, chain->id);
        read_table(ring, &table, index, &desc);
        uint32_t flags = desc.word12, next = desc.word14;
        enum outcome outcome;
        if (flags & DESC_INDIRECT) {
            if (!ring_has(ring, TVMM_RING_F_INDIRECT))
                return fail(ring, TVMM_RING_INDIRECT_REFUSED, chain->id);
            if (indirect)
                return fail(ring, TVMM_RING_INDIRECT_NESTED, chain->id);
            if (flags & DESC_NEXT)
                return fail(ring, TVMM_RING_INDIRECT_LINKED, chain->id);
            outcome = open_table(ring, &desc, &table);
            if (outcome != TAKEN)
                return outcome;
            indirect = 1;
            index = walked = 0;
            continue;
        }
        outcome = add_buffer(ring, batch, chain, desc.address, desc.length, (flags & DESC_WRITE) != 0);
        if (outcome != TAKEN || !(flags & DESC_NEXT))
            return outcome;
        if (next >= table.count)
            return fail(ring, TVMM_RING_NEXT_RANGE, next);
        index = next;
    }
}

/* A packed chain from next_avail on: descriptors in ring order, or one that refers to a table (2.8.7: all of the table,
 * and of the flags in it only WRITE counts). `flags` is the first one's, which said that the chain is available. */
static enum outcome walk_packed(struct tvmm_vring *ring, struct tvmm_batch *batch, struct tvmm_chain *chain,
                                uint32_t flags, uint32_t *slots)
{
    uint32_t index = ring->next_avail;
    struct descriptor desc;
    enum outcome outcome;

    for (;;) {
        /* What is in flight still has its places in the ring. */
        if (*slots == ring->size - ring->slots_in_flight)
            return fail(ring, TVMM_RING_CHAIN_TOO_LONG, ring->next_avail);
        load_descriptor(&desc, ring->descriptors + (size_t)DESC_SIZE * index);
        if ((*slots)++)
            flags = desc.word14;
        chain->id = desc.word12;
        if (flags & DESC_INDIRECT) {
            struct table table;
            if (!ring_has(ring, TVMM_RING_F_INDIRECT))
                return fail(ring, TVMM_RING_INDIRECT_REFUSED, ring->next_avail);
            if (flags & DESC_NEXT || *slots > 1)
                return fail(ring, TVMM_RING_INDIRECT_LINKED, ring->next_avail);
            outcome = open_table(ring, &desc, &table);
            for (index = 0; outcome == TAKEN && index < table.count; index++) {
                read_table(ring, &table, index, &desc);
                outcome = add_buffer(ring, batch, chain, desc.address, desc.length, (desc.word14 & DESC_WRITE) != 0);
            }
            return outcome;
        }
        outcome = add_buffer(ring, batch, chain, desc.address, desc.length, (flags & DESC_WRITE) != 0);
        if (outcome != TAKEN || !(flags & DESC_NEXT))
            return outcome;
        if (++index == ring->size)
            index = 0;
    }
}

/* A chain that a walk ended with: into the batch, or undone. */
static int settle(struct tvmm_vring *ring, struct tvmm_batch *batch, const struct tvmm_chain *chain, uint32_t slots,
                  enum outcome outcome)
{
    if (outcome == TAKEN && ring->in_flight[chain->id].status != TVMM_CHAIN_FREE)
        outcome = fail(ring, TVMM_RING_ID_IN_FLIGHT, chain->id);
    if (outcome == NO_ROOM && !batch->count)
        outcome = fail(ring, TVMM_RING_TOO_MANY_IOVECS, batch->iovec_limit);
    if (outcome != TAKEN) {
        batch->iovec_count = chain->first;
        return 0;
    }
    ring->in_flight[chain->id] =
        (struct tvmm_in_flight){chain->writable_bytes, 0, (uint16_t)slots, TVMM_CHAIN_IN_FLIGHT};
    if (ring_has(ring, TVMM_RING_F_IN_ORDER))
        ring->order[(ring->order_head + ring->in_flight_count) % ring->size] = (uint16_t)chain->id;
    ring->in_flight_count++;
    ring->slots_in_flight += slots;
    batch->chains[batch->count] = *chain;
    batch->used[batch->count] = (struct tvmm_used){chain->id, 0};
    batch->count++;
    return 1;
}

static void pop_split(struct tvmm_vring *ring, struct tvmm_batch *batch)
{
    uint16_t index = load16_acquire(ring->driver + SPLIT_INDEX);
    uint32_t pending = (uint16_t)(index - ring->next_avail);

    if (pending > ring->size) {
        fail(ring, TVMM_RING_INDEX_JUMP, index);
        return;
    }
    while (pending-- && batch->count < batch->chain_limit) {
        const uint8_t *entry = ring->driver + SPLIT_ENTRIES + 2 * (ring->next_avail & (ring->size - 1));
        struct tvmm_chain chain = {.id = load16(entry), .first = batch->iovec_count};
        if (chain.id >= ring->size) {
            fail(ring, TVMM_RING_HEAD_RANGE, chain.id);
            return;
        }
        if (!settle(ring, batch, &chain, 1, walk_split(ring, batch, &chain)))
            return;
        ring->next_avail = (uint16_t)(ring->next_avail + 1);
    }
}

static void pop_packed(struct tvmm_vring *ring, struct tvmm_batch *batch)
{
    while (batch->count < batch->chain_limit) {
        uint32_t flags = load16_acquire(ring->descriptors + (size_t)DESC_SIZE * ring->next_avail + 14);
        struct tvmm_chain chain = {.first = batch->iovec_count};
        uint32_t slots = 0;
        if (!packed_available(ring, flags))
            return;
        enum outcome outcome = walk_packed(ring, batch, &chain, flags, &slots);
        if (!settle(ring, batch, &chain, slots, outcome))
            return;
        ring->next_avail += slots;
        if (ring->next_avail >= ring->size) {
            ring->next_avail -= ring->size;
            ring->avail_wrap ^= 1;
        }
    }
}

/* How many chains it got, at most batch->chain_limit. A chain whose iovecs do not fit behind others stays for the next
 * call. Chains before one that stops the ring are valid. */
uint32_t tvmm_vring_pop(struct tvmm_vring *ring, struct tvmm_batch *batch)
{
    batch->count = batch->iovec_count = 0;
    ring->last_batch = batch;
    if (ring_stopped(ring))
        return 0;
    int packed = ring_has(ring, TVMM_RING_F_PACKED);
    (packed ? pop_packed : pop_split)(ring, batch);
    if (!packed && ring_has(ring, TVMM_RING_F_EVENT_IDX) && !ring->kicks_wanted
        && (uint16_t)(ring->next_avail - ring->kick_event) > KICK_EVENT_LAG)
        write_kick_event(ring, ring->next_avail - 1);
    ring->counters.pops++;
    ring->counters.empty_pops += !batch->count;
    ring->counters.chains += batch->count;
    return batch->count;
}

/* Look at each page: where guest memory is still on its way, that waits for it. */
static void touch_iovecs(const struct iovec *iovecs, uint32_t count)
{
    for (uint32_t index = 0; index < count; index++) {
        const volatile uint8_t *base = iovecs[index].iov_base;
        size_t length = iovecs[index].iov_len, at = 0;
        while (at < length) {
            (void)base[at];
            at += 4096 - ((uintptr_t)base + at) % 4096;
        }
    }
}

/* Whether what these buffers hold, and the ring said of them, is the guest's; waits until they are here. Once they are,
 * they stay. Memory is marked as lost before its pages become zeros, so the mark is looked at last. */
int tvmm_iovecs_are_real(const struct tvmm_vring *ring, const struct iovec *iovecs, uint32_t count)
{
    const int32_t *presence = ring->map ? ring->map->presence : NULL;
    if (__builtin_expect(!presence || !__atomic_load_n(presence, __ATOMIC_ACQUIRE), 1))
        return 1;
    touch_iovecs(iovecs, count);
    return __atomic_load_n(presence, __ATOMIC_ACQUIRE) != TVMM_MEMORY_LOST;
}

/* The last `count` chains of the batch that was popped last, as if they had not been: the next pop reads them anew.
 * 0, or -EINVAL if that is not what they are. */
int tvmm_vring_unpop(struct tvmm_vring *ring, struct tvmm_batch *batch, uint32_t count)
{
    if (ring->last_batch != batch || count > batch->count || !ring->in_flight)
        return -EINVAL;
    for (uint32_t index = batch->count - count; index < batch->count; index++)
        if (ring->in_flight[batch->chains[index].id].status != TVMM_CHAIN_IN_FLIGHT)
            return -EINVAL;
    while (count--) {
        struct tvmm_in_flight *entry = &ring->in_flight[batch->chains[--batch->count].id];
        uint32_t slots = entry->slots;
        *entry = (struct tvmm_in_flight){0};
        ring->in_flight_count--;
        ring->slots_in_flight -= slots;
        ring->counters.chains--;
        if (!ring_has(ring, TVMM_RING_F_PACKED)) {
            ring->next_avail = (uint16_t)(ring->next_avail - 1);
        } else if (ring->next_avail >= slots) {
            ring->next_avail -= slots;
        } else {
            ring->next_avail += ring->size - slots;
            ring->avail_wrap ^= 1;
        }
        batch->iovec_count = batch->chains[batch->count].first;
    }
    return 0;
}
