/* See serve.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "serve.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define FIRST_WINDOW_NS 4000u

/* 0, or -errno. */
int tvmm_waker_open(struct tvmm_waker *waker)
{
    waker->wanted = 0;
    waker->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return waker->event_fd < 0 ? -errno : 0;
}

void tvmm_waker_close(struct tvmm_waker *waker)
{
    if (waker->event_fd >= 0)
        close(waker->event_fd);
    waker->event_fd = -1;
}

static void add_one(int fd)
{
    uint64_t one = 1;
    /* Fails only while the counter is full, and then the reader has been told already. */
    if (write(fd, &one, sizeof one) < 0)
        return;
}

/* The eventfd before the flag, and in `clear` the flag before the eventfd: so an eventfd that is written never stays
 * behind without its flag, which a sleeper would look at for ever. */
void tvmm_waker_wake(struct tvmm_waker *waker)
{
    add_one(waker->event_fd);
    __atomic_store_n(&waker->wanted, 1, __ATOMIC_SEQ_CST);
}

/* By the server's thread, before it looks at what is wanted: what comes after that wakes it again. */
void tvmm_waker_clear(struct tvmm_waker *waker)
{
    uint64_t count;
    __atomic_store_n(&waker->wanted, 0, __ATOMIC_SEQ_CST);
    if (read(waker->event_fd, &count, sizeof count) < 0)
        count = 0;
}

/* Until woken. */
void tvmm_waker_wait(struct tvmm_waker *waker)
{
    struct pollfd wait = {.fd = waker->event_fd, .events = POLLIN};
    while (!tvmm_woken(waker))
        poll(&wait, 1, -1);
}

/* Tell the driver about used buffers, if it wants to know. 1: Python has to. */
int tvmm_served_call(struct tvmm_served *queue)
{
    if (!tvmm_vring_should_notify(queue->ring))
        return 0;
    int32_t fd = __atomic_load_n(&queue->call_fd, __ATOMIC_ACQUIRE);
    if (fd >= 0) {
        add_one(fd);
        return 0;
    }
    if (fd == TVMM_CALL_NONE)
        return 0;
    queue->calls_by_python++;
    return 1;
}

void tvmm_served_take_kick(struct tvmm_served *queue)
{
    uint64_t count;
    if (queue->ring && read(queue->kick_fd, &count, sizeof count) == (ssize_t)sizeof count)
        queue->ring->counters.kicks += count;
}

void tvmm_set_call(struct tvmm_served *queue, int32_t fd) { __atomic_store_n(&queue->call_fd, fd, __ATOMIC_RELEASE); }

uint64_t tvmm_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* After a wait of `waited_ns`, looked or slept: work that came soon is worth looking for, other work is not. */
void tvmm_spin_adapt(struct tvmm_spin *spin, uint64_t waited_ns)
{
    if (waited_ns > spin->max_ns) {
        spin->window_ns = 0;
    } else if (waited_ns > spin->window_ns) {
        uint64_t wider = spin->window_ns ? 2 * spin->window_ns : FIRST_WINDOW_NS;
        spin->window_ns = wider < spin->max_ns ? wider : spin->max_ns;
    }
}
