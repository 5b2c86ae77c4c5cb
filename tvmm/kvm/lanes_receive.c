/* The receiving half of lanes.h. What comes is the peer's, and hostile: nothing of a frame reaches RAM before its
 * header and all its page numbers have been checked. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "lanes.h"
#include "pager.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum part { HEADER, NUMBERS, BYTES };
enum verdict { GO_ON, ROUND_END, REFUSED, UNPLACED };

static enum verdict refuse(struct tvmm_intake *intake, enum tvmm_lane_refusal refusal, uint64_t value, uint64_t limit)
{
    intake->refusal = refusal;
    intake->refused_value = value;
    intake->refused_limit = limit;
    return REFUSED;
}

static uint32_t field32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

/* The header is whole. */
static enum verdict check_header(struct tvmm_intake *intake)
{
    const uint8_t *at = intake->header;
    uint32_t magic = field32(at), kind = at[4], count = field32(at + 8), payload = field32(at + 12);
    uint32_t block = (uint32_t)at[6] | (uint32_t)at[7] << 8;
    uint64_t number;
    memcpy(&number, at + 16, 8);

    if (magic != TVMM_LANE_MAGIC)
        return refuse(intake, TVMM_LANE_BAD_MAGIC, magic, TVMM_LANE_MAGIC);
    /* Where somebody waits for pages there are no rounds. */
    if (kind < TVMM_LANE_PAGES || kind > (intake->urgent ? TVMM_LANE_ZEROS : TVMM_LANE_ROUND_END))
        return refuse(intake, TVMM_LANE_BAD_KIND, kind, 0);
    if (at[5])
        return refuse(intake, TVMM_LANE_BAD_ENCODING, at[5], 0);
    int end = kind == TVMM_LANE_ROUND_END;
    if (end ? block != 0 : block >= intake->ram->count)
        return refuse(intake, TVMM_LANE_BAD_BLOCK, block, end ? 1 : intake->ram->count);
    if (end ? count != 0 : count == 0 || count > TVMM_LANE_COUNT_MAX)
        return refuse(intake, TVMM_LANE_BAD_COUNT, count, end ? 0 : TVMM_LANE_COUNT_MAX);
    uint32_t expected = count * (4 + (kind == TVMM_LANE_PAGES ? TVMM_PAGE : 0));
    if (payload != expected)
        return refuse(intake, TVMM_LANE_BAD_PAYLOAD, payload, expected);
    if (!end && number)
        return refuse(intake, TVMM_LANE_BAD_NUMBER, number, 0);
    intake->kind = kind;
    intake->block = block;
    intake->count = count;
    intake->number = end ? number : intake->number;
    intake->counters.frames++;
    return GO_ON;
}

static enum verdict check_numbers(struct tvmm_intake *intake)
{
    uint64_t pages = intake->ram->blocks[intake->block].pages;
    for (uint32_t index = 0; index < intake->count; index++) {
        if (index && intake->numbers[index] <= intake->numbers[index - 1])
            return refuse(intake, TVMM_LANE_BAD_ORDER, intake->numbers[index], intake->numbers[index - 1]);
        if (intake->numbers[index] >= pages)
            return refuse(intake, TVMM_LANE_BAD_RANGE, intake->numbers[index], pages);
    }
    return GO_ON;
}

/* A page that is zero already is left alone, so that memory which nobody used stays unallocated. */
static void take_zeros(struct tvmm_intake *intake)
{
    const struct tvmm_page_block *block = &intake->ram->blocks[intake->block];
    for (uint32_t index = 0; !intake->paged && index < intake->count; index++) {
        uint64_t page = intake->numbers[index];
        if (block->written && !(__atomic_load_n(&block->written[page / 64], __ATOMIC_RELAXED) >> page % 64 & 1))
            continue;
        if (!tvmm_page_is_zero(block->base + page * TVMM_PAGE))
            memset(block->base + page * TVMM_PAGE, 0, TVMM_PAGE);
    }
    intake->counters.zero += intake->count;
}

/* Where the pages go. The header of the next frame is read along with them: there is one, at least of ROUND_END. */
static void aim_pages(struct tvmm_intake *intake)
{
    const struct tvmm_page_block *block = &intake->ram->blocks[intake->block];
    struct iovec *last = NULL;
    intake->piece = intake->piece_count = 0;
    for (uint32_t index = 0; index < intake->count; index++) {
        uint64_t page = intake->numbers[index];
        uint8_t *to = block->base + page * TVMM_PAGE;
        if (block->written)
            tvmm_bits_set(block->written, page, 1);
        if (last && (uint8_t *)last->iov_base + last->iov_len == to) {
            last->iov_len += TVMM_PAGE;
            continue;
        }
        last = &intake->pieces[intake->piece_count++];
        *last = (struct iovec){to, TVMM_PAGE};
    }
    intake->pieces[intake->piece_count] = (struct iovec){intake->header, TVMM_LANE_HEADER};
}

/* --- through the pager --------------------------------------------------------------------------------------------- */

static enum verdict place_pages(struct tvmm_intake *intake, const uint32_t *pages, uint32_t count, const uint8_t *from)
{
    int error = tvmm_pager_place(intake->pager, intake->block, pages, count, from, (int)intake->urgent);
    intake->failure = -error;
    return error ? UNPLACED : GO_ON;
}

/* What of the frame comes next is put together at the start of the bounce buffer. */
static void next_batch(struct tvmm_intake *intake)
{
    uint32_t left = intake->count - intake->placed;
    intake->batch = left < TVMM_LANE_BOUNCE ? left : TVMM_LANE_BOUNCE;
    intake->batch_placed = intake->batch_bytes = 0;
}

static enum verdict aim_paged(struct tvmm_intake *intake)
{
    if (!intake->bounce && posix_memalign((void **)&intake->bounce, TVMM_PAGE, TVMM_LANE_BOUNCE * TVMM_PAGE)) {
        intake->bounce = NULL;
        intake->failure = ENOMEM;
        return UNPLACED;
    }
    intake->placed = 0;
    next_batch(intake);
    return GO_ON;
}

/* Where a frame that goes through the pager goes on, and behind its last page the next header. */
static struct iovec *paged_target(struct tvmm_intake *intake, uint32_t *count)
{
    intake->pieces[0] = (struct iovec){intake->bounce + intake->batch_bytes,
                                       (size_t)intake->batch * TVMM_PAGE - intake->batch_bytes};
    intake->pieces[1] = (struct iovec){intake->header, TVMM_LANE_HEADER};
    *count = intake->placed - intake->batch_placed + intake->batch == intake->count ? 2 : 1;
    return intake->pieces;
}

/* So much came there; `*length` is what is left of it, behind the frame. */
static enum verdict paged_arrived(struct tvmm_intake *intake, size_t *length)
{
    size_t room = (size_t)intake->batch * TVMM_PAGE - intake->batch_bytes, part = *length < room ? *length : room;
    intake->batch_bytes += (uint32_t)part;
    *length -= part;
    uint32_t whole = intake->batch_bytes / TVMM_PAGE - intake->batch_placed;
    enum verdict verdict = whole ? place_pages(intake, intake->numbers + intake->placed, whole,
                                         intake->bounce + (size_t)intake->batch_placed * TVMM_PAGE)
                                 : GO_ON;
    intake->placed += whole;
    intake->batch_placed += whole;
    if (intake->batch_placed == intake->batch)
        next_batch(intake);
    return verdict;
}

/* Whole pages of a buffer, without a copy: how many bytes of it. */
static uint64_t take_paged(struct tvmm_intake *intake, const uint8_t *buffer, uint64_t length, enum verdict *verdict)
{
    uint64_t pages = length / TVMM_PAGE, left = intake->count - intake->placed;
    if (intake->part != BYTES || !intake->paged || intake->batch_bytes % TVMM_PAGE || left < 2)
        return 0;
    /* The last page goes the ordinary way, which is the one to the next frame. */
    pages = pages < left ? pages : left - 1;
    *verdict = pages ? place_pages(intake, intake->numbers + intake->placed, (uint32_t)pages, buffer) : GO_ON;
    intake->placed += (uint32_t)pages;
    intake->counters.bytes += pages * TVMM_PAGE;
    next_batch(intake);
    return pages * TVMM_PAGE;
}

/* --- what comes ---------------------------------------------------------------------------------------------------- */

/* Where the next bytes go: pieces from `*from` on, `*count` of them. */
static struct iovec *target(struct tvmm_intake *intake, struct iovec *one, uint32_t *count)
{
    *count = 1;
    if (intake->part == HEADER) {
        *one = (struct iovec){intake->header + intake->have, TVMM_LANE_HEADER - intake->have};
    } else if (intake->part == NUMBERS) {
        *one = (struct iovec){(uint8_t *)intake->numbers + intake->have, 4 * (size_t)intake->count - intake->have};
    } else if (intake->paged) {
        return paged_target(intake, count);
    } else {
        *count = intake->piece_count + 1 - intake->piece;
        return intake->pieces + intake->piece;
    }
    return one;
}

/* A frame is complete: what comes next is a header. */
static void next_frame(struct tvmm_intake *intake, uint32_t have)
{
    intake->part = HEADER;
    intake->have = have;
}

/* `length` bytes have come to where `target` said. */
static enum verdict arrived(struct tvmm_intake *intake, size_t length)
{
    enum verdict verdict;
    intake->counters.bytes += length;
    if (intake->part == BYTES && intake->paged) {
        if ((verdict = paged_arrived(intake, &length)))
            return verdict;
        if (intake->placed < intake->count)
            return GO_ON;
        intake->counters.normal += intake->count;
        next_frame(intake, 0);
    } else if (intake->part == BYTES) {
        while (length && intake->piece < intake->piece_count) {
            struct iovec *piece = &intake->pieces[intake->piece];
            size_t part = length < piece->iov_len ? length : piece->iov_len;
            piece->iov_base = (uint8_t *)piece->iov_base + part;
            piece->iov_len -= part;
            length -= part;
            if (!piece->iov_len)
                intake->piece++;
        }
        if (intake->piece < intake->piece_count)
            return GO_ON;
        intake->counters.normal += intake->count;
        next_frame(intake, 0);
    }
    intake->have += (uint32_t)length;
    if (intake->part == HEADER && intake->have == TVMM_LANE_HEADER) {
        if ((verdict = check_header(intake)))
            return verdict;
        if (intake->kind == TVMM_LANE_ROUND_END) {
            next_frame(intake, 0);
            return ROUND_END;
        }
        intake->part = NUMBERS;
        intake->have = 0;
    } else if (intake->part == NUMBERS && intake->have == 4 * intake->count) {
        if ((verdict = check_numbers(intake)))
            return verdict;
        intake->paged = intake->pager && tvmm_pager_has(intake->pager, intake->block);
        if (intake->kind == TVMM_LANE_ZEROS) {
            next_frame(intake, 0);
            if (intake->paged && (verdict = place_pages(intake, intake->numbers, intake->count, NULL)))
                return verdict;
            take_zeros(intake);
        } else {
            if (intake->paged && (verdict = aim_paged(intake)))
                return verdict;
            if (!intake->paged)
                aim_pages(intake);
            intake->part = BYTES;
        }
    }
    return GO_ON;
}

static enum tvmm_lane_stop stop_for(enum verdict verdict)
{
    if (verdict == UNPLACED)
        return TVMM_LANE_STOP_FAILED;
    return verdict == ROUND_END ? TVMM_LANE_STOP_ROUND_END : TVMM_LANE_STOP_REFUSED;
}

/* Frames from the socket into RAM until ROUND_END, or why not. Goes on where it was. */
enum tvmm_lane_stop tvmm_intake_receive(struct tvmm_intake *intake, uint32_t stall_ms)
{
    uint64_t progress_ns = tvmm_now_ns();
    if (intake->refusal)
        return TVMM_LANE_STOP_REFUSED;
    for (;;) {
        struct iovec one;
        uint32_t count;
        struct iovec *pieces = target(intake, &one, &count);
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count < 1024 ? count : 1024};
        if (tvmm_woken(intake->waker))
            return TVMM_LANE_STOP_WOKEN;
        ssize_t came = recvmsg(intake->fd, &message, MSG_DONTWAIT);
        if (came < 0 && errno == EAGAIN) {
            int why = tvmm_lane_wait(intake->fd, POLLIN, intake->waker, stall_ms, progress_ns);
            if (why == TVMM_LANE_STOP_FAILED)
                intake->failure = errno;
            if (why)
                return (enum tvmm_lane_stop)why;
            continue;
        }
        if (came < 0 && errno == EINTR)
            continue;
        if (came < 0) {
            intake->failure = errno;
            return TVMM_LANE_STOP_FAILED;
        }
        if (!came) {
            if (intake->part == HEADER && !intake->have)
                return TVMM_LANE_STOP_CLOSED;
            refuse(intake, TVMM_LANE_TRUNCATED, 0, 0);
            return TVMM_LANE_STOP_REFUSED;
        }
        progress_ns = stall_ms ? tvmm_now_ns() : 0;
        enum verdict verdict = arrived(intake, (size_t)came);
        if (verdict)
            return stop_for(verdict);
    }
}

/* The same from a buffer, whose pieces may be cut anywhere. MORE: it is used up. */
enum tvmm_lane_stop tvmm_intake_take(struct tvmm_intake *intake, const uint8_t *buffer, uint64_t length,
                                     uint64_t *consumed)
{
    *consumed = 0;
    if (intake->refusal)
        return TVMM_LANE_STOP_REFUSED;
    while (*consumed < length) {
        struct iovec one;
        uint32_t count;
        enum verdict verdict = GO_ON;
        uint64_t whole = take_paged(intake, buffer + *consumed, length - *consumed, &verdict);
        *consumed += whole;
        if (verdict)
            return stop_for(verdict);
        if (whole)
            continue;
        struct iovec *piece = target(intake, &one, &count);
        uint64_t part = length - *consumed < piece->iov_len ? length - *consumed : piece->iov_len;
        memcpy(piece->iov_base, buffer + *consumed, part);
        *consumed += part;
        verdict = arrived(intake, part);
        if (verdict)
            return stop_for(verdict);
    }
    return TVMM_LANE_STOP_MORE;
}

/* What it has beside itself. */
void tvmm_intake_close(struct tvmm_intake *intake)
{
    free(intake->bounce);
    intake->bounce = NULL;
}
