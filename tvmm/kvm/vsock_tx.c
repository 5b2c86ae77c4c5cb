/* Packets from the guest: what they say of connections, and their data to the sockets. See vsock.h.
 *
 * Data of one connection that comes in packets next to each other is written by one system call. Whatever else is said
 * of a connection comes after what was said before: so the write is made first.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "vsock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* Of the credit that a guest has had, how much may be free again before it is told without having asked. */
#define CREDIT_SHARE 4u

_Static_assert(sizeof(struct vsock_packet) == TVMM_VSOCK_HEADER, "the header of 5.10.6");

static void sock_owe_credit(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    if (conn->state != VSOCK_OPEN || conn->forwarded - conn->told < conn->alloc / CREDIT_SHARE)
        return;
    conn->owes |= VSOCK_OWES_CREDIT;
    vsock_wait_for_guest(vsock, conn);
}

/* What sendmsg says, with 0 for a socket that is full. */
static ssize_t sock_write(const struct vsock_conn *conn, struct iovec *pieces, size_t count)
{
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count};
    ssize_t sent;
    do
        sent = sendmsg(conn->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    /* No memory in the host's kernel may pass; the socket says when. */
    return sent < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM) ? 0 : sent;
}

static void sock_watch_writing(struct tvmm_vsock *vsock, struct vsock_conn *conn, int on)
{
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLRDHUP | EPOLLET | (on ? EPOLLOUT : 0u),
        .data.u64 = (uint64_t)conn->generation << 32 | vsock_index(vsock, conn),
    };
    /* Fails only for a socket that is not watched, and there is none. */
    epoll_ctl(vsock->epoll_fd, EPOLL_CTL_MOD, conn->fd, &event);
}

/* `length` bytes of pieces, from `offset` on, into the ring of the buffer. There is room: that is what credit means. */
static int sock_keep(struct tvmm_vsock *vsock, struct vsock_conn *conn, uint32_t held, const struct iovec *pieces,
                     uint64_t offset, uint64_t length)
{
    if (!conn->buffer) {
        if (conn->alloc == TVMM_VSOCK_BUFFER && vsock->spare) {
            conn->buffer = vsock->spare;
            vsock->spare = NULL;
        } else {
            conn->buffer = malloc(conn->alloc);
        }
        conn->head = 0;
        if (!conn->buffer)
            return 0;
    }
    uint32_t at = (conn->head + held) % conn->alloc;
    for (; length; pieces++) {
        if (offset >= pieces->iov_len) {
            offset -= pieces->iov_len;
            continue;
        }
        const uint8_t *from = (const uint8_t *)pieces->iov_base + offset;
        uint64_t part = pieces->iov_len - offset < length ? pieces->iov_len - offset : length;
        uint64_t first = conn->alloc - at < part ? conn->alloc - at : part;
        memcpy(conn->buffer + at, from, first);
        memcpy(conn->buffer, from + first, part - first);
        at = (uint32_t)((at + part) % conn->alloc);
        length -= part;
        offset = 0;
    }
    return 1;
}

/* What was gathered for a connection goes to its socket, and what that does not take into the buffer. */
static void sock_flush_pieces(struct tvmm_vsock *vsock)
{
    if (vsock->write_conn == VSOCK_NONE)
        return;
    struct vsock_conn *conn = &vsock->conns[vsock->write_conn];
    uint64_t bytes = vsock->write_bytes;
    uint32_t count = vsock->write_count, held = conn->received - conn->forwarded;
    ssize_t sent = 0;

    vsock->write_conn = VSOCK_NONE;
    vsock->write_count = 0;
    vsock->write_bytes = 0;
    conn->received += (uint32_t)bytes;
    if (!held)
        sent = sock_write(conn, vsock->write_pieces, count);
    if (sent < 0) {
        vsock_host_shut(vsock, conn, VSOCK_NO_RECEIVE);
        return;
    }
    conn->forwarded += (uint32_t)sent;
    if ((uint64_t)sent < bytes) {
        vsock->counters.buffered += bytes - (uint64_t)sent;
        if (!sock_keep(vsock, conn, held, vsock->write_pieces, (uint64_t)sent, bytes - (uint64_t)sent)) {
            vsock_reset(vsock, conn);
            return;
        }
        if (!held)
            sock_watch_writing(vsock, conn, 1);
    }
    sock_owe_credit(vsock, conn);
}

/* The socket may take some of what waits for it. */
void vsock_flush_buffer(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    while (conn->received != conn->forwarded) {
        uint32_t held = conn->received - conn->forwarded;
        uint32_t first = conn->alloc - conn->head < held ? conn->alloc - conn->head : held;
        struct iovec pieces[2] = {{conn->buffer + conn->head, first}, {conn->buffer, held - first}};
        ssize_t sent = sock_write(conn, pieces, held > first ? 2 : 1);
        if (sent < 0) {
            vsock_host_shut(vsock, conn, VSOCK_NO_RECEIVE);
            return;
        }
        if (!sent)
            break;
        conn->head = (conn->head + (uint32_t)sent) % conn->alloc;
        conn->forwarded += (uint32_t)sent;
    }
    if (conn->received == conn->forwarded)
        sock_watch_writing(vsock, conn, 0);
    sock_owe_credit(vsock, conn);
}

/* --- one packet --------------------------------------------------------------------------------------------------- */

static void sock_reply_reset(struct tvmm_vsock *vsock, const struct vsock_packet *packet)
{
    uint32_t at = (vsock->reply_first + vsock->reply_count++) % TVMM_VSOCK_REPLIES;
    vsock->replies[at] = (struct vsock_reply){packet->dst_cid, packet->dst_port, packet->src_port, packet->type};
}

/* Data, or rather where it is: bytes `from` to `from + length` of a chain. */
static void sock_take_data(struct tvmm_vsock *vsock, struct vsock_conn *conn, const struct iovec *pieces, uint64_t from,
                           uint32_t length)
{
    uint32_t index = vsock_index(vsock, conn);
    uint64_t pending = vsock->write_conn == index ? vsock->write_bytes : 0;

    if (conn->guest_shut & VSOCK_NO_SEND) {
        vsock_reset(vsock, conn);
        return;
    }
    if ((uint64_t)(conn->received - conn->forwarded) + pending + length > conn->alloc) {
        sock_flush_pieces(vsock);
        if (conn->state != VSOCK_OPEN)
            return;
        if ((uint64_t)(conn->received - conn->forwarded) + length > conn->alloc) {
            vsock->counters.no_credit++;
            vsock_reset(vsock, conn);
            return;
        }
    }
    vsock->counters.tx_bytes += length;
    if (conn->host_shut & VSOCK_NO_RECEIVE) {
        conn->received += length;
        conn->forwarded = conn->received;
        vsock->counters.discarded += length;
        sock_owe_credit(vsock, conn);
        return;
    }
    while (length) {
        if (from >= pieces->iov_len) {
            from -= pieces->iov_len;
            pieces++;
            continue;
        }
        if (vsock->write_count == TVMM_VSOCK_IOVECS) {
            sock_flush_pieces(vsock);
            if (conn->state != VSOCK_OPEN || conn->host_shut & VSOCK_NO_RECEIVE)
                return;
        }
        uint32_t part = pieces->iov_len - from < length ? (uint32_t)(pieces->iov_len - from) : length;
        vsock->write_conn = index;
        vsock->write_pieces[vsock->write_count++] = (struct iovec){(uint8_t *)pieces->iov_base + from, part};
        vsock->write_bytes += part;
        length -= part;
        from += part;
    }
}

static void sock_take_open(struct tvmm_vsock *vsock, struct vsock_conn *conn, const struct vsock_packet *packet,
                           const struct iovec *pieces)
{
    conn->peer_alloc = packet->buf_alloc;
    conn->peer_forwarded = packet->fwd_cnt;
    if (conn->readable && vsock_credit(conn)) {
        conn->starved = 0;
        vsock_wait_for_guest(vsock, conn);
    }
    switch (packet->op) {
    case VSOCK_OP_RW:
        sock_take_data(vsock, conn, pieces, TVMM_VSOCK_HEADER, packet->length);
        break;
    case VSOCK_OP_CREDIT_UPDATE:
        break;
    case VSOCK_OP_CREDIT_REQUEST:
        conn->owes |= VSOCK_OWES_CREDIT;
        vsock_wait_for_guest(vsock, conn);
        break;
    case VSOCK_OP_SHUTDOWN:
        vsock_guest_shut(vsock, conn, packet->flags);
        break;
    case VSOCK_OP_RST:
        vsock_guest_reset(vsock, conn);
        break;
    default:
        vsock_reset(vsock, conn);
    }
}

/* A connection that is not open. */
static void sock_take_other(struct tvmm_vsock *vsock, struct vsock_conn *conn, const struct vsock_packet *packet)
{
    if (packet->op == VSOCK_OP_RST) {
        vsock_guest_reset(vsock, conn);
    } else if (conn->state == VSOCK_CALLED && packet->op == VSOCK_OP_RESPONSE && !(conn->owes & VSOCK_OWES_REQUEST)) {
        conn->peer_alloc = packet->buf_alloc;
        conn->peer_forwarded = packet->fwd_cnt;
        vsock_answered(vsock, conn);
    } else if (conn->state == VSOCK_LINGERING
               && (packet->op == VSOCK_OP_CREDIT_UPDATE || packet->op == VSOCK_OP_CREDIT_REQUEST)) {
        return;
    } else if (conn->state != VSOCK_DEAD) {
        vsock_reset(vsock, conn);
    }
}

static void sock_take(struct tvmm_vsock *vsock, const struct iovec *pieces, const struct tvmm_chain *chain)
{
    struct vsock_packet packet;
    uint8_t *into = (uint8_t *)&packet;
    uint32_t done = 0;

    if (chain->readable_bytes < TVMM_VSOCK_HEADER) {
        vsock->counters.malformed++;
        return;
    }
    for (const struct iovec *piece = pieces; done < TVMM_VSOCK_HEADER; piece++) {
        uint32_t part = TVMM_VSOCK_HEADER - done < piece->iov_len ? TVMM_VSOCK_HEADER - done : (uint32_t)piece->iov_len;
        memcpy(into + done, piece->iov_base, part);
        done += part;
    }
    if (packet.src_cid != vsock->guest_cid || packet.length > chain->readable_bytes - TVMM_VSOCK_HEADER) {
        vsock->counters.malformed++;
        return;
    }
    vsock->counters.tx_packets++;
    struct vsock_conn *conn = NULL;
    int ours = packet.dst_cid == TVMM_VSOCK_HOST_CID && packet.type == VSOCK_STREAM;
    if (ours)
        conn = vsock_find(vsock, packet.src_port, packet.dst_port);
    if (vsock->write_conn != VSOCK_NONE
        && (!conn || packet.op != VSOCK_OP_RW || vsock->write_conn != vsock_index(vsock, conn))) {
        sock_flush_pieces(vsock);
        /* Nothing that a write brings about takes a connection out of the table. */
    }
    if (conn && conn->state == VSOCK_OPEN) {
        sock_take_open(vsock, conn, &packet, pieces);
    } else if (conn) {
        sock_take_other(vsock, conn, &packet);
    } else if (packet.op == VSOCK_OP_RST) {
        vsock->counters.resets_received++;
    } else if (!ours || packet.op != VSOCK_OP_REQUEST) {
        vsock->counters.strays++;
        sock_reply_reset(vsock, &packet);
    } else if (!vsock_request(vsock, &packet)) {
        sock_reply_reset(vsock, &packet);
    }
}

/* --- a turn ------------------------------------------------------------------------------------------------------- */

/* As many packets as the resets that they may be answered by have room, given back at once. */
int vsock_send(struct tvmm_vsock *vsock)
{
    struct tvmm_served *queue = &vsock->queues[TVMM_VSOCK_TX];
    struct tvmm_batch *batch = vsock->tx_batch;
    uint32_t room = TVMM_VSOCK_REPLIES - vsock->reply_count;

    if (!vsock_serves(vsock, TVMM_VSOCK_TX))
        return VSOCK_IDLE;
    if (!room) {
        vsock->counters.replies_full += tvmm_vring_ready(queue->ring) != 0;
        return VSOCK_IDLE;
    }
    batch->chain_limit = room < TVMM_VSOCK_TURN ? room : TVMM_VSOCK_TURN;
    uint32_t count = tvmm_vring_pop(queue->ring, batch);
    for (uint32_t index = 0; index < count; index++)
        sock_take(vsock, batch->iovecs + batch->chains[index].first, &batch->chains[index]);
    sock_flush_pieces(vsock);
    if (count) {
        vsock->counters.tx_turns++;
        tvmm_vring_push(queue->ring, batch->used, count);
    }
    if (queue->ring->error)
        return vsock_broken(vsock, TVMM_VSOCK_TX);
    return count ? vsock_told(vsock, TVMM_VSOCK_TX) : VSOCK_IDLE;
}
