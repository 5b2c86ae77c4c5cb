/* The sending half of lanes.h: frames, the socket, and the limit of bandwidth. Pages come from lanes_gather.c. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "lanes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define BURST_NS 5000000u      /* bandwidth that was not used can be made up for so long */
#define PACE_NS 10000000u      /* a limited lane sends no more at once than fits in so long */
#define SLICE_NS 20000000u     /* and looks for changes of the limit this often */
struct tvmm_lane *tvmm_lane_new(struct tvmm_lane_group *group, struct tvmm_waker *waker, int fd)
{
    struct tvmm_lane *lane = calloc(1, sizeof *lane);
    if (!lane)
        return NULL;
    lane->group = group;
    lane->waker = waker;
    lane->fd = fd;
    if (group->hashes && posix_memalign((void **)&lane->copies, TVMM_PAGE, TVMM_LANE_BATCH * TVMM_PAGE)) {
        free(lane);
        return NULL;
    }
    return lane;
}

void tvmm_lane_free(struct tvmm_lane *lane)
{
    free(lane->copies);
    free(lane);
}

/* Account for bytes about to be sent: 0 if they may go, or the nanoseconds to wait before asking again. */
uint64_t tvmm_lanes_charge(struct tvmm_lane_group *group, uint64_t bytes)
{
    uint64_t rate = __atomic_load_n(&group->bandwidth, __ATOMIC_RELAXED);
    uint64_t next = __atomic_load_n(&group->next_ns, __ATOMIC_RELAXED), after;
    if (!rate)
        return 0;
    uint64_t now = tvmm_now_ns();
    do {
        uint64_t from = next + BURST_NS < now ? now - BURST_NS : next;
        if (from > now)
            return from - now;
        after = from + (uint64_t)((unsigned __int128)bytes * 1000000000u / rate);
    } while (!__atomic_compare_exchange_n(&group->next_ns, &next, after, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return 0;
}

/* --- frames -------------------------------------------------------------------------------------------------------- */

static uint32_t put_head(struct tvmm_frame_head *head, uint32_t kind, uint32_t block, const uint32_t *pages,
                         uint32_t count, uint64_t number)
{
    uint32_t magic = TVMM_LANE_MAGIC, payload = count * (4 + (kind == TVMM_LANE_PAGES ? TVMM_PAGE : 0));
    uint16_t block16 = (uint16_t)block;
    uint8_t *at = head->bytes;
    memcpy(at, &magic, 4);
    at[4] = (uint8_t)kind;
    at[5] = 0;
    memcpy(at + 6, &block16, 2);
    memcpy(at + 8, &count, 4);
    memcpy(at + 12, &payload, 4);
    memcpy(at + 16, &number, 8);
    memcpy(at + TVMM_LANE_HEADER, pages, 4 * (size_t)count);
    return TVMM_LANE_HEADER + 4 * count;
}

static void add_piece(struct tvmm_lane *lane, void *base, size_t length)
{
    struct iovec *last = lane->piece_count ? &lane->pieces[lane->piece_count - 1] : NULL;
    if (last && (uint8_t *)last->iov_base + last->iov_len == (uint8_t *)base)
        last->iov_len += length;
    else
        lane->pieces[lane->piece_count++] = (struct iovec){base, length};
}

static uint64_t batch_bytes(const struct tvmm_lane *lane)
{
    uint64_t bytes = 0;
    if (lane->zero_count)
        bytes += TVMM_LANE_HEADER + 4ull * lane->zero_count;
    if (lane->normal_count)
        bytes += TVMM_LANE_HEADER + (4ull + TVMM_PAGE) * lane->normal_count;
    return bytes;
}

/* The batch becomes pieces to send. */
static void form(struct tvmm_lane *lane)
{
    lane->piece = lane->piece_count = 0;
    lane->counters.bytes += batch_bytes(lane);
    lane->counters.zero += lane->zero_count;
    lane->counters.normal += lane->normal_count;
    if (lane->zero_count) {
        uint32_t length = put_head(&lane->zero_head, TVMM_LANE_ZEROS, lane->batch_block, lane->zero, lane->zero_count, 0);
        add_piece(lane, lane->zero_head.bytes, length);
        lane->counters.frames++;
    }
    if (lane->normal_count) {
        uint8_t *base = lane->group->ram->blocks[lane->batch_block].base;
        uint32_t length =
            put_head(&lane->normal_head, TVMM_LANE_PAGES, lane->batch_block, lane->normal, lane->normal_count, 0);
        add_piece(lane, lane->normal_head.bytes, length);
        for (uint32_t index = 0; index < lane->normal_count; index++) {
            int copied = lane->copied[index / 64] >> index % 64 & 1;
            add_piece(lane, copied ? lane->copies + (size_t)index * TVMM_PAGE : base + (uint64_t)lane->normal[index] * TVMM_PAGE,
                      TVMM_PAGE);
        }
        lane->counters.frames++;
    }
    tvmm_lane_forget_batch(lane);
}

static void form_end(struct tvmm_lane *lane, uint64_t number)
{
    uint32_t length = put_head(&lane->normal_head, TVMM_LANE_ROUND_END, 0, lane->normal, 0, number);
    lane->piece = lane->piece_count = 0;
    add_piece(lane, lane->normal_head.bytes, length);
    lane->counters.bytes += length;
    lane->counters.frames++;
    lane->ending = 1;
}

/* --- the socket ---------------------------------------------------------------------------------------------------- */

/* Until the socket is ready for `events`, but not for ever: 0, or why not. */
int tvmm_lane_wait(int fd, short events, struct tvmm_waker *waker, uint32_t stall_ms, uint64_t progress_ns)
{
    struct pollfd both[2] = {{.fd = fd, .events = events}, {.fd = waker->event_fd, .events = POLLIN}};
    int timeout = -1;
    if (stall_ms) {
        uint64_t waited = (tvmm_now_ns() - progress_ns) / 1000000u;
        if (waited >= stall_ms)
            return TVMM_LANE_STOP_STALLED;
        timeout = (int)(stall_ms - waited);
    }
    int ready = poll(both, 2, timeout);
    if (ready < 0 && errno != EINTR)
        return TVMM_LANE_STOP_FAILED;
    return tvmm_woken(waker) ? TVMM_LANE_STOP_WOKEN : 0;
}

/* All pieces into the socket. 0, or why not; then the rest is still there. */
static int lane_flush(struct tvmm_lane *lane, uint32_t stall_ms)
{
    while (lane->piece < lane->piece_count) {
        struct msghdr message = {.msg_iov = lane->pieces + lane->piece, .msg_iovlen = lane->piece_count - lane->piece};
        if (tvmm_woken(lane->waker))
            return TVMM_LANE_STOP_WOKEN;
        ssize_t sent = sendmsg(lane->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN) {
            int why = tvmm_lane_wait(lane->fd, POLLOUT, lane->waker, stall_ms, lane->progress_ns);
            if (why == TVMM_LANE_STOP_FAILED)
                lane->failure = errno;
            if (why)
                return why;
            continue;
        }
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0) {
            lane->failure = errno;
            return TVMM_LANE_STOP_FAILED;
        }
        lane->progress_ns = stall_ms ? tvmm_now_ns() : 0;
        while (sent) {
            struct iovec *piece = &lane->pieces[lane->piece];
            size_t part = (size_t)sent < piece->iov_len ? (size_t)sent : piece->iov_len;
            piece->iov_base = (uint8_t *)piece->iov_base + part;
            piece->iov_len -= part;
            sent -= (ssize_t)part;
            if (!piece->iov_len)
                lane->piece++;
        }
    }
    return 0;
}

/* Wait for the batch's turn under the bandwidth limit: 0, or WOKEN. A round that stops needs no turn. */
static int await_turn(struct tvmm_lane *lane)
{
    uint64_t bytes = batch_bytes(lane), wait;
    while (!lane->charged && !tvmm_lanes_stopped(lane->group) && (wait = tvmm_lanes_charge(lane->group, bytes))) {
        struct pollfd woken = {.fd = lane->waker->event_fd, .events = POLLIN};
        struct timespec slice = {.tv_nsec = (long)(wait < SLICE_NS ? wait : SLICE_NS)};
        ppoll(&woken, 1, &slice, NULL);
        if (tvmm_woken(lane->waker))
            return TVMM_LANE_STOP_WOKEN;
    }
    lane->charged = 1;
    return 0;
}

static uint32_t batch_limit(const struct tvmm_lane_group *group)
{
    uint64_t rate = __atomic_load_n(&group->bandwidth, __ATOMIC_RELAXED);
    uint64_t pages = rate / (1000000000u / PACE_NS) / TVMM_PAGE;
    if (!rate || pages > TVMM_LANE_BATCH)
        return TVMM_LANE_BATCH;
    return pages ? (uint32_t)pages : 1;
}

/* This lane's share of round `number`, with its ROUND_END. After WOKEN and STALLED it goes on where it was. */
enum tvmm_lane_stop tvmm_lane_send(struct tvmm_lane *lane, uint64_t number, uint32_t stall_ms)
{
    lane->progress_ns = tvmm_now_ns();
    for (;;) {
        int why = lane_flush(lane, stall_ms);
        if (why)
            return (enum tvmm_lane_stop)why;
        if (lane->ending) {
            lane->ending = 0;
            return TVMM_LANE_STOP_ROUND_END;
        }
        int error = tvmm_lanes_stopped(lane->group) ? 0 : tvmm_lane_gather(lane, batch_limit(lane->group));
        if (error < 0) {
            tvmm_lane_give_back(lane);
            lane->failure = -error;
            return TVMM_LANE_STOP_FAILED;
        }
        if (tvmm_lane_woken(lane))
            return TVMM_LANE_STOP_WOKEN;
        if (lane->normal_count + lane->zero_count && (why = await_turn(lane)))
            return (enum tvmm_lane_stop)why;
        if (tvmm_lanes_stopped(lane->group))
            tvmm_lane_give_back(lane);
        if (lane->normal_count + lane->zero_count)
            form(lane);
        else
            form_end(lane, number);
        lane->progress_ns = stall_ms ? tvmm_now_ns() : 0;
    }
}

/* Whole frames into a buffer, with ROUND_END behind the last: how many bytes. `size` is that of a frame at least. */
uint64_t tvmm_lane_pack(struct tvmm_lane *lane, uint8_t *buffer, uint64_t size, uint64_t number, uint32_t *ended)
{
    uint64_t used = 0;
    *ended = 0;
    for (;;) {
        /* Room for a frame of zeros and for the end in any case. */
        uint64_t spare = 3 * TVMM_LANE_HEADER + 4ull * TVMM_LANE_COUNT_MAX;
        uint64_t room = size - used > spare ? (size - used - spare) / (4 + TVMM_PAGE) : 0;
        uint32_t limit = room < TVMM_LANE_BATCH ? (uint32_t)room : TVMM_LANE_BATCH;
        if (!limit)
            return used;
        int error = tvmm_lanes_stopped(lane->group) ? 0 : tvmm_lane_gather(lane, limit);
        if (error < 0) {
            tvmm_lane_give_back(lane);
            lane->failure = -error;
            return used;
        }
        if (tvmm_lanes_stopped(lane->group))
            tvmm_lane_give_back(lane);
        int last = !(lane->normal_count + lane->zero_count);
        if (last)
            form_end(lane, number);
        else
            form(lane);
        for (; lane->piece < lane->piece_count; lane->piece++) {
            memcpy(buffer + used, lane->pieces[lane->piece].iov_base, lane->pieces[lane->piece].iov_len);
            used += lane->pieces[lane->piece].iov_len;
        }
        if (last) {
            lane->ending = 0;
            *ended = 1;
            return used;
        }
    }
}
