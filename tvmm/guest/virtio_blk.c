/* The block driver: requests in slots, polled or after an interrupt. */
#include "virtio_blk.h"
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "machine.h"

#define PIECE      4096

/* Offsets in the configuration (5.2.4). */
enum { CONFIG_CAPACITY = 0, CONFIG_SEG_MAX = 12, CONFIG_BLK_SIZE = 20, CONFIG_QUEUES = 34 };

#define WANTED (BLK_F_SEG_MAX | BLK_F_RO | BLK_F_BLK_SIZE | BLK_F_FLUSH | BLK_F_TOPOLOGY | BLK_F_WCE | BLK_F_MQ | \
                BLK_F_DISCARD | BLK_F_ZEROES)

_Static_assert(sizeof(struct blk_request) == 64, "no two requests share a cache line");

bool blk_start(struct blk *blk)
{
    struct virtio *device = blk->device;
    if (!virtio_begin(device, WANTED))
        return false;
    blk->queue_count = 1;
    if (device->features & BLK_F_MQ && command_line_has("mq"))
        blk->queue_count = (u16)max_u64(min_u64(virtio_config16(device, CONFIG_QUEUES), BLK_MAX_QUEUES), 1);
    for (u16 i = 0; i < blk->queue_count; i++)
        if (!(blk->queues[i] = virtio_queue(device, i, BLK_SLOTS, BLK_MAX_PIECES + 2)))
            return false;
    virtio_ready(device);
    blk->capacity = virtio_config64(device, CONFIG_CAPACITY);
    blk->block_size = device->features & BLK_F_BLK_SIZE ? virtio_config32(device, CONFIG_BLK_SIZE) : SECTOR;
    blk->pieces_max = BLK_MAX_PIECES;
    if (device->features & BLK_F_SEG_MAX)
        blk->pieces_max = (u16)max_u64(min_u64(virtio_config32(device, CONFIG_SEG_MAX), BLK_MAX_PIECES), 1);
    blk->in_pieces = false;
    return true;
}

struct blk *blk_open(u64 number)
{
    struct virtio *device = virtio_find(VIRTIO_BLK, number);
    if (!device)
        return NULL;
    struct blk *blk = device->driver;
    if (!blk) {
        u64 own = (sizeof *blk + 63) & -64ull;
        u64 memory = page_alloc((own + BLK_SLOTS * sizeof(struct blk_request) + PAGE_SIZE - 1) / PAGE_SIZE);
        if (!memory)
            return NULL;
        device->driver = blk = (struct blk *)memory;
        blk->device = device;
        blk->requests = (struct blk_request *)(memory + own);
    }
    blk->in_pieces = false;
    if (virtio_config_changed(device))
        blk->capacity = virtio_config64(device, CONFIG_CAPACITY);
    if (device->running && blk_broken(blk))
        print("blk %lu: a queue was broken: reset\n", number);
    else if (device->running && !blk_in_flight(blk) && !(virtio_status(device) & STATUS_NEEDS_RESET))
        return blk;
    return blk_start(blk) ? blk : NULL;
}

bool blk_add(struct blk *blk, u32 slot, u32 type, u64 sector, u64 address, u32 length)
{
    struct buffer *buffers = blk->buffers;
    struct blk_request *request = &blk->requests[slot];
    bool device_writes = type == BLK_READ || type == BLK_GET_ID;
    u16 count = 1;
    *request = (struct blk_request){.type = type, .sector = sector, .status = 0xff};
    buffers[0] = (struct buffer){(u64)request, 16, false};
    if (type == BLK_DISCARD || type == BLK_ZEROES) {
        request->sector = 0;
        request->range.sector = sector;
        request->range.sectors = length / SECTOR;
        address = (u64)&request->range;
        length = sizeof request->range;
    }
    while (length) {
        u32 piece = blk->in_pieces && count < blk->pieces_max ? (u32)min_u64(length, PIECE) : length;
        buffers[count++] = (struct buffer){address, piece, device_writes};
        address += piece;
        length -= piece;
    }
    buffers[count++] = (struct buffer){(u64)&request->status, 1, true};
    return virtq_add(blk->queues[slot % blk->queue_count], buffers, count, slot);
}

bool blk_pop(struct blk *blk, u32 *slot, u32 *status)
{
    u64 token;
    u32 length;
    for (u16 i = 0; i < blk->queue_count; i++) {
        if (!virtq_pop(blk->queues[blk->next_queue++ % blk->queue_count], &token, &length))
            continue;
        *slot = (u32)token;
        *status = *(volatile u8 *)&blk->requests[token].status;
        return true;
    }
    return false;
}

u32 blk_do(struct blk *blk, u32 type, u64 sector, u64 address, u32 length)
{
    u32 slot, status;
    u64 end = rdtsc() + ms_to_tsc(BLK_TIMEOUT_MS);
    if (!blk_add(blk, 0, type, sector, address, length))
        return BLK_NO_ANSWER;
    blk_kick(blk);
    while (!blk_pop(blk, &slot, &status)) {
        if (rdtsc() >= end || blk_broken(blk) || irq_poll()) {
            blk_drain(blk);
            return BLK_NO_ANSWER;
        }
        cpu_relax();
    }
    return status;
}

bool blk_drain(struct blk *blk)
{
    u32 slot, status;
    u64 end = rdtsc() + ms_to_tsc(2000);
    while (blk_in_flight(blk) && rdtsc() < end && !blk_broken(blk))
        if (!blk_pop(blk, &slot, &status))
            cpu_relax();
    if (!blk_in_flight(blk))
        return true;
    print("blk %u: %u requests without an answer, status 0x%x: reset\n", blk->device->number,
          blk_in_flight(blk), virtio_status(blk->device));
    virtio_reset(blk->device);
    return false;
}

void blk_kick(struct blk *blk)
{
    for (u16 i = 0; i < blk->queue_count; i++)
        virtq_kick(blk->queues[i]);
}

u32 blk_in_flight(const struct blk *blk)
{
    u32 count = 0;
    for (u16 i = 0; i < blk->queue_count; i++)
        count += virtq_in_flight(blk->queues[i]);
    return count;
}

bool blk_broken(const struct blk *blk)
{
    bool broken = false;
    for (u16 i = 0; i < blk->queue_count; i++)
        broken |= blk->queues[i]->broken != 0;
    return broken;
}

bool blk_interrupts(struct blk *blk, bool on)
{
    bool idle = true;
    for (u16 i = 0; i < blk->queue_count; i++)
        idle &= virtq_interrupts(blk->queues[i], on);
    return idle;
}

bool blk_reset_queues(struct blk *blk)
{
    for (u16 i = 0; i < blk->queue_count; i++)
        if (!virtq_reset(blk->queues[i]))
            return false;
    return true;
}

void blk_start_counts(struct blk *blk)
{
    for (u16 i = 0; i < blk->queue_count; i++)
        virtq_start_counts(blk->queues[i]);
}

u64 blk_kicks(const struct blk *blk)
{
    u64 count = 0;
    for (u16 i = 0; i < blk->queue_count; i++)
        count += blk->queues[i]->kicks;
    return count;
}

u64 blk_interrupt_count(const struct blk *blk)
{
    return virtq_interrupt_sum(blk->queues, blk->queue_count);
}

/* Grows downward as long as nobody else has taken memory in between; else it begins anew. */
u64 blk_memory(u64 bytes)
{
    static u64 start, pages;
    u64 wanted = (bytes + PAGE_SIZE - 1) / PAGE_SIZE;
    if (wanted <= pages)
        return start;
    u64 more = dma_alloc(wanted - pages);
    if (more && more + (wanted - pages) * PAGE_SIZE != start && pages)
        more = dma_alloc(pages); /* adjacent to what was just taken */
    if (!more) {
        print("there is no memory for %lu KiB of data\n", bytes >> 10);
        return 0;
    }
    start = more;
    pages = wanted;
    return start;
}
