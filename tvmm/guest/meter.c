/* Gaps between two looks at the TSC; TSC against kvmclock and RTC. */
#include "meter.h"
#include "clock.h"
#include "irq.h"
#include "rtc.h"

#define COMPARE_EVERY 64  /* looks */
#define ORDINARY_US   200 /* of a gap after which nothing is compared out of turn */
#define DAY_SECONDS   86400
#define START_US      5
#define START_TRIES   1000

/* 0 to 86399; the date is left out, since a difference modulo a day is enough. */
static bool rtc_second(u32 *second)
{
    struct rtc_time time;
    if (!rtc_present() || !rtc_get_time(&time))
        return false;
    *second = (time.hour * 60 + time.minute) * 60 + time.second;
    return true;
}

void meter_start(struct meter *meter)
{
    u8 flags;
    *meter = (struct meter){0};
    tsc_khz();
    meter->has_rtc = rtc_second(&meter->rtc_start);
    kvmclock_ns(0);
    for (int tries = 0; tries < START_TRIES; tries++) {
        meter->start = rdtsc();
        meter->has_kvmclock = kvmclock_read(&meter->kvmclock_start, &flags);
        meter->last = rdtsc();
        if (meter->last - meter->start < us_to_tsc(START_US)) /* else they are not of the same moment */
            break;
    }
    meter->kvmclock_last = meter->kvmclock_start;
}

void meter_compare(struct meter *meter)
{
    u64 ns, before = rdtsc();
    u8 flags;
    if (!meter->has_kvmclock || !kvmclock_read(&ns, &flags))
        return;
    u64 after = rdtsc();
    if (ns < meter->kvmclock_last)
        meter->backward++;
    meter->kvmclock_last = ns;
    /* Read between two looks at the TSC, so that being interrupted in here is no drift. */
    u64 low = meter->kvmclock_start + kvmclock_ns(before - meter->start),
        high = meter->kvmclock_start + kvmclock_ns(after - meter->start);
    if (ns < low)
        meter->drift = max_u64(meter->drift, low - ns);
    else if (ns > high)
        meter->drift = max_u64(meter->drift, ns - high);
}

u64 meter_look(struct meter *meter)
{
    u64 now = rdtsc(), gap = now - meter->last;
    if (now < meter->last) {
        meter->backward++;
        gap = 0;
    }
    meter->last = now;
    if (gap > meter->longest_now) {
        meter->longest_now = gap;
        meter->longest = max_u64(meter->longest, gap);
    }
    meter->ran += min_u64(gap, us_to_tsc(METER_GAP_US));
    if (meter->looks++ % COMPARE_EVERY == 0 || gap > us_to_tsc(ORDINARY_US))
        meter_compare(meter);
    return now;
}

void meter_sleep(struct meter *meter, u64 until)
{
    u64 before = meter_look(meter);
    irq_wait(until);
    u64 now = rdtsc();
    if (now < before) {
        meter->backward++;
        meter->last = now;
    } else {
        meter->last = max_u64(min_u64(now, until), before);
        meter->ran += min_u64(meter->last - before, us_to_tsc(METER_GAP_US));
    }
}

u64 meter_lap(struct meter *meter)
{
    u64 longest = meter->longest_now;
    meter->longest_now = 0;
    return longest;
}

int meter_rtc_off(const struct meter *meter)
{
    u32 second;
    if (!meter->has_rtc || !rtc_second(&second))
        return 0;
    u64 elapsed = tsc_to_us(rdtsc() - meter->start) / 1000000 % DAY_SECONDS;
    int off = (int)((second + 2 * DAY_SECONDS - meter->rtc_start - elapsed) % DAY_SECONDS);
    off = off > DAY_SECONDS / 2 ? off - DAY_SECONDS : off;
    return off >= -1 && off <= 1 ? 0 : off;
}
