/* The MC146818 clock in CMOS: date and time, alarm, update interrupts. */
#ifndef GUEST_RTC_H
#define GUEST_RTC_H

#include "arch.h"

struct rtc_time {
    u32 year, month, day, hour, minute, second;
};

#define RTC_REGISTER_A 0x0a
#define RTC_REGISTER_B 0x0b
#define RTC_REGISTER_C 0x0c
#define RTC_ALARM      0x20 /* in register B: enable; in register C: has happened */
#define RTC_UPDATE     0x10
#define RTC_IRQ        8

u8 rtc_read(u8 index);
void rtc_write(u8 index, u8 value);
bool rtc_present(void);
bool rtc_get_time(struct rtc_time *time); /* false: the registers don't hold still */
void rtc_set_alarm(u32 hour, u32 minute, u32 second); /* in the format that register B asks for */

#endif
