/* Time: the TSC's frequency, conversions, kvmclock. */
#ifndef GUEST_CLOCK_H
#define GUEST_CLOCK_H

#include "lib.h"

u64 tsc_khz(void); /* measured on first use */
const char *tsc_khz_source(void);

/* In two steps, so that no product overflows however long the machine has been up. */
static inline u64 tsc_to_us(u64 ticks)
{
    return ticks / tsc_khz() * 1000 + ticks % tsc_khz() * 1000 / tsc_khz();
}

static inline u64 tsc_to_ns(u64 ticks)
{
    return ticks / tsc_khz() * 1000000 + ticks % tsc_khz() * 1000000 / tsc_khz();
}

static inline u64 us_to_tsc(u64 us) { return us / 1000 * tsc_khz() + us % 1000 * tsc_khz() / 1000; }
static inline u64 ms_to_tsc(u64 ms) { return ms * tsc_khz(); }

/* kvmclock: false if the host has none. */
bool kvmclock_read(u64 *ns, u8 *flags);
/* TSC ticks by the rate that the host gave at the first call: exact, where tsc_khz() is rounded. */
u64 kvmclock_ns(u64 ticks);
bool kvmclock_wall(u64 *seconds, u32 *ns); /* wall-clock time at which kvmclock was 0 */

#endif
