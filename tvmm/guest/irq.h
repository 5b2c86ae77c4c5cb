/*
 * Interrupts as user mode sees them: the kernel side counts them by vector, drivers register a service
 * routine, and irq_poll() runs the routines whose count has moved. So no driver ever runs inside of an
 * interrupt, and no lock is needed. All device interrupts go to the boot processor; only it may poll.
 */
#ifndef GUEST_IRQ_H
#define GUEST_IRQ_H

#include "arch.h"

/*
 * Local APIC on (in x2APIC mode if it is already, or if `x2apic` is on the kernel command line), legacy PIC out
 * of the way, I/O APIC probed.
 */
void irq_init(void);
bool irq_has_ioapic(void);
bool irq_has_lapic(void);

/* Routes an ISA interrupt (0..15) here. Without an I/O APIC the routine runs about 100 times a second. */
void irq_register(u8 isa_irq, void (*service)(void));
void irq_mask(u8 isa_irq, bool masked);

/* Lets the services run. Cheap enough for the inner loop of a command. True if Ctrl-C was typed. */
bool irq_poll(void);

/* irq_poll(), or sleep until there is something to poll, but no longer than `until` (TSC; 0: no limit). */
void irq_wait(u64 until);

/* Sleeps till `until` (TSC) while services run; true at once if Ctrl-C was typed. */
bool sleep_until(u64 until);

u32 lapic_read(u32 offset);
void lapic_write(u32 offset, u32 value);
void lapic_cpu_init(void); /* on each CPU: enables its own local APIC */
void lapic_send(u32 apic_id, u32 command);
void lapic_timer(u32 ticks, bool periodic); /* vector VEC_TIMER after `ticks` of the APIC's clock; 0 stops */
u64 lapic_timer_khz(void);

#define LAPIC_ID 0x20

/* Interrupt commands for lapic_send(). */
#define IPI_FIXED   0x4000
#define IPI_INIT    0x4500
#define IPI_STARTUP 0x4600

#endif
