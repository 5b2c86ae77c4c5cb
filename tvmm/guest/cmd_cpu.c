/* Commands that keep CPUs busy, one or all. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "mptable.h"
#include "smp.h"

#define COUNT_TO 1000000

static volatile bool stop;

static void count_to_target(struct cpu *cpu)
{
    while (cpu->counter < COUNT_TO)
        cpu->counter++;
}

static void count_until_stop(struct cpu *cpu)
{
    u64 count = 0;
    while (!stop) {
        for (u32 i = 0; i < 1000; i++) {
            count++;
            compiler_barrier();
        }
        cpu->counter = count;
    }
}

/* Waits for all jobs to end, for at most `ms`; the CPUs that hang are reported by their counters. */
static void wait_idle(u64 ms)
{
    u64 end = rdtsc() + ms_to_tsc(ms);
    while (!smp_idle() && rdtsc() < end && !irq_poll())
        cpu_relax();
}

bool cmd_cpus(int count, char **arguments)
{
    (void)count, (void)arguments;
    u64 start = rdtsc();
    u32 online = smp_start();
    u64 started = rdtsc();
    smp_run(count_to_target);
    cpus[0].counter = 0;
    count_to_target(&cpus[0]);
    wait_idle(5000);
    for (u32 i = 0; i < mptable.cpu_count; i++) {
        if (cpus[i].online)
            print("cpu %u apic %u: online, counted to %lu\n", i, cpus[i].apic_id, cpus[i].counter);
        else
            print("cpu %u apic %u: did not start\n", i, mptable.apic_id[i]);
    }
    print("%u of %u CPUs online, started in %lu us\n", online, mptable.cpu_count, tsc_to_us(started - start));
    return true;
}

bool cmd_smp(int count, char **arguments)
{
    u64 seconds, total = 0;
    if (count != 2 || !parse_number(arguments[1], &seconds) || seconds > 86400)
        return false;
    smp_start();
    u64 start = rdtsc(), end = start + ms_to_tsc(seconds * 1000), own = 0;
    stop = false;
    smp_run(count_until_stop);
    do {
        for (u32 i = 0; i < 1000; i++) {
            own++;
            compiler_barrier();
        }
    } while (rdtsc() < end && !irq_poll());
    u64 elapsed = tsc_to_us(rdtsc() - start);
    stop = true;
    cpus[0].counter = own;
    wait_idle(1000);
    for (u32 i = 0; i < mptable.cpu_count; i++) {
        if (cpus[i].online)
            print("cpu %u: %lu iterations\n", i, cpus[i].counter);
        total += cpus[i].counter;
    }
    print("total: %lu iterations in %lu us on %u CPUs\n", total, elapsed, smp_online());
    return true;
}

bool cmd_spin(int count, char **arguments)
{
    u64 seconds = 0;
    if (count > 2 || (count == 2 && !parse_number(arguments[1], &seconds)))
        return false;
    u64 end = rdtsc() + ms_to_tsc(seconds * 1000);
    while (!irq_poll() && (count == 1 || rdtsc() < end))
        ;
    return true;
}

bool cmd_spinoff(int count, char **arguments)
{
    (void)count, (void)arguments;
    print("spinning with interrupts off\n");
    syscall(SYS_SPINOFF, 0, 0);
    return true;
}

/*
 * The longest time that this CPU did not run. Buckets in milliseconds; what is shorter than the first is the
 * host's everyday noise.
 */
bool cmd_stall(int count, char **arguments)
{
    static const u32 bounds_ms[] = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000};
    u64 seconds = 5, longest = 0, histogram[ARRAY_SIZE(bounds_ms)] = {0};
    if (count > 2 || (count == 2 && !parse_number(arguments[1], &seconds)))
        return false;
    u64 millisecond = ms_to_tsc(1), start = rdtsc(), end = start + ms_to_tsc(seconds * 1000), last = start;
    while (last < end && !irq_poll()) {
        u64 now = rdtsc(), gap = now - last;
        last = now;
        longest = max_u64(longest, gap);
        if (gap < millisecond)
            continue;
        size_t bucket = 0;
        while (bucket + 1 < ARRAY_SIZE(bounds_ms) && gap >= bounds_ms[bucket + 1] * millisecond)
            bucket++;
        histogram[bucket]++;
    }
    print("longest pause %lu us in %lu ms\n", tsc_to_us(longest), tsc_to_us(last - start) / 1000);
    for (size_t i = 0; i < ARRAY_SIZE(bounds_ms); i++)
        if (histogram[i])
            print("  from %4u ms: %lu\n", bounds_ms[i], histogram[i]);
    return true;
}
