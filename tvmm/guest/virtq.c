/*
 * What split and packed rings have in common: slots, in-order use (2.7.9, 2.8.8), doorbells. A request is known by
 * its id: for a split ring the first descriptor's index, for a packed one a number that we choose.
 */
#include "console.h"
#include "irq.h"
#include "machine.h"
#include "virtio.h"

static const struct virtq_format *format_of(const struct virtq *q)
{
    return q->packed ? &packed_format : &split_format;
}

/* Of the split ring; the packed ring's event structures are smaller. */
#define DRIVER_AREA_BYTES(size) (6 + 2u * (size))
#define DEVICE_AREA_BYTES(size) (6 + 8u * (size))
#define ALIGNED(bytes) (((bytes) + 63) & ~63u)

struct virtq *virtq_allocate(u16 size, u16 table_entries)
{
    u64 rings = ALIGNED(16u * size) + ALIGNED(DRIVER_AREA_BYTES(size)) + ALIGNED(DEVICE_AREA_BYTES(size));
    u64 own = ALIGNED(sizeof(struct virtq)) + ALIGNED(sizeof(struct virtq_slot) * size) + ALIGNED(2u * size);
    u64 bytes = rings + own + 16ull * table_entries * size;
    u64 memory = dma_alloc((bytes + PAGE_SIZE - 1) / PAGE_SIZE);
    if (!memory)
        return NULL;
    struct virtq *q = (struct virtq *)(memory + rings);
    memset(q, 0, own);
    q->limit = size;
    q->table_entries = table_entries;
    q->memory = memory;
    q->driver_area = memory + ALIGNED(16u * size);
    q->device_area = q->driver_area + ALIGNED(DRIVER_AREA_BYTES(size));
    q->slots = (struct virtq_slot *)((u64)q + ALIGNED(sizeof(struct virtq)));
    q->order = (u16 *)((u64)q->slots + ALIGNED(sizeof(struct virtq_slot) * size));
    q->tables = memory + rings + own;
    return q;
}

void virtq_init(struct virtq *q)
{
    u64 features = q->device->features;
    q->packed = features & F_RING_PACKED;
    q->event_idx = features & F_EVENT_IDX;
    q->indirect = features & F_INDIRECT_DESC;
    q->in_order = features & F_IN_ORDER;
    memset((void *)q->memory, 0, q->device_area + DEVICE_AREA_BYTES(q->limit) - q->memory);
    memset(q->slots, 0, sizeof(struct virtq_slot) * q->limit);
    for (u16 i = 0; i < q->size; i++)
        q->slots[i].next = (u16)(i + 1);
    q->free_count = q->size;
    q->free_head = q->added = q->next = q->last_used = q->ready = q->order_head = q->order_tail = 0;
    q->broken = 0;
    format_of(q)->init(q);
    virtq_interrupts(q, false);
    virtq_start_counts(q);
}

u16 virtq_in_flight(const struct virtq *q) { return (u16)(q->order_head - q->order_tail); }

/* An indirect table: linked for a split ring (2.7.5.3), in the order of its entries for a packed one (2.8.7). */
static void fill_table(const struct virtq *q, struct virtq_descriptor *entry, const struct buffer *buffers, u16 count)
{
    for (u16 i = 0; i < count; i++) {
        u16 write = buffers[i].device_writes ? DESC_WRITE : 0;
        u16 next = i + 1 < count ? DESC_NEXT : 0;
        entry[i] = (struct virtq_descriptor){buffers[i].address, buffers[i].length, write | next, (u16)(i + 1)};
        if (q->packed) { /* buffer id, then flags */
            entry[i].flags = 0;
            entry[i].next = write;
        }
    }
}

bool virtq_add(struct virtq *q, const struct buffer *buffers, u16 count, u64 token)
{
    u16 id = q->free_head, need = count;
    struct buffer table = {q->tables + 16ull * q->table_entries * id, 16u * count, false};
    if (!q->free_count || !count)
        return false;
    if (q->indirect && count > 1 && count <= q->table_entries) {
        fill_table(q, (struct virtq_descriptor *)table.address, buffers, count);
        need = 1;
    }
    if (need > q->free_count)
        return false;
    q->slots[id].token = token;
    q->slots[id].writable = 0;
    for (u16 i = 0; i < count; i++)
        q->slots[id].writable += buffers[i].device_writes ? buffers[i].length : 0;
    q->slots[id].descriptors = need;
    if (q->in_order)
        q->order[q->order_head % q->limit] = id;
    q->order_head++;
    q->free_count = (u16)(q->free_count - need);
    if (need < count)
        format_of(q)->add(q, &table, 1, id, DESC_INDIRECT);
    else
        format_of(q)->add(q, buffers, count, id, 0);
    return true;
}

bool virtq_kick(struct virtq *q)
{
    if (!q->added)
        return false;
    bool wanted = format_of(q)->wants_kick(q);
    q->added = 0;
    if (!wanted)
        return false;
    q->kicks++;
    if (q->device->mmio)
        mmio_write32(q->notify, q->index);
    else
        mmio_write16(q->notify, q->index);
    return true;
}

static bool complain(struct virtq *q, u16 id)
{
    q->broken++;
    print("virtio: %s %u, queue %u: used id %u makes no sense\n", virtio_name(q->device->type), q->device->number,
          q->index, id);
    return false;
}

/*
 * In-order: one used entry speaks for all requests up to its own. Counts them into `ready`. Those without an entry
 * of their own have been used completely.
 */
static bool gather(struct virtq *q, u16 id)
{
    for (u16 at = q->order_tail; at != q->order_head; at++) {
        q->ready++;
        if (q->order[at % q->limit] == id)
            return true;
    }
    q->ready = 0;
    return complain(q, id);
}

bool virtq_pop(struct virtq *q, u64 *token, u32 *length)
{
    u16 id = 0;
    if (q->broken)
        return false;
    if (!q->ready) {
        if (!format_of(q)->get(q, &id, &q->ready_length))
            return false;
        if (id >= q->size || !q->slots[id].descriptors)
            return complain(q, id);
        if (!q->in_order)
            q->ready = 1;
        else if (!gather(q, id))
            return false;
    }
    if (q->in_order)
        id = q->order[q->order_tail % q->limit];
    q->order_tail++;
    q->ready--;
    *token = q->slots[id].token;
    *length = q->ready ? q->slots[id].writable : q->ready_length;
    q->free_count = (u16)(q->free_count + q->slots[id].descriptors);
    format_of(q)->release(q, id);
    q->slots[id].descriptors = 0;
    return true;
}

bool virtq_interrupts(struct virtq *q, bool on)
{
    q->quiet = !on;
    return format_of(q)->interrupts(q, on) && !q->ready;
}

u32 virtq_interrupt_count(const struct virtq *q) { return irq_count[q->vector] - q->interrupts_before; }

u64 virtq_interrupt_sum(struct virtq *const *queues, u16 count)
{
    u64 sum = 0;
    for (u16 i = 0; i < count; i++) {
        bool counted = false;
        for (u16 j = 0; j < i; j++)
            counted |= queues[j]->vector == queues[i]->vector;
        sum += counted ? 0 : virtq_interrupt_count(queues[i]);
    }
    return sum;
}

void virtq_start_counts(struct virtq *q)
{
    q->kicks = 0;
    q->interrupts_before = irq_count[q->vector];
}
