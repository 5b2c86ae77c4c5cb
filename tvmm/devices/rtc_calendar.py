"""The calendar of the real-time clock: seconds to register bytes and back, and when an alarm comes.

Seconds are counted from the first of January of year 0 of the Gregorian calendar, so that every date the
registers can hold (years 0 to 9999) is a number from 0 to `CALENDAR_SECONDS`.

The bytes are in the format that register B chooses: BCD or binary, 24 hours or 12 hours with bit 7 for the
afternoon. Guests may write any byte into any of them. What is no time of day or date is brought to the
nearest one, and a day behind the end of its month runs over into the next, so that decoding has an answer
for every input.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "CALENDAR_SECONDS",
    "DAY",
    "TIME_BYTES",
    "UNIX_EPOCH",
    "Alarm",
    "decode",
    "decode_alarm",
    "decode_weekday",
    "encode",
    "next_alarm",
    "weekday",
]

DAY = 86_400
DAYS_IN_400_YEARS = 146_097
CALENDAR_SECONDS = 25 * DAYS_IN_400_YEARS * DAY
UNIX_EPOCH = 719_528 * DAY
"""The first of January 1970."""

TIME_BYTES = 8
"""Seconds, minutes, hours, day of the week, day of the month, month, year, century."""

BINARY = 0x04  # bits of register B
HOURS_24 = 0x02
AFTERNOON = 0x80
ANY = 0xC0  # an alarm byte with both bits set matches every value

DAYS_BEFORE_MONTH = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _days_before_year(year: int) -> int:
    past = year - 1
    return 365 * year + past // 4 - past // 100 + past // 400 + 1  # year 0 is a leap year


def _days_before(year: int, month: int) -> int:
    """Days from the origin to the first of `month` (1 to 12) of `year`."""
    return _days_before_year(year) + DAYS_BEFORE_MONTH[month - 1] + (month > 2 and _is_leap(year))


def _date(days: int) -> tuple[int, int, int]:
    """Year, month and day of the month, `days` after the origin."""
    year = days * 400 // DAYS_IN_400_YEARS  # off by one at most
    if _days_before_year(year + 1) <= days:
        year += 1
    elif _days_before_year(year) > days:
        year -= 1
    month = 12
    while _days_before(year, month) > days:
        month -= 1
    return year, month, days - _days_before(year, month) + 1


def weekday(seconds: int) -> int:
    """Day of the week, 0 for Sunday."""
    return (seconds // DAY + 6) % 7  # the origin was a Saturday


def _to_byte(value: int, format_bits: int) -> int:
    return value if format_bits & BINARY else value // 10 << 4 | value % 10


def _from_byte(byte: int, format_bits: int) -> int:
    return byte if format_bits & BINARY else (byte >> 4) * 10 + (byte & 0x0F)


def _hour_to_byte(hour: int, format_bits: int) -> int:
    if format_bits & HOURS_24:
        return _to_byte(hour, format_bits)
    return _to_byte((hour + 11) % 12 + 1, format_bits) | (AFTERNOON if hour >= 12 else 0)


def _hour_from_byte(byte: int, format_bits: int) -> int:
    if format_bits & HOURS_24:
        return _from_byte(byte, format_bits)
    return _from_byte(byte & ~AFTERNOON, format_bits) % 12 + (12 if byte & AFTERNOON else 0)


def encode(seconds: int, weekday_shift: int, format_bits: int) -> bytes:
    """The time registers at `seconds`; `weekday_shift` days are added to the day of the week."""
    year, month, day = _date(seconds // DAY)
    minute, second = divmod(seconds % DAY, 60)
    hour, minute = divmod(minute, 60)
    day_of_week = (weekday(seconds) + weekday_shift) % 7 + 1
    values = (second, minute, 0, day_of_week, day, month, year % 100, year // 100)
    raw = bytearray(_to_byte(value, format_bits) for value in values)
    raw[2] = _hour_to_byte(hour, format_bits)
    return bytes(raw)


def decode(raw: bytes | bytearray, format_bits: int) -> int:
    """The seconds that the time registers mean; see the module's text for what they should not hold."""
    second, minute, _, _, day, month, year, century = (_from_byte(byte, format_bits) for byte in raw)
    hour = _hour_from_byte(raw[2], format_bits)
    whole_year = min(century, 99) * 100 + min(year, 99)
    days = _days_before(whole_year, min(max(month, 1), 12)) + min(max(day, 1), 31) - 1
    return days * DAY + min(hour, 23) * 3600 + min(minute, 59) * 60 + min(second, 59)


def decode_weekday(byte: int, format_bits: int) -> int:
    """Day of the week of the register's byte, 0 for Sunday."""
    return min(max(_from_byte(byte, format_bits), 1), 7) - 1


class Alarm(NamedTuple):
    """Hour, minute and second at which an alarm comes; None for one that does not matter."""

    hour: int | None
    minute: int | None
    second: int | None


def decode_alarm(second: int, minute: int, hour: int, format_bits: int) -> Alarm | None:
    """The alarm that three register bytes mean, or None if no time of day matches them."""
    alarm = Alarm(
        None if hour & ANY == ANY else _hour_from_byte(hour, format_bits),
        None if minute & ANY == ANY else _from_byte(minute, format_bits),
        None if second & ANY == ANY else _from_byte(second, format_bits),
    )
    possible = (alarm.hour or 0) < 24 and (alarm.minute or 0) < 60 and (alarm.second or 0) < 60
    return alarm if possible else None


def next_alarm(alarm: Alarm, after: int) -> int:
    """The first second behind `after` that `alarm` matches: a day later at most."""
    start = after + 1
    midnight = start // DAY * DAY
    moment = _first_match(alarm, start - midnight)
    if moment is None:  # not today any more, then at the first match of tomorrow
        midnight += DAY
        moment = _first_match(alarm, 0)
    return midnight + (moment or 0)


def _first_match(alarm: Alarm, earliest: int) -> int | None:
    """The first second of the day from `earliest` on that `alarm` matches."""
    for hour in range(24) if alarm.hour is None else (alarm.hour,):
        if hour * 3600 + 3599 < earliest:
            continue
        for minute in range(60) if alarm.minute is None else (alarm.minute,):
            moment = hour * 3600 + minute * 60
            if alarm.second is not None:
                moment += alarm.second
            elif moment < earliest:
                moment = min(earliest, moment + 59)
            if moment >= earliest:
                return moment
    return None
