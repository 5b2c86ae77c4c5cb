/* The C half of tvmm's vCPUs: one KVM_RUN step, the kick, and the two serial port accesses that need no Python.
 *
 * Everything here is called through cffi, which releases the interpreter lock around each call. No Python object is
 * touched. What is decided here is only what cannot be decided differently; devices live in Python.
 */
#ifndef TVMM_SHIM_H
#define TVMM_SHIM_H

#include "dirty_log.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Calls that the kernel headers of a build host may be too old for (before 6.1); KVM is asked for each at run time. */
#ifndef KVM_CLOCK_REALTIME
#define KVM_CLOCK_REALTIME (1 << 2)
#endif
#ifndef KVM_CAP_XSAVE2
#define KVM_CAP_XSAVE2 208
#define KVM_GET_XSAVE2 _IOR(KVMIO, 0xcf, struct kvm_xsave)
#endif
#ifndef KVM_CAP_X86_TRIPLE_FAULT_EVENT
#define KVM_CAP_X86_TRIPLE_FAULT_EVENT 218
#endif

/* What tvmm_step() returns. A port access is its own table key, so that the interpreter has nothing to take apart:
 * `port << 8 | size` for OUT, the same with TVMM_PIO_IN for IN. Everything else is one of the codes above that, with the
 * size in bits 8-15 (MMIO). The value is in vcpu->data (writes), the address in vcpu->address (MMIO), the exit reason
 * (OTHER) or errno (FAILED) in vcpu->data. */
enum {
    TVMM_PIO_IN = 1 << 24,
    TVMM_KICK = 1 << 25,       /* KVM_RUN returned EINTR or EAGAIN: whatever was pending is complete */
    TVMM_PIO_STRING,           /* REP INS/OUTS with more than one element: see tvmm_string_io() */
    TVMM_MMIO_WRITE,
    TVMM_MMIO_READ,
    TVMM_OTHER,
    TVMM_FAILED,
};

/* Exits are counted by KVM_EXIT_* up to the last but one; the rest are one. */
#define TVMM_EXIT_REASONS 64u

/* Transmit side of a 16550 as far as it needs no decision: a byte ring and the line status that Python published.
 * The Python model owns the truth; `tx` and `lsr` say what it lets happen here (see devices/uart16550.py). */
struct tvmm_uart {
    uint32_t port;
    int32_t tx;    /* a one-byte write to port+0 goes straight into the ring */
    int32_t lsr;   /* line status without THRE and TEMT, or -1: ask the model */
    int event_fd;  /* written when the reader armed itself and a byte came */
    uint64_t fast_writes, fast_reads;
    pthread_mutex_t lock;
    uint32_t capacity, head, count;
    int armed;
    uint8_t *ring;
};

/* The one lock around devices. A step that returns an access has it already, so that Python need not take it: see
 * vcpu->holds_bus, which the next step or tvmm_release_bus() clears. */
struct tvmm_bus {
    pthread_mutex_t lock;
};

struct tvmm_vcpu {
    int fd;
    uint64_t address, data;
    uint64_t exits, exits_in_c;
    uint64_t reasons[TVMM_EXIT_REASONS]; /* of `exits`, and those by which a kick came out: KVM_EXIT_INTR */
    struct tvmm_uart *uart;
    struct tvmm_bus *bus;
    struct tvmm_rings *rings; /* NULL without dirty rings */
    uint32_t index;           /* of its ring */
    int holds_bus;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *reply;        /* where the response to the last read exit goes */
    uint32_t reply_size;
    volatile pid_t tid;    /* 0 while no thread runs this vCPU */
    sigset_t saved_mask;
};

#endif
