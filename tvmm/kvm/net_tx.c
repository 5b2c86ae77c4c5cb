/* Frames from the driver to the TAP: see net.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net_stream.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>

/* A frame in more pieces than a system call takes, in one. */
struct iovec net_gather(struct tvmm_net *net, const struct iovec *iovecs, uint32_t count)
{
    size_t length = 0;
    for (uint32_t index = 0; index < count; index++) {
        memcpy(net->gathered + length, iovecs[index].iov_base, iovecs[index].iov_len);
        length += iovecs[index].iov_len;
    }
    return (struct iovec){net->gathered, length};
}

/* NULL, or where a frame is counted that is not sent. */
uint64_t *net_obstacle(struct tvmm_net *net, const struct tvmm_chain *chain)
{
    struct tvmm_net_counters *counters = &net->counters;

    if (chain->readable_bytes < TVMM_NET_FRAME_MIN)
        return &counters->tx_too_short;
    if (chain->readable_bytes > TVMM_NET_FRAME_MAX)
        return &counters->tx_too_long;
    return net_connected(net) && net_link(net) ? NULL : &counters->tx_link_down;
}

/* 0: the TAP takes no more for now. 1: the frame is sent, or dropped and counted. */
static int send_frame(struct tvmm_net *net, const struct iovec *iovecs, const struct tvmm_chain *chain)
{
    struct tvmm_net_counters *counters = &net->counters;
    uint32_t count = chain->readable_count;
    struct iovec whole;
    ssize_t sent;

    uint64_t *obstacle = net_obstacle(net, chain);
    if (obstacle) {
        ++*obstacle;
        return 1;
    }
    if (count > TVMM_NET_IOVECS) {
        whole = net_gather(net, iovecs, count);
        iovecs = &whole;
        count = 1;
    }
    do
        sent = writev(net->fd, iovecs, (int)count);
    while (sent < 0 && errno == EINTR);
    if (sent >= 0) {
        counters->tx_frames++;
        counters->tx_bytes += chain->readable_bytes - TVMM_NET_HEADER;
        return 1;
    }
    if (errno == EAGAIN) {
        counters->tx_waits++;
        return 0;
    }
    /* Headers that ask for the impossible, an interface that is down, no memory: what a wire does is to lose frames. */
    counters->tx_refused++;
    net_failed(net, errno);
    return 1;
}

/* A turn's worth of frames, given back at once. What the TAP does not take goes back into the ring. */
int net_send(struct tvmm_net *net)
{
    struct tvmm_served *queue = &net->queues[TVMM_NET_TX];
    struct tvmm_batch *batch = net->tx_batch;
    int limited = tvmm_limit_of(&net->throttle.limit) != NULL;
    uint32_t count, done = 0;

    if (net->tx_blocked && net_connected(net))
        return NET_IDLE;
    if (net->stream && !net_stream_finish(net)) {
        net->tx_blocked = 1;
        return NET_IDLE;
    }
    if (!net_serves(net, TVMM_NET_TX))
        return NET_IDLE;
    if (limited && tvmm_vring_ready(queue->ring) && tvmm_net_closed(net, TVMM_NET_TX))
        return NET_IDLE;
    count = tvmm_vring_pop(queue->ring, batch);
    while (done < count) {
        /* Limits are looked at after each frame; without any, a socket gets all of them at once. */
        uint32_t end = net->stream && !limited ? count : done + 1;
        if (net->stream)
            done = net_stream_send(net, batch, done, end);
        else
            done += (uint32_t)send_frame(net, batch->iovecs + batch->chains[done].first, &batch->chains[done]);
        if (done < end || (limited && tvmm_net_closed(net, TVMM_NET_TX)))
            break;
    }
    if (done < count) {
        net->tx_blocked = !net_is_closed(net, TVMM_NET_TX);
        tvmm_vring_unpop(queue->ring, batch, count - done);
    }
    /* A frame that was taken in part keeps the server waiting for room, like one that was not taken. */
    if (net->stream && !net_stream_finish(net))
        net->tx_blocked = 1;
    if (done) {
        net->counters.tx_turns++;
        net->sent_last = 1;
        net_turn_over(net, TVMM_NET_TX);
        tvmm_vring_push(queue->ring, batch->used, done);
    }
    if (queue->ring->error)
        return net_broken(net, TVMM_NET_TX);
    return done ? net_told(net, TVMM_NET_TX) : NET_IDLE;
}
