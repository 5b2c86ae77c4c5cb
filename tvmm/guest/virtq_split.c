/* The split ring (2.7): a table of descriptors, the driver's ring of heads, the device's ring of used heads. */
#include "virtio.h"

#define AVAIL_NO_INTERRUPT 1
#define USED_NO_NOTIFY     1
#define FAR_AWAY           0x8000 /* a used_event that the device does not get to */
#define NEAR               0x1000 /* time to move it on */

struct used_element {
    u32 id, length;
};

static volatile struct virtq_descriptor *table(struct virtq *q) { return (void *)q->memory; }
static volatile u16 *avail_flags(struct virtq *q) { return (void *)q->driver_area; }
static volatile u16 *avail_idx(struct virtq *q) { return (void *)(q->driver_area + 2); }
static volatile u16 *avail_ring(struct virtq *q) { return (void *)(q->driver_area + 4); }
static volatile u16 *used_event(struct virtq *q) { return (void *)(q->driver_area + 4 + 2u * q->size); }
static volatile u16 *used_flags(struct virtq *q) { return (void *)q->device_area; }
static volatile u16 *used_idx(struct virtq *q) { return (void *)(q->device_area + 2); }
static volatile struct used_element *used_ring(struct virtq *q) { return (void *)(q->device_area + 4); }
static volatile u16 *avail_event(struct virtq *q) { return (void *)(q->device_area + 4 + 8u * q->size); }

/* Free descriptors are linked by their `next`; used in order, they are simply taken round and round. */
static void split_init(struct virtq *q)
{
    for (u16 i = 0; i < q->size; i++)
        table(q)[i].next = (u16)((i + 1) % q->size);
}

static void split_add(struct virtq *q, const struct buffer *buffers, u16 count, u16 id, u16 extra)
{
    u16 at = id;
    for (u16 i = 0; i < count; i++) {
        volatile struct virtq_descriptor *d = &table(q)[at];
        d->address = buffers[i].address;
        d->length = buffers[i].length;
        d->flags = (u16)((buffers[i].device_writes ? DESC_WRITE : 0) | (i + 1 < count ? DESC_NEXT : 0) |
                         extra);
        at = d->next;
    }
    q->free_head = at;
    avail_ring(q)[q->next++ % q->size] = id;
    q->added++;
}

static bool split_wants_kick(struct virtq *q)
{
    compiler_barrier();
    *avail_idx(q) = q->next;
    full_barrier();
    if (q->event_idx)
        return (u16)(q->next - *avail_event(q) - 1) < q->added;
    return !(*used_flags(q) & USED_NO_NOTIFY);
}

static bool split_get(struct virtq *q, u16 *id, u32 *length)
{
    if (*used_idx(q) == q->last_used)
        return false;
    compiler_barrier();
    volatile struct used_element *element = &used_ring(q)[q->last_used % q->size];
    *id = (u16)(element->id < q->size ? element->id : 0xffff);
    *length = element->length;
    return true;
}

static void split_release(struct virtq *q, u16 id)
{
    u16 at = id;
    for (u16 i = 1; i < q->slots[id].descriptors; i++)
        at = table(q)[at].next;
    if (!q->in_order) {
        table(q)[at].next = q->free_head;
        q->free_head = id;
    }
    q->last_used++;
    if (q->quiet && q->event_idx && (u16)(q->event - q->last_used) < NEAR)
        *used_event(q) = q->event = (u16)(q->last_used + FAR_AWAY);
}

static bool split_interrupts(struct virtq *q, bool on)
{
    if (q->event_idx)
        *used_event(q) = q->event = (u16)(q->last_used + (on ? 0 : FAR_AWAY));
    else
        *avail_flags(q) = on ? 0 : AVAIL_NO_INTERRUPT;
    if (!on)
        return true;
    full_barrier();
    return *used_idx(q) == q->last_used;
}

const struct virtq_format split_format = {
    split_init, split_add, split_wants_kick, split_get, split_release, split_interrupts,
};
