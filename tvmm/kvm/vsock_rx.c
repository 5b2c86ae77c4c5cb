/* Packets to the guest: what connections owe it, and what their sockets have. See vsock.h.
 *
 * Chains wait in rx_batch, the pool, until they are filled. A read goes into several at once, behind the room for the header
 * of each, so that a driver with small buffers costs no more system calls than one with large ones.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "vsock.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* --- the pool ----------------------------------------------------------------------------------------------------- */

static void sock_push(struct tvmm_vsock *vsock)
{
    struct tvmm_batch *batch = vsock->rx_batch;
    if (vsock->rx_next == vsock->rx_pushed)
        return;
    tvmm_vring_push(vsock->queues[TVMM_VSOCK_RX].ring, batch->used + vsock->rx_pushed, vsock->rx_next - vsock->rx_pushed);
    vsock->rx_pushed = vsock->rx_next;
}

/* The pool empty, and the ring as if nothing had been taken but what was filled. */
void vsock_return_pool(struct tvmm_vsock *vsock)
{
    struct tvmm_served *queue = &vsock->queues[TVMM_VSOCK_RX];
    if (queue->ring) {
        sock_push(vsock);
        tvmm_vring_unpop(queue->ring, vsock->rx_batch, vsock->rx_batch->count - vsock->rx_next);
    }
    vsock->rx_batch->count = vsock->rx_next = vsock->rx_pushed = 0;
}

/* 1: there is a chain. 0: there is none, or (`bad_chain`) one that is no receive buffer. */
static int sock_has_room(struct tvmm_vsock *vsock)
{
    struct tvmm_batch *batch = vsock->rx_batch;
    struct tvmm_vring *ring = vsock->queues[TVMM_VSOCK_RX].ring;

    if (vsock->rx_next < batch->count)
        return 1;
    if (!tvmm_vring_ready(ring))
        return 0;
    sock_push(vsock);
    vsock->rx_next = vsock->rx_pushed = 0;
    tvmm_vring_pop(ring, batch);
    for (uint32_t index = 0; index < batch->count; index++) {
        /* 5.10.6.4: for the device to write, a header and something behind it. */
        if (batch->chains[index].readable_count || batch->chains[index].writable_bytes <= TVMM_VSOCK_HEADER) {
            vsock->bad_chain = 1;
            return 0;
        }
    }
    return batch->count != 0;
}

/* --- packets ------------------------------------------------------------------------------------------------------ */

/* `length` bytes to the start of a chain. */
static void sock_put(struct tvmm_vsock *vsock, const struct tvmm_chain *chain, const void *data, uint32_t length)
{
    const struct iovec *pieces = vsock->rx_batch->iovecs + chain->first;
    for (uint32_t done = 0; done < length; pieces++) {
        uint32_t part = length - done < pieces->iov_len ? length - done : (uint32_t)pieces->iov_len;
        memcpy(pieces->iov_base, (const uint8_t *)data + done, part);
        done += part;
    }
}

/* The next chain has `packet`, with the data that is in it already. */
static void sock_deliver(struct tvmm_vsock *vsock, const struct vsock_packet *packet)
{
    struct tvmm_batch *batch = vsock->rx_batch;
    const struct tvmm_chain *chain = &batch->chains[vsock->rx_next];
    uint32_t length = TVMM_VSOCK_HEADER + packet->length;

    sock_put(vsock, chain, packet, TVMM_VSOCK_HEADER);
    tvmm_mark_iovecs(tvmm_ring_log(vsock->queues[TVMM_VSOCK_RX].ring), batch->iovecs + chain->first, chain->writable_count,
                     length);
    batch->used[vsock->rx_next++].length = length;
    vsock->counters.rx_packets++;
}

static void sock_tell(struct tvmm_vsock *vsock, struct vsock_conn *conn, uint16_t op, uint32_t flags, uint32_t length)
{
    conn->told = conn->forwarded;
    conn->owes &= ~(uint32_t)VSOCK_OWES_CREDIT;
    sock_deliver(vsock, &(struct vsock_packet){
        .src_cid = TVMM_VSOCK_HOST_CID,
        .dst_cid = vsock->guest_cid,
        .src_port = conn->host_port,
        .dst_port = conn->guest_port,
        .length = length,
        .type = VSOCK_STREAM,
        .op = op,
        .flags = flags,
        .buf_alloc = conn->alloc,
        .fwd_cnt = conn->forwarded,
    });
}

static void sock_deliver_reply(struct tvmm_vsock *vsock)
{
    const struct vsock_reply *reply = &vsock->replies[vsock->reply_first];
    vsock->reply_first = (vsock->reply_first + 1) % TVMM_VSOCK_REPLIES;
    vsock->reply_count--;
    vsock->counters.resets_sent++;
    sock_deliver(vsock, &(struct vsock_packet){
        .src_cid = reply->cid,
        .dst_cid = vsock->guest_cid,
        .src_port = reply->host_port,
        .dst_port = reply->guest_port,
        .type = reply->type,
        .op = VSOCK_OP_RST,
    });
}

/* --- data --------------------------------------------------------------------------------------------------------- */

/* What the guest has room for, in bytes. Whatever it says: a guest that says too much has itself to blame. */
uint32_t vsock_credit(const struct vsock_conn *conn)
{
    uint32_t under_way = conn->sent - conn->peer_forwarded;
    return under_way < conn->peer_alloc ? conn->peer_alloc - under_way : 0;
}

int vsock_may_read(const struct vsock_conn *conn)
{
    return conn->state == VSOCK_OPEN && conn->readable && !(conn->host_shut & VSOCK_NO_SEND)
           && !(conn->guest_shut & VSOCK_NO_RECEIVE);
}

/* Where a read of up to `limit` bytes goes: how many pieces. */
static int sock_aim(struct tvmm_vsock *vsock, uint64_t limit)
{
    const struct tvmm_batch *batch = vsock->rx_batch;
    uint32_t count = 0;

    for (uint32_t index = vsock->rx_next; index < batch->count && limit; index++) {
        const struct tvmm_chain *chain = &batch->chains[index];
        uint64_t skip = TVMM_VSOCK_HEADER;
        /* Not half a chain: the next one's data would be taken for its. */
        if (count + chain->writable_count > TVMM_VSOCK_IOVECS && count)
            break;
        for (uint32_t at = 0; at < chain->writable_count && limit && count < TVMM_VSOCK_IOVECS; at++) {
            struct iovec piece = batch->iovecs[chain->first + at];
            if (skip >= piece.iov_len) {
                skip -= piece.iov_len;
                continue;
            }
            piece.iov_base = (uint8_t *)piece.iov_base + skip;
            piece.iov_len -= skip;
            skip = 0;
            if (piece.iov_len > limit)
                piece.iov_len = limit;
            limit -= piece.iov_len;
            vsock->read_pieces[count++] = piece;
        }
    }
    return (int)count;
}

/* Headers in front of `length` bytes that were read. */
static void sock_deliver_data(struct tvmm_vsock *vsock, struct vsock_conn *conn, uint64_t length)
{
    const struct tvmm_batch *batch = vsock->rx_batch;
    conn->sent += (uint32_t)length;
    vsock->counters.rx_bytes += length;
    while (length) {
        uint64_t room = batch->chains[vsock->rx_next].writable_bytes - TVMM_VSOCK_HEADER;
        uint32_t part = (uint32_t)(room < length ? room : length);
        sock_tell(vsock, conn, VSOCK_OP_RW, 0, part);
        length -= part;
    }
}

/* The host's end sends no more; if it is closed, it receives no more either. */
static void sock_ended(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    struct pollfd look = {.fd = conn->fd};
    int closed = poll(&look, 1, 0) > 0 && look.revents & (POLLHUP | POLLERR);
    conn->readable = 0;
    vsock_host_shut(vsock, conn, closed ? VSOCK_NOTHING : VSOCK_NO_SEND);
}

/* One read. The connection waits for another turn if there may be more. Without credit it is only a look: the end can be
 * told, and for data the guest is asked for credit, once. */
static void sock_read(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    uint32_t credit = vsock_credit(conn);
    int count = sock_aim(vsock, credit < TVMM_VSOCK_READ_MAX ? credit : TVMM_VSOCK_READ_MAX);
    uint8_t byte;
    ssize_t length;
    do
        length = credit ? readv(conn->fd, vsock->read_pieces, count) : recv(conn->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    while (length < 0 && errno == EINTR);
    if (length > 0 && credit) {
        sock_deliver_data(vsock, conn, (uint64_t)length);
        vsock_wait_for_guest(vsock, conn);
    } else if (length > 0) {
        vsock->counters.starved += !conn->starved;
        conn->owes |= conn->starved ? 0 : VSOCK_ASKS_CREDIT;
        conn->starved = 1;
    } else if (!length) {
        sock_ended(vsock, conn);
    } else if (errno == EAGAIN) {
        conn->readable = 0;
    } else {
        /* ECONNRESET: closed with something unread. There is nothing more to come. */
        conn->readable = 0;
        vsock_host_shut(vsock, conn, VSOCK_NOTHING);
    }
}

/* One packet, or one read, of a connection that said it has something. */
static void sock_serve_one(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    uint32_t owes = conn->owes;

    if (conn->state == VSOCK_DEAD) {
        vsock->counters.resets_sent++;
        sock_tell(vsock, conn, VSOCK_OP_RST, 0, 0);
        vsock_forget(vsock, conn);
        return;
    }
    if (owes & (VSOCK_OWES_REQUEST | VSOCK_OWES_RESPONSE)) {
        conn->owes &= ~(uint32_t)(VSOCK_OWES_REQUEST | VSOCK_OWES_RESPONSE);
        sock_tell(vsock, conn, owes & VSOCK_OWES_REQUEST ? VSOCK_OP_REQUEST : VSOCK_OP_RESPONSE, 0, 0);
    } else if (owes & VSOCK_OWES_SHUTDOWN) {
        conn->owes &= ~(uint32_t)VSOCK_OWES_SHUTDOWN;
        sock_tell(vsock, conn, VSOCK_OP_SHUTDOWN, conn->host_shut, 0);
    } else if (owes & VSOCK_ASKS_CREDIT) {
        conn->owes &= ~(uint32_t)VSOCK_ASKS_CREDIT;
        sock_tell(vsock, conn, VSOCK_OP_CREDIT_REQUEST, 0, 0);
    } else if (vsock_may_read(conn) && conn->turn != vsock->turn) {
        conn->turn = vsock->turn;
        sock_read(vsock, conn);
        if (conn->owes)
            vsock_wait_for_guest(vsock, conn);
        return;
    } else if (owes & VSOCK_OWES_CREDIT) {
        vsock->counters.credit_updates++;
        sock_tell(vsock, conn, VSOCK_OP_CREDIT_UPDATE, 0, 0);
    }
    if (conn->owes || (vsock_may_read(conn) && !conn->starved))
        vsock_wait_for_guest(vsock, conn);
}

/* --- a turn ------------------------------------------------------------------------------------------------------- */

int vsock_has_news(const struct tvmm_vsock *vsock)
{
    return vsock->reply_count || vsock->first_waiting != VSOCK_NONE;
}

/* Each of those that have something has its turn, as long as there are chains; they are given to the driver at once. */
int vsock_receive(struct tvmm_vsock *vsock)
{
    uint64_t before = vsock->counters.rx_packets;
    int looked = 0;

    if (!vsock_serves(vsock, TVMM_VSOCK_RX))
        return VSOCK_IDLE;
    vsock->turn++;
    vsock->hungry = 0;
    while (vsock_has_news(vsock) && vsock->counters.rx_packets - before < TVMM_VSOCK_TURN) {
        if (!sock_has_room(vsock)) {
            vsock->hungry = 1;
            break;
        }
        if (vsock->reply_count) {
            sock_deliver_reply(vsock);
            continue;
        }
        struct vsock_conn *conn = &vsock->conns[vsock->first_waiting];
        /* All of those behind it have been read in this turn as well. */
        if (conn->turn == vsock->turn && !conn->owes && conn->state != VSOCK_DEAD)
            break;
        looked = 1;
        sock_serve_one(vsock, vsock_next_waiting(vsock));
    }
    sock_push(vsock);
    if (vsock->bad_chain || vsock->queues[TVMM_VSOCK_RX].ring->error)
        return vsock_broken(vsock, TVMM_VSOCK_RX);
    if (vsock->counters.rx_packets == before)
        return looked ? VSOCK_WORKED : VSOCK_IDLE;
    vsock->counters.rx_turns++;
    return vsock_told(vsock, TVMM_VSOCK_RX);
}

/* 5.10.6.7: all connections are gone, said by the event queue as soon as there is a buffer. */
int vsock_tell_reset(struct tvmm_vsock *vsock)
{
    static const uint8_t transport_reset[4] = {0};
    struct tvmm_batch *batch = vsock->event_batch;
    struct tvmm_vring *ring = vsock->queues[TVMM_VSOCK_EVENT].ring;

    if (!vsock->reset_due || !vsock_serves(vsock, TVMM_VSOCK_EVENT) || !tvmm_vring_pop(ring, batch))
        return ring && vsock_serves(vsock, TVMM_VSOCK_EVENT) && ring->error ? vsock_broken(vsock, TVMM_VSOCK_EVENT)
                                                                            : VSOCK_IDLE;
    const struct iovec *pieces = batch->iovecs + batch->chains[0].first + batch->chains[0].readable_count;
    uint64_t room = batch->chains[0].writable_bytes;
    if (room >= sizeof transport_reset) {
        uint32_t done = 0;
        for (; done < sizeof transport_reset; pieces++) {
            uint32_t part = (uint32_t)(sizeof transport_reset - done < pieces->iov_len ? sizeof transport_reset - done
                                                                                       : pieces->iov_len);
            memcpy(pieces->iov_base, transport_reset + done, part);
            tvmm_mark(tvmm_ring_log(ring), pieces->iov_base, part);
            done += part;
        }
        batch->used[0].length = sizeof transport_reset;
        vsock->reset_due = 0;
    }
    tvmm_vring_push(ring, batch->used, 1);
    return ring->error ? vsock_broken(vsock, TVMM_VSOCK_EVENT) : vsock_told(vsock, TVMM_VSOCK_EVENT);
}
