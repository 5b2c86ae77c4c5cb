/*
 * The TSC's frequency, from the best source that answers: kvmclock, the ACPI PM timer, the PIT. CPUID is no
 * source: in user mode it may not be the guest's but the host's.
 */
#include "clock.h"

#define MSR_KVM_WALL_CLOCK  0x4b564d00
#define MSR_KVM_SYSTEM_TIME 0x4b564d01
#define PM_TIMER_PORT       0x608
#define PM_TIMER_HZ         3579545
#define PIT_HZ              1193182

/* One time page for each CPU in the ABI; we only use the boot processor's. */
static volatile struct {
    u32 version, pad;
    u64 tsc_timestamp, system_time;
    u32 tsc_to_system_mul;
    signed char tsc_shift;
    u8 flags, pad2[2];
} system_time __attribute__((aligned(64)));

static volatile struct {
    u32 version, seconds, ns;
} wall_clock __attribute__((aligned(16)));

static u64 khz;
static const char *source = "not measured";

static bool kvmclock_on(void)
{
    static enum { UNKNOWN, ABSENT, PRESENT } state;
    if (state == UNKNOWN) {
        bool accepted = wrmsr(MSR_KVM_SYSTEM_TIME, (u64)&system_time | 1) == 0;
        state = accepted && system_time.tsc_to_system_mul ? PRESENT : ABSENT;
    }
    return state == PRESENT;
}

static u64 khz_by_kvmclock(void)
{
    if (!kvmclock_on())
        return 0;
    u64 value = (1000000ull << 32) / system_time.tsc_to_system_mul;
    return system_time.tsc_shift < 0 ? value << -system_time.tsc_shift : value >> system_time.tsc_shift;
}

static u64 khz_by_pm_timer(void)
{
    u32 first = inl(PM_TIMER_PORT), now = first;
    u64 start = rdtsc(), tsc = start;
    if (first == 0xffffffff)
        return 0;
    while (((now - first) & 0xffffff) < PM_TIMER_HZ / 100) {
        if (rdtsc() - start > 1000000000) /* a third of a second or so: it stands still */
            return 0;
        now = inl(PM_TIMER_PORT);
        tsc = rdtsc();
    }
    return (tsc - start) * (PM_TIMER_HZ / 1000) / ((now - first) & 0xffffff);
}

static u32 pit_count(void)
{
    outb(0x43, 0x00); /* latch channel 0 */
    u32 low = inb(0x40);
    return low | (u32)inb(0x40) << 8;
}

static u64 khz_by_pit(void)
{
    outb(0x43, 0x34); /* channel 0, both bytes, mode 2; counts down from 65536 */
    outb(0x40, 0);
    outb(0x40, 0);
    u32 first = pit_count(), now = first;
    u64 start = rdtsc(), tsc = start;
    while (((first - now) & 0xffff) < PIT_HZ / 100) {
        if (rdtsc() - start > 1000000000)
            return 0;
        now = pit_count();
        tsc = rdtsc();
    }
    return (tsc - start) * (PIT_HZ / 1000) / ((first - now) & 0xffff);
}

u64 tsc_khz(void)
{
    static const struct {
        const char *name;
        u64 (*measure)(void);
    } sources[] = {{"kvmclock", khz_by_kvmclock}, {"PM timer", khz_by_pm_timer}, {"PIT", khz_by_pit}};

    for (size_t i = 0; !khz && i < ARRAY_SIZE(sources); i++) {
        khz = sources[i].measure();
        source = sources[i].name;
    }
    if (!khz) {
        khz = 1000000;
        source = "a guess";
    }
    return khz;
}

const char *tsc_khz_source(void)
{
    tsc_khz();
    return source;
}

bool kvmclock_read(u64 *ns, u8 *flags)
{
    if (!kvmclock_on())
        return false;
    u32 version;
    do {
        version = system_time.version;
        compiler_barrier();
        u64 delta = rdtsc() - system_time.tsc_timestamp;
        delta = system_time.tsc_shift < 0 ? delta >> -system_time.tsc_shift : delta << system_time.tsc_shift;
        *ns = system_time.system_time + (u64)((unsigned __int128)delta * system_time.tsc_to_system_mul >> 32);
        *flags = system_time.flags;
        compiler_barrier();
    } while ((version & 1) || version != system_time.version);
    return true;
}

u64 kvmclock_ns(u64 ticks)
{
    static u32 multiplier;
    static signed char shift;
    if (!multiplier && kvmclock_on()) {
        multiplier = system_time.tsc_to_system_mul;
        shift = system_time.tsc_shift;
    }
    ticks = shift < 0 ? ticks >> -shift : ticks << shift;
    return (u64)((unsigned __int128)ticks * multiplier >> 32);
}

bool kvmclock_wall(u64 *seconds, u32 *ns)
{
    if (wrmsr(MSR_KVM_WALL_CLOCK, (u64)&wall_clock) != 0)
        return false;
    *seconds = wall_clock.seconds;
    *ns = wall_clock.ns;
    return true;
}
