/*
 * Local APIC, I/O APIC, and the polling of service routines.
 *
 * The legacy PIC is masked (boot.S) and its line into the local APIC (LINT0) too: whatever happens to the PIC, it can
 * never bring in a vector of its own. Edges everywhere: a level line that is cleared by its service routine
 * makes a new edge as well, and needs no broadcast of the end of interrupt.
 */
#include "irq.h"
#include "clock.h"
#include "console.h"
#include "machine.h"
#include "mptable.h"

#define LAPIC_VERSION   0x30
#define LAPIC_EOI       0xb0
#define LAPIC_SPURIOUS  0xf0
#define LAPIC_ICR       0x300
#define LAPIC_ICR_HIGH  0x310
#define LAPIC_LVT_TIMER 0x320
#define LAPIC_LVT_LINT0 0x350
#define LAPIC_INITIAL   0x380
#define LAPIC_CURRENT   0x390
#define LAPIC_DIVIDE    0x3e0
#define LVT_MASKED      0x10000
#define LVT_PERIODIC    0x20000
#define ICR_PENDING     0x1000
#define MSR_X2APIC      0x800
#define MSR_APIC_BASE   0x1b
#define APIC_BASE_X2APIC 0xc00 /* enabled, and in x2APIC mode */

#define IOAPIC_REDIRECTION 0x10

struct service {
    u8 vector;
    u32 seen;
    void (*run)(void);
};

static struct service services[64]; /* ISA interrupts, and a vector for each virtqueue */
static size_t service_count;
static bool has_lapic, has_ioapic;
static u32 bsp_apic_id;

u32 lapic_read(u32 offset)
{
    return apic_is_x2apic ? (u32)rdmsr(MSR_X2APIC + offset / 16) : mmio_read32(LAPIC_BASE + offset);
}

void lapic_write(u32 offset, u32 value)
{
    if (apic_is_x2apic)
        wrmsr(MSR_X2APIC + offset / 16, value);
    else
        mmio_write32(LAPIC_BASE + offset, value);
}

void lapic_send(u32 apic_id, u32 command)
{
    if (apic_is_x2apic) {
        wrmsr(MSR_X2APIC + LAPIC_ICR / 16, (u64)apic_id << 32 | command);
        return;
    }
    while (lapic_read(LAPIC_ICR) & ICR_PENDING)
        cpu_relax();
    lapic_write(LAPIC_ICR_HIGH, apic_id << 24);
    lapic_write(LAPIC_ICR, command);
}

void lapic_cpu_init(void)
{
    if (apic_is_x2apic)
        wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | APIC_BASE_X2APIC);
    lapic_write(LAPIC_SPURIOUS, 0x100 | VEC_SPURIOUS);
    lapic_write(LAPIC_LVT_LINT0, LVT_MASKED);
}

void lapic_timer(u32 ticks, bool periodic)
{
    lapic_write(LAPIC_DIVIDE, 0x0b); /* by 1 */
    lapic_write(LAPIC_LVT_TIMER, ticks ? VEC_TIMER | (periodic ? LVT_PERIODIC : 0) : LVT_MASKED);
    lapic_write(LAPIC_INITIAL, ticks);
}

u64 lapic_timer_khz(void)
{
    static u64 khz;
    if (!khz) {
        lapic_write(LAPIC_DIVIDE, 0x0b);
        lapic_write(LAPIC_LVT_TIMER, LVT_MASKED);
        lapic_write(LAPIC_INITIAL, 0xffffffff);
        u64 start = rdtsc(), now;
        while ((now = rdtsc()) - start < us_to_tsc(2000))
            cpu_relax();
        u64 ticks = 0xffffffff - lapic_read(LAPIC_CURRENT);
        lapic_write(LAPIC_INITIAL, 0);
        khz = max_u64(ticks * 1000 / max_u64(tsc_to_us(now - start), 1), 1);
    }
    return khz;
}

static u32 ioapic_read(u32 index)
{
    mmio_write32(mptable.ioapic, index);
    return mmio_read32(mptable.ioapic + 0x10);
}

static void ioapic_write(u32 index, u32 value)
{
    mmio_write32(mptable.ioapic, index);
    mmio_write32(mptable.ioapic + 0x10, value);
}

void irq_init(void)
{
    if (!apic_is_x2apic && command_line_has("x2apic"))
        wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | APIC_BASE_X2APIC);
    /* A local APIC in x2APIC mode leaves its page to the bus, which answers with ones. */
    if (mmio_read32(LAPIC_BASE + LAPIC_VERSION) == 0xffffffff) {
        apic_is_x2apic = 1;
        has_lapic = rdmsr(MSR_X2APIC + LAPIC_VERSION / 16) != (u64)-1;
    } else {
        has_lapic = true;
    }
    if (has_lapic) {
        lapic_cpu_init();
        bsp_apic_id = apic_is_x2apic ? lapic_read(LAPIC_ID) : lapic_read(LAPIC_ID) >> 24;
    }
    has_ioapic = false;
    if (has_lapic && mptable.ioapic) {
        u32 version = ioapic_read(1);
        has_ioapic = version != 0xffffffff && (version & 0xff) != 0;
    }
}

bool irq_has_ioapic(void) { return has_ioapic; }
bool irq_has_lapic(void) { return has_lapic; }

u32 irq_boot_cpu(void) { return bsp_apic_id; }

void irq_mask_pin(u8 pin, bool masked)
{
    if (!has_ioapic)
        return;
    ioapic_write(IOAPIC_REDIRECTION + 2u * pin + 1, bsp_apic_id << 24);
    ioapic_write(IOAPIC_REDIRECTION + 2u * pin, (VEC_PIN0 + pin) | (masked ? LVT_MASKED : 0u));
}

void irq_mask(u8 isa_irq, bool masked) { irq_mask_pin(mptable.isa_pin[isa_irq], masked); }

void irq_register_vector(u8 vector, void (*run)(void))
{
    size_t slot = 0;
    while (slot < service_count && services[slot].vector != vector)
        slot++;
    if (slot == ARRAY_SIZE(services))
        return;
    services[slot] = (struct service){vector, irq_count[vector], run};
    if (slot == service_count)
        service_count++;
}

void irq_register_pin(u8 pin, void (*run)(void))
{
    irq_register_vector((u8)(VEC_PIN0 + pin), run);
    irq_mask_pin(pin, false);
}

void irq_register(u8 isa_irq, void (*run)(void)) { irq_register_pin(mptable.isa_pin[isa_irq], run); }

bool irq_poll(void)
{
    static u64 next;
    bool all = false;
    if (!has_ioapic && rdtsc() >= next) {
        next = rdtsc() + us_to_tsc(10000);
        all = true;
    }
    for (size_t i = 0; i < service_count; i++) {
        struct service *s = &services[i];
        u32 count = irq_count[s->vector];
        if (s->seen != count || all) {
            s->seen = count; /* before the service: what arrives from now on is another round */
            s->run();
        }
    }
    return interrupted();
}

/* True if a service has something to do. */
static bool work_pending(void)
{
    for (size_t i = 0; i < service_count; i++)
        if (services[i].seen != irq_count[services[i].vector])
            return true;
    return false;
}

void irq_wait(u64 until)
{
    if (!has_ioapic && (!until || until > rdtsc() + us_to_tsc(10000)))
        until = rdtsc() + us_to_tsc(10000); /* time to look at the devices again */
    u32 seen = bsp_kstack.events;
    u64 now = rdtsc();
    if (!work_pending() && has_lapic && (!until || until > now)) {
        u64 us = until ? tsc_to_us(until - now) : 0;
        if (until)
            lapic_timer((u32)min_u64(us * lapic_timer_khz() / 1000 + 1, 0xffffffff), false);
        syscall(SYS_WAIT, seen, 0);
    }
    irq_poll();
}

void irq_sleep(void)
{
    u32 seen = bsp_kstack.events;
    if (!work_pending() && has_lapic)
        syscall(SYS_WAIT, seen, 0);
    irq_poll();
}

bool sleep_until(u64 until)
{
    u64 margin = us_to_tsc(30); /* less than what falling asleep and waking up cost */
    while (rdtsc() < until) {
        if (irq_poll())
            return true;
        if (has_lapic && until - rdtsc() > margin && rdtsc() < until)
            irq_wait(until);
        else
            cpu_relax();
    }
    return irq_poll();
}
