/* The server of a pair of queues: its loop, its sleep, and what other threads change. See net.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net_stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* While looking for work, how often to ask the TAP, which takes a system call. */
#define NET_LOOK_NS 3000u
#define NET_FRAMES_ALONE 8u

struct tvmm_net *tvmm_net_new(int fd)
{
    struct tvmm_net *net = calloc(1, sizeof *net);
    if (!net)
        return NULL;
    net->fd = fd;
    net->held = malloc(TVMM_NET_FRAME_MAX);
    net->gathered = malloc(TVMM_NET_FRAME_MAX);
    pthread_mutex_init(&net->lock, NULL);
    if (net->held && net->gathered)
        return net;
    tvmm_net_free(net);
    return NULL;
}

void tvmm_net_free(struct tvmm_net *net)
{
    if (!net)
        return;
    pthread_mutex_destroy(&net->lock);
    free(net->held);
    free(net->gathered);
    free(net->stream);
    free(net);
}

void tvmm_net_lock(struct tvmm_net *net) { pthread_mutex_lock(&net->lock); }
void tvmm_net_unlock(struct tvmm_net *net) { pthread_mutex_unlock(&net->lock); }

/* --- queues ------------------------------------------------------------------------------------------------------- */

/* By the server's thread, as all of this part: serve `ring`, which is configured. */
void tvmm_net_start(struct tvmm_net *net, uint32_t index, struct tvmm_vring *ring, int kick_fd, int32_t call_fd)
{
    struct tvmm_served *queue = &net->queues[index];
    queue->kick_fd = kick_fd;
    tvmm_set_call(queue, call_fd);
    queue->ring = ring;
    net->stopped &= ~(1u << index);
    if (index == TVMM_NET_RX) {
        net->rx_batch->count = net->rx_next = net->rx_pushed = 0;
        net->rx_room = 0;
        net->rx_expect = TVMM_NET_FRAME_MAX;
        net->bad_chain = 0;
    }
    if (index != TVMM_NET_CONTROL && ring->kicks_wanted)
        tvmm_vring_disable_kicks(ring);
}

/* Nothing of the ring is used afterwards. A frame that waited for room is lost. */
void tvmm_net_stop(struct tvmm_net *net, uint32_t index)
{
    if (index == TVMM_NET_RX) {
        net_return_pool(net);
        net->held_length = 0;
    }
    if (index == TVMM_NET_TX)
        net->tx_blocked = 0;
    if (index != TVMM_NET_CONTROL)
        tvmm_net_limit_leave(net, index);
    net->queues[index].ring = NULL;
}

/* Nothing in flight; `serve` goes on as if nothing had been. */
void tvmm_net_drain(struct tvmm_net *net)
{
    net_return_pool(net);
    tvmm_net_limit_leave(net, TVMM_NET_RX);
    tvmm_net_limit_leave(net, TVMM_NET_TX);
}

/* Throw away what came before the driver was there: it may be in a form that this driver has not agreed to. */
void tvmm_net_flush(struct tvmm_net *net)
{
    for (uint32_t count = 0; count < TVMM_NET_STALE_MAX; count++) {
        if (net->failure || !net_discard(net))
            return;
        net->counters.rx_stale++;
    }
}

/* By any thread: send a frame without header that is not the driver's. 0: it is lost. */
int tvmm_net_inject(struct tvmm_net *net, const uint8_t *frame, uint32_t length)
{
    uint8_t header[TVMM_NET_HEADER] = {0};
    struct iovec pieces[2] = {{header, sizeof header}, {(void *)frame, length}};

    tvmm_net_lock(net);
    int sent = !net->failure && (net->stream ? net_stream_inject(net, frame, length) : writev(net->fd, pieces, 2) > 0);
    tvmm_net_unlock(net);
    return sent;
}

/* By any thread. */
void tvmm_net_set_link(struct tvmm_net *net, uint32_t up) { __atomic_store_n(&net->link_up, up, __ATOMIC_RELAXED); }

/* --- the filter --------------------------------------------------------------------------------------------------- */

static int listed(const uint8_t (*table)[6], uint32_t count, const uint8_t *address)
{
    for (uint32_t index = 0; index < count; index++)
        if (!memcmp(table[index], address, 6))
            return 1;
    return 0;
}

/* Whether a frame to `destination` is for this guest (5.1.6.5.1, 5.1.6.5.2). */
int tvmm_net_passes(const struct tvmm_net_filter *filter, const uint8_t *destination)
{
    static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    uint32_t modes = filter->modes;

    if (modes & TVMM_NET_PROMISCUOUS)
        return 1;
    if (!memcmp(destination, broadcast, 6))
        return !(modes & TVMM_NET_NO_BROADCAST);
    if (destination[0] & 1)
        return !(modes & TVMM_NET_NO_MULTICAST)
               && (modes & TVMM_NET_ALL_MULTICAST || filter->any_multicast
                   || listed(filter->multicast, filter->multicast_count, destination));
    return !(modes & TVMM_NET_NO_UNICAST)
           && (modes & TVMM_NET_ALL_UNICAST || filter->any_unicast || !memcmp(destination, filter->own, 6)
               || listed(filter->unicast, filter->unicast_count, destination));
}

/* --- what turns end with ------------------------------------------------------------------------------------------ */

/* After a write: `error` may mean that the TAP is gone, and not that this frame was refused. */
void net_failed(struct tvmm_net *net, int error)
{
    switch (error) {
    case EBADFD:
    case EBADF:
    case ENODEV:
    case EPIPE:
    case ENOTCONN:
    case ECONNREFUSED:
    case ECONNRESET:
        net->failure = error;
    }
}

int net_broken(struct tvmm_net *net, uint32_t index)
{
    net->stopped |= 1u << index;
    net->queue = index;
    return TVMM_SERVE_BROKEN;
}

/* After a push: the driver is told, or Python has to tell it. */
int net_told(struct tvmm_net *net, uint32_t index)
{
    if (!tvmm_served_call(&net->queues[index]))
        return NET_WORKED;
    net->queue = index;
    return TVMM_SERVE_INTERRUPT;
}

/* --- the loop ----------------------------------------------------------------------------------------------------- */

static int net_receive_locked(struct tvmm_net *net)
{
    tvmm_net_lock(net);
    int word = net_receive(net);
    tvmm_net_unlock(net);
    return word;
}

/* A turn of each direction. They take turns at being first, because a word that Python is needed for ends it. */
static int net_turn(struct tvmm_net *net)
{
    net->rx_first = !net->rx_first;
    tvmm_net_lock(net);
    int first = net->rx_first ? net_receive(net) : net_send(net), second = NET_IDLE;
    if (first < 0)
        second = net->rx_first ? net_send(net) : net_receive(net);
    tvmm_net_unlock(net);
    return second == NET_IDLE ? first : second;
}

static int control_waits(const struct tvmm_net *net)
{
    return net_serves(net, TVMM_NET_CONTROL) && tvmm_vring_ready(net->queues[TVMM_NET_CONTROL].ring);
}

/* The driver's next buffers are waited for, and no frame is read until they are there. */
static int is_hungry(const struct tvmm_net *net)
{
    return net_serves(net, TVMM_NET_RX) && !net_is_closed(net, TVMM_NET_RX)
           && (net->held_length || net->rx_next == net->rx_batch->count);
}

/* NET_IDLE if nothing came for as long as it is worth looking. What it is worth the driver's kicks decide alone. A TAP
 * under a flood would keep the thread looking for ever, a frame at a time, where sleep lets frames gather: so who has been
 * given nothing but frames for a while does not look any more. */
static int net_look(struct tvmm_net *net, uint64_t start)
{
    uint64_t now = start, looked = start;
    while (now - start < net->spin.window_ns) {
        if (tvmm_woken(net->waker) || control_waits(net))
            return NET_WORKED;
        int word = NET_IDLE;
        if (net_can_send(net) && tvmm_vring_ready(net->queues[TVMM_NET_TX].ring)) {
            word = NET_WORKED;
        } else if (now - looked >= NET_LOOK_NS) {
            looked = now;
            word = net_receive_locked(net);
        }
        if (word != NET_IDLE) {
            net->spin.hits++;
            if (looked != now)
                net->frames_alone = 0;
            else if (++net->frames_alone >= NET_FRAMES_ALONE)
                net->spin.window_ns = 0;
            return word;
        }
        tvmm_relax();
        now = net->now_ns = tvmm_now_ns();
    }
    return NET_IDLE;
}

/* The same for the driver's next receive buffers: under a flood a driver on another processor has them in a moment. */
static int net_look_for_room(struct tvmm_net *net, uint64_t start)
{
    uint64_t window = net->hunger.window_ns;
    if (net->sent_last && net->spin.window_ns > window)
        window = net->spin.window_ns;
    while ((net->now_ns = tvmm_now_ns()) - start < window) {
        if (tvmm_woken(net->waker) || control_waits(net) || tvmm_vring_ready(net->queues[TVMM_NET_RX].ring)
            || (net_can_send(net) && tvmm_vring_ready(net->queues[TVMM_NET_TX].ring))) {
            net->hunger.hits++;
            return NET_WORKED;
        }
        tvmm_relax();
    }
    return NET_IDLE;
}

static int has_news_of_failure(const struct tvmm_net *net) { return net->failure && !net->failure_told; }

/* Ask for the kicks that matter. 0: there is work already. */
static int arm(struct tvmm_net *net, int hungry)
{
    if (has_news_of_failure(net))
        return 0;
    if (net_can_send(net) && !tvmm_vring_enable_kicks(net->queues[TVMM_NET_TX].ring))
        return 0;
    if (hungry && !tvmm_vring_enable_kicks(net->queues[TVMM_NET_RX].ring))
        return 0;
    return !net_serves(net, TVMM_NET_CONTROL) || tvmm_vring_enable_kicks(net->queues[TVMM_NET_CONTROL].ring);
}

/* Until a kick, a frame, or somebody who wants the thread. `kicked`: the driver, by a bit for each queue. */
static int net_sleep(struct tvmm_net *net, uint32_t *kicked)
{
    int64_t wait_ns = tvmm_limit_of(&net->throttle.limit) ? tvmm_net_limit_wait(net) : -1;
    int hungry = is_hungry(net);
    int receives = net_serves(net, TVMM_NET_RX) && !hungry && !net_is_closed(net, TVMM_NET_RX);
    struct pollfd waits[2 + TVMM_NET_QUEUES] = {{.fd = net->waker->event_fd, .events = POLLIN}, {.fd = -1}};

    if (net_connected(net)) {
        waits[1].fd = net->fd;
        waits[1].events = (short)((receives ? POLLIN : 0) | (net->tx_blocked ? POLLOUT : 0));
    }
    for (uint32_t index = 0; index < TVMM_NET_QUEUES; index++)
        waits[2 + index] = (struct pollfd){.fd = net_serves(net, index) ? net->queues[index].kick_fd : -1, .events = POLLIN};
    if (arm(net, hungry)) {
        net->spin.sleeps++;
        tvmm_limit_poll(waits, 2 + TVMM_NET_QUEUES, wait_ns);
    }
    *kicked = 0;
    for (uint32_t index = 0; index < TVMM_NET_QUEUES; index++) {
        *kicked |= (uint32_t)(waits[2 + index].revents != 0) << index;
        if (waits[2 + index].revents)
            tvmm_served_take_kick(&net->queues[index]);
        if (net_serves(net, index) && index != TVMM_NET_CONTROL)
            tvmm_vring_disable_kicks(net->queues[index].ring);
    }
    if (waits[1].revents & (POLLOUT | POLLERR | POLLHUP | POLLNVAL))
        net->tx_blocked = 0;
    if (!(waits[1].revents & (POLLERR | POLLHUP | POLLNVAL)))
        return NET_WORKED;
    /* What a peer sent before it hung up is read first. */
    if (net->stream && waits[1].revents & POLLIN)
        return NET_WORKED;
    /* Either the TAP is gone, or the pair has been taken off it a moment ago. */
    tvmm_net_lock(net);
    struct pollfd again = {.fd = net->fd};
    if (net_connected(net) && poll(&again, 1, 0) > 0)
        net->failure = net->stream ? EPIPE : ENODEV;
    tvmm_net_unlock(net);
    return NET_WORKED;
}

static int net_wait(struct tvmm_net *net)
{
    uint64_t start = net->now_ns = tvmm_now_ns();
    int hungry = is_hungry(net), word = NET_IDLE;
    uint32_t kicked;

    if (hungry)
        word = net_look_for_room(net, start);
    else if (!net->tx_blocked && !net_is_closed(net, TVMM_NET_RX) && !net_is_closed(net, TVMM_NET_TX))
        word = net_look(net, start);
    if (word != NET_IDLE)
        return word;
    word = net_sleep(net, &kicked);
    net->now_ns = tvmm_now_ns();
    if (hungry && kicked & 1u << TVMM_NET_RX)
        tvmm_spin_adapt(&net->hunger, net->now_ns - start);
    else if (kicked & 1u << TVMM_NET_TX)
        tvmm_spin_adapt(&net->spin, net->now_ns - start);
    return word;
}

/* Until Python is needed: one of TVMM_SERVE_*, and `queue` says which queue it is about. */
int tvmm_net_serve(struct tvmm_net *net)
{
    net->now_ns = tvmm_now_ns();
    for (;;) {
        if (tvmm_woken(net->waker))
            return TVMM_SERVE_CONTROL;
        if (has_news_of_failure(net)) {
            net->failure_told = 1;
            return TVMM_SERVE_FAILED;
        }
        if (control_waits(net)) {
            net->queue = TVMM_NET_CONTROL;
            return TVMM_SERVE_CHAIN;
        }
        int word = net_turn(net);
        if (word == NET_IDLE)
            word = net_wait(net);
        if (word >= 0)
            return word;
    }
}
