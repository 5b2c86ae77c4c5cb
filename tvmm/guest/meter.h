/*
 * What the guest notices of not being run: how long it went without a look at the clock, and whether its clocks agree
 * and never go back. Whoever uses it looks at the clock at every turn of its loop.
 */
#ifndef GUEST_METER_H
#define GUEST_METER_H

#include "lib.h"

struct meter {
    u64 start, last;          /* TSC: of meter_start(), of the last look */
    u64 longest, longest_now; /* ticks between two looks: of all, and since meter_lap() */
    u64 ran;                  /* ticks that the guest was running: a gap counts as no more than METER_GAP_US */
    u64 backward;             /* looks at which a clock was behind the look before */
    u32 looks;
    bool has_kvmclock;
    u64 kvmclock_start, kvmclock_last, drift; /* ns; drift is the largest that there was */
    bool has_rtc;
    u32 rtc_start;
};

#define METER_GAP_US 10000

void meter_start(struct meter *meter);
u64 meter_look(struct meter *meter); /* the TSC */
/* Sleeps till `until` (TSC) or an interrupt. Of a pause in the meantime only what goes beyond `until` is seen. */
void meter_sleep(struct meter *meter, u64 until);
u64 meter_lap(struct meter *meter);  /* the longest gap since the last call, in ticks */
/* Compares the clocks now. A look does it now and then, and after each gap that is out of the ordinary. */
void meter_compare(struct meter *meter);
/*
 * Seconds that the RTC has gained or lost against the TSC; 0 for the one that is due to its grain. Takes long, since it
 * looks at the RTC.
 */
int meter_rtc_off(const struct meter *meter);

#endif
