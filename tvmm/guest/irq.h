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

/* The same by I/O APIC pin (0..23), and by vector, for message signalled interrupts (VEC_MSI on). */
void irq_register_pin(u8 pin, void (*service)(void));
void irq_mask_pin(u8 pin, bool masked);
void irq_register_vector(u8 vector, void (*service)(void));
u32 irq_boot_cpu(void); /* its APIC id: where message signalled interrupts are to go */

/* Lets the services run. Cheap enough for the inner loop of a command. True if Ctrl-C was typed. */
bool irq_poll(void);

/* irq_poll(), or sleep until there is something to poll, but no longer than `until` (TSC; 0: no limit). */
void irq_wait(u64 until);

/*
 * irq_poll(), or sleep until any interrupt. Arms no timer, which costs far more than the sleep itself: who wants to
 * wake up in the end has a periodic one running.
 */
void irq_sleep(void);

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
