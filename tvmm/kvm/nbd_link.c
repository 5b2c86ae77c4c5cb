/* One connection to an NBD server as others see it: given, lost, hung up. See nbd.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "nbd.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* Of what is on its way to the server; the kernel may allow less. */
#define NBD_SEND_BUFFER (1 << 20)

/* NULL, with *error a -errno. */
struct tvmm_nbd_link *tvmm_nbd_link_new(int *error)
{
    struct tvmm_nbd_link *link = calloc(1, sizeof *link);
    *error = -ENOMEM;
    if (!link)
        return NULL;
    link->lost_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (link->lost_fd < 0) {
        *error = -errno;
        free(link);
        return NULL;
    }
    pthread_mutex_init(&link->lock, NULL);
    link->fd = link->given_fd = -1;
    link->own.cookie = UINT32_MAX;
    *error = 0;
    return link;
}

/* Nobody uses it any more, and its queue has been freed. */
void tvmm_nbd_link_free(struct tvmm_nbd_link *link)
{
    if (!link)
        return;
    if (link->fd >= 0) {
        tvmm_nbd_say_goodbye(link);
        close(link->fd);
    }
    if (link->given_fd >= 0)
        close(link->given_fd);
    close(link->lost_fd);
    pthread_mutex_destroy(&link->lock);
    free(link);
}

int tvmm_nbd_link_lost_fd(const struct tvmm_nbd_link *link) { return link->lost_fd; }

/* --- orders ------------------------------------------------------------------------------------------------------- */

/* With the lock. */
static void nbd_order(struct tvmm_nbd_link *link, int fd, int error)
{
    if (link->given_fd >= 0)
        close(link->given_fd);
    link->given_fd = fd;
    link->fail_error = error;
    __atomic_store_n(&link->orders, 1, __ATOMIC_RELEASE);
    if (link->waker)
        tvmm_waker_wake(link->waker);
}

/* Use a duplicate of `fd`, a connected stream socket, from now on. 0, -EINVAL for an export that is none, or -errno. */
int tvmm_nbd_link_give(struct tvmm_nbd_link *link, int fd, const struct tvmm_nbd_transmission *transmission)
{
    uint32_t block = transmission->minimum_block;
    if (!block || block & (block - 1) || block > TVMM_NBD_BLOCK_MAX || transmission->maximum_payload < block)
        return -EINVAL;
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3), one = 1, room = NBD_SEND_BUFFER;
    if (copy < 0)
        return -errno;
    /* A request is one call and not to wait for the next one; not every socket is TCP's. */
    setsockopt(copy, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(copy, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    pthread_mutex_lock(&link->lock);
    link->given = *transmission;
    nbd_order(link, copy, 0);
    pthread_mutex_unlock(&link->lock);
    return 0;
}

/* What is outstanding or comes fails with `error` until the next socket is given. */
void tvmm_nbd_link_fail(struct tvmm_nbd_link *link, int error)
{
    pthread_mutex_lock(&link->lock);
    nbd_order(link, -1, error);
    pthread_mutex_unlock(&link->lock);
}

/* The connection is lost, if there is one: the queue's thread finds its end. */
void tvmm_nbd_link_hang_up(struct tvmm_nbd_link *link)
{
    pthread_mutex_lock(&link->lock);
    if (link->fd >= 0) {
        link->hung_up = 1;
        shutdown(link->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&link->lock);
}

/* 1, with the reason, if a connection was lost since the last time. */
int tvmm_nbd_link_take_loss(struct tvmm_nbd_link *link, char *text, uint32_t room)
{
    eventfd_t count;
    pthread_mutex_lock(&link->lock);
    int lost = (int)link->lost;
    if (eventfd_read(link->lost_fd, &count) < 0)
        count = 0;
    link->lost = 0;
    snprintf(text, room, "%s", lost ? link->reason : "");
    pthread_mutex_unlock(&link->lock);
    return lost;
}

/* --- the queue's thread ------------------------------------------------------------------------------------------- */

static void nbd_close(struct tvmm_nbd_link *link)
{
    pthread_mutex_lock(&link->lock);
    if (link->fd >= 0)
        close(link->fd);
    link->fd = -1;
    link->hung_up = 0;
    pthread_mutex_unlock(&link->lock);
    link->state = TVMM_NBD_LOST;
    link->unsent = link->filling = NULL;
    link->blocked = 0;
    link->stage_start = link->stage_end = 0;
}

/* The connection is of no use any more, for a reason in words. What is outstanding stays. */
void tvmm_nbd_drop(struct tvmm_nbd_link *link, const char *format, ...)
{
    va_list arguments;
    if (link->fd < 0)
        return;
    pthread_mutex_lock(&link->lock);
    va_start(arguments, format);
    if (link->hung_up)
        snprintf(link->reason, sizeof link->reason, "this side has hung up");
    else
        vsnprintf(link->reason, sizeof link->reason, format, arguments);
    va_end(arguments);
    link->lost = 1;
    eventfd_write(link->lost_fd, 1);
    pthread_mutex_unlock(&link->lock);
    nbd_close(link);
}

/* What others have ordered since the last time. */
void tvmm_nbd_take_orders(struct tvmm_nbd_link *link)
{
    if (!__atomic_load_n(&link->orders, __ATOMIC_ACQUIRE))
        return;
    nbd_close(link);
    pthread_mutex_lock(&link->lock);
    link->fd = link->given_fd;
    link->given_fd = -1;
    link->transmission = link->given;
    link->failing = link->fail_error;
    link->state = link->fd >= 0 ? TVMM_NBD_UP : TVMM_NBD_FAILING;
    __atomic_store_n(&link->orders, 0, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&link->lock);
    tvmm_nbd_again(link);
}

/* --- a flush of the owner's --------------------------------------------------------------------------------------- */

static int nbd_wait_for_own(struct tvmm_nbd_link *link)
{
    uint64_t end = tvmm_now_ns() + TVMM_NBD_FLUSH_PATIENCE_NS;
    while (link->own.link) {
        tvmm_nbd_send(link);
        tvmm_nbd_receive(link);
        if (link->fd < 0)
            return -ENOTCONN;
        uint64_t now = tvmm_now_ns();
        if (now >= end) {
            tvmm_nbd_drop(link, "the server does not answer a flush");
            return -ETIMEDOUT;
        }
        if (!link->own.link)
            break;
        struct pollfd wait = {link->fd, (short)(POLLIN | (link->blocked ? POLLOUT : 0)), 0};
        poll(&wait, 1, (int)((end - now) / 1000000 + 1));
    }
    return link->own.error;
}

/* Have all that was written on stable storage. Nothing is outstanding, and the queue's thread lets the link alone. 0, also
 * from a server that knows no flush, or -errno. */
int tvmm_nbd_link_flush(struct tvmm_nbd_link *link)
{
    tvmm_nbd_take_orders(link);
    if (link->outstanding)
        return -EBUSY;
    if (link->state != TVMM_NBD_UP)
        return link->state == TVMM_NBD_FAILING ? -link->failing : -ENOTCONN;
    if (!(link->transmission.flags & TVMM_NBD_CAN_FLUSH))
        return 0;
    link->own.stable = 0;
    link->own.errors = 0;
    link->own.error = 0;
    tvmm_nbd_encode_flush(link, &link->own);
    tvmm_nbd_append(link, &link->own);
    int error = nbd_wait_for_own(link);
    if (link->own.link)
        tvmm_nbd_remove(link, &link->own);
    return error;
}
