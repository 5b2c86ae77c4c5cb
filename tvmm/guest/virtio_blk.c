/* The block driver: requests in slots, polled or after an interrupt. */
#include "virtio_blk.h"
#include "clock.h"
#include "console.h"
#include "irq.h"
#include "machine.h"

#define PIECE      4096

/* Offsets in the configuration (5.2.4). */
enum { CONFIG_CAPACITY = 0, CONFIG_SEG_MAX = 12, CONFIG_BLK_SIZE = 20 };

#define WANTED (BLK_F_SEG_MAX | BLK_F_RO | BLK_F_BLK_SIZE | BLK_F_FLUSH | BLK_F_TOPOLOGY | BLK_F_WCE | BLK_F_MQ | \
                BLK_F_DISCARD | BLK_F_ZEROES)

_Static_assert(sizeof(struct blk_request) == 64, "no two requests share a cache line");

bool blk_start(struct blk *blk)
{
    struct virtio *device = blk->device;
    if (!virtio_begin(device, WANTED))
        return false;
    blk->queue = virtio_queue(device, 0, BLK_SLOTS, BLK_MAX_PIECES + 2);
    if (!blk->queue)
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
    if (device->running && blk->queue->broken)
        print("blk %lu: its queue was broken: reset\n", number);
    else if (device->running && !virtq_in_flight(blk->queue) && !(virtio_status(device) & STATUS_NEEDS_RESET))
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
    return virtq_add(blk->queue, buffers, count, slot);
}

bool blk_pop(struct blk *blk, u32 *slot, u32 *status)
{
    u64 token;
    u32 length;
    if (!virtq_pop(blk->queue, &token, &length))
        return false;
    *slot = (u32)token;
    *status = *(volatile u8 *)&blk->requests[token].status;
    return true;
}

u32 blk_do(struct blk *blk, u32 type, u64 sector, u64 address, u32 length)
{
    u32 slot, status;
    u64 end = rdtsc() + ms_to_tsc(BLK_TIMEOUT_MS);
    if (!blk_add(blk, 0, type, sector, address, length))
        return BLK_NO_ANSWER;
    virtq_kick(blk->queue);
    while (!blk_pop(blk, &slot, &status)) {
        if (rdtsc() >= end || blk->queue->broken || irq_poll()) {
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
    while (virtq_in_flight(blk->queue) && rdtsc() < end && !blk->queue->broken)
        if (!blk_pop(blk, &slot, &status))
            cpu_relax();
    if (!virtq_in_flight(blk->queue))
        return true;
    print("blk %u: %u requests without an answer, status 0x%x: reset\n", blk->device->number,
          virtq_in_flight(blk->queue), virtio_status(blk->device));
    virtio_reset(blk->device);
    return false;
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
