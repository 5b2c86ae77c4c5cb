/*
 * The other CPUs. Started on demand, they sleep in HLT until a job is put into their mailbox and an interrupt
 * wakes them; a job runs in user mode, like everything else.
 */
#ifndef GUEST_SMP_H
#define GUEST_SMP_H

#include "lib.h"

struct cpu {
    u32 index, apic_id;
    volatile bool online;
    void (*volatile job)(struct cpu *); /* the mailbox: NULL when idle */
    volatile u64 counter; /* free for jobs */
    struct percpu *percpu;
} __attribute__((aligned(64))); /* no two CPUs share a cache line */

extern struct cpu cpus[MAX_CPUS];

u32 smp_start(void);  /* starts all CPUs of the MP table unless done; returns how many are online */
u32 smp_online(void); /* the boot processor included */
void smp_run(void (*job)(struct cpu *)); /* on all online CPUs but this one */
bool smp_idle(void);  /* all jobs have ended */
void smp_halt(void);  /* all other CPUs: interrupts off, HLT, for ever */

#endif
