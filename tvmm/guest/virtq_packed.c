/* The packed ring (2.8): one ring of descriptors that both sides mark by flags, and two event structures. */
#include "virtio.h"

#define FLAG_AVAIL (1 << 7)
#define FLAG_USED  (1 << 15)
#define WRAP_BIT   0x8000

enum { EVENT_ENABLE, EVENT_DISABLE, EVENT_DESC };

struct packed_descriptor {
    u64 address;
    u32 length;
    u16 id, flags;
};

struct event {
    u16 offset_wrap, flags;
};

static volatile struct packed_descriptor *ring(struct virtq *q) { return (void *)q->memory; }
static volatile struct event *driver_event(struct virtq *q) { return (void *)q->driver_area; }
static volatile struct event *device_event(struct virtq *q) { return (void *)q->device_area; }

static void packed_init(struct virtq *q) { q->wrap = q->used_wrap = true; }

/* The first descriptor's flags are written last: with them the device owns all. */
static void packed_add(struct virtq *q, const struct buffer *buffers, u16 count, u16 id, u16 extra)
{
    volatile struct packed_descriptor *first = &ring(q)[q->next];
    u16 first_flags = 0;
    for (u16 i = 0; i < count; i++) {
        volatile struct packed_descriptor *d = &ring(q)[q->next];
        u16 flags = (u16)((q->wrap ? FLAG_AVAIL : FLAG_USED) | (buffers[i].device_writes ? DESC_WRITE : 0) |
                          (i + 1 < count ? DESC_NEXT : 0) | extra);
        d->address = buffers[i].address;
        d->length = buffers[i].length;
        d->id = id;
        if (i)
            d->flags = flags;
        else
            first_flags = flags;
        if (++q->next == q->size) {
            q->next = 0;
            q->wrap = !q->wrap;
        }
    }
    q->free_head = q->slots[id].next;
    q->added = (u16)(q->added + count);
    compiler_barrier();
    first->flags = first_flags;
}

static bool packed_wants_kick(struct virtq *q)
{
    full_barrier();
    u16 flags = device_event(q)->flags, event = device_event(q)->offset_wrap;
    if (flags != EVENT_DESC)
        return flags == EVENT_ENABLE;
    u16 at = event & (WRAP_BIT - 1);
    if ((event & WRAP_BIT) / WRAP_BIT != q->wrap)
        at = (u16)(at - q->size);
    return (u16)(q->next - at - 1) < q->added;
}

static bool is_used(struct virtq *q)
{
    u16 flags = ring(q)[q->last_used].flags;
    bool avail = flags & FLAG_AVAIL, used = flags & FLAG_USED;
    return avail == used && used == q->used_wrap;
}

static bool packed_get(struct virtq *q, u16 *id, u32 *length)
{
    if (!is_used(q))
        return false;
    compiler_barrier();
    *id = ring(q)[q->last_used].id;
    *length = ring(q)[q->last_used].length;
    return true;
}

static void packed_release(struct virtq *q, u16 id)
{
    q->last_used = (u16)(q->last_used + q->slots[id].descriptors);
    if (q->last_used >= q->size) {
        q->last_used = (u16)(q->last_used - q->size);
        q->used_wrap = !q->used_wrap;
    }
    q->slots[id].next = q->free_head;
    q->free_head = id;
}

static bool packed_interrupts(struct virtq *q, bool on)
{
    if (!on) {
        driver_event(q)->flags = EVENT_DISABLE;
        return true;
    }
    if (q->event_idx) {
        driver_event(q)->offset_wrap = (u16)(q->last_used | (q->used_wrap ? WRAP_BIT : 0));
        compiler_barrier();
    }
    driver_event(q)->flags = q->event_idx ? EVENT_DESC : EVENT_ENABLE;
    full_barrier();
    return !is_used(q);
}

const struct virtq_format packed_format = {
    packed_init, packed_add, packed_wants_kick, packed_get, packed_release, packed_interrupts,
};
