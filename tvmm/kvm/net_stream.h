/* A stream socket in place of the TAP: each frame behind its length, 4 bytes, big-endian (QEMU's "-netdev stream", passt).
 * There is no header of 12 bytes on the wire: it is taken off, and made of zeros, since nothing is left to be done to a
 * frame.
 *
 * Frames are sent from guest memory, many to a system call. They are received into a buffer of the server, as many as
 * there are, and copied: a system call for each would cost more than that. The buffer may end in the middle of a frame,
 * and so may what the socket took. Both are remembered over a driver's reset: the peer knows nothing of it.
 */
#ifndef TVMM_NET_STREAM_H
#define TVMM_NET_STREAM_H

#include "net.h"

#define NET_STREAM_LENGTH 4u
/* The longest frame, as of a TAP. A peer that says more means ill, or has lost count: the connection is given up. */
#define NET_STREAM_FRAME_MAX (TVMM_NET_FRAME_MAX - TVMM_NET_HEADER)
#define NET_STREAM_FRAME_MIN (TVMM_NET_FRAME_MIN - TVMM_NET_HEADER)
#define NET_STREAM_IN (2u * (NET_STREAM_LENGTH + NET_STREAM_FRAME_MAX))
#define NET_STREAM_OUT (NET_STREAM_LENGTH + NET_STREAM_FRAME_MAX)
/* To a system call, if it is more than one frame. Linux takes less than this in one piece, so that it is rare that a peer
 * finds half a frame: old versions of passt lose count then. */
#define NET_STREAM_SEND_MAX 40000u

struct net_stream {
    uint32_t in_start, in_end, out_start, out_end;
    uint32_t lengths[TVMM_NET_TURN];
    uint32_t ends[TVMM_NET_TURN];     /* bytes up to the end of each frame of this call */
    uint8_t in[NET_STREAM_IN];        /* received, and not looked at yet */
    uint8_t out[NET_STREAM_OUT];      /* the rest of a frame of which the socket has the beginning */
};

uint32_t net_stream_send(struct tvmm_net *net, const struct tvmm_batch *batch, uint32_t done, uint32_t count);
int net_stream_finish(struct tvmm_net *net);
int net_stream_receive(struct tvmm_net *net);
int net_stream_discard(struct tvmm_net *net);
int net_stream_inject(struct tvmm_net *net, const uint8_t *frame, uint32_t length);

#endif
