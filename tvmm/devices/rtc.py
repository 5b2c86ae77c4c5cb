"""Real-time clock and CMOS memory of a PC (Motorola MC146818A data sheet; NVRAM as PC firmware lays it out).

Offset 0 (port 0x70) selects a byte and masks the NMI, offset 1 (port 0x71) is that byte.

No timer runs. Time is `wall` plus the guest's own offset, which changes when the guest sets its clock, and
the flags of register C are worked out when somebody looks. Only while the guest has enabled an interrupt is
there a `next_deadline`: the shell sleeps until then and calls `tick`. While the interrupt line is high, that
is until the guest has read register C, nothing further can be raised and there is no deadline.

Choices:

* Periodic interrupts are not made up for. A period that passed while the guest did not run, or before it read
  register C, sets a flag that is set already. Guests keep time with kvmclock or the TSC, and a burst of stale
  interrupts would be worth nothing.
* The rate that a guest can ask for reaches 8192 Hz. A deadline never comes sooner than `MINIMUM_INTERVAL_US`
  behind the last interrupt, so interrupts come at most about 1000 times a second; a guest that polls
  register C sees every period.
* Update in progress (UIP) is shown for the 2.2 ms before the second, and the registers change at its end: the
  244 us of warning and the update of the data sheet, without the time in which the registers cannot be read.
* The clock follows `wall` in jumps, too. An update interrupt then comes once for the jump.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices import rtc_calendar as calendar
from tvmm.devices.common import (
    check_bits,
    check_bytes,
    check_flag,
    check_int,
    check_record,
    check_uint,
    read_bytewise,
    write_bytewise,
)
from tvmm.devices.rtc_cmos import CENTURY, CMOS_BYTES, initial_cmos

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MINIMUM_INTERVAL_US", "Rtc", "RtcState"]

MINIMUM_INTERVAL_US = 976
"""Least time from one interrupt to the next deadline: a guest must not keep the shell busy with 8192 wake-ups
a second. Drivers for applications ask for 1024 Hz at most."""

SECOND_US = 1_000_000
CALENDAR_US = calendar.CALENDAR_SECONDS * SECOND_US
UPDATE_US = 244 + 1984

INDEX, VALUE = 0, 1

# Where the time registers lie, in the order of `rtc_calendar`.
TIME_REGISTERS = (0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, CENTURY)
WEEKDAY_POSITION = 3
SECOND_ALARM, MINUTE_ALARM, HOUR_ALARM = 0x01, 0x03, 0x05
REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D = 0x0A, 0x0B, 0x0C, 0x0D

A_UPDATE_IN_PROGRESS = 0x80
A_DIVIDER = 0x70
A_DIVIDER_RUNS = 0x20  # the code for the crystal of 32.768 kHz
A_RATE = 0x0F

B_SET = 0x80
B_INTERRUPTS = 0x70  # periodic, alarm, update: the bits of their flags in register C
B_UPDATE_INTERRUPT = 0x10
B_SQUARE_WAVE = 0x08

C_REQUEST = 0x80
PERIODIC, ALARM, UPDATE = 0x40, 0x20, 0x10

D_BATTERY_GOOD = 0x80

OFFSET_LIMIT = 2 * CALENDAR_US
SEEN_LIMIT = 1 << 63


class RtcState(NamedTuple):
    """Registers and memory.

    `offset_us`: the guest's time less `wall`, in microseconds. `stopped`: the eight time registers while the
    clock stands, else empty. `seconds_seen` and `periods_seen`: up to where the flags have been worked out.
    """

    selected: int
    nmi_masked: bool
    register_a: int
    register_b: int
    flags: int
    cmos: bytes
    offset_us: int
    weekday_shift: int
    stopped: bytes
    seconds_seen: int
    periods_seen: int


class Rtc:
    """Clock, alarm, periodic interrupt and NVRAM.

    `ram_size` (bytes) is what the memory-size bytes say. `irq` is called at each rising edge of IRQ 8,
    `wall` gives UTC in seconds since 1970, `on_deadline_changed` is called when `next_deadline` has another
    answer than after the last `tick` or call.
    """

    def __init__(
        self,
        ram_size: int,
        irq: Callable[[], None],
        wall: Callable[[], float],
        on_deadline_changed: Callable[[], None],
    ) -> None:
        self._irq = irq
        self._wall = wall
        self._on_deadline_changed = on_deadline_changed
        self._offset_us = calendar.UNIX_EPOCH * SECOND_US
        self._weekday_shift = 0
        self._cmos = bytearray(initial_cmos(ram_size))
        self._stopped = bytearray()
        self._a = A_DIVIDER_RUNS | 0x06  # 1024 Hz, as firmware leaves it
        self._b = calendar.HOURS_24
        self._clear()
        self._forget_the_past(self._now_us())

    def _clear(self) -> None:
        """What the reset pin does."""
        self._selected = 0
        self._nmi_masked = False
        self._flags = 0
        self._b &= ~(B_INTERRUPTS | B_SQUARE_WAVE)
        self._line = False
        self._last_edge_us = 0
        self._announced: float | None = None

    # -- the guest's side ----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`, as byte reads one after the other. The index cannot be read: all ones."""
        return read_bytewise(self._read_byte, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """`size` bytes at `offset`, as byte writes one after the other."""
        write_bytewise(self._write_byte, offset, size, value)

    def _read_byte(self, offset: int) -> int:
        if offset != VALUE:
            return 0xFF
        now_us = self._now_us()
        self._catch_up(now_us)
        index = self._selected
        if index in TIME_REGISTERS:
            value = self._time_bytes(now_us)[TIME_REGISTERS.index(index)]
        elif index == REGISTER_A:
            value = self._a | (A_UPDATE_IN_PROGRESS if self._updating(now_us) else 0)
        elif index == REGISTER_B:
            value = self._b
        elif index == REGISTER_C:
            value = self._flags | (C_REQUEST if self._flags & self._b else 0)
            self._flags = 0
            self._settle(now_us)
        elif index == REGISTER_D:
            value = D_BATTERY_GOOD
        else:
            value = self._cmos[index]
        self._check_deadline()
        return value

    def _write_byte(self, offset: int, value: int) -> None:
        if offset == INDEX:
            self._selected = value & 0x7F
            self._nmi_masked = bool(value & 0x80)
        elif offset == VALUE:
            now_us = self._now_us()
            self._catch_up(now_us)
            self._store(value, now_us)
            self._settle(now_us)
            self._check_deadline()

    def _store(self, value: int, now_us: int) -> None:
        index = self._selected
        if index in TIME_REGISTERS:
            raw = self._stopped or bytearray(self._time_bytes(now_us))
            raw[TIME_REGISTERS.index(index)] = value
            if not self._stopped:
                self._set_time(raw, now_us)
        elif index == REGISTER_A:
            self._control(value & (A_DIVIDER | A_RATE), self._b, now_us)
        elif index == REGISTER_B:
            # Setting the clock turns the update interrupt off.
            self._control(self._a, value & ~B_UPDATE_INTERRUPT if value & B_SET else value, now_us)
        elif index not in (REGISTER_C, REGISTER_D):
            self._cmos[index] = value

    def _control(self, a: int, b: int, now_us: int) -> None:
        """New registers A and B, with what starting and stopping the clock brings."""
        ran, divided, rate = self._runs(), self._divides(), self._a & A_RATE
        before = self._time_bytes(now_us)
        self._a, self._b = a, b
        if ran and not self._runs():
            self._stopped = bytearray(before)
        if self._divides() and not divided:
            # The divider starts from its reset: the first update comes half a second later.
            self._offset_us += SECOND_US // 2 - self._guest_us(now_us) % SECOND_US
        if self._runs() and not ran:
            raw, self._stopped = self._stopped, bytearray()
            self._set_time(raw, now_us)
        elif a & A_RATE != rate or self._divides() != divided:
            self._periods_seen = self._period(now_us)

    # -- the other side ------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When, on the clock of `wall`, `tick` is to be called; None if no interrupt can come."""
        if self._line or not self._b & B_INTERRUPTS:
            return None
        now_us = self._now_us()
        guest_us = self._guest_us(now_us)
        due = [moment for moment in self._moments(guest_us) if moment is not None]
        if not due:
            return None
        # A clock that was set back must not make an interrupt of its future count.
        earliest = min(self._last_edge_us, now_us) + MINIMUM_INTERVAL_US
        # One microsecond more, so that the float is not before the moment.
        return (max(now_us + min(due) - guest_us, earliest) + 1) / SECOND_US

    def tick(self, now: float) -> None:
        """Work out the flags at `now` (of `wall`) and raise IRQ 8 if one is new. At any time harmless."""
        self._catch_up(int(now * SECOND_US))
        self._announced = self.next_deadline()

    def _moments(self, guest_us: int) -> tuple[int | None, int | None, int | None]:
        """When the enabled flags come next, in the guest's microseconds."""
        periodic = alarm = update = None
        rate = self._rate_hz()
        if self._b & PERIODIC and rate:
            period = guest_us * rate // SECOND_US
            periodic = -(-(period + 1) * SECOND_US // rate) if period == self._periods_seen else guest_us
        if self._runs():
            second = guest_us // SECOND_US
            if self._b & UPDATE:
                update = (second + 1) * SECOND_US if second == self._seconds_seen else guest_us
            wanted = self._alarm() if self._b & ALARM else None
            if wanted:
                alarm = calendar.next_alarm(wanted, min(self._seconds_seen, second)) * SECOND_US
        return periodic, alarm, update

    # -- time ----------------------------------------------------------------------------------------------

    def _now_us(self) -> int:
        return int(self._wall() * SECOND_US)

    def _guest_us(self, now_us: int) -> int:
        return (now_us + self._offset_us) % CALENDAR_US

    def _divides(self) -> bool:
        return self._a & A_DIVIDER == A_DIVIDER_RUNS

    def _runs(self) -> bool:
        return self._divides() and not self._b & B_SET

    def _updating(self, now_us: int) -> bool:
        return self._runs() and self._guest_us(now_us) % SECOND_US >= SECOND_US - UPDATE_US

    def _time_bytes(self, now_us: int) -> bytes:
        if self._stopped:
            return bytes(self._stopped)
        return calendar.encode(self._guest_us(now_us) // SECOND_US, self._weekday_shift, self._b)

    def _set_time(self, raw: bytearray, now_us: int) -> None:
        """Go on from the time in `raw`; where in the second the clock is does not change."""
        seconds = calendar.decode(raw, self._b) % calendar.CALENDAR_SECONDS
        self._offset_us = seconds * SECOND_US + self._guest_us(now_us) % SECOND_US - now_us
        shift = calendar.decode_weekday(raw[WEEKDAY_POSITION], self._b) - calendar.weekday(seconds)
        self._weekday_shift = shift % 7
        self._forget_the_past(now_us)

    def _forget_the_past(self, now_us: int) -> None:
        """The time is another: what lies between the old and the new has not passed."""
        self._seconds_seen = self._guest_us(now_us) // SECOND_US
        self._periods_seen = self._period(now_us)

    def _rate_hz(self) -> int:
        """Of the periodic interrupt; 0 if there is none."""
        rate = self._a & A_RATE
        if not rate or not self._divides():
            return 0
        return 32768 >> (rate - 1) if rate > 2 else 256 >> (rate - 1)

    def _period(self, now_us: int) -> int:
        return self._guest_us(now_us) * self._rate_hz() // SECOND_US

    def _alarm(self) -> calendar.Alarm | None:
        cmos = self._cmos
        return calendar.decode_alarm(cmos[SECOND_ALARM], cmos[MINUTE_ALARM], cmos[HOUR_ALARM], self._b)

    # -- flags and interrupt -------------------------------------------------------------------------------

    def _catch_up(self, now_us: int) -> None:
        """Set the flags of what has happened since the last time."""
        period = self._period(now_us)
        if period != self._periods_seen:
            self._periods_seen = period
            self._flags |= PERIODIC
        second = self._guest_us(now_us) // SECOND_US
        if self._runs() and second != self._seconds_seen:
            self._flags |= UPDATE
            wanted = self._alarm()
            came = wanted is not None and calendar.next_alarm(wanted, self._seconds_seen) <= second
            self._flags |= ALARM if came else 0
            self._seconds_seen = second
        self._settle(now_us)

    def _settle(self, now_us: int) -> None:
        before = self._line
        self._line = bool(self._flags & self._b & B_INTERRUPTS)
        if self._line and not before:
            self._last_edge_us = now_us
            self._irq()

    def _check_deadline(self) -> None:
        deadline = self.next_deadline()
        if deadline != self._announced:
            self._announced = deadline
            self._on_deadline_changed()

    @property
    def line_up(self) -> bool:
        """Whether IRQ 8 is up: a shell may raise the edge once more after `restore`."""
        return self._line

    # -- state ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """What the reset pin does: interrupts off. Time, alarm and memory live on the battery and stay."""
        self._clear()
        self._on_deadline_changed()

    def state(self) -> RtcState:
        """Registers, memory and clock as a record."""
        return RtcState(
            self._selected, self._nmi_masked, self._a, self._b, self._flags, bytes(self._cmos),
            self._offset_us, self._weekday_shift, bytes(self._stopped), self._seconds_seen,
            self._periods_seen,
        )  # fmt: skip

    def restore(self, state: RtcState) -> None:
        """Take over `state`; the clock goes on from `wall`. No edge is raised for flags that are set in it.

        Raises `ValueError` with the name of the field for a record that cannot be, and then changes nothing.
        """
        check_record(state, RtcState)
        check_uint("selected", state.selected, 0x7F)
        masked = check_flag("nmi_masked", state.nmi_masked)
        a = check_bits("register_a", state.register_a, A_DIVIDER | A_RATE)
        b = check_uint("register_b", state.register_b, 0xFF)
        check_bits("flags", state.flags, B_INTERRUPTS)
        check_bytes("cmos", state.cmos, CMOS_BYTES, CMOS_BYTES)
        check_int("offset_us", state.offset_us, -OFFSET_LIMIT, OFFSET_LIMIT)
        check_uint("weekday_shift", state.weekday_shift, 6)
        runs = a & A_DIVIDER == A_DIVIDER_RUNS and not b & B_SET
        stands = 0 if runs else calendar.TIME_BYTES
        check_bytes("stopped", state.stopped, stands, stands)
        check_uint("seconds_seen", state.seconds_seen, calendar.CALENDAR_SECONDS - 1)
        check_uint("periods_seen", state.periods_seen, SEEN_LIMIT)
        self._selected, self._nmi_masked = state.selected, masked
        self._a, self._b, self._flags = a, b, state.flags
        self._cmos[:] = state.cmos
        self._offset_us, self._weekday_shift = state.offset_us, state.weekday_shift
        self._stopped = bytearray(state.stopped)
        self._seconds_seen, self._periods_seen = state.seconds_seen, state.periods_seen
        self._line = bool(self._flags & b & B_INTERRUPTS)
        self._last_edge_us = 0
        self._announced = self.next_deadline()
        self._on_deadline_changed()
