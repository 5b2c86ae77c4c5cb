/* What the servers of virtqueues share: a queue with its two notifications, the way into a sleeping server, and the
 * decision between looking again and going to sleep.
 *
 * A server is a C loop on a thread of its own, entered from Python without the interpreter lock. It comes back for what
 * Python decides, one of TVMM_SERVE_*, and is entered again.
 */
#ifndef TVMM_SERVE_H
#define TVMM_SERVE_H

#include "vring.h"

#include <poll.h>
#include <stdint.h>

enum tvmm_serve {
    TVMM_SERVE_CONTROL,   /* somebody has woken the server: look what is wanted of it */
    TVMM_SERVE_INTERRUPT, /* a queue has used buffers, and no eventfd: Python is to interrupt the driver */
    TVMM_SERVE_CHAIN,     /* a chain that is Python's to carry out */
    TVMM_SERVE_BROKEN,    /* a ring has stopped, or a chain is no request: the driver has to reset the device */
    TVMM_SERVE_FAILED,    /* the backend has failed in a way that is Python's to decide about */
};

/* In `call_fd`, for an interrupt that no eventfd carries. */
#define TVMM_CALL_PYTHON (-1) /* by Python, which knows about INTx and the interrupt status */
#define TVMM_CALL_NONE (-2)   /* not at all: the queue has no vector */

/* One queue as its server has it. `call_fd` is changed by any thread at any time. `ring` is NULL while the queue is
 * not in use. */
struct tvmm_served {
    struct tvmm_vring *ring;
    int kick_fd; /* written by KVM for each of the driver's kicks; not blocking */
    int32_t call_fd;
    uint64_t calls_by_python;
};

/* How others get a server's attention: the flag for one that runs, the eventfd for one that sleeps. */
struct tvmm_waker {
    int event_fd;
    uint32_t wanted;
};

/* How long to look for work before sleeping. A kick and the wake-up it causes cost some 20 us each; whoever has been
 * given work within `max_ns` lately looks that long, who has not sleeps at once. */
struct tvmm_spin {
    uint64_t max_ns, window_ns;
    uint64_t hits, sleeps;
};

int tvmm_waker_open(struct tvmm_waker *waker);
void tvmm_waker_close(struct tvmm_waker *waker);
void tvmm_waker_wake(struct tvmm_waker *waker);
void tvmm_waker_clear(struct tvmm_waker *waker);
void tvmm_waker_wait(struct tvmm_waker *waker);

int tvmm_served_call(struct tvmm_served *queue);
void tvmm_served_take_kick(struct tvmm_served *queue);
void tvmm_set_call(struct tvmm_served *queue, int32_t fd);

uint64_t tvmm_now_ns(void);
void tvmm_spin_adapt(struct tvmm_spin *spin, uint64_t waited_ns);

static inline int tvmm_woken(const struct tvmm_waker *waker)
{
    return __atomic_load_n(&waker->wanted, __ATOMIC_ACQUIRE) != 0;
}

static inline void tvmm_relax(void) { __builtin_ia32_pause(); }

#endif
