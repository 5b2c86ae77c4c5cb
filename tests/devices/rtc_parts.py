"""A real-time clock on a wall clock that stands until it is moved."""

from __future__ import annotations

import datetime

from tvmm.devices.rtc import Rtc

SEC, SEC_ALARM, MIN, MIN_ALARM, HOUR, HOUR_ALARM, WEEKDAY, DAY, MONTH, YEAR = range(10)
A, B, C, D, CENTURY = 0x0A, 0x0B, 0x0C, 0x0D, 0x32
SET, PIE, AIE, UIE, BINARY, H24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10
UIP = 0x80

START = datetime.datetime(2024, 2, 28, 23, 59, 58, tzinfo=datetime.UTC).timestamp()
MIB, GIB = 1 << 20, 1 << 30


class Clock:
    """An RTC on a wall clock that stands until it is moved, with a shell that keeps its deadlines."""

    def __init__(self, now: float = START, ram_size: int = 256 * MIB) -> None:
        self.now = now
        self.edges = 0
        self.ticks = 0
        self.news = 0
        self.rtc = Rtc(ram_size, self._irq, lambda: self.now, self._news)

    def _irq(self) -> None:
        self.edges += 1

    def _news(self) -> None:
        self.news += 1

    def get(self, index: int) -> int:
        """A byte of the CMOS."""
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def put(self, index: int, value: int) -> None:
        """A byte of the CMOS."""
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def time(self) -> tuple[int, ...]:
        """Century, year, month, day, hour, minute, second and day of the week, as the registers have them."""
        return tuple(self.get(index) for index in (CENTURY, YEAR, MONTH, DAY, HOUR, MIN, SEC, WEEKDAY))

    def pass_time(self, seconds: float) -> None:
        """Time passes and the shell wakes at each deadline in it."""
        end = self.now + seconds
        while (deadline := self.rtc.next_deadline()) is not None and deadline <= end:
            assert deadline >= self.now
            self.now = deadline
            self.ticks += 1
            self.rtc.tick(self.now)
            assert self.ticks < 20_000
        self.now = end

    def set_like_linux(self, when: tuple[int, ...]) -> None:
        """Set the clock in the order in which Linux does: SET, divider reset, fields, SET off, divider on."""
        control, rate = self.get(B), self.get(A)
        self.put(B, control | SET)
        self.put(A, rate | 0x70)
        for index, value in zip((CENTURY, YEAR, MONTH, DAY, HOUR, MIN, SEC), when, strict=True):
            self.put(index, value)
        self.put(B, control)
        self.put(A, rate & ~UIP)
