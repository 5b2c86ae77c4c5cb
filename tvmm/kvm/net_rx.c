/* Frames from the TAP to the driver: see net.h.
 *
 * Chains wait in rx_batch, the pool, until a read fills them. A read is given as much room as frames lately needed and
 * behind it the server's own buffer; what then lies in that buffer was more than the room, and the frame is held until
 * the driver has given enough. So no frame is cut, and none is copied as long as there is room.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net_stream.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define LEAST_EXPECTED 2048u

/* Chains that frames have used up, to the driver. */
static void push_received(struct tvmm_net *net)
{
    struct tvmm_batch *batch = net->rx_batch;
    if (net->rx_next == net->rx_pushed)
        return;
    tvmm_vring_push(net->queues[TVMM_NET_RX].ring, batch->used + net->rx_pushed, net->rx_next - net->rx_pushed);
    net->rx_pushed = net->rx_next;
}

/* The pool empty, and the ring as if nothing had been taken but what frames have used up. */
void net_return_pool(struct tvmm_net *net)
{
    struct tvmm_served *queue = &net->queues[TVMM_NET_RX];
    if (queue->ring) {
        push_received(net);
        tvmm_vring_unpop(queue->ring, net->rx_batch, net->rx_batch->count - net->rx_next);
    }
    net->rx_batch->count = net->rx_next = net->rx_pushed = 0;
    net->rx_room = 0;
}

static int pool_is_empty(const struct tvmm_net *net) { return net->rx_next == net->rx_batch->count; }

/* Room for `bytes` as far as the driver has given it. 0: it gave something that is no receive buffer. */
static int fill_pool(struct tvmm_net *net, uint64_t bytes)
{
    struct tvmm_vring *ring = net->queues[TVMM_NET_RX].ring;
    struct tvmm_batch *batch = net->rx_batch;

    if (net->rx_room >= bytes || !tvmm_vring_ready(ring))
        return 1;
    net_return_pool(net);
    tvmm_vring_pop(ring, batch);
    for (uint32_t index = 0; index < batch->count; index++) {
        const struct tvmm_chain *chain = &batch->chains[index];
        /* 5.1.6.3.1: with room for a header at least; and the device is not to read it. */
        if (chain->readable_count || chain->writable_bytes < TVMM_NET_HEADER) {
            net->bad_chain = 1;
            return 0;
        }
        net->rx_room += chain->writable_bytes;
    }
    return !ring->error;
}

/* What a read is to fill: pieces of guest memory, at most as many chains as the frame may use, then `held`. How many
 * iovecs that is; `room` is the guest's part in bytes. */
static uint32_t aim(struct tvmm_net *net, uint64_t *room)
{
    const struct tvmm_batch *batch = net->rx_batch;
    uint32_t count = 0, index = net->rx_next;

    *room = 0;
    do {
        const struct tvmm_chain *chain = &batch->chains[index++];
        for (uint32_t piece = 0; piece < chain->writable_count && count < TVMM_NET_IOVECS - 1; piece++) {
            net->iovecs[count] = batch->iovecs[chain->first + piece];
            *room += net->iovecs[count++].iov_len;
        }
    } while (net->mergeable && index < batch->count && *room < net->rx_expect && count < TVMM_NET_IOVECS - 1);
    if (*room < TVMM_NET_FRAME_MAX)
        net->iovecs[count++] = (struct iovec){net->held + *room, TVMM_NET_FRAME_MAX - *room};
    return count;
}

/* `length` bytes at `offset` of what iovecs describe, out of them or into them. */
static void copy_pieces(const struct iovec *iovecs, uint64_t offset, uint8_t *data, uint64_t length, int into)
{
    for (; length; iovecs++) {
        if (offset >= iovecs->iov_len) {
            offset -= iovecs->iov_len;
            continue;
        }
        uint64_t part = iovecs->iov_len - offset < length ? iovecs->iov_len - offset : length;
        uint8_t *piece = (uint8_t *)iovecs->iov_base + offset;
        memcpy(into ? piece : data, into ? data : piece, part);
        data += part;
        length -= part;
        offset = 0;
    }
}

/* The first `length` bytes of some iovecs have been written, or may have been. What of them is the server's own buffer is
 * in no block of the log. */
static void mark_pieces(const struct tvmm_net *net, const struct iovec *iovecs, uint64_t length)
{
    tvmm_mark_iovecs(tvmm_ring_log(net->queues[TVMM_NET_RX].ring), iovecs, UINT32_MAX, length);
}

/* The frame of `length` bytes is in the next chains: mark them as used, and say in its header how many they are. The
 * pool has the room. */
static void use_chains(struct tvmm_net *net, uint64_t length)
{
    struct tvmm_batch *batch = net->rx_batch;
    const struct iovec *first = batch->iovecs + batch->chains[net->rx_next].first;
    uint64_t left = length;
    uint32_t count = 0;

    while (left) {
        uint64_t room = batch->chains[net->rx_next].writable_bytes, part = room < left ? room : left;
        batch->used[net->rx_next++].length = (uint32_t)part;
        net->rx_room -= room;
        left -= part;
        count++;
    }
    uint8_t buffers[2] = {(uint8_t)count, (uint8_t)(count >> 8)};
    copy_pieces(first, TVMM_NET_HEADER - 2, buffers, 2, 1);
    net->counters.rx_frames++;
    net->counters.rx_bytes += length - TVMM_NET_HEADER;
}

/* Room for the next read: at once for a longer frame, less after many shorter ones. */
static void learn_length(struct tvmm_net *net, uint64_t length)
{
    if (length > net->rx_expect)
        net->rx_expect = TVMM_NET_FRAME_MAX;
    else if (net->rx_expect > LEAST_EXPECTED && length < net->rx_expect / 2)
        net->rx_expect -= (net->rx_expect - LEAST_EXPECTED + 63) / 64;
}

static void read_failed(struct tvmm_net *net)
{
    if (errno == EAGAIN)
        return;
    net->counters.rx_errors++;
    /* No memory in the host may pass, and a frame that the header cannot express (EINVAL) is gone already. What else there
     * is does not pass, and looking for more would be a loop. */
    if (errno != EINTR && errno != ENOMEM && errno != ENOBUFS && errno != EINVAL)
        net->failure = errno;
}

/* What the driver has given for one frame. */
static uint64_t frame_room(const struct tvmm_net *net)
{
    return net->mergeable ? net->rx_room : net->rx_batch->chains[net->rx_next].writable_bytes;
}

/* What to do with `length` bytes that were read into net->iovecs, where the guest's part has `room`. 0: no frame. */
static int take_frame(struct tvmm_net *net, ssize_t length, uint64_t room)
{
    uint8_t destination[6];

    if (length < (ssize_t)TVMM_NET_FRAME_MIN) {
        net->counters.rx_errors++;
        /* The other end of a socket is closed; a TAP has no such frames. */
        net->failure = length ? 0 : EPIPE;
        return length != 0;
    }
    copy_pieces(net->iovecs, TVMM_NET_HEADER, destination, 6, 0);
    if (!tvmm_net_passes(&net->filter, destination)) {
        net->counters.rx_filtered++;
        return 1;
    }
    learn_length(net, (uint64_t)length);
    if ((uint64_t)length <= room) {
        use_chains(net, (uint64_t)length);
    } else if (frame_room(net) >= (uint64_t)length || net->mergeable) {
        copy_pieces(net->iovecs, 0, net->held, room, 0);
        net->held_length = (uint32_t)length;
        net->counters.rx_held++;
    } else {
        net->counters.rx_no_room++;
    }
    return 1;
}

/* A frame that is somewhere else, without header. The pool is not empty. */
void net_deliver(struct tvmm_net *net, const uint8_t *frame, uint32_t length)
{
    static uint8_t header[TVMM_NET_HEADER];
    uint32_t whole = TVMM_NET_HEADER + length;

    if (!tvmm_net_passes(&net->filter, frame)) {
        net->counters.rx_filtered++;
        return;
    }
    learn_length(net, whole);
    if (frame_room(net) >= whole) {
        const struct iovec *first = net->rx_batch->iovecs + net->rx_batch->chains[net->rx_next].first;
        copy_pieces(first, 0, header, TVMM_NET_HEADER, 1);
        copy_pieces(first, TVMM_NET_HEADER, (uint8_t *)frame, length, 1);
        use_chains(net, whole);
        mark_pieces(net, first, whole);
    } else if (net->mergeable) {
        memset(net->held, 0, TVMM_NET_HEADER);
        memcpy(net->held + TVMM_NET_HEADER, frame, length);
        net->held_length = whole;
        net->counters.rx_held++;
    } else {
        net->counters.rx_no_room++;
    }
}

/* 0: there was none. */
static int receive_frame(struct tvmm_net *net)
{
    uint64_t room;
    if (net->stream)
        return net_stream_receive(net);
    int count = (int)aim(net, &room);
    ssize_t length = readv(net->fd, net->iovecs, count);

    if (length < 0) {
        /* EAGAIN, which is what most of these are, comes before the first byte. */
        if (errno != EAGAIN)
            mark_pieces(net, net->iovecs, room);
        read_failed(net);
        return 0;
    }
    int taken = take_frame(net, length, room);
    /* Whatever became of the frame, it was written; and by now the header is complete. */
    mark_pieces(net, net->iovecs, (uint64_t)length < room ? (uint64_t)length : room);
    return taken;
}

/* The frame that waits, if there is room now. 0: it waits on. */
static int deliver_held(struct tvmm_net *net)
{
    const struct tvmm_batch *batch = net->rx_batch;
    if (frame_room(net) >= net->held_length) {
        const struct iovec *first = batch->iovecs + batch->chains[net->rx_next].first;
        copy_pieces(first, 0, net->held, net->held_length, 1);
        use_chains(net, net->held_length);
        mark_pieces(net, first, net->held_length);
    } else if (!net->mergeable || tvmm_vring_ready(net->queues[TVMM_NET_RX].ring)) {
        /* The pool is full of buffers so small that no frame like this ever fits. */
        net->counters.rx_no_room++;
    } else {
        return 0;
    }
    net->held_length = 0;
    return 1;
}

/* A frame that nobody wants. 0: there was none. */
int net_discard(struct tvmm_net *net)
{
    return net->stream ? net_stream_discard(net) : read(net->fd, net->gathered, TVMM_NET_FRAME_MAX) > 0;
}

/* With the cable out: what comes is lost. */
static int discard_turn(struct tvmm_net *net)
{
    uint32_t frames = 0;
    while (frames < TVMM_NET_TURN && net_discard(net))
        frames++;
    net->counters.rx_link_down += frames;
    return frames ? NET_WORKED : NET_IDLE;
}

/* A turn's worth of frames, given to the driver at once. */
int net_receive(struct tvmm_net *net)
{
    struct tvmm_vring *ring = net->queues[TVMM_NET_RX].ring;
    uint32_t frames = 0;
    int usable = 1;

    if (!net_serves(net, TVMM_NET_RX) || !net_connected(net))
        return NET_IDLE;
    if (!net_link(net))
        return discard_turn(net);
    for (; frames < TVMM_NET_TURN; frames++) {
        if (tvmm_limit_of(&net->throttle.limit) && tvmm_net_closed(net, TVMM_NET_RX))
            break;
        usable = fill_pool(net, net->held_length ? net->held_length : net->mergeable ? net->rx_expect : 1);
        if (!usable || pool_is_empty(net))
            break;
        if (net->held_length) {
            if (!deliver_held(net))
                break;
        } else if (!receive_frame(net)) {
            break;
        }
    }
    if (frames) {
        net->counters.rx_turns++;
        net_turn_over(net, TVMM_NET_RX);
    }
    push_received(net);
    if (!usable || ring->error)
        return net_broken(net, TVMM_NET_RX);
    if (!frames)
        return NET_IDLE;
    net->sent_last = 0;
    return net_told(net, TVMM_NET_RX);
}
