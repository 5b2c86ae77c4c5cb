"""Time, memory and state of the real-time clock."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.rtc_parts import (
    AIE,
    BINARY,
    CENTURY,
    DAY,
    GIB,
    H24,
    HOUR,
    MIB,
    MIN,
    MONTH,
    PIE,
    SEC,
    SET,
    START,
    UF,
    UIE,
    UIP,
    WEEKDAY,
    YEAR,
    A,
    B,
    C,
    Clock,
    D,
)
from tvmm.devices import rtc_calendar as calendar


@pytest.fixture
def clock() -> Clock:
    """A clock two seconds before a leap day."""
    return Clock()


# -- time ----------------------------------------------------------------------------------------------------


def test_power_on_registers(clock: Clock) -> None:
    """The divider runs at 1024 Hz, mode is BCD and 24 hours, no flag is set, the battery is good."""
    assert [clock.get(index) for index in (A, B, C, D)] == [0x26, 0x02, 0x00, 0x80]
    assert clock.rtc.read(0, 1) == 0xFF


def test_time_in_bcd_runs_over_a_leap_day(clock: Clock) -> None:
    """The registers are UTC in BCD, and the calendar knows leap years."""
    assert clock.time() == (0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x58, 4)
    clock.now += 2
    assert clock.time() == (0x20, 0x24, 0x02, 0x29, 0x00, 0x00, 0x00, 5)
    clock.now += 86400
    assert clock.time() == (0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00, 6)


def test_binary_and_12_hours(clock: Clock) -> None:
    """Register B chooses the format; the afternoon is bit 7 of the hour."""
    clock.put(B, BINARY | H24)
    assert clock.time() == (20, 24, 2, 28, 23, 59, 58, 4)
    clock.put(B, 0)
    assert clock.get(HOUR) == 0x91
    clock.now += 2
    assert clock.get(HOUR) == 0x12
    clock.now += 12 * 3600
    assert clock.get(HOUR) == 0x92
    clock.put(B, BINARY)
    assert clock.get(HOUR) == 0x8C


def test_linux_sets_the_clock(clock: Clock) -> None:
    """Set as Linux does it, the clock goes on from there, the first update half a second later."""
    clock.now += 0.9
    clock.set_like_linux((0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59))
    assert clock.time()[:7] == (0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59)
    clock.now += 0.49
    assert clock.get(SEC) == 0x59
    clock.now += 0.02
    assert clock.time()[:7] == (0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00)


def test_set_alone_stops_the_registers_and_not_the_seconds(clock: Clock) -> None:
    """While SET is on, registers stand and hold what is written; where in the second the clock is stays."""
    clock.now += 0.25
    clock.put(B, SET | H24)
    clock.now += 10
    assert clock.get(SEC) == 0x58
    clock.put(SEC, 0x30)
    clock.put(B, H24)
    assert clock.get(SEC) == 0x30
    clock.now += 0.74
    assert clock.get(SEC) == 0x30
    clock.now += 0.02
    assert clock.get(SEC) == 0x31


def test_registers_written_without_set(clock: Clock) -> None:
    """A field can be written while the clock runs; the others go on."""
    clock.put(HOUR, 0x07)
    assert clock.time() == (0x20, 0x24, 0x02, 0x28, 0x07, 0x59, 0x58, 4)
    clock.put(WEEKDAY, 1)
    assert clock.get(WEEKDAY) == 1
    clock.now += 86400
    assert clock.get(WEEKDAY) == 2


def test_nonsense_in_the_registers_is_brought_to_a_time(clock: Clock) -> None:
    """Whatever a guest writes, the clock goes on from a valid time."""
    clock.put(B, SET | H24)
    for index in (SEC, MIN, HOUR, WEEKDAY, DAY, MONTH, YEAR, CENTURY):
        clock.put(index, 0xFF)
        assert clock.get(index) == 0xFF
    clock.put(B, H24)
    assert clock.time() == (0x99, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59, 7)
    clock.now += 1
    assert clock.time()[:7] == (0x00, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00)


def test_update_in_progress(clock: Clock) -> None:
    """UIP is on just before the second, for the warning and the update of the data sheet, and off while SET is on."""
    seen = []
    for microsecond in (997_700, 997_800, 999_900, 1_000_000):
        clock.now = START + microsecond / 1e6
        seen.append(bool(clock.get(A) & UIP))
    assert seen == [False, True, True, False]
    clock.now = START + 0.999
    clock.put(B, SET | H24)
    assert not clock.get(A) & UIP


def test_linux_probe_of_the_clock(clock: Clock) -> None:
    """Linux takes the clock for working: 24 hours, BCD, UIP ends within its patience, register D valid."""
    clock.now = START + 0.9985
    for _ in range(20):
        if not clock.get(A) & UIP:
            break
        clock.now += 0.0001
    else:
        pytest.fail("UIP never ended")
    assert clock.get(B) & (H24 | BINARY) == H24
    assert clock.get(D) & 0x80


@settings(max_examples=100, deadline=None)
@given(
    st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31)), st.sampled_from([0, 2, 4, 6])
)
def test_calendar_agrees_with_python(when: datetime.datetime, mode: int) -> None:
    """Encoding gives the date that Python's calendar gives, and decoding takes it back, in every format."""
    when = when.replace(microsecond=0)
    seconds = calendar.UNIX_EPOCH + round((when - datetime.datetime(1970, 1, 1)).total_seconds())
    raw = calendar.encode(seconds, 0, BINARY | H24)
    expected = (when.second, when.minute, when.hour, when.isoweekday() % 7 + 1, when.day, when.month)
    assert tuple(raw) == (*expected, when.year % 100, when.year // 100)
    assert calendar.decode(calendar.encode(seconds, 0, mode), mode) == seconds


@given(st.binary(min_size=8, max_size=8), st.sampled_from([0, 2, 4, 6]))
def test_decode_has_an_answer_for_every_input(raw: bytes, mode: int) -> None:
    """Any bytes decode to a moment of the calendar, a month over its end at most."""
    seconds = calendar.decode(raw, mode)
    assert 0 <= seconds < calendar.CALENDAR_SECONDS + 31 * calendar.DAY
    assert len(calendar.encode(seconds % calendar.CALENDAR_SECONDS, 0, mode)) == 8


# -- memory --------------------------------------------------------------------------------------------------


def word(clock: Clock, index: int, length: int = 2) -> int:
    """A little-endian number from the CMOS."""
    return sum(clock.get(index + position) << 8 * position for position in range(length))


@pytest.mark.parametrize(
    ("ram", "above_1m", "above_16m", "above_4g"),
    [
        (1 * MIB, 0, 0, 0),
        (16 * MIB, 15 * 1024, 0, 0),
        (64 * MIB, 63 * 1024, 48 * 16, 0),
        (256 * MIB, 0xFFFF, 240 * 16, 0),
        (3 * GIB, 0xFFFF, (3 * 1024 - 16) * 16, 0),
        (8 * GIB, 0xFFFF, (3 * 1024 - 16) * 16, 5 * 1024 * 16),
    ],
)
def test_memory_size_bytes(ram: int, above_1m: int, above_16m: int, above_4g: int) -> None:
    """Firmware's bytes say how much RAM there is, as far as each of them reaches, with a right checksum."""
    clock = Clock(ram_size=ram)
    assert (word(clock, 0x15), word(clock, 0x17), word(clock, 0x30)) == (640, above_1m, above_1m)
    assert (word(clock, 0x34), word(clock, 0x5B, 3)) == (above_16m, above_4g)
    total = sum(clock.get(index) for index in range(0x10, 0x2E))
    assert clock.get(0x2E) << 8 | clock.get(0x2F) == total


def test_memory_keeps_what_is_written(clock: Clock) -> None:
    """Every byte behind the registers is memory but the century; the index has seven bits."""
    indices = [index for index in range(0x0E, 0x80) if index != CENTURY]
    assert len(indices) == 113
    for index in indices:
        clock.put(index | 0x80, index ^ 0x5A)
    assert [clock.get(index) for index in indices] == [index ^ 0x5A for index in indices]
    assert clock.rtc.state().nmi_masked is False
    clock.rtc.write(0, 1, 0x8F)
    assert clock.rtc.state().nmi_masked is True


def test_index_and_value_in_one_access(clock: Clock) -> None:
    """A two-byte write is index and value."""
    clock.rtc.write(0, 2, 0x5A40)
    assert clock.get(0x40) == 0x5A


# -- reset and state -----------------------------------------------------------------------------------------


def test_reset_keeps_the_battery(clock: Clock) -> None:
    """A reset turns the interrupts off and clears the flags; time, memory and mode stay."""
    clock.set_like_linux((0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x00))
    clock.put(0x40, 0x55)
    clock.put(B, PIE | UIE | AIE | BINARY | H24 | 0x08)
    clock.pass_time(1)
    news = clock.news
    clock.rtc.reset()
    assert clock.news == news + 1
    assert (clock.get(B), clock.get(0x40), clock.get(YEAR)) == (BINARY | H24, 0x55, 99)
    assert clock.rtc.next_deadline() is None


def test_restore_follows_the_other_host(clock: Clock) -> None:
    """The guest's own time goes on from the wall clock of the new host, and pending flags raise no edge."""
    clock.set_like_linux((0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x00))
    clock.put(B, UIE | H24)
    clock.pass_time(1.5)
    other = Clock(now=clock.now + 30)
    other.rtc.restore(clock.rtc.state())
    assert (other.edges, other.news) == (0, 1)
    assert other.get(SEC) == 0x32
    assert other.get(C) & UF
    assert other.rtc.next_deadline() is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("selected", 0x80),
        ("register_a", 0xA6),
        ("flags", 0x80),
        ("cmos", bytes(127)),
        ("stopped", bytes(8)),
        ("offset_us", 1 << 80),
        ("weekday_shift", 7),
        ("seconds_seen", -1),
    ],
)
def test_restore_names_the_bad_field(clock: Clock, field: str, value: Any) -> None:
    """A record that no clock can have is refused by the name of its field, and changes nothing."""
    before = clock.rtc.state()
    with pytest.raises(ValueError, match=field):
        clock.rtc.restore(before._replace(**{field: value}))
    assert clock.rtc.state() == before
