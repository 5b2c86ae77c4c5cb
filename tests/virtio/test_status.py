"""The driver's status: the whole table against a plain account of the rules, and random drivers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.virtio.status import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    NEEDS_RESET,
    REACHABLE,
    STEPS,
    advance,
    describe,
)

LADDER = (ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK)


def reference(status: int, written: int, fit: bool) -> tuple[int, bool]:
    """The status after a write and whether the write was without a mistake, told in another way than the table.

    The steps that are taken are a prefix of the ladder; a write lengthens the prefix by rungs that it names and that
    follow without a gap.
    """
    if written == 0:
        return 0, True
    height = sum(bool(status & rung) for rung in LADDER)
    wanted = [position for position, rung in enumerate(LADDER) if written & rung and position >= height]
    stuck = bool(status & (FAILED | NEEDS_RESET))
    clean = not status & ~written & ~NEEDS_RESET and not written & ~status & ~(0x0F | FAILED)
    for position in wanted:
        if stuck or position != height or (LADDER[position] == FEATURES_OK and not fit):
            clean = False
            break
        height += 1
    after = sum(LADDER[:height]) | status & (NEEDS_RESET | FAILED) | written & FAILED
    return after, clean


def test_every_status_and_every_write() -> None:
    """All reachable states and all bytes: the status, and whether there is a mistake, are those of the reference."""
    for status in sorted(REACHABLE):
        for written in range(256):
            for fit in (False, True):
                outcome = advance(status, written, fit)
                expected, clean = reference(status, written, fit)
                assert outcome.status == expected, (status, written, fit)
                assert (not outcome.mistakes) == clean, (status, written, fit)
                assert outcome.status in REACHABLE


def test_events_are_the_bits_that_appear() -> None:
    """An event comes exactly once, with its bit; a reset comes alone."""
    events = {"negotiated": FEATURES_OK, "live": DRIVER_OK, "failed": FAILED}
    for status in sorted(REACHABLE):
        for written in range(1, 256):
            outcome = advance(status, written, True)
            appeared = outcome.status & ~status
            assert set(outcome.events) == {name for name, bit in events.items() if appeared & bit}
        assert advance(status, 0, True).events == ("reset",)


def test_linux() -> None:
    """The way of Linux: four writes, no mistake, and the events in between."""
    status = 0
    seen: list[str] = []
    for bit in LADDER:
        outcome = advance(status, status | bit, True)
        status = outcome.status
        seen += outcome.events
        assert not outcome.mistakes
    assert status == 0x0F
    assert seen == ["negotiated", "live"]


def test_steps_out_of_order_change_nothing() -> None:
    """What is not in the table is refused with a name."""
    for status in (0, 1, 3, 0xB, 0xF):
        for bit in LADDER:
            if not status & bit and (status, bit) not in STEPS:
                outcome = advance(status, status | bit, True)
                assert outcome.status == status
                assert outcome.mistakes == ("status-order",)


def test_mistakes_have_names() -> None:
    """Cleared, reserved and the device's bits are told apart; wide writes are seen in full."""
    assert advance(3, 1, True).mistakes == ("status-cleared",)
    assert advance(3, 3 | 0x10, True).mistakes == ("status-reserved",)
    assert advance(3, 3 | NEEDS_RESET, True).mistakes == ("status-reserved",)
    assert advance(3, 0x100, True) == (3, (), ("status-cleared", "status-reserved"))
    assert advance(3, 0xB, False).mistakes == ("features-refused",)
    assert advance(0x4F, 0xF, True).mistakes == ()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.booleans(), st.booleans()), max_size=40))
def test_any_driver(writes: list[tuple[int, bool, bool]]) -> None:
    """Whatever is written, with NEEDS_RESET coming up in between: reachable, monotonous, live only by the ladder."""
    status = 0
    for written, fit, breaks in writes:
        if breaks:
            status |= NEEDS_RESET
        outcome = advance(status, written, fit)
        assert outcome.status in REACHABLE
        assert written == 0 or outcome.status & status == status
        assert "live" not in outcome.events or not status & (FAILED | NEEDS_RESET)
        status = outcome.status


def test_describe() -> None:
    """For people."""
    assert describe(0) == "reset"
    assert describe(0x4F) == "ACKNOWLEDGE DRIVER FEATURES_OK DRIVER_OK DEVICE_NEEDS_RESET"
