/* What goes back to the driver, used entries, and the two kinds of notification: see vring.h. */
#include "vring.h"
#include "vring_memory.h"

#include <stddef.h>

/* All of a ring's positions, split or packed with either wrap bit. */
#define EVERYTHING 65536u

/* --- giving chains back ------------------------------------------------------------------------------------------- */

/* What makes the entries of a packed ring visible: the flags of the first of them, stored last. `moved`: ring positions
 * that the entries stand for. */
struct publication {
    uint8_t *flags;
    uint32_t value, moved;
};

/* One entry, behind which the ring moves by `slots` positions. */
static void write_used(struct tvmm_vring *ring, struct publication *first, uint32_t id, uint32_t length, uint32_t slots)
{
    if (!ring_has(ring, TVMM_RING_F_PACKED)) {
        uint8_t *entry = ring->device + SPLIT_ENTRIES + 8 * (size_t)(ring->next_used & (ring->size - 1));
        store32(entry, id);
        store32(entry + 4, length);
        ring->next_used = (uint16_t)(ring->next_used + slots);
    } else {
        uint8_t *desc = ring->descriptors + (size_t)DESC_SIZE * ring->next_used;
        uint32_t flags = (ring->used_wrap ? DESC_AVAIL | DESC_USED : 0) | (length ? DESC_WRITE : 0);
        store32(desc + 8, length);
        store16(desc + 12, id);
        if (first->flags) {
            store16_release(desc + 14, flags);
        } else {
            first->flags = desc + 14;
            first->value = flags;
        }
        ring->next_used += slots;
        if (ring->next_used >= ring->size) {
            ring->next_used -= ring->size;
            ring->used_wrap ^= 1;
        }
    }
    first->moved += slots;
    ring->counters.used_entries++;
    ring->unsignalled = ring->unsignalled + slots < EVERYTHING ? ring->unsignalled + slots : EVERYTHING;
}

static void release_chain(struct tvmm_vring *ring, uint32_t id)
{
    ring->in_flight_count--;
    ring->slots_in_flight -= ring->in_flight[id].slots;
    ring->in_flight[id] = (struct tvmm_in_flight){0};
}

/* IN_ORDER: the oldest chains as far as they are done. A chain that was used completely needs no entry of its own if
 * one follows (2.7.9, 2.8.8): the entry stands at the first one's place and names the last. */
static void flush_in_order(struct tvmm_vring *ring, struct publication *first)
{
    uint32_t slots = 0;
    while (ring->in_flight_count) {
        uint32_t id = ring->order[ring->order_head];
        const struct tvmm_in_flight *entry = &ring->in_flight[id];
        if (entry->status != TVMM_CHAIN_DONE)
            return;
        uint32_t following = (ring->order_head + 1) % ring->size;
        int more = ring->in_flight_count > 1 && ring->in_flight[ring->order[following]].status == TVMM_CHAIN_DONE;
        int silent = more && entry->length == entry->writable;
        uint32_t length = entry->length;
        slots += entry->slots;
        release_chain(ring, id);
        ring->order_head = following;
        if (silent)
            continue;
        write_used(ring, first, id, length, slots);
        slots = 0;
    }
}

/* The entries behind which the ring has moved by `moved` positions, at most once around; it may be round its end. */
static void mark_entries(const struct tvmm_vring *ring, uint32_t moved)
{
    int packed = ring_has(ring, TVMM_RING_F_PACKED);
    uint8_t *entries = packed ? ring->descriptors : ring->device + SPLIT_ENTRIES;
    size_t entry_size = packed ? DESC_SIZE : 8;
    uint32_t end = packed ? ring->next_used : ring->next_used & (ring->size - 1);
    uint32_t before = moved < end ? moved : end, behind = moved - before;

    tvmm_mark(tvmm_ring_log(ring), entries + entry_size * (end - before), entry_size * before);
    tvmm_mark(tvmm_ring_log(ring), entries + entry_size * (ring->size - behind), entry_size * behind);
    if (!packed)
        tvmm_mark(tvmm_ring_log(ring), ring->device + SPLIT_INDEX, 2);
}

/* All of them or none: -(1 + index) of the first that is not in flight or is longer than what the device may write. */
int tvmm_vring_push(struct tvmm_vring *ring, const struct tvmm_used *used, uint32_t count)
{
    uint32_t ids = !ring->in_flight ? 0 : ring_has(ring, TVMM_RING_F_PACKED) ? TVMM_RING_PACKED_IDS : ring->size;
    struct publication first = {NULL, 0, 0};

    for (uint32_t index = 0; index < count; index++) {
        struct tvmm_in_flight *entry = used[index].id < ids ? &ring->in_flight[used[index].id] : NULL;
        if (!entry || entry->status != TVMM_CHAIN_IN_FLIGHT || used[index].length > entry->writable) {
            for (uint32_t undo = 0; undo < index; undo++)
                ring->in_flight[used[undo].id].status = TVMM_CHAIN_IN_FLIGHT;
            return -1 - (int)index;
        }
        entry->status = TVMM_CHAIN_DONE;
    }
    ring->counters.returned += count;
    for (uint32_t index = 0; index < count; index++)
        ring->in_flight[used[index].id].length = used[index].length;
    if (ring_stopped(ring) || !count)
        return 0;
    if (ring_has(ring, TVMM_RING_F_IN_ORDER))
        flush_in_order(ring, &first);
    else
        for (uint32_t index = 0; index < count; index++) {
            uint32_t slots = ring->in_flight[used[index].id].slots;
            release_chain(ring, used[index].id);
            write_used(ring, &first, used[index].id, used[index].length, slots);
        }
    /* The entries before what makes them visible; on a packed ring the first one makes all of them visible. */
    if (!ring_has(ring, TVMM_RING_F_PACKED))
        store16_release(ring->device + SPLIT_INDEX, ring->next_used);
    else if (first.flags)
        store16_release(first.flags, first.value);
    if (tvmm_marks(tvmm_ring_log(ring)) && first.moved)
        mark_entries(ring, first.moved);
    return 0;
}

/* --- notifications ------------------------------------------------------------------------------------------------ */

static int packed_wants(const struct tvmm_vring *ring, uint32_t moved)
{
    uint32_t word = __atomic_load_n((const uint32_t *)ring->driver, __ATOMIC_RELAXED);
    uint32_t mode = word >> 16 & 3, offset = word & 0x7fff, wrap = word >> 15 & 1, lap = 2 * ring->size;

    if (mode == EVENT_DISABLE)
        return 0;
    /* Reserved values and places that the ring does not have: an interrupt too many harms nobody. */
    if (mode != EVENT_DESCRIPTOR || !ring_has(ring, TVMM_RING_F_EVENT_IDX) || offset >= ring->size || moved >= lap)
        return 1;
    /* Positions over two laps, as the wrap bit tells them apart; the event's must be one of the last `moved`. */
    uint32_t event = offset + (wrap ? 0 : ring->size), used = ring->next_used + (ring->used_wrap ? 0 : ring->size);
    uint32_t behind = (used + lap - event) % lap;
    return behind && behind <= moved;
}

static int split_wants(const struct tvmm_vring *ring, uint32_t moved)
{
    if (!ring_has(ring, TVMM_RING_F_EVENT_IDX))
        return !(load16(ring->driver + SPLIT_FLAGS) & SPLIT_NO_NOTIFY);
    uint16_t event = load16(ring->driver + SPLIT_ENTRIES + 2 * (size_t)ring->size);
    return (uint32_t)(uint16_t)(ring->next_used - event - 1) < moved;
}

/* Whether the driver wants to hear of what was pushed since the last call. */
int tvmm_vring_should_notify(struct tvmm_vring *ring)
{
    uint32_t moved = ring->unsignalled;
    if (ring_stopped(ring) || !moved)
        return 0;
    ring->unsignalled = 0;
    /* Used entries before the look at what the driver wants; the driver does the two in the other order. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    int wanted = ring_has(ring, TVMM_RING_F_PACKED) ? packed_wants(ring, moved) : split_wants(ring, moved);
    *(wanted ? &ring->counters.interrupts : &ring->counters.suppressed) += 1;
    return wanted;
}

/* Whether a pop would find something, good or bad. */
int tvmm_vring_ready(const struct tvmm_vring *ring)
{
    if (ring_stopped(ring))
        return 0;
    if (ring_has(ring, TVMM_RING_F_PACKED))
        return packed_available(ring, load16_acquire(ring->descriptors + (size_t)DESC_SIZE * ring->next_avail + 14));
    return load16_acquire(ring->driver + SPLIT_INDEX) != (uint16_t)ring->next_avail;
}

/* The packed ring's event suppression record, or the split ring's flags. */
static void write_suppression(struct tvmm_vring *ring, uint32_t value)
{
    if (ring_has(ring, TVMM_RING_F_PACKED))
        store32(ring->device, value);
    else
        store16(ring->device + SPLIT_FLAGS, value);
    tvmm_mark(tvmm_ring_log(ring), ring->device, 4);
}

void tvmm_vring_disable_kicks(struct tvmm_vring *ring)
{
    if (ring_stopped(ring))
        return;
    ring->kicks_wanted = 0;
    if (ring_has(ring, TVMM_RING_F_PACKED))
        write_suppression(ring, EVENT_DISABLE << 16);
    else if (ring_has(ring, TVMM_RING_F_EVENT_IDX))
        write_kick_event(ring, ring->next_avail - 1);
    else
        write_suppression(ring, SPLIT_NO_NOTIFY);
}

/* 1: the caller may sleep until a kick. 0: there is work already, and kicks are disabled again. */
int tvmm_vring_enable_kicks(struct tvmm_vring *ring)
{
    if (ring_stopped(ring))
        return 1;
    int event_idx = ring_has(ring, TVMM_RING_F_EVENT_IDX);
    ring->kicks_wanted = 1;
    if (ring_has(ring, TVMM_RING_F_PACKED))
        write_suppression(ring, event_idx ? EVENT_DESCRIPTOR << 16 | ring->avail_wrap << 15 | ring->next_avail : 0);
    else if (event_idx)
        write_kick_event(ring, ring->next_avail);
    else
        write_suppression(ring, 0);
    /* The wish before the look: the driver that added a buffer in between sees the one or we see the other. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!tvmm_vring_ready(ring))
        return 1;
    tvmm_vring_disable_kicks(ring);
    return 0;
}
