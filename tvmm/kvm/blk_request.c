/* From chain to request: see blk.h. The twin in Python is tvmm/virtio/blk_request.py, which says why each check is. */
#include "blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BLK_HEADER 16u
#define BLK_RANGE 16u
#define BLK_UNMAP 1u

enum { BLK_IN = 0, BLK_OUT = 1, BLK_FLUSH_TYPE = 4, BLK_GET_ID_TYPE = 8, BLK_DISCARD_TYPE = 11, BLK_ZEROES_TYPE = 13 };

/* `length` bytes of some iovecs from byte `skip` on, which they have. */
static void blk_gather(const struct iovec *from, uint64_t skip, uint8_t *into, size_t length)
{
    for (; length; from++) {
        if (skip >= from->iov_len) {
            skip -= from->iov_len;
            continue;
        }
        size_t part = from->iov_len - skip < length ? from->iov_len - skip : length;
        memcpy(into, (const uint8_t *)from->iov_base + skip, part);
        into += part;
        length -= part;
        skip = 0;
    }
    /* The one copy that is checked and used. */
    __asm__ volatile("" ::: "memory");
}

/* The data of a request: `length` bytes from byte `skip` on, which the `count` iovecs have. 0, or -ENOMEM. */
static int blk_cut(struct tvmm_blk_request *request, const struct iovec *from, uint32_t count, uint64_t skip,
                   uint64_t length)
{
    while (count && skip >= from->iov_len) {
        skip -= from->iov_len;
        from++;
        count--;
    }
    request->iovecs = request->few;
    if (count > TVMM_BLK_FEW_IOVECS) {
        request->iovecs = malloc(count * sizeof *request->iovecs);
        if (!request->iovecs)
            return -ENOMEM;
    }
    for (request->length = length; length; from++, skip = 0) {
        uint64_t part = from->iov_len - skip < length ? from->iov_len - skip : length;
        request->iovecs[request->iovec_count++] = (struct iovec){(uint8_t *)from->iov_base + skip, part};
        length -= part;
    }
    return 0;
}

static enum tvmm_blk_verdict blk_refuse(struct tvmm_blk_request *request, enum tvmm_blk_status code)
{
    request->code = code;
    return TVMM_BLK_REFUSE;
}

static int blk_on_disk(const struct tvmm_blk_limits *limits, uint64_t sector, uint64_t sectors)
{
    uint64_t capacity = __atomic_load_n(&limits->capacity, __ATOMIC_RELAXED);
    return sectors <= capacity && sector <= capacity - sectors;
}

static enum tvmm_blk_verdict blk_data(const struct tvmm_blk_limits *limits, struct tvmm_blk_request *request,
                                      uint64_t sector, const struct iovec *iovecs, uint32_t count, uint64_t skip,
                                      uint64_t length)
{
    if (length % TVMM_BLK_SECTOR || !blk_on_disk(limits, sector, length / TVMM_BLK_SECTOR))
        return blk_refuse(request, TVMM_BLK_IO_ERROR);
    request->offset = sector * TVMM_BLK_SECTOR;
    if (blk_cut(request, iovecs, count, skip, length) < 0)
        return blk_refuse(request, TVMM_BLK_IO_ERROR);
    return TVMM_BLK_RUN;
}

static enum tvmm_blk_verdict blk_ranges(const struct tvmm_blk_limits *limits, struct tvmm_blk_request *request,
                                        const struct iovec *iovecs, uint64_t length, int has_room)
{
    int discard = request->operation == TVMM_BLK_DISCARD;
    uint32_t most = discard ? limits->max_discard : limits->max_zeroes;
    uint32_t count = discard ? limits->discard_ranges : limits->zeroes_ranges;
    uint8_t data[TVMM_BLK_RANGES_MAX * BLK_RANGE];

    if (!most)
        return blk_refuse(request, TVMM_BLK_UNSUPPORTED);
    if (limits->read_only)
        return blk_refuse(request, TVMM_BLK_IO_ERROR);
    if (count > TVMM_BLK_RANGES_MAX)
        count = TVMM_BLK_RANGES_MAX;
    if (has_room || !length || length % BLK_RANGE || length > count * BLK_RANGE)
        return blk_refuse(request, TVMM_BLK_IO_ERROR);
    blk_gather(iovecs, BLK_HEADER, data, length);
    request->range_count = (uint32_t)(length / BLK_RANGE);
    request->ranges = malloc(request->range_count * sizeof *request->ranges);
    if (!request->ranges)
        return blk_refuse(request, TVMM_BLK_IO_ERROR);
    for (uint32_t index = 0; index < request->range_count; index++) {
        uint64_t sector;
        uint32_t sectors, flags;
        memcpy(&sector, data + BLK_RANGE * index, 8);
        memcpy(&sectors, data + BLK_RANGE * index + 8, 4);
        memcpy(&flags, data + BLK_RANGE * index + 12, 4);
        if (flags & (discard ? ~0u : ~BLK_UNMAP))
            return blk_refuse(request, TVMM_BLK_UNSUPPORTED);
        if (!sectors || sectors > most || !blk_on_disk(limits, sector, sectors))
            return blk_refuse(request, TVMM_BLK_IO_ERROR);
        request->ranges[index] = (struct tvmm_blk_range){
            sector * TVMM_BLK_SECTOR, (uint64_t)sectors * TVMM_BLK_SECTOR, flags & BLK_UNMAP};
    }
    return TVMM_BLK_RUN;
}

/* Into `request`, which nobody uses; tvmm_blk_forget afterwards, whatever comes out. Nothing but `code` and `status` is
 * of use in one that was refused. */
enum tvmm_blk_verdict tvmm_blk_parse(const struct tvmm_blk_limits *limits, const struct tvmm_chain *chain,
                                     const struct iovec *iovecs, struct tvmm_blk_request *request)
{
    const struct iovec *writable = iovecs + chain->readable_count;
    uint8_t header[BLK_HEADER];
    uint32_t type;
    uint64_t sector;

    *request = (struct tvmm_blk_request){.id = chain->id};
    if (!chain->writable_bytes)
        return TVMM_BLK_NO_STATUS;
    if (chain->readable_bytes < BLK_HEADER)
        return TVMM_BLK_NO_HEADER;
    const struct iovec *last = &writable[chain->writable_count - 1];
    request->status = (uint8_t *)last->iov_base + last->iov_len - 1;
    blk_gather(iovecs, 0, header, BLK_HEADER);
    memcpy(&type, header, 4);
    memcpy(&sector, header + 8, 8);

    uint64_t payload = chain->readable_bytes - BLK_HEADER, room = chain->writable_bytes - 1;
    switch (type) {
    case BLK_IN:
        request->operation = TVMM_BLK_READ;
        if (payload)
            return blk_refuse(request, TVMM_BLK_IO_ERROR);
        return blk_data(limits, request, sector, writable, chain->writable_count, 0, room);
    case BLK_OUT:
        request->operation = TVMM_BLK_WRITE;
        if (limits->read_only || room)
            return blk_refuse(request, TVMM_BLK_IO_ERROR);
        return blk_data(limits, request, sector, iovecs, chain->readable_count, BLK_HEADER, payload);
    case BLK_FLUSH_TYPE:
        request->operation = TVMM_BLK_FLUSH;
        if (!limits->flush)
            return blk_refuse(request, TVMM_BLK_UNSUPPORTED);
        return payload || room ? blk_refuse(request, TVMM_BLK_IO_ERROR) : TVMM_BLK_RUN;
    case BLK_GET_ID_TYPE:
        request->operation = TVMM_BLK_GET_ID;
        if (payload || !room)
            return blk_refuse(request, TVMM_BLK_IO_ERROR);
        request->adjacent = room <= TVMM_BLK_ID_LENGTH;
        if (blk_cut(request, writable, chain->writable_count, 0, request->adjacent ? room : TVMM_BLK_ID_LENGTH) < 0)
            return blk_refuse(request, TVMM_BLK_IO_ERROR);
        return TVMM_BLK_RUN;
    case BLK_DISCARD_TYPE:
    case BLK_ZEROES_TYPE:
        request->operation = type == BLK_DISCARD_TYPE ? TVMM_BLK_DISCARD : TVMM_BLK_ZEROES;
        return blk_ranges(limits, request, iovecs, payload, room != 0);
    default:
        return blk_refuse(request, TVMM_BLK_UNSUPPORTED);
    }
}

void tvmm_blk_forget(struct tvmm_blk_request *request)
{
    if (request->iovecs != request->few)
        free(request->iovecs);
    free(request->ranges);
    request->iovecs = NULL;
    request->ranges = NULL;
}

/* What to report as written (2.7.8.2), of a request that was run. */
uint32_t tvmm_blk_used_length(const struct tvmm_blk_request *request, int ok)
{
    if (request->operation == TVMM_BLK_READ)
        return ok ? (uint32_t)request->length + 1 : !request->length;
    if (request->operation == TVMM_BLK_GET_ID)
        return ok ? (uint32_t)request->length + request->adjacent : 0;
    return 1;
}

void tvmm_blk_answer_id(const struct tvmm_blk_limits *limits, const struct tvmm_blk_request *request)
{
    const uint8_t *from = limits->serial;
    for (uint32_t index = 0; index < request->iovec_count; index++) {
        memcpy(request->iovecs[index].iov_base, from, request->iovecs[index].iov_len);
        from += request->iovecs[index].iov_len;
    }
}
