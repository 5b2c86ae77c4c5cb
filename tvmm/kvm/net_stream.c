/* Frames over a stream socket: see net_stream.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net_stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* --- the connection ----------------------------------------------------------------------------------------------- */

/* Before the first queue: `fd` is such a socket. 0: no memory. */
int tvmm_net_make_stream(struct tvmm_net *net)
{
    net->stream = calloc(1, sizeof *net->stream);
    return net->stream != NULL;
}

/* By the server's thread: `fd` is a new connection, and what was of the old one is forgotten. */
void tvmm_net_connect(struct tvmm_net *net, int fd)
{
    tvmm_net_lock(net);
    net->fd = fd;
    net->failure = 0;
    net->failure_told = net->tx_blocked = net->bad_length = 0;
    net->stream->in_start = net->stream->in_end = net->stream->out_start = net->stream->out_end = 0;
    tvmm_net_unlock(net);
}

/* --- to the peer -------------------------------------------------------------------------------------------------- */

/* What sendmsg says; -1 with EAGAIN or an error that `net_failed` knows. */
static ssize_t stream_write(struct tvmm_net *net, struct iovec *pieces, uint32_t count)
{
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = count};
    ssize_t sent;
    do
        sent = sendmsg(net->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent;
}

/* A socket that fails is of no use any more, however it does. */
static void stream_failed(struct tvmm_net *net)
{
    if (errno == EAGAIN)
        net->counters.tx_waits++;
    else if (errno != ENOMEM && errno != ENOBUFS)
        net->failure = errno;
}

/* 0: the socket does not even take the rest of the last frame. */
static int stream_send_rest(struct tvmm_net *net)
{
    struct net_stream *stream = net->stream;
    while (stream->out_start < stream->out_end) {
        struct iovec piece = {stream->out + stream->out_start, stream->out_end - stream->out_start};
        ssize_t sent = stream_write(net, &piece, 1);
        if (sent < 0) {
            stream_failed(net);
            return net->failure != 0;
        }
        stream->out_start += (uint32_t)sent;
    }
    return 1;
}

/* What of `pieces` comes after `sent` bytes and before `end` is to be sent next. */
static void stream_keep_rest(struct net_stream *stream, const struct iovec *pieces, uint32_t sent, uint32_t end)
{
    stream->out_start = stream->out_end = 0;
    for (uint32_t at = 0; at < end; at += (uint32_t)(pieces++)->iov_len) {
        uint32_t length = (uint32_t)pieces->iov_len, skip = sent > at ? sent - at : 0;
        if (skip >= length)
            continue;
        memcpy(stream->out + stream->out_end, (uint8_t *)pieces->iov_base + skip, length - skip);
        stream->out_end += length - skip;
    }
}

/* The frame of a chain without its header, behind its length. How many iovecs that is; 0: they are too many. */
static uint32_t stream_add(struct tvmm_net *net, uint32_t number, const struct iovec *iovecs,
                          const struct tvmm_chain *chain, uint32_t used)
{
    uint32_t count = 0, header = TVMM_NET_HEADER;
    struct iovec *pieces = net->iovecs + used;

    if (used + 1 + chain->readable_count > TVMM_NET_IOVECS)
        return 0;
    net->stream->lengths[number] = htonl((uint32_t)chain->readable_bytes - TVMM_NET_HEADER);
    pieces[count++] = (struct iovec){&net->stream->lengths[number], NET_STREAM_LENGTH};
    for (uint32_t index = 0; index < chain->readable_count; index++) {
        const struct iovec *piece = &iovecs[index];
        uint32_t skip = header < piece->iov_len ? header : (uint32_t)piece->iov_len;
        header -= skip;
        if (piece->iov_len > skip)
            pieces[count++] = (struct iovec){(uint8_t *)piece->iov_base + skip, piece->iov_len - skip};
    }
    return count;
}

/* A frame in more pieces than a system call takes, in one. */
static uint32_t stream_add_gathered(struct tvmm_net *net, const struct iovec *iovecs, const struct tvmm_chain *chain)
{
    struct iovec whole = net_gather(net, iovecs, chain->readable_count);
    struct tvmm_chain one = {.readable_count = 1, .readable_bytes = chain->readable_bytes};
    return stream_add(net, 0, &whole, &one, 0);
}

/* Send what has been added. How many of the `frames` the socket has, or has the beginning of; -1: it takes none now. */
static int stream_send_added(struct tvmm_net *net, uint32_t frames, uint32_t pieces)
{
    struct net_stream *stream = net->stream;
    ssize_t sent = stream_write(net, net->iovecs, pieces);
    uint32_t done = 0;

    if (sent < 0) {
        stream_failed(net);
        if (errno == EAGAIN)
            return -1;
        net->counters.tx_refused += frames;
        return (int)frames;
    }
    while (done < frames && stream->ends[done] <= (uint32_t)sent)
        done++;
    uint32_t whole = done ? stream->ends[done - 1] : 0;
    if ((uint32_t)sent > whole) {
        stream_keep_rest(stream, net->iovecs, (uint32_t)sent, stream->ends[done]);
        whole = stream->ends[done++];
    }
    net->counters.tx_frames += done;
    net->counters.tx_bytes += whole - done * NET_STREAM_LENGTH;
    return (int)done;
}

/* Chains of the batch from `done` to `count`: the first that is not done with, sent or dropped and counted. The socket
 * takes no more for now if that is less than `count`. */
uint32_t net_stream_send(struct tvmm_net *net, const struct tvmm_batch *batch, uint32_t done, uint32_t count)
{
    while (done < count) {
        uint32_t frames = 0, pieces = 0, bytes = 0, next = done;
        uint64_t *obstacle = net_obstacle(net, &batch->chains[done]);
        if (obstacle) {
            ++*obstacle;
            done++;
            continue;
        }
        if (!stream_send_rest(net))
            return done;
        while (next < count && !net_obstacle(net, &batch->chains[next])) {
            const struct tvmm_chain *chain = &batch->chains[next];
            uint32_t length = (uint32_t)chain->readable_bytes - TVMM_NET_HEADER + NET_STREAM_LENGTH;
            if (frames && bytes + length > NET_STREAM_SEND_MAX)
                break;
            uint32_t added = stream_add(net, frames, batch->iovecs + chain->first, chain, pieces);
            if (!added && !frames)
                added = stream_add_gathered(net, batch->iovecs + chain->first, chain);
            if (!added)
                break;
            pieces += added;
            bytes += length;
            net->stream->ends[frames++] = bytes;
            next++;
        }
        /* The connection may have failed a moment ago: then there is nothing to add, and all is dropped in turn. */
        if (!frames)
            continue;
        int taken = stream_send_added(net, frames, pieces);
        if (taken < 0)
            return done;
        done += (uint32_t)taken;
    }
    return done;
}

/* What the socket has the beginning of comes before everything else. 0: it has to wait on. */
int net_stream_finish(struct tvmm_net *net)
{
    return !net_connected(net) || stream_send_rest(net);
}

/* A frame without header that is not the driver's. 0: it is lost. */
int net_stream_inject(struct tvmm_net *net, const uint8_t *frame, uint32_t length)
{
    uint32_t behind = htonl(length);
    struct iovec pieces[2] = {{&behind, NET_STREAM_LENGTH}, {(void *)frame, length}};

    if (length > NET_STREAM_FRAME_MAX || !stream_send_rest(net) || net->failure)
        return 0;
    ssize_t sent = stream_write(net, pieces, 2);
    if (sent < 0)
        stream_failed(net);
    else if (sent < (ssize_t)(NET_STREAM_LENGTH + length))
        stream_keep_rest(net->stream, pieces, (uint32_t)sent, NET_STREAM_LENGTH + length);
    return sent > 0;
}

/* --- from the peer ------------------------------------------------------------------------------------------------ */

/* What has come since, into the buffer. 0: nothing. */
static int stream_fill(struct tvmm_net *net)
{
    struct net_stream *stream = net->stream;

    if (stream->in_start) {
        memmove(stream->in, stream->in + stream->in_start, stream->in_end - stream->in_start);
        stream->in_end -= stream->in_start;
        stream->in_start = 0;
    }
    ssize_t got = recv(net->fd, stream->in + stream->in_end, NET_STREAM_IN - stream->in_end, MSG_DONTWAIT);
    if (got > 0) {
        stream->in_end += (uint32_t)got;
        return 1;
    }
    if (!got) {
        net->failure = EPIPE;
    } else if (errno != EAGAIN && errno != EINTR && errno != ENOMEM && errno != ENOBUFS) {
        net->counters.rx_errors++;
        net->failure = errno;
    }
    return 0;
}

/* The next frame that is in the buffer as a whole, or NULL. */
static const uint8_t *stream_next(struct tvmm_net *net, uint32_t *length)
{
    struct net_stream *stream = net->stream;

    if (stream->in_end - stream->in_start < NET_STREAM_LENGTH)
        return NULL;
    memcpy(length, stream->in + stream->in_start, NET_STREAM_LENGTH);
    *length = ntohl(*length);
    if (*length > NET_STREAM_FRAME_MAX) {
        net->counters.rx_errors++;
        net->bad_length = *length;
        net->failure = EMSGSIZE;
        return NULL;
    }
    if (stream->in_end - stream->in_start < NET_STREAM_LENGTH + *length)
        return NULL;
    const uint8_t *frame = stream->in + stream->in_start + NET_STREAM_LENGTH;
    stream->in_start += NET_STREAM_LENGTH + *length;
    return frame;
}

/* The same, and at most one look at the socket: who sends no end of nothing does not keep the server from its other work. */
static const uint8_t *stream_take(struct tvmm_net *net, uint32_t *length)
{
    const uint8_t *frame = net->failure ? NULL : stream_next(net, length);
    if (!frame && !net->failure && stream_fill(net))
        frame = stream_next(net, length);
    return frame;
}

/* 0: there was no frame. */
int net_stream_receive(struct tvmm_net *net)
{
    uint32_t length;
    const uint8_t *frame = stream_take(net, &length);
    if (!frame)
        return 0;
    if (length < NET_STREAM_FRAME_MIN)
        net->counters.rx_errors++;
    else
        net_deliver(net, frame, length);
    return 1;
}

/* Throw a frame away. 0: there was none. */
int net_stream_discard(struct tvmm_net *net)
{
    uint32_t length;
    return stream_take(net, &length) != NULL;
}
