/* What an NBD server says, taken out of the stage and checked: see nbd.h. */
#include "nbd.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NBD_SIMPLE_MAGIC 0x67446698u
#define NBD_CHUNK_MAGIC 0x668e33efu
#define NBD_EXTENDED_CHUNK_MAGIC 0x6e8a278cu
#define NBD_SIMPLE_HEADER 16u
#define NBD_CHUNK_HEADER 20u
#define NBD_EXTENDED_HEADER 32u

#define NBD_DONE 1u
#define NBD_IS_ERROR 0x8000u
enum { NBD_NONE = 0, NBD_OFFSET_DATA = 1, NBD_OFFSET_HOLE = 2, NBD_ERROR = 0x8001, NBD_ERROR_OFFSET = 0x8002 };

struct nbd_chunk {
    struct tvmm_nbd_slot *slot;
    uint32_t flags, type;
    uint64_t length;
    const uint8_t *payload;
    size_t there; /* bytes of the payload that are in the stage */
};

static uint16_t nbd_16(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, 2);
    return be16toh(value);
}

static uint32_t nbd_32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, 4);
    return be32toh(value);
}

static uint64_t nbd_64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, 8);
    return be64toh(value);
}

/* -1: the connection is lost. */
#define NBD_BROKEN(link, ...) (tvmm_nbd_drop(link, "protocol error: " __VA_ARGS__), -1)

/* The protocol's numbers are Linux's, and no others count. */
static int32_t nbd_errno(uint32_t error)
{
    switch (error) {
    case EPERM:
    case EIO:
    case ENOMEM:
    case EINVAL:
    case ENOSPC:
    case EOVERFLOW:
    case EOPNOTSUPP:
        return (int32_t)error;
    default:
        return EIO;
    }
}

/* --- data --------------------------------------------------------------------------------------------------------- */

/* From byte `at` of the read on, `length` bytes are to come, which the slot's iovecs have. */
static void nbd_fill(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot, uint64_t at, uint64_t length)
{
    struct iovec *iovec = slot->request->step.iovecs;
    for (; at >= iovec->iov_len; iovec++)
        at -= iovec->iov_len;
    link->filling = slot;
    link->left = length;
    link->iovec = iovec;
    link->skip = at;
}

/* `count` bytes of the read that is being filled are in place. */
void tvmm_nbd_filled(struct tvmm_nbd_link *link, uint64_t count)
{
    link->left -= count;
    while (count) {
        uint64_t room = link->iovec->iov_len - link->skip;
        if (count < room) {
            link->skip += count;
            return;
        }
        count -= room;
        link->skip = 0;
        link->iovec++;
    }
}

/* From the stage, or zeroes where `from` is NULL. */
static void nbd_copy(struct tvmm_nbd_link *link, const uint8_t *from, uint64_t count)
{
    while (count) {
        size_t room = link->iovec->iov_len - link->skip, part = room < count ? room : count;
        uint8_t *into = (uint8_t *)link->iovec->iov_base + link->skip;
        if (from) {
            memcpy(into, from, part);
            from += part;
        } else {
            memset(into, 0, part);
        }
        tvmm_nbd_filled(link, part);
        count -= part;
    }
}

/* Note that a part of a read is there, or is about to come. 0; -1: some of it was there, or the parts are too many. */
static int nbd_cover(struct tvmm_nbd_slot *slot, uint64_t start, uint64_t end)
{
    struct tvmm_nbd_span *spans = slot->spans;
    uint32_t at = 0, count = slot->span_count;

    if (start < slot->front)
        return -1;
    while (at < count && spans[at].end <= start)
        at++;
    if (at < count && spans[at].start < end)
        return -1;
    if (start == slot->front) {
        /* Nothing is in front of it. */
        slot->front = end;
        while (slot->span_count && spans[0].start == slot->front) {
            slot->front = spans[0].end;
            memmove(spans, spans + 1, --slot->span_count * sizeof *spans);
        }
        return 0;
    }
    int before = at && spans[at - 1].end == start, behind = at < count && spans[at].start == end;
    if (before && behind) {
        spans[at - 1].end = spans[at].end;
        memmove(spans + at, spans + at + 1, (count - at - 1) * sizeof *spans);
        slot->span_count--;
    } else if (before) {
        spans[at - 1].end = end;
    } else if (behind) {
        spans[at].start = start;
    } else {
        if (count == TVMM_NBD_SPANS_MAX)
            return -1;
        if (!spans)
            slot->spans = spans = malloc(TVMM_NBD_SPANS_MAX * sizeof *spans);
        if (!spans)
            return -1;
        memmove(spans + at + 1, spans + at, (count - at) * sizeof *spans);
        spans[at] = (struct tvmm_nbd_span){start, end};
        slot->span_count++;
    }
    return 0;
}

/* --- replies ------------------------------------------------------------------------------------------------------ */

/* Whose reply it is; NULL: nobody's, and the connection is lost. */
static struct tvmm_nbd_slot *nbd_find(struct tvmm_nbd_link *link, uint64_t cookie)
{
    uint32_t index = (uint32_t)cookie;
    struct tvmm_nbd_slot *slot = index == UINT32_MAX ? &link->own : index < link->slot_count ? &link->slots[index] : NULL;
    if (!slot || slot->link != link || slot->cookie != cookie) {
        (void)NBD_BROKEN(link, "a reply to a request that nobody made");
        return NULL;
    }
    if (!slot->sent) {
        (void)NBD_BROKEN(link, "a reply to a request that was not sent yet");
        return NULL;
    }
    return slot;
}

/* The reply is whole. 1, or -1. */
static int nbd_replied(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot)
{
    int64_t result = slot->error ? -slot->error : (int64_t)slot->length;
    if (slot->command == TVMM_NBD_READ && !slot->error && slot->front != slot->length)
        return NBD_BROKEN(link, "a reply without all of the data that was asked for");
    if (slot->stable == 1 && !slot->error) {
        tvmm_nbd_remove(link, slot);
        slot->written = slot->length;
        tvmm_nbd_encode_flush(link, slot);
        slot->stable = 2;
        tvmm_nbd_append(link, slot);
        return 1;
    }
    if (slot->stable == 2 && !slot->error)
        result = (int64_t)slot->written;
    else if (slot->command != TVMM_NBD_READ && slot->command != TVMM_NBD_WRITE && !slot->error)
        result = 0;
    tvmm_nbd_remove(link, slot);
    tvmm_nbd_finish(link, slot, result);
    return 1;
}

/* 0; -1: the connection is lost, because the server says that it goes. */
static int nbd_failed(struct tvmm_nbd_link *link, struct tvmm_nbd_slot *slot, uint32_t error)
{
    if (error == ESHUTDOWN) {
        tvmm_nbd_drop(link, "the server is shutting down");
        return -1;
    }
    if (++slot->errors > TVMM_NBD_ERRORS_MAX)
        return NBD_BROKEN(link, "more errors than one request can have");
    if (!slot->error)
        slot->error = nbd_errno(error);
    return 0;
}

/* The data of the chunk that is being received is there. */
static int nbd_end_of_data(struct tvmm_nbd_link *link)
{
    struct tvmm_nbd_slot *slot = link->filling;
    link->filling = NULL;
    return link->last_chunk ? nbd_replied(link, slot) : 0;
}

/* Of `there` bytes: how many were used, 0 if they are too few, or -1. */
static int64_t nbd_simple(struct tvmm_nbd_link *link, const uint8_t *at, size_t there)
{
    if (link->transmission.extended)
        return NBD_BROKEN(link, "a simple reply, where extended headers were agreed");
    if (there < NBD_SIMPLE_HEADER)
        return 0;
    struct tvmm_nbd_slot *slot = nbd_find(link, nbd_64(at + 8));
    uint32_t error = nbd_32(at + 4);
    if (!slot)
        return -1;
    if (slot->command == TVMM_NBD_READ && link->transmission.structured)
        return NBD_BROKEN(link, "a simple reply to a read, where structured replies were agreed");
    if (slot->errors || slot->front || slot->span_count)
        return NBD_BROKEN(link, "a simple reply after chunks");
    if (error && nbd_failed(link, slot, error) < 0)
        return -1;
    if (error || slot->command != TVMM_NBD_READ)
        return nbd_replied(link, slot) < 0 ? -1 : (int64_t)NBD_SIMPLE_HEADER;
    slot->front = slot->length;
    link->last_chunk = 1;
    nbd_fill(link, slot, 0, slot->length);
    return NBD_SIMPLE_HEADER;
}

/* Payload bytes that were used; 0 if too few are there (a chunk with payload uses some), or -1. */
static int64_t nbd_error_chunk(struct tvmm_nbd_link *link, const struct nbd_chunk *chunk)
{
    if (chunk->length < 6 || chunk->length > TVMM_NBD_ERROR_MAX)
        return NBD_BROKEN(link, "an error of %llu bytes", (unsigned long long)chunk->length);
    if (chunk->there < chunk->length)
        return 0;
    uint32_t error = nbd_32(chunk->payload), text = nbd_16(chunk->payload + 4);
    uint64_t rest = chunk->length - 6;
    if (!error)
        return NBD_BROKEN(link, "an error without a number");
    if (text > TVMM_NBD_TEXT_MAX || text > rest || (chunk->type == NBD_ERROR && text != rest)
        || (chunk->type == NBD_ERROR_OFFSET && text + 8 != rest))
        return NBD_BROKEN(link, "an error with a text of a wrong length");
    if (chunk->type == NBD_ERROR_OFFSET) {
        uint64_t offset = nbd_64(chunk->payload + 6 + text);
        if (offset < chunk->slot->offset || offset - chunk->slot->offset >= chunk->slot->length)
            return NBD_BROKEN(link, "an error outside of the request");
    }
    return nbd_failed(link, chunk->slot, error) < 0 ? -1 : (int64_t)chunk->length;
}

/* Offset and length of data or a hole, from the start of the read. 0, or -1. */
static int nbd_part(struct tvmm_nbd_link *link, const struct nbd_chunk *chunk, uint64_t *start, uint64_t length)
{
    struct tvmm_nbd_slot *slot = chunk->slot;
    uint64_t offset = nbd_64(chunk->payload);
    if (slot->command != TVMM_NBD_READ)
        return NBD_BROKEN(link, "data for a request that is no read");
    if (!length || offset < slot->offset || offset - slot->offset > slot->length
        || length > slot->length - (offset - slot->offset))
        return NBD_BROKEN(link, "data outside of what was asked for");
    *start = offset - slot->offset;
    if (nbd_cover(slot, *start, *start + length) < 0)
        return NBD_BROKEN(link, "data that was there already, or in too many pieces");
    return 0;
}

static int64_t nbd_payload(struct tvmm_nbd_link *link, const struct nbd_chunk *chunk)
{
    uint64_t start;
    if (chunk->type & NBD_IS_ERROR)
        return nbd_error_chunk(link, chunk);
    switch (chunk->type) {
    case NBD_OFFSET_DATA:
        if (chunk->length <= 8)
            return NBD_BROKEN(link, "data of no length");
        if (chunk->there < 8)
            return 0;
        if (nbd_part(link, chunk, &start, chunk->length - 8) < 0)
            return -1;
        nbd_fill(link, chunk->slot, start, chunk->length - 8);
        return 8;
    case NBD_OFFSET_HOLE:
        if (chunk->length != 12)
            return NBD_BROKEN(link, "a hole that is described in %llu bytes", (unsigned long long)chunk->length);
        if (chunk->there < 12)
            return 0;
        uint32_t size = nbd_32(chunk->payload + 8);
        if (nbd_part(link, chunk, &start, size) < 0)
            return -1;
        nbd_fill(link, chunk->slot, start, size);
        nbd_copy(link, NULL, size);
        link->filling = NULL;
        return 12;
    default:
        return NBD_BROKEN(link, "a chunk of type %u, which nobody asked for", chunk->type);
    }
}

/* As nbd_simple. */
static int64_t nbd_chunk(struct tvmm_nbd_link *link, const uint8_t *at, size_t there, uint32_t extended)
{
    size_t header = extended ? NBD_EXTENDED_HEADER : NBD_CHUNK_HEADER;
    struct nbd_chunk chunk;

    if (extended != link->transmission.extended || !(extended || link->transmission.structured))
        return NBD_BROKEN(link, "a chunk of a kind that was not agreed");
    if (there < header)
        return 0;
    chunk.flags = nbd_16(at + 4);
    chunk.type = nbd_16(at + 6);
    chunk.slot = nbd_find(link, nbd_64(at + 8));
    if (!chunk.slot)
        return -1;
    chunk.length = extended ? nbd_64(at + 24) : nbd_32(at + 16);
    chunk.payload = at + header;
    chunk.there = there - header;
    if (extended && nbd_64(at + 16) != chunk.slot->offset)
        return NBD_BROKEN(link, "a chunk with another offset than its request");
    link->last_chunk = chunk.flags & NBD_DONE;
    if (chunk.type == NBD_NONE) {
        if (chunk.length || !link->last_chunk)
            return NBD_BROKEN(link, "an empty chunk with data, or that is not the last");
        return nbd_replied(link, chunk.slot) < 0 ? -1 : (int64_t)header;
    }
    int64_t used = nbd_payload(link, &chunk);
    if (used <= 0)
        return used;
    if (link->last_chunk && !link->filling && nbd_replied(link, chunk.slot) < 0)
        return -1;
    return (int64_t)header + used;
}

static int64_t nbd_one(struct tvmm_nbd_link *link, const uint8_t *at, size_t there)
{
    if (there < 4)
        return 0;
    switch (nbd_32(at)) {
    case NBD_SIMPLE_MAGIC:
        return nbd_simple(link, at, there);
    case NBD_CHUNK_MAGIC:
        return nbd_chunk(link, at, there, 0);
    case NBD_EXTENDED_CHUNK_MAGIC:
        return nbd_chunk(link, at, there, 1);
    default:
        return NBD_BROKEN(link, "something that is no reply (0x%08x)", nbd_32(at));
    }
}

/* All that is in the stage, and the end of data that has come past it. */
void tvmm_nbd_parse(struct tvmm_nbd_link *link)
{
    for (;;) {
        size_t there = link->stage_end - link->stage_start;
        if (link->filling) {
            uint64_t part = there < link->left ? there : link->left;
            nbd_copy(link, link->stage + link->stage_start, part);
            link->stage_start += (uint32_t)part;
            if (link->left)
                break;
            if (nbd_end_of_data(link) < 0)
                return;
            continue;
        }
        int64_t used = nbd_one(link, link->stage + link->stage_start, there);
        if (used < 0)
            return;
        if (!used)
            break;
        link->stage_start += (uint32_t)used;
    }
    if (link->stage_start == link->stage_end)
        link->stage_start = link->stage_end = 0;
}
