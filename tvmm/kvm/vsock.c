/* The server of a socket device: its loop, its sleep, and what starts and stops it. See vsock.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "vsock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* While looking for work, how often to ask the sockets, which takes a system call. */
#define VSOCK_LOOK_NS 2000u
#define VSOCK_EVENTS 64

/* In place of a connection, what else the server waits for: its waker, and the kicks of queues. */
#define VSOCK_WAKER 0xffffff00u
#define VSOCK_KICK 0xffffff01u

/* NULL and -errno if the host has not got what it takes. `path` is that of the listening socket on the host, without the
 * `_PORT` that those for guests' connections have; with the longest one it fits an address. */
struct tvmm_vsock *tvmm_vsock_new(uint64_t guest_cid, const char *path, int *error)
{
    struct tvmm_vsock *vsock = calloc(1, sizeof *vsock);
    *error = -ENOMEM;
    if (!vsock)
        return NULL;
    vsock->guest_cid = guest_cid;
    vsock->path.sun_family = AF_UNIX;
    vsock->path_length = (socklen_t)strnlen(path, sizeof vsock->path.sun_path);
    if (vsock->path_length + sizeof "_4294967295" > sizeof vsock->path.sun_path) {
        *error = -ENAMETOOLONG;
        free(vsock);
        return NULL;
    }
    memcpy(vsock->path.sun_path, path, vsock->path_length);
    vsock_table_init(vsock);
    vsock->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (vsock->epoll_fd >= 0)
        return vsock;
    *error = -errno;
    free(vsock);
    return NULL;
}

void tvmm_vsock_free(struct tvmm_vsock *vsock)
{
    if (!vsock)
        return;
    tvmm_vsock_close_all(vsock);
    close(vsock->epoll_fd);
    free(vsock->spare);
    free(vsock);
}

/* --- queues ------------------------------------------------------------------------------------------------------- */

static int vsock_watch_also(struct tvmm_vsock *vsock, int fd, uint32_t what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = what};
    return epoll_ctl(vsock->epoll_fd, EPOLL_CTL_ADD, fd, &event) && errno != EEXIST ? -errno : 0;
}

/* By the server's thread, as all of this part: serve `ring`, which is configured. 0, or -errno. */
int tvmm_vsock_start(struct tvmm_vsock *vsock, uint32_t index, struct tvmm_vring *ring, int kick_fd, int32_t call_fd)
{
    struct tvmm_served *queue = &vsock->queues[index];
    int error = vsock_watch_also(vsock, vsock->waker->event_fd, VSOCK_WAKER);
    if (!error)
        error = vsock_watch_also(vsock, kick_fd, VSOCK_KICK + index);
    if (error)
        return error;
    queue->kick_fd = kick_fd;
    tvmm_set_call(queue, call_fd);
    queue->ring = ring;
    vsock->stopped &= ~(1u << index);
    if (index == TVMM_VSOCK_RX) {
        vsock->rx_batch->count = vsock->rx_next = vsock->rx_pushed = 0;
        vsock->bad_chain = 0;
    }
    if (ring->kicks_wanted)
        tvmm_vring_disable_kicks(ring);
    return 0;
}

/* Nothing of the ring is used afterwards. Connections stay; see tvmm_vsock_close_all. */
void tvmm_vsock_stop(struct tvmm_vsock *vsock, uint32_t index)
{
    if (!vsock->queues[index].ring)
        return;
    if (index == TVMM_VSOCK_RX)
        vsock_return_pool(vsock);
    epoll_ctl(vsock->epoll_fd, EPOLL_CTL_DEL, vsock->queues[index].kick_fd, NULL);
    vsock->queues[index].ring = NULL;
}

/* Nothing in flight; `serve` goes on as if nothing had been. */
void tvmm_vsock_drain(struct tvmm_vsock *vsock) { vsock_return_pool(vsock); }

int vsock_broken(struct tvmm_vsock *vsock, uint32_t index)
{
    vsock->stopped |= 1u << index;
    vsock->queue = index;
    return TVMM_SERVE_BROKEN;
}

/* After a push: the driver is told, or Python has to tell it. */
int vsock_told(struct tvmm_vsock *vsock, uint32_t index)
{
    if (!tvmm_served_call(&vsock->queues[index]))
        return VSOCK_WORKED;
    vsock->queue = index;
    return TVMM_SERVE_INTERRUPT;
}

/* --- the loop ----------------------------------------------------------------------------------------------------- */

/* What the sockets have to say: how many events, waiting for the first one at most `wait_ms`. `kicked`: a bit for each
 * queue whose driver kicked. */
static int vsock_listen(struct tvmm_vsock *vsock, int wait_ms, uint32_t *kicked)
{
    struct epoll_event events[VSOCK_EVENTS];
    int count = epoll_wait(vsock->epoll_fd, events, VSOCK_EVENTS, wait_ms), news = 0;

    for (int at = 0; at < count; at++) {
        uint32_t index = (uint32_t)events[at].data.u64 - VSOCK_KICK;
        if ((uint32_t)events[at].data.u64 < VSOCK_WAKER) {
            vsock_happened(vsock, events[at].data.u64, events[at].events);
            news++;
        } else if (index < TVMM_VSOCK_QUEUES) {
            tvmm_served_take_kick(&vsock->queues[index]);
            *kicked |= 1u << index;
        }
    }
    return news;
}

static int vsock_tx_waits(const struct tvmm_vsock *vsock)
{
    return vsock_serves(vsock, TVMM_VSOCK_TX) && vsock->reply_count < TVMM_VSOCK_REPLIES
           && tvmm_vring_ready(vsock->queues[TVMM_VSOCK_TX].ring);
}

/* Something for the guest, and somewhere to put it. */
static int vsock_rx_waits(const struct tvmm_vsock *vsock)
{
    return vsock_serves(vsock, TVMM_VSOCK_RX) && vsock_has_news(vsock)
           && (!vsock->hungry || tvmm_vring_ready(vsock->queues[TVMM_VSOCK_RX].ring));
}

static int vsock_event_waits(const struct tvmm_vsock *vsock)
{
    return vsock->reset_due && vsock_serves(vsock, TVMM_VSOCK_EVENT)
           && tvmm_vring_ready(vsock->queues[TVMM_VSOCK_EVENT].ring);
}

/* A turn of each direction, which take turns at being first, because a word that Python is needed for ends it. */
static int vsock_turn(struct tvmm_vsock *vsock)
{
    uint32_t kicked = 0;
    int heard = 0;
    vsock->rx_first = !vsock->rx_first;
    if (vsock_event_waits(vsock)) {
        int word = vsock_tell_reset(vsock);
        if (word >= 0)
            return word;
        heard = 1;
    }
    vsock_knock_again(vsock);
    if (vsock->connections)
        heard += vsock_listen(vsock, 0, &kicked);
    int first = vsock->rx_first ? vsock_receive(vsock) : vsock_send(vsock), second = VSOCK_IDLE;
    if (first < 0)
        second = vsock->rx_first ? vsock_send(vsock) : vsock_receive(vsock);
    int word = second == VSOCK_IDLE ? first : second;
    return word == VSOCK_IDLE && heard ? VSOCK_WORKED : word;
}

/* VSOCK_IDLE if nothing came for as long as it is worth looking. */
static int vsock_look(struct tvmm_vsock *vsock, uint64_t start)
{
    uint64_t now = start, looked = start;
    uint32_t kicked = 0;
    while (now - start < vsock->spin.window_ns) {
        int found = tvmm_woken(vsock->waker) || vsock_tx_waits(vsock) || vsock_rx_waits(vsock);
        if (!found && vsock->connections && now - looked >= VSOCK_LOOK_NS) {
            looked = now;
            found = vsock_listen(vsock, 0, &kicked);
        }
        if (found) {
            vsock->spin.hits++;
            return VSOCK_WORKED;
        }
        tvmm_relax();
        now = tvmm_now_ns();
    }
    return VSOCK_IDLE;
}

/* Ask for the kicks that matter. 0: there is work already. */
static int vsock_arm(struct tvmm_vsock *vsock)
{
    if (vsock_serves(vsock, TVMM_VSOCK_TX) && vsock->reply_count < TVMM_VSOCK_REPLIES
        && !tvmm_vring_enable_kicks(vsock->queues[TVMM_VSOCK_TX].ring))
        return 0;
    if (vsock_serves(vsock, TVMM_VSOCK_RX) && vsock_has_news(vsock)
        && !tvmm_vring_enable_kicks(vsock->queues[TVMM_VSOCK_RX].ring))
        return 0;
    return !vsock->reset_due || !vsock_serves(vsock, TVMM_VSOCK_EVENT)
           || tvmm_vring_enable_kicks(vsock->queues[TVMM_VSOCK_EVENT].ring);
}

/* Until a kick, a socket, or somebody who wants the thread. */
static int vsock_wait(struct tvmm_vsock *vsock)
{
    uint64_t start = tvmm_now_ns();
    uint32_t kicked = 0;
    int news = 0, word = vsock_look(vsock, start);

    if (word != VSOCK_IDLE)
        return word;
    if (vsock_arm(vsock)) {
        vsock->spin.sleeps++;
        news = vsock_listen(vsock, vsock->knocking ? (int)TVMM_VSOCK_KNOCK_EVERY_MS : -1, &kicked);
    }
    for (uint32_t index = 0; index < TVMM_VSOCK_QUEUES; index++)
        if (vsock_serves(vsock, index))
            tvmm_vring_disable_kicks(vsock->queues[index].ring);
    if (kicked || news)
        tvmm_spin_adapt(&vsock->spin, tvmm_now_ns() - start);
    return VSOCK_WORKED;
}

/* Until Python is needed: one of TVMM_SERVE_*, and `queue` says which queue it is about. Without `sleeps` it comes back with
 * TVMM_SERVE_CONTROL when there is nothing more to do. */
int tvmm_vsock_serve(struct tvmm_vsock *vsock, uint32_t sleeps)
{
    for (;;) {
        if (tvmm_woken(vsock->waker))
            return TVMM_SERVE_CONTROL;
        int word = vsock_turn(vsock);
        if (word == VSOCK_IDLE && !sleeps)
            return TVMM_SERVE_CONTROL;
        if (word == VSOCK_IDLE)
            word = vsock_wait(vsock);
        if (word >= 0)
            return word;
    }
}
