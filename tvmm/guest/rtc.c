/* The MC146818 clock. Values are BCD and hours 24 unless register B says otherwise. */
#include "rtc.h"
#include "lib.h"

#define INDEX_PORT 0x70
#define DATA_PORT  0x71

enum { SECOND = 0, MINUTE = 2, HOUR = 4, DAY = 7, MONTH = 8, YEAR = 9, CENTURY = 0x32 };
enum { SECOND_ALARM = 1, MINUTE_ALARM = 3, HOUR_ALARM = 5 };

#define A_UPDATE_IN_PROGRESS 0x80
#define B_BINARY  0x04
#define B_24_HOUR 0x02
#define HOUR_PM   0x80

u8 rtc_read(u8 index)
{
    outb(INDEX_PORT, index);
    return inb(DATA_PORT);
}

void rtc_write(u8 index, u8 value)
{
    outb(INDEX_PORT, index);
    outb(DATA_PORT, value);
}

bool rtc_present(void)
{
    return rtc_read(RTC_REGISTER_A) != 0xff || rtc_read(RTC_REGISTER_B) != 0xff;
}

static u32 from_register(u8 value, u8 b)
{
    return b & B_BINARY ? value : (value >> 4) * 10u + (value & 15);
}

static u8 to_register(u32 value, u8 b)
{
    return (u8)(b & B_BINARY ? value : value / 10 << 4 | value % 10);
}

static void read_once(struct rtc_time *time)
{
    u8 b = rtc_read(RTC_REGISTER_B), hour = rtc_read(HOUR);
    u32 century = from_register(rtc_read(CENTURY), b);
    time->second = from_register(rtc_read(SECOND), b);
    time->minute = from_register(rtc_read(MINUTE), b);
    time->hour = from_register(hour & ~HOUR_PM, b);
    if (!(b & B_24_HOUR))
        time->hour = time->hour % 12 + (hour & HOUR_PM ? 12 : 0);
    time->day = from_register(rtc_read(DAY), b);
    time->month = from_register(rtc_read(MONTH), b);
    time->year = from_register(rtc_read(YEAR), b) + 100 * (century >= 19 && century < 30 ? century : 20);
}

/* Two equal readings: then no update fell between the registers. */
bool rtc_get_time(struct rtc_time *time)
{
    for (int tries = 0; tries < 5; tries++) {
        struct rtc_time again;
        for (int i = 0; i < 1000 && (rtc_read(RTC_REGISTER_A) & A_UPDATE_IN_PROGRESS); i++)
            cpu_relax();
        read_once(time);
        read_once(&again);
        if (!memcmp(time, &again, sizeof again))
            return true;
    }
    return false;
}

void rtc_set_alarm(u32 hour, u32 minute, u32 second)
{
    u8 b = rtc_read(RTC_REGISTER_B);
    u8 in_register = to_register(b & B_24_HOUR ? hour : (hour + 11) % 12 + 1, b);
    if (!(b & B_24_HOUR) && hour >= 12)
        in_register |= HOUR_PM;
    rtc_write(HOUR_ALARM, in_register);
    rtc_write(MINUTE_ALARM, to_register(minute, b));
    rtc_write(SECOND_ALARM, to_register(second, b));
}
