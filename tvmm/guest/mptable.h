/* The Intel MultiProcessor table: which CPUs, where the I/O APIC is, which pin an ISA interrupt comes in on. */
#ifndef GUEST_MPTABLE_H
#define GUEST_MPTABLE_H

#include "arch.h"

#define NO_PIN 0xff

struct mptable {
    bool found;
    u32 cpu_count; /* at least 1 */
    u8 apic_id[MAX_CPUS]; /* the boot processor first */
    u64 ioapic;    /* address, or 0 */
    u8 isa_pin[16];
    u8 pci_pin[32][4]; /* of bus 0, by device and INTA to INTD; NO_PIN where the table has none */
};

extern struct mptable mptable;

void mptable_init(void);

#endif
