/* Commands about clocks and timer interrupts. */
#include "clock.h"
#include "commands.h"
#include "console.h"
#include "irq.h"
#include "mptable.h"
#include "rtc.h"

#define PIT_HZ 1193182

bool cmd_clock(int count, char **arguments)
{
    (void)count, (void)arguments;
    struct rtc_time t;
    u64 ns, seconds;
    u32 wall_ns;
    u8 flags;
    if (!rtc_present())
        print("rtc       none\n");
    else if (rtc_get_time(&t))
        print("rtc       %04u-%02u-%02u %02u:%02u:%02u\n", t.year, t.month, t.day, t.hour, t.minute, t.second);
    else
        print("rtc       does not hold still\n");
    if (!kvmclock_read(&ns, &flags)) {
        print("kvmclock  none\n");
    } else {
        print("kvmclock  %lu.%09lu s, flags 0x%x\n", ns / 1000000000, ns % 1000000000, flags);
        if (kvmclock_wall(&seconds, &wall_ns))
            print("wall      %lu.%09u s since 1970 when kvmclock was 0\n", seconds, wall_ns);
    }
    print("tsc       0x%lx, %lu kHz by %s\n", rdtsc(), tsc_khz(), tsc_khz_source());
    return true;
}

static void nothing(void)
{
}

static void pit_start(u32 hz)
{
    u32 divisor = PIT_HZ / hz;
    irq_register(0, nothing);
    outb(0x43, 0x34); /* channel 0, both bytes, mode 2: one interrupt for each period */
    outb(0x40, (u8)divisor);
    outb(0x40, (u8)(divisor >> 8));
}

static void pit_stop(void)
{
    irq_mask(0, true);
    outb(0x43, 0x30); /* mode 0 waits for a count that never comes */
}

bool cmd_timer(int count, char **arguments)
{
    u64 hz, ticks;
    bool pit = count == 4 && !strcmp(arguments[3], "pit");
    if (count < 3 || count > 4 || (count == 4 && !pit) || !parse_number(arguments[1], &hz) ||
        !parse_number(arguments[2], &ticks) || hz < (pit ? 19 : 1) || hz > 100000 || ticks > 0xffffffff)
        return false;
    if (pit ? !irq_has_ioapic() : !irq_has_lapic()) {
        print("timer: no %s\n", pit ? "I/O APIC for the PIT's interrupt" : "local APIC");
        return true;
    }
    u8 vector = pit ? (u8)(VEC_PIN0 + mptable.isa_pin[0]) : VEC_TIMER;
    u32 first = irq_count[vector];
    u64 khz = pit ? 0 : lapic_timer_khz(), start = rdtsc(); /* measured before the clock runs */
    if (pit)
        pit_start((u32)hz);
    else
        lapic_timer((u32)min_u64(khz * 1000 / hz, 0xffffffff), true);
    /* A limit needs the local APIC's timer, so only the PIT has one; Ctrl-C ends the other if it stands still. */
    u64 limit = start + ms_to_tsc(ticks * 2000 / hz + 1000);
    while (irq_count[vector] - first < ticks && !interrupted() && !(pit && rdtsc() >= limit)) {
        if (irq_has_ioapic())
            irq_wait(pit ? limit : 0);
        else
            irq_poll();
    }
    u64 us = tsc_to_us(rdtsc() - start);
    pit ? pit_stop() : lapic_timer(0, false);
    print("%u ticks of the %s at %lu Hz in %lu us, expected %lu us\n", irq_count[vector] - first,
          pit ? "PIT" : "local APIC", hz, us, ticks * 1000000 / hz);
    return true;
}

static u32 rtc_updates, rtc_alarms;

static void rtc_service(void)
{
    u8 causes = rtc_read(RTC_REGISTER_C); /* reading it takes the interrupt back */
    rtc_updates += (causes & RTC_UPDATE) != 0;
    rtc_alarms += (causes & RTC_ALARM) != 0;
}

/* Waits until `*counter` has reached `target`; returns the microseconds it took, 0 if it never did. */
static u64 wait_for(const u32 *counter, u32 target, u64 limit_ms)
{
    u64 start = rdtsc(), end = start + ms_to_tsc(limit_ms);
    while (*counter < target && rdtsc() < end && !interrupted())
        irq_wait(end);
    return *counter >= target ? max_u64(tsc_to_us(rdtsc() - start), 1) : 0;
}

bool cmd_rtc(int count, char **arguments)
{
    struct rtc_time t;
    (void)arguments;
    if (count != 1)
        return false;
    if (!rtc_present() || !rtc_get_time(&t)) {
        print("rtc: none\n");
        return true;
    }
    u8 b = rtc_read(RTC_REGISTER_B) & (u8) ~(RTC_ALARM | RTC_UPDATE);
    rtc_updates = rtc_alarms = 0;
    irq_register(RTC_IRQ, rtc_service);
    rtc_service();
    rtc_write(RTC_REGISTER_B, b | RTC_UPDATE);
    u64 us = wait_for(&rtc_updates, 2, 3000);
    rtc_write(RTC_REGISTER_B, b);
    print("update interrupts: %u, the second after %lu us\n", rtc_updates, us);

    rtc_get_time(&t);
    u32 due = t.hour * 3600 + t.minute * 60 + t.second + 2;
    rtc_set_alarm(due / 3600 % 24, due / 60 % 60, due % 60);
    rtc_write(RTC_REGISTER_B, b | RTC_ALARM);
    us = wait_for(&rtc_alarms, 1, 4000);
    rtc_write(RTC_REGISTER_B, b);
    irq_mask(RTC_IRQ, true);
    print("alarm 2 s ahead: %s after %lu us\n", us ? "came" : "did not come", us);
    return true;
}
