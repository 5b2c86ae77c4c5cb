/* See page_server.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "page_server.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define UNCONNECTED (-2)

static void server_connect(struct tvmm_page_server *server, int fd)
{
    server->fd = fd;
    server->refusal = 0;
    server->in_start = server->in_end = server->near = 0;
    server->piece = server->piece_count = 0;
}

/* Frames with these pages of one block, in ascending order: the zeros, and behind them those with bytes. */
static void server_form(struct tvmm_page_server *server, uint32_t block, const uint32_t *pages, uint32_t count)
{
    uint8_t *base = server->group->ram->blocks[block].base;
    uint32_t zero[TVMM_REQUEST_PAGES_MAX], normal[TVMM_REQUEST_PAGES_MAX], zeros = 0, normals = 0;
    for (uint32_t index = 0; index < count; index++)
        if (tvmm_page_is_zero(base + (uint64_t)pages[index] * TVMM_PAGE))
            zero[zeros++] = pages[index];
        else
            normal[normals++] = pages[index];
    server->piece = server->piece_count = 0;
    if (zeros)
        server->pieces[server->piece_count++] = (struct iovec){
            server->zero_head.bytes, put_head(&server->zero_head, TVMM_LANE_ZEROS, block, zero, zeros, 0)};
    if (normals)
        server->pieces[server->piece_count++] = (struct iovec){
            server->normal_head.bytes, put_head(&server->normal_head, TVMM_LANE_PAGES, block, normal, normals, 0)};
    for (uint32_t index = 0; index < normals; index++) {
        uint8_t *from = base + (uint64_t)normal[index] * TVMM_PAGE;
        struct iovec *last = &server->pieces[server->piece_count - 1];
        if (index && (uint8_t *)last->iov_base + last->iov_len == from)
            last->iov_len += TVMM_PAGE;
        else
            server->pieces[server->piece_count++] = (struct iovec){from, TVMM_PAGE};
    }
    for (uint32_t index = 0; index < server->piece_count; index++)
        server->counters.bytes += server->pieces[index].iov_len;
}

/* All pieces into the connection. GO: they are, or why not. */
static int server_flush(struct tvmm_page_server *server, struct tvmm_waker *waker)
{
    while (server->piece < server->piece_count) {
        struct msghdr message = {.msg_iov = server->pieces + server->piece,
                                 .msg_iovlen = server->piece_count - server->piece};
        ssize_t sent = sendmsg(server->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN) {
            int why = tvmm_lane_wait(server->fd, POLLOUT, waker, 0, 0);
            if (why == TVMM_LANE_STOP_WOKEN)
                return TVMM_SERVER_WOKEN;
            if (!why)
                continue;
        }
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0) {
            server->failure = errno;
            return TVMM_SERVER_LOST;
        }
        while (sent) {
            struct iovec *piece = &server->pieces[server->piece];
            size_t part = (size_t)sent < piece->iov_len ? (size_t)sent : piece->iov_len;
            piece->iov_base = (uint8_t *)piece->iov_base + part;
            piece->iov_len -= part;
            sent -= (ssize_t)part;
            if (!piece->iov_len)
                server->piece++;
        }
    }
    return -1;
}

static int refuse_request(struct tvmm_page_server *server, enum tvmm_server_refusal refusal, uint64_t value, uint64_t limit)
{
    server->refusal = refusal;
    server->refused_value = value;
    server->refused_limit = limit;
    return TVMM_SERVER_REFUSED;
}

/* The next request becomes frames. -1, or REFUSED. */
static int answer(struct tvmm_page_server *server)
{
    const struct tvmm_ram_pages *ram = server->group->ram;
    const uint8_t *at = server->in + server->in_start;
    uint32_t magic = field32(at), block = (uint32_t)at[4] | (uint32_t)at[5] << 8, zero = (uint32_t)at[6] | (uint32_t)at[7] << 8;
    uint32_t first = field32(at + 8), count = field32(at + 12), pages[TVMM_REQUEST_PAGES_MAX];

    if (magic != TVMM_REQUEST_MAGIC)
        return refuse_request(server, TVMM_REQUEST_BAD_MAGIC, magic, TVMM_REQUEST_MAGIC);
    if (zero)
        return refuse_request(server, TVMM_REQUEST_BAD_ZERO, zero, 0);
    if (block >= ram->count)
        return refuse_request(server, TVMM_REQUEST_BAD_BLOCK, block, ram->count);
    if (!count || count > TVMM_REQUEST_PAGES_MAX)
        return refuse_request(server, TVMM_REQUEST_BAD_COUNT, count, TVMM_REQUEST_PAGES_MAX);
    if (first >= ram->blocks[block].pages || count > ram->blocks[block].pages - first)
        return refuse_request(server, TVMM_REQUEST_BAD_RANGE, (uint64_t)first + count, ram->blocks[block].pages);
    server->in_start += TVMM_REQUEST_BYTES;
    server->counters.requests++;
    server->counters.pages += count;
    for (uint32_t index = 0; index < count; index++) {
        uint64_t page = pages[index] = first + index, bit = 1ull << page % 64;
        uint64_t before = __atomic_fetch_and(&server->group->bitmap->blocks[block].words[page / 64], ~bit, __ATOMIC_ACQ_REL);
        server->counters.taken += !(before & bit);
    }
    server_form(server, block, pages, count);
    server->near = server->prefetch ? server->prefetch - 1 : 0;
    server->near_block = block;
    server->near_page = first + count - 1;
    return -1;
}

/* Some of the pages around the last answer that nobody has taken become frames: those behind it, then those before it. */
static void prefetch(struct tvmm_page_server *server)
{
    uint32_t count = 0, pages[TVMM_PREFETCH_PIECE];
    uint64_t first = server->near_page / server->prefetch * server->prefetch;
    uint64_t *words = server->group->bitmap->blocks[server->near_block].words;
    while (server->near && count < TVMM_PREFETCH_PIECE) {
        uint64_t page = first + (server->near_page + server->prefetch - server->near) % server->prefetch;
        uint64_t bit = 1ull << page % 64;
        /* The numbers in a frame ascend. */
        if (count && page < pages[count - 1])
            break;
        server->near--;
        /* Behind the last page of a block there are no bits. */
        if (__atomic_load_n(&words[page / 64], __ATOMIC_RELAXED) & bit
            && __atomic_fetch_and(&words[page / 64], ~bit, __ATOMIC_ACQ_REL) & bit)
            pages[count++] = (uint32_t)page;
    }
    server->counters.prefetched += count;
    if (count)
        server_form(server, server->near_block, pages, count);
}

/* Requests that have come: how many bytes, 0 for none, -1: the connection is lost. */
static int take_requests(struct tvmm_page_server *server)
{
    uint32_t left = server->in_end - server->in_start;
    if (server->in_start) {
        memmove(server->in, server->in + server->in_start, left);
        server->in_start = 0;
        server->in_end = left;
    }
    ssize_t came = recv(server->fd, server->in + left, sizeof server->in - left, MSG_DONTWAIT);
    if (came < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (came <= 0) {
        server->failure = came < 0 ? errno : 0;
        return -1;
    }
    server->in_end += (uint32_t)came;
    return (int)came;
}

/* Answer requests until there is something for the caller to decide. */
enum tvmm_server_stop tvmm_page_server_serve(struct tvmm_page_server *server, int fd, struct tvmm_waker *waker)
{
    if (server->fd != fd)
        server_connect(server, fd);
    server->failure = 0;
    for (;;) {
        int why = tvmm_woken(waker) ? TVMM_SERVER_WOKEN : server_flush(server, waker);
        int came = 0;
        if (why < 0 && server->in_end - server->in_start >= TVMM_REQUEST_BYTES) {
            if ((why = answer(server)) < 0)
                continue;
        } else if (why < 0) {
            came = take_requests(server);
            why = came < 0 ? TVMM_SERVER_LOST : -1;
        }
        if (why >= 0) {
            if (why != TVMM_SERVER_WOKEN)
                server->fd = UNCONNECTED;
            return (enum tvmm_server_stop)why;
        }
        if (came || server->near) {
            if (!came)
                prefetch(server);
            continue;
        }
        tvmm_lane_wait(fd, POLLIN, waker, 0, 0);
    }
}

/* Into a bitmap: what was wanted and has not been received. No lane may be at work. */
void tvmm_bitmap_lacking(struct tvmm_bitmap *into, const struct tvmm_bitmap *wanted, const struct tvmm_bitmap *received)
{
    for (uint32_t block = 0; block < into->count; block++)
        for (uint64_t word = 0; word < tvmm_bits_words(into->blocks[block].pages); word++)
            __atomic_store_n(&into->blocks[block].words[word],
                             wanted->blocks[block].words[word]
                                 & ~__atomic_load_n(&received->blocks[block].words[word], __ATOMIC_ACQUIRE),
                             __ATOMIC_RELEASE);
}
