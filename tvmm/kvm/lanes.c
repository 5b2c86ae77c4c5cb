/* The sending half of lanes.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "lanes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BURST_NS 5000000u      /* bandwidth that was not used can be made up for so long */
#define PACE_NS 10000000u      /* a limited lane sends no more at once than fits in so long */
#define SLICE_NS 20000000u     /* and looks for changes of the limit this often */
#define NEVER_SENT 0u          /* in place of a hash */
#define SENT_UNHASHED 1u
#define SENT_ZERO 2u

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

static int round_stopped(const struct tvmm_lane_group *group) { return __atomic_load_n(&group->stop, __ATOMIC_ACQUIRE) != 0; }

/* A lane that fills buffers has no waker: its caller has the thread back after each. */
static int lane_woken(const struct tvmm_lane *lane) { return lane->waker && tvmm_woken(lane->waker); }

/* --- taking pages -------------------------------------------------------------------------------------------------- */

/* The next chunk that has bits, of any block. 0: there is none. -errno: KVM refuses. */
static int next_chunk(struct tvmm_lane *lane)
{
    struct tvmm_lane_group *group = lane->group;
    for (;;) {
        if (round_stopped(group))
            return 0;
        uint64_t number = __atomic_fetch_add(&group->cursor, 1, __ATOMIC_ACQ_REL);
        uint32_t block = 0;
        for (; block < group->ram->count; block++) {
            uint64_t chunks = (group->ram->blocks[block].pages + group->chunk_pages - 1) / group->chunk_pages;
            if (number < chunks)
                break;
            number -= chunks;
        }
        if (block == group->ram->count)
            return 0;
        uint64_t first = number * group->chunk_pages, left = group->ram->blocks[block].pages - first;
        uint64_t pages = left < group->chunk_pages ? left : group->chunk_pages, any = 0;
        uint64_t *from = group->bitmap->blocks[block].words + first / 64;
        uint32_t words = (uint32_t)tvmm_bits_words(pages);
        for (uint32_t word = 0; word < words; word++) {
            uint64_t bits = __atomic_load_n(&from[word], __ATOMIC_RELAXED);
            lane->words[word] = bits ? __atomic_exchange_n(&from[word], 0, __ATOMIC_ACQ_REL) : 0;
            any |= lane->words[word];
        }
        if (!any)
            continue;
        lane->block = block;
        lane->chunk_first = first;
        lane->word = 0;
        lane->word_count = words;
        lane->have_chunk = 1;
        lane->hole_end = 0;
        /* Before the first of the pages is looked at: see lanes.h. */
        int error = group->log ? tvmm_log_clear(group->log, block, first, pages, lane->words) : 0;
        return error < 0 ? error : 1;
    }
}

/* Whether a page of the chunk was never written, or was given back: to read it through the mapping would have the host
 * allocate it. What was found out before this chunk's pages were protected again is of no use: it may have been written. */
static int is_hole(struct tvmm_lane *lane, uint64_t page)
{
    const struct tvmm_page_block *block = &lane->group->ram->blocks[lane->block];
    if (block->fd < 0 || (lane->block == lane->data_block && page >= lane->data_first && page < lane->data_end))
        return 0;
    if (page < lane->hole_end)
        return 1;
    off_t at = (off_t)(page * TVMM_PAGE), data = lseek(block->fd, at, SEEK_DATA);
    if (data < 0 && errno != ENXIO)
        return 0;
    if (data < 0 || data >= at + (off_t)TVMM_PAGE) {
        lane->hole_end = data < 0 ? block->pages : (uint64_t)data / TVMM_PAGE;
        return 1;
    }
    off_t hole = lseek(block->fd, at, SEEK_HOLE);
    lane->data_block = lane->block;
    lane->data_first = page;
    lane->data_end = hole > at ? (uint64_t)hole / TVMM_PAGE : page + 1;
    return 0;
}

static int is_zero(struct tvmm_lane *lane, uint64_t page, const uint8_t *from)
{
    return is_hole(lane, page) || tvmm_page_is_zero(from);
}

static uint64_t *hash_of(const struct tvmm_lane_group *group, uint32_t block, uint32_t page)
{
    uint64_t *hashes = group->hashes;
    for (uint32_t before = 0; before < block; before++)
        hashes += group->ram->blocks[before].pages;
    return hashes + page;
}

/* With hashes: what is hashed is a copy, and the copy is sent, because the page may change at any moment. */
static void look_hashed(struct tvmm_lane *lane, uint32_t page, const uint8_t *from)
{
    uint64_t *known = hash_of(lane->group, lane->batch_block, page), before = *known;
    uint8_t *copy = lane->copies + (size_t)TVMM_PAGE * lane->normal_count;
    if (is_zero(lane, page, from)) {
        if (before == SENT_ZERO) {
            lane->counters.unchanged++;
            return;
        }
        *known = SENT_ZERO;
        lane->zero[lane->zero_count++] = page;
        return;
    }
    if (before == NEVER_SENT) {
        *known = SENT_UNHASHED;
    } else {
        memcpy(copy, from, TVMM_PAGE);
        uint64_t hash = tvmm_page_hash(copy, lane->group->key);
        hash = hash <= SENT_ZERO ? hash + SENT_ZERO + 1 : hash;
        if (hash == before) {
            lane->counters.unchanged++;
            return;
        }
        *known = hash;
        lane->copied[lane->normal_count / 64] |= 1ull << lane->normal_count % 64;
    }
    lane->normal[lane->normal_count++] = page;
}

/* Take pages until the batch has `limit` of those that travel, its block ends, or somebody wakes us. 0, or -errno. */
static int lane_gather(struct tvmm_lane *lane, uint32_t limit)
{
    struct tvmm_lane_group *group = lane->group;
    while (lane->normal_count < limit && lane->zero_count < TVMM_LANE_COUNT_MAX && !lane_woken(lane)) {
        if (!lane->have_chunk) {
            int found = next_chunk(lane);
            if (found <= 0)
                return found;
        }
        if (lane->normal_count + lane->zero_count == 0)
            lane->batch_block = lane->block;
        else if (lane->batch_block != lane->block)
            return 0;
        const uint8_t *base = group->ram->blocks[lane->block].base;
        uint64_t bits = lane->words[lane->word];
        while (bits && lane->normal_count < limit && lane->zero_count < TVMM_LANE_COUNT_MAX) {
            uint32_t page = (uint32_t)(lane->chunk_first + 64 * lane->word) + (uint32_t)__builtin_ctzll(bits);
            const uint8_t *from = base + (uint64_t)page * TVMM_PAGE;
            bits &= bits - 1;
            if (group->hashes)
                look_hashed(lane, page, from);
            else if (is_zero(lane, page, from))
                lane->zero[lane->zero_count++] = page;
            else
                lane->normal[lane->normal_count++] = page;
        }
        lane->words[lane->word] = bits;
        if (!bits && ++lane->word == lane->word_count)
            lane->have_chunk = 0;
    }
    return 0;
}

static void give_back(struct tvmm_lane *lane, const uint32_t *pages, uint32_t count)
{
    for (uint32_t index = 0; index < count; index++) {
        tvmm_bits_set(lane->group->bitmap->blocks[lane->batch_block].words, pages[index], 1);
        if (lane->group->hashes)
            *hash_of(lane->group, lane->batch_block, pages[index]) = SENT_UNHASHED;
    }
}

static void forget_batch(struct tvmm_lane *lane)
{
    lane->normal_count = lane->zero_count = lane->charged = 0;
    memset(lane->copied, 0, sizeof lane->copied);
}

/* The round stops: what was taken and is not on its way goes back into the bitmap. */
static void give_all_back(struct tvmm_lane *lane)
{
    give_back(lane, lane->normal, lane->normal_count);
    give_back(lane, lane->zero, lane->zero_count);
    forget_batch(lane);
    if (lane->have_chunk) {
        uint64_t *words = lane->group->bitmap->blocks[lane->block].words + lane->chunk_first / 64;
        for (uint32_t word = lane->word; word < lane->word_count; word++)
            tvmm_bits_or(&words[word], lane->words[word]);
        lane->have_chunk = 0;
    }
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
    forget_batch(lane);
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
    while (!lane->charged && !round_stopped(lane->group) && (wait = tvmm_lanes_charge(lane->group, bytes))) {
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
        int error = round_stopped(lane->group) ? 0 : lane_gather(lane, batch_limit(lane->group));
        if (error < 0) {
            give_all_back(lane);
            lane->failure = -error;
            return TVMM_LANE_STOP_FAILED;
        }
        if (lane_woken(lane))
            return TVMM_LANE_STOP_WOKEN;
        if (lane->normal_count + lane->zero_count && (why = await_turn(lane)))
            return (enum tvmm_lane_stop)why;
        if (round_stopped(lane->group))
            give_all_back(lane);
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
        int error = round_stopped(lane->group) ? 0 : lane_gather(lane, limit);
        if (error < 0) {
            give_all_back(lane);
            lane->failure = -error;
            return used;
        }
        if (round_stopped(lane->group))
            give_all_back(lane);
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
