/*
 * Starting the other CPUs: INIT, then STARTUP (Intel SDM volume 3, "Typical AP Initialization Sequence"), one CPU at
 * a time, because the start code reads its stack and descriptor from one set of variables (boot.S).
 */
#include "smp.h"
#include "clock.h"
#include "irq.h"
#include "machine.h"
#include "mptable.h"

extern char trampoline[], trampoline_end[], tss_table[];
extern u64 boot_kstack, boot_ustack, boot_rip;
extern u32 boot_tss, boot_argument;

struct cpu cpus[MAX_CPUS];
static u32 online_count = 1;

_Static_assert(sizeof(struct percpu) < 1024, "the rest of the page is the kernel stack");

/* First and last user-mode code of an application processor. */
static void __attribute__((noreturn)) ap_main(u64 index)
{
    struct cpu *cpu = &cpus[index];
    lapic_cpu_init();
    cpu->online = true;
    for (;;) {
        u32 seen = cpu->percpu->events; /* before the look into the mailbox: a wake-up after it counts */
        compiler_barrier();
        if (cpu->job) {
            cpu->job(cpu);
            cpu->job = NULL;
        } else {
            syscall(SYS_WAIT, seen, 0);
        }
    }
}

static bool wait_online(const struct cpu *cpu, u64 us)
{
    u64 start = rdtsc();
    while (!cpu->online && rdtsc() - start < us_to_tsc(us))
        cpu_relax();
    return cpu->online;
}

static void start(struct cpu *cpu)
{
    u64 kstack = page_alloc(KSTACK_SIZE / PAGE_SIZE), ustack = page_alloc(USTACK_SIZE / PAGE_SIZE);
    if (!kstack || !ustack)
        return;
    cpu->percpu = (struct percpu *)kstack;
    cpu->percpu->ustack = ustack + USTACK_SIZE - 8;
    boot_kstack = kstack + KSTACK_SIZE;
    boot_ustack = cpu->percpu->ustack;
    boot_rip = (u64)ap_main;
    boot_tss = SEL_TSS0 + 16 * cpu->index;
    boot_argument = cpu->index;
    memcpy(tss_table + TSS_STRIDE * cpu->index + 4, &boot_kstack, sizeof boot_kstack); /* RSP0 */
    compiler_barrier();

    lapic_send(cpu->apic_id, IPI_INIT);
    wait_online(cpu, 200);
    lapic_send(cpu->apic_id, IPI_STARTUP | TRAMPOLINE_ADDR >> 12);
    if (wait_online(cpu, 100000))
        return;
    lapic_send(cpu->apic_id, IPI_STARTUP | TRAMPOLINE_ADDR >> 12);
    wait_online(cpu, 1000000);
}

u32 smp_start(void)
{
    if (cpus[0].online)
        return online_count;
    cpus[0] = (struct cpu){.apic_id = mptable.apic_id[0], .online = true, .percpu = &bsp_kstack};
    if (!irq_has_lapic())
        return online_count;
    memcpy((void *)TRAMPOLINE_ADDR, trampoline, (size_t)(trampoline_end - trampoline));
    for (u32 i = 1; i < mptable.cpu_count; i++) {
        cpus[i].index = i;
        cpus[i].apic_id = mptable.apic_id[i];
        start(&cpus[i]);
        online_count += cpus[i].online;
    }
    return online_count;
}

u32 smp_online(void) { return online_count; }

void smp_run(void (*job)(struct cpu *))
{
    for (u32 i = 1; i < mptable.cpu_count; i++) {
        if (!cpus[i].online)
            continue;
        cpus[i].counter = 0;
        cpus[i].job = job;
        lapic_send(cpus[i].apic_id, IPI_FIXED | VEC_WAKE);
    }
}

bool smp_idle(void)
{
    for (u32 i = 1; i < mptable.cpu_count; i++)
        if (cpus[i].online && cpus[i].job)
            return false;
    return true;
}

void smp_halt(void)
{
    for (u32 i = 1; i < mptable.cpu_count; i++)
        if (cpus[i].online)
            lapic_send(cpus[i].apic_id, IPI_FIXED | VEC_HALT);
}
