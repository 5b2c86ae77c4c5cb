/* One pair of a network device's queues, served by one thread (Virtio 1.3, 5.1.6): frames between the rings and a TAP,
 * or any other descriptor where a write sends a frame and a read takes one, with its header of 12 bytes in front.
 *
 * The system calls work on guest memory. A frame that is longer than what the driver has room for at the moment, and
 * only such a one, waits in a buffer of the server (`held`).
 *
 * Everything here belongs to the server's thread, but for what says otherwise. `lock` is held while frames move; whoever
 * changes the filter or takes the pair off the TAP holds it.
 */
#ifndef TVMM_NET_H
#define TVMM_NET_H

#include "histogram.h"
#include "limit.h"
#include "serve.h"

#include <pthread.h>

#define TVMM_NET_HEADER 12u
/* The longest IP packet behind an Ethernet header with two VLAN tags. What is longer comes from a guest that means ill,
 * and would be memory of the host's kernel. */
#define TVMM_NET_FRAME_MAX (TVMM_NET_HEADER + 22u + 65535u)
#define TVMM_NET_FRAME_MIN (TVMM_NET_HEADER + 14u)
/* Frames of one direction before the other one has its turn, and before the driver hears of them. */
#define TVMM_NET_TURN 64u
/* Frames that are thrown away at most when a driver starts: more than a TAP's queue has. */
#define TVMM_NET_STALE_MAX 4096u
#define TVMM_NET_ADDRESSES 64u
#define TVMM_NET_IOVECS 1024u

enum { TVMM_NET_RX, TVMM_NET_TX, TVMM_NET_CONTROL, TVMM_NET_QUEUES };

/* As RxFilter in tvmm/virtio/net_filter.py has it. */
enum {
    TVMM_NET_PROMISCUOUS = 1,
    TVMM_NET_ALL_MULTICAST = 2,
    TVMM_NET_ALL_UNICAST = 4,
    TVMM_NET_NO_MULTICAST = 8,
    TVMM_NET_NO_UNICAST = 16,
    TVMM_NET_NO_BROADCAST = 32,
};

struct tvmm_net_filter {
    uint32_t modes, any_unicast, any_multicast, unicast_count, multicast_count;
    uint8_t own[6];
    uint8_t unicast[TVMM_NET_ADDRESSES][6], multicast[TVMM_NET_ADDRESSES][6];
};

/* Bytes without headers. `rx_held` frames waited for room, and came in the end or are in rx_no_room. */
struct tvmm_net_counters {
    uint64_t rx_frames, rx_bytes, rx_turns, rx_filtered, rx_no_room, rx_link_down, rx_errors, rx_stale, rx_held;
    uint64_t tx_frames, tx_bytes, tx_turns, tx_too_short, tx_too_long, tx_refused, tx_link_down, tx_waits;
};

/* `limit` is NULL while nothing is limited, and changed by any thread at any time; `limiter` is what it is otherwise.
 * `closed`: a bit for each queue that has to wait, of no meaning without a limit. `seen`: frames and bytes that have been
 * charged, of RX and TX. */
struct tvmm_net_throttle {
    struct tvmm_limit *limit, *limiter;
    struct tvmm_limit_member members[2];
    uint32_t closed, generation;
    uint64_t seen[2][2];
};

struct tvmm_net {
    struct tvmm_served queues[TVMM_NET_QUEUES];
    struct tvmm_waker *waker;
    struct tvmm_batch *rx_batch, *tx_batch;
    struct tvmm_spin spin, hunger; /* for frames to send, and for buffers to receive into */
    int fd;
    uint32_t mergeable;
    uint32_t attached;         /* the TAP has this queue; changed with the lock held */
    uint32_t link_up;          /* changed by any thread at any time */
    int32_t failure;           /* errno that ended the use of `fd`; 0 while it is used */
    uint32_t queue;            /* which of `queues` the word that `serve` came back with is about */
    uint32_t bad_length;       /* that a peer gave a frame, if `failure` is EMSGSIZE */
    uint32_t bad_chain;        /* BROKEN is about a receive buffer that is none, not about the ring */
    struct tvmm_net_counters counters;
    struct tvmm_histogram turns[2]; /* how long each turn took that moved frames, received and sent */
    struct tvmm_net_filter filter;
    /* the rest is not for Python */
    uint64_t now_ns;           /* the end of the last turn or wait: the beginning of the next turn */
    struct tvmm_net_throttle throttle;
    uint32_t failure_told;
    uint32_t stopped;          /* bit for each queue that BROKEN was told of */
    uint32_t rx_first;         /* in this turn */
    uint32_t sent_last;        /* the last work was to send */
    uint32_t frames_alone; /* since the driver sent something, while the server looked for work */
    uint32_t tx_blocked;       /* the TAP takes no more until poll says so */
    uint32_t rx_pushed, rx_next;       /* chains of rx_batch that the driver has back, that are used up */
    uint64_t rx_room;          /* bytes in those that are not */
    uint32_t rx_expect;        /* bytes that a read should find room for */
    uint32_t held_length;
    uint8_t *held, *gathered;
    struct net_stream *stream; /* NULL: `fd` keeps frames apart. See net_stream.h */
    struct iovec iovecs[TVMM_NET_IOVECS];
    pthread_mutex_t lock;
};

struct tvmm_net *tvmm_net_new(int fd);
void tvmm_net_free(struct tvmm_net *net);
void tvmm_net_lock(struct tvmm_net *net);
void tvmm_net_unlock(struct tvmm_net *net);
void tvmm_net_start(struct tvmm_net *net, uint32_t index, struct tvmm_vring *ring, int kick_fd, int32_t call_fd);
void tvmm_net_stop(struct tvmm_net *net, uint32_t index);
void tvmm_net_drain(struct tvmm_net *net);
void tvmm_net_flush(struct tvmm_net *net);
void tvmm_net_set_link(struct tvmm_net *net, uint32_t up);
int tvmm_net_inject(struct tvmm_net *net, const uint8_t *frame, uint32_t length);
int tvmm_net_make_stream(struct tvmm_net *net);
void tvmm_net_connect(struct tvmm_net *net, int fd);
int tvmm_net_passes(const struct tvmm_net_filter *filter, const uint8_t *destination);
int tvmm_net_serve(struct tvmm_net *net);

/* net_limit.c */
int tvmm_net_closed(struct tvmm_net *net, uint32_t index);
int64_t tvmm_net_limit_wait(struct tvmm_net *net);
void tvmm_net_set_limit(struct tvmm_net *net, struct tvmm_limit *limit, uint32_t on);
void tvmm_net_limit_leave(struct tvmm_net *net, uint32_t index);

/* What a turn came to, besides the words that `serve` comes back with. */
enum { NET_IDLE = -2, NET_WORKED = -1 };

static inline int net_serves(const struct tvmm_net *net, uint32_t index)
{
    return net->queues[index].ring && !(net->stopped & 1u << index);
}

static inline int net_link(const struct tvmm_net *net) { return __atomic_load_n(&net->link_up, __ATOMIC_RELAXED); }

static inline int net_connected(const struct tvmm_net *net) { return net->attached && !net->failure; }

/* A turn that moved frames is over but for showing that to the driver. What a frame has waited here is at most that long:
 * each turn begins where the last one, or the wait before it, ended. */
static inline void net_turn_over(struct tvmm_net *net, uint32_t index)
{
    if (!tvmm_timing)
        return;
    uint64_t now = tvmm_now_ns();
    tvmm_histogram_add(&net->turns[index], now - net->now_ns);
    net->now_ns = now;
}

/* Whether frames of this direction wait for tokens, as it was found last. */
static inline int net_is_closed(const struct tvmm_net *net, uint32_t index)
{
    return tvmm_limit_of(&net->throttle.limit) && net->throttle.closed & 1u << index;
}

static inline int net_can_send(const struct tvmm_net *net)
{
    return net_serves(net, TVMM_NET_TX) && !net->tx_blocked && !net_is_closed(net, TVMM_NET_TX);
}

void net_failed(struct tvmm_net *net, int error);
int net_broken(struct tvmm_net *net, uint32_t index);
int net_told(struct tvmm_net *net, uint32_t index);
uint64_t *net_obstacle(struct tvmm_net *net, const struct tvmm_chain *chain);
struct iovec net_gather(struct tvmm_net *net, const struct iovec *iovecs, uint32_t count);
int net_send(struct tvmm_net *net);
void net_deliver(struct tvmm_net *net, const uint8_t *frame, uint32_t length);
int net_discard(struct tvmm_net *net);
int net_receive(struct tvmm_net *net);
void net_return_pool(struct tvmm_net *net);

#endif
