/* What becomes of each connection of a socket device: how it begins, what happens to it, how it ends. See vsock.h.
 *
 * Sockets are watched edge-triggered, so that one whose data nobody may take yet, for want of the guest's credit, does not
 * keep the server awake: `readable` remembers. To be told of room to write costs a wake-up for each read of the other
 * side, and is asked for only while the buffer has something.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "vsock.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/socket.h>

/* --- beginnings --------------------------------------------------------------------------------------------------- */

static int sock_watch(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLRDHUP | EPOLLET,
        .data.u64 = (uint64_t)conn->generation << 32 | vsock_index(vsock, conn),
    };
    return epoll_ctl(vsock->epoll_fd, EPOLL_CTL_ADD, conn->fd, &event);
}

static void sock_open_up(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    if (sock_watch(vsock, conn)) {
        vsock_reset(vsock, conn);
        return;
    }
    conn->state = VSOCK_OPEN;
    conn->readable = 1;
    vsock_wait_for_guest(vsock, conn);
}

/* Connect to the listener of a port: 0, or -errno; -EAGAIN if its queue is full. */
static int sock_knock(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    struct sockaddr_un address = vsock->path;
    char *end = address.sun_path + vsock->path_length;
    int length = snprintf(end, sizeof address.sun_path - vsock->path_length, "_%u", conn->host_port);

    conn->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (conn->fd < 0)
        return -errno;
    socklen_t whole = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + vsock->path_length + (socklen_t)length + 1);
    if (!connect(conn->fd, (struct sockaddr *)&address, whole))
        return 0;
    int error = errno;
    vsock_close(conn);
    return -error;
}

/* Its first try, or a later one. */
static void sock_try_to_connect(struct tvmm_vsock *vsock, struct vsock_conn *conn, uint64_t now)
{
    int error = sock_knock(vsock, conn);
    if (error == -EAGAIN && now < conn->deadline_ns)
        return;
    vsock->knocking--;
    conn->state = VSOCK_CALLED;
    if (error) {
        vsock->counters.refused++;
        vsock_reset(vsock, conn);
        return;
    }
    conn->owes = VSOCK_OWES_RESPONSE;
    sock_open_up(vsock, conn);
}

/* The guest's REQUEST for ports that have no connection. 0: there is no room for another one. */
int vsock_request(struct tvmm_vsock *vsock, const struct vsock_packet *packet)
{
    uint64_t now = tvmm_now_ns();
    struct vsock_conn *conn = vsock_make(vsock, packet->src_port, packet->dst_port, VSOCK_KNOCKING);

    vsock->counters.by_guest++;
    if (!conn)
        return 0;
    conn->peer_alloc = packet->buf_alloc;
    conn->peer_forwarded = packet->fwd_cnt;
    conn->deadline_ns = now + TVMM_VSOCK_KNOCK_MS * 1000000ull;
    vsock->knocking++;
    sock_try_to_connect(vsock, conn, now);
    return 1;
}

void vsock_knock_again(struct tvmm_vsock *vsock)
{
    uint64_t now = tvmm_now_ns();
    if (!vsock->knocking || now - vsock->knocked_ns < TVMM_VSOCK_KNOCK_EVERY_MS * 1000000ull)
        return;
    vsock->knocked_ns = now;
    for (uint32_t index = 0; index < TVMM_VSOCK_CONNECTIONS; index++)
        if (vsock->conns[index].state == VSOCK_KNOCKING)
            sock_try_to_connect(vsock, &vsock->conns[index], now);
}

/* Somebody on the host wants `port`, and talks through `fd`, which is not blocking and the server's from now on. 0 if it
 * was taken: with the first word that the guest's port answers, or is closed. */
int tvmm_vsock_call(struct tvmm_vsock *vsock, int fd, uint32_t port)
{
    uint32_t host_port;
    do {
        host_port = vsock->next_host_port;
        vsock->next_host_port = host_port == VSOCK_LAST_HOST_PORT ? VSOCK_FIRST_HOST_PORT : host_port + 1;
    } while (vsock_find(vsock, port, host_port));
    vsock->counters.by_host++;
    struct vsock_conn *conn = vsock_make(vsock, port, host_port, VSOCK_CALLED);
    if (!conn)
        return -EAGAIN;
    conn->fd = fd;
    if (sock_watch(vsock, conn)) {
        conn->fd = -1;
        vsock_forget(vsock, conn);
        return -errno;
    }
    conn->owes = VSOCK_OWES_REQUEST;
    vsock_wait_for_guest(vsock, conn);
    return 0;
}

/* The guest takes the call. */
void vsock_answered(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    char line[32];
    int length = snprintf(line, sizeof line, "OK %u\n", conn->host_port);

    conn->state = VSOCK_OPEN;
    /* A socket that nobody has written to has room for it. */
    if (send(conn->fd, line, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT) != length) {
        vsock_reset(vsock, conn);
        return;
    }
    conn->readable = 1;
    vsock_wait_for_guest(vsock, conn);
}

/* --- ends --------------------------------------------------------------------------------------------------------- */

/* Both sides hear that it is over at once; what is in its buffer is lost. */
void vsock_reset(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    if (conn->owes & VSOCK_OWES_REQUEST) {
        /* The guest knows nothing of it. */
        vsock_forget(vsock, conn);
        return;
    }
    if (conn->state == VSOCK_KNOCKING)
        vsock->knocking--;
    vsock_close(conn);
    vsock_drop_buffer(vsock, conn);
    conn->forwarded = conn->received;
    conn->owes = 0;
    conn->state = VSOCK_DEAD;
    vsock_wait_for_guest(vsock, conn);
}

/* The guest said so. After its SHUTDOWN there may be something that it has sent and that is not passed on yet. */
void vsock_guest_reset(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    vsock->counters.resets_received++;
    if (conn->state == VSOCK_CALLED)
        vsock->counters.declined++;
    if (conn->state != VSOCK_OPEN || conn->guest_shut != VSOCK_NOTHING || conn->received == conn->forwarded) {
        vsock_forget(vsock, conn);
        return;
    }
    vsock_unhash(vsock, conn);
    vsock_unwait(vsock, conn);
    conn->state = VSOCK_DRAINING;
}

/* What both sides have said to be over is done when the buffer is empty. */
static void sock_finish(struct tvmm_vsock *vsock, struct vsock_conn *conn)
{
    if (conn->received != conn->forwarded)
        return;
    if (conn->state == VSOCK_DRAINING)
        vsock_forget(vsock, conn);
    else if (conn->guest_shut == VSOCK_NOTHING)
        vsock_reset(vsock, conn);
    else if (conn->guest_shut & VSOCK_NO_SEND)
        shutdown(conn->fd, SHUT_WR);
}

void vsock_guest_shut(struct tvmm_vsock *vsock, struct vsock_conn *conn, uint32_t flags)
{
    uint32_t before = conn->guest_shut;
    conn->guest_shut |= flags & VSOCK_NOTHING;
    if (conn->guest_shut == before)
        return;
    if (conn->guest_shut & ~before & VSOCK_NO_RECEIVE)
        shutdown(conn->fd, SHUT_RD);
    sock_finish(vsock, conn);
}

/* The host's end receives no more, or sends no more. */
void vsock_host_shut(struct tvmm_vsock *vsock, struct vsock_conn *conn, uint32_t flags)
{
    if (flags & VSOCK_NO_RECEIVE) {
        vsock->counters.discarded += conn->received - conn->forwarded;
        conn->forwarded = conn->received;
        vsock_drop_buffer(vsock, conn);
    }
    if (conn->state == VSOCK_DRAINING) {
        if (flags & VSOCK_NO_RECEIVE)
            vsock_forget(vsock, conn);
        return;
    }
    if (!(flags & ~conn->host_shut))
        return;
    conn->host_shut |= flags;
    conn->owes |= VSOCK_OWES_SHUTDOWN;
    if (conn->host_shut == VSOCK_NOTHING) {
        vsock_close(conn);
        conn->state = VSOCK_LINGERING;
    }
    if (conn->guest_shut == VSOCK_NOTHING)
        vsock_reset(vsock, conn);
    else
        vsock_wait_for_guest(vsock, conn);
}

/* epoll says so; `what` names a connection, if it is still the one. */
void vsock_happened(struct tvmm_vsock *vsock, uint64_t what, uint32_t events)
{
    struct vsock_conn *conn = &vsock->conns[(uint32_t)what];
    if (conn->generation != (uint32_t)(what >> 32) || conn->fd < 0)
        return;
    if (conn->state == VSOCK_CALLED) {
        /* The caller has hung up before the guest answered. */
        if (events & (EPOLLHUP | EPOLLERR))
            vsock_reset(vsock, conn);
        return;
    }
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        conn->readable = 1;
        if (conn->state == VSOCK_OPEN)
            vsock_wait_for_guest(vsock, conn);
    }
    if (conn->received != conn->forwarded) {
        if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
            vsock_flush_buffer(vsock, conn);
        if (conn->received == conn->forwarded && conn->state != VSOCK_FREE) {
            vsock_drop_buffer(vsock, conn);
            if (conn->state == VSOCK_OPEN || conn->state == VSOCK_DRAINING)
                sock_finish(vsock, conn);
        }
    } else if (events & EPOLLHUP && (conn->host_shut & VSOCK_NO_SEND || conn->guest_shut & VSOCK_NO_RECEIVE)) {
        /* No read will find it out: half of the connection was closed before, and now all is. */
        vsock_host_shut(vsock, conn, VSOCK_NOTHING);
    }
}

/* By the server's thread, without the guest being told: it has no driver any more, or has moved. */
void tvmm_vsock_close_all(struct tvmm_vsock *vsock)
{
    for (uint32_t index = 0; index < TVMM_VSOCK_CONNECTIONS; index++)
        if (vsock->conns[index].state != VSOCK_FREE)
            vsock_forget(vsock, &vsock->conns[index]);
    vsock->reply_count = 0;
}
