"""Flags, interrupts and deadlines of the real-time clock."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.rtc_parts import (
    AF,
    AIE,
    H24,
    HOUR_ALARM,
    IRQF,
    MIN_ALARM,
    PF,
    PIE,
    SEC,
    SEC_ALARM,
    SET,
    START,
    UF,
    UIE,
    A,
    B,
    C,
    Clock,
)
from tvmm.devices import rtc_calendar as calendar
from tvmm.devices.rtc import MINIMUM_INTERVAL_US
from tvmm.devices.rtc_calendar import Alarm


@pytest.fixture
def clock() -> Clock:
    """A clock two seconds before a leap day."""
    return Clock()


def test_flags_without_interrupts(clock: Clock) -> None:
    """Flags are set whether enabled or not and cleared by reading; nobody is woken for them."""
    clock.get(C)
    clock.now += 1
    assert clock.rtc.next_deadline() is None
    assert clock.get(C) == PF | UF
    assert clock.get(C) == 0
    assert clock.edges == 0


def test_update_interrupt(clock: Clock) -> None:
    """Update interrupts come at each second, as long as register C is read in between."""
    clock.put(B, UIE | H24)
    clock.get(C)
    for number in range(1, 4):
        clock.pass_time(1.001)
        assert clock.edges == number
        assert clock.get(C) & (IRQF | UF) == IRQF | UF


def test_one_edge_until_c_is_read(clock: Clock) -> None:
    """Flags pile up behind one edge, and there is no deadline until register C has been read."""
    clock.put(B, UIE | PIE | H24)
    clock.pass_time(10)
    assert (clock.edges, clock.ticks, clock.rtc.next_deadline()) == (1, 1, None)
    news = clock.news
    assert clock.get(C) & (IRQF | PF | UF) == IRQF | PF | UF
    assert clock.news == news + 1
    assert clock.rtc.next_deadline() is not None


def test_set_turns_the_update_interrupt_off(clock: Clock) -> None:
    """Writing SET clears UIE, as the data sheet says, and a stopped clock has no updates."""
    clock.put(B, UIE | H24)
    clock.put(B, SET | UIE | H24)
    assert clock.get(B) == SET | H24
    clock.get(C)
    clock.now += 5
    assert not clock.get(C) & UF


@pytest.mark.parametrize(
    ("alarm", "after"),
    [
        ((0x00, 0x00, 0x00), 2),
        ((0x00, 0x00, 0xFF), 2),
        ((0xFF, 0xFF, 0xFF), 1),
        ((0x59, 0x59, 0x23), 1),
        ((0x58, 0x59, 0x23), 86400),
        ((0x30, 0xFF, 0xFF), 32),
        ((0x00, 0x30, 0xC0), 1802),
        ((0x00, 0x00, 0x12), 12 * 3600 + 2),
    ],
)
def test_alarm(clock: Clock, alarm: tuple[int, int, int], after: int) -> None:
    """The alarm comes at the first second that matches; bytes with the two high bits match anything."""
    for index, value in zip((SEC_ALARM, MIN_ALARM, HOUR_ALARM), alarm, strict=True):
        clock.put(index, value)
    clock.get(C)
    clock.put(B, AIE | H24)
    clock.pass_time(after - 0.001)
    assert clock.edges == 0
    clock.pass_time(0.002)
    assert clock.edges == 1
    assert clock.get(C) & (IRQF | AF) == IRQF | AF


def test_alarm_that_matches_no_time_never_comes(clock: Clock) -> None:
    """An alarm at second 75 has no deadline and sets no flag."""
    for index in (SEC_ALARM, MIN_ALARM, HOUR_ALARM):
        clock.put(index, 0x75)
    clock.put(B, AIE | H24)
    assert clock.rtc.next_deadline() is None
    clock.now += 200_000
    assert not clock.get(C) & AF


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Alarm,
        st.none() | st.integers(0, 23),
        st.none() | st.integers(0, 59),
        st.none() | st.integers(0, 59),
    ),
    st.integers(0, 3 * 86400),
)
def test_next_alarm_is_the_first_match(alarm: Alarm, after: int) -> None:
    """`next_alarm` is what looking at one second after the other finds."""
    second = after + 1
    while any(
        wanted is not None and wanted != now
        for wanted, now in zip(alarm, (second // 3600 % 24, second // 60 % 60, second % 60), strict=True)
    ):
        # Whole minutes and hours that cannot match are stepped over.
        if alarm.hour is not None and alarm.hour != second // 3600 % 24:
            second = (second // 3600 + 1) * 3600
        elif alarm.minute is not None and alarm.minute != second // 60 % 60:
            second = (second // 60 + 1) * 60
        else:
            second += 1
    assert calendar.next_alarm(alarm, after) == second


@pytest.mark.parametrize(
    ("rate", "hz"), [(15, 2), (14, 4), (10, 64), (6, 1024), (2, 128), (1, 256), (3, 8192), (0, 0)]
)
def test_periodic_rates(clock: Clock, rate: int, hz: int) -> None:
    """Interrupts come at the rate of register A, and at no more than the shell is to be woken."""
    clock.put(A, 0x20 | rate)
    clock.put(B, PIE | H24)
    clock.get(C)
    clock.edges = 0
    end = clock.now + 1
    while (deadline := clock.rtc.next_deadline()) is not None and deadline < end:
        clock.pass_time(deadline - clock.now)
        clock.get(C)
    most = 1_000_000 / MINIMUM_INTERVAL_US
    if hz < most / 2:
        assert abs(clock.edges - hz) <= 1
    else:
        assert min(hz, most) * 0.45 < clock.edges <= most + 1
    assert clock.ticks <= most + 1


def test_a_polling_guest_sees_every_period(clock: Clock) -> None:
    """The limit on deadlines is none on what register C says: at 8192 Hz each period shows to who looks."""
    clock.put(A, 0x23)
    clock.get(C)
    seen = 0
    for step in range(1, 8192):
        clock.now = START + step / 8192 + 1e-5
        seen += clock.get(C) >> 6 & 1
    assert seen == 8191


def test_divider_reset_stops_everything(clock: Clock) -> None:
    """With the divider held in reset there is neither time nor period."""
    clock.put(B, PIE | UIE | H24)
    clock.put(A, 0x76)
    clock.get(C)
    assert clock.rtc.next_deadline() is None
    clock.now += 100
    assert (clock.get(C), clock.get(SEC)) == (0, 0x58)


def test_guest_cannot_make_the_shell_spin(clock: Clock) -> None:
    """However a guest pokes, deadlines behind an interrupt keep their distance."""
    clock.put(A, 0x23)
    clock.put(B, PIE | UIE | AIE | H24)
    last = 0.0
    for _ in range(50):
        deadline = clock.rtc.next_deadline()
        assert deadline is not None
        assert deadline - last >= MINIMUM_INTERVAL_US / 1e6 - 1e-6
        clock.now = deadline
        clock.rtc.tick(clock.now)
        last = clock.now
        clock.get(C)
        clock.put(B, H24)
        clock.put(B, PIE | UIE | AIE | H24)


@pytest.mark.parametrize("now", [START, 4_300_000_000.0])
def test_tick_at_the_deadline_always_gets_on(now: float) -> None:
    """A tick at the deadline brings the interrupt, also in years whose microseconds a float does not hold."""
    clock = Clock(now)
    clock.put(B, PIE | H24)
    for step in range(200):
        clock.now += step * 0.000_137
        clock.get(C)
        edges = clock.edges
        deadline = clock.rtc.next_deadline()
        assert deadline is not None
        clock.now = deadline
        clock.rtc.tick(clock.now)
        assert clock.edges == edges + 1


def test_wall_clock_set_back(clock: Clock) -> None:
    """When the host's clock is set back, the guest's follows and its interrupts go on."""
    clock.put(A, 0x2F)
    clock.put(B, PIE | UIE | H24)
    clock.pass_time(5)
    clock.now -= 3600
    clock.get(C)
    edges = clock.edges
    clock.pass_time(1.001)
    assert clock.edges == edges + 1


def test_alarm_after_the_wall_clock_was_set_back(clock: Clock) -> None:
    """An alarm that passed already comes again when its time comes again."""
    for index, value in ((SEC_ALARM, 0x30), (MIN_ALARM, 0xFF), (HOUR_ALARM, 0xFF)):
        clock.put(index, value)
    clock.put(B, AIE | H24)
    clock.pass_time(40)
    assert (clock.edges, clock.get(C) & AF) == (1, AF)
    clock.now -= 30
    deadline = clock.rtc.next_deadline()
    assert deadline is not None
    assert 21.9 < deadline - clock.now < 22.1


def test_deadline_news_only_when_it_changed(clock: Clock) -> None:
    """Accesses that do not change the deadline do not wake the shell."""
    clock.put(B, UIE | H24)
    news = clock.news
    assert news == 1
    for _ in range(100):
        clock.get(SEC)
        clock.put(0x40, 0x55)
    assert clock.news == news
