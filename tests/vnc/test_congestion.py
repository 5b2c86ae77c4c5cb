"""The window against lines with a rate, a delay and a buffer."""

from __future__ import annotations

from collections import deque

import pytest

from tvmm.vnc.congestion import (
    GONE_NS,
    IDLE_NS,
    MARKS_MAX,
    WINDOW_BYTES,
    WINDOW_MAX_BYTES,
    WINDOW_MIN_BYTES,
    Congestion,
)

MS = 1_000_000
FOREVER = 20_000


def drive(rate: int, delay_ms: int, update_bytes: int, steps_ms: int = FOREVER) -> tuple[Congestion, int, int]:
    """Updates of one size over a line of `rate` bytes/s; the window, bytes that went through, worst queue in ms."""
    congestion = Congestion()
    answers: deque[int] = deque()
    free_ns = worst_ns = through = 0
    for now_ms in range(1, steps_ms):
        now_ns = now_ms * MS
        while answers and answers[0] <= now_ns:
            congestion.answered(answers.popleft())
        while not congestion.full(now_ns):
            congestion.sent(update_bytes, now_ns)
            if not congestion.mark(now_ns):
                break
            free_ns = max(free_ns, now_ns) + update_bytes * 1_000_000_000 // rate
            answers.append(free_ns + delay_ms * MS)
            through += update_bytes
            if now_ms > steps_ms // 2:
                worst_ns = max(worst_ns, free_ns - now_ns)
    return congestion, through, worst_ns // MS


@pytest.mark.parametrize(
    ("rate", "delay_ms", "update_bytes"),
    [
        (1_250_000, 20, 5_000),
        (1_250_000, 100, 5_000),
        (12_500_000, 40, 20_000),
        (125_000, 50, 2_000),
        (125_000, 5, 10_000),
    ],
)
def test_most_of_a_line_is_used_and_little_is_late(rate: int, delay_ms: int, update_bytes: int) -> None:
    """At least seven tenths of what fits, and never much more waiting than one update and what is wanted to wait."""
    _, through, worst_ms = drive(rate, delay_ms, update_bytes)
    assert through >= 0.7 * rate * FOREVER / 1000
    assert worst_ms <= 150 + 2 * update_bytes * 1000 // rate


def test_window_stays_within_its_bounds() -> None:
    """However fast or slow the line is."""
    fast, *_ = drive(10**12, 1, 100_000, 500)
    assert fast.window == WINDOW_MAX_BYTES
    slow = Congestion()
    for step in range(1, 60):
        slow.sent(100, step * 1_000_000 * MS)
        slow.mark(step * 1_000_000 * MS)
        slow.answered(step * 1_000_000 * MS + step * 300 * MS)
    assert WINDOW_MIN_BYTES <= slow.window <= WINDOW_BYTES


def test_one_update_may_be_larger_than_the_window() -> None:
    """Then it is alone on its way."""
    congestion = Congestion()
    assert not congestion.full(0)
    congestion.sent(WINDOW_BYTES * 10, 0)
    assert not congestion.full(0), "no fence says when it is through"
    assert congestion.mark(0)
    assert congestion.full(1)
    assert congestion.answered(MS) == MS
    assert not congestion.full(2)
    assert congestion.in_flight == 0
    assert congestion.bytes_per_second == WINDOW_BYTES * 10 * 1000


def test_a_viewer_that_does_not_answer() -> None:
    """Is waited for, but not for ever, and costs a bounded number of marks."""
    congestion = Congestion()
    marks = 0
    for _ in range(MARKS_MAX * 2):
        congestion.sent(1, 0)
        marks += congestion.mark(0)
    assert marks == MARKS_MAX
    congestion.sent(WINDOW_BYTES, 0)
    assert congestion.full(1)
    assert congestion.gives_up_ns == GONE_NS + 1
    assert not congestion.full(GONE_NS + 1)
    assert not congestion.waiting
    assert congestion.answered(GONE_NS + 2) is None


def test_after_a_pause_it_begins_anew() -> None:
    """A line may have changed meanwhile."""
    congestion, *_ = drive(10**12, 1, 100_000, 500)
    while congestion.waiting:
        congestion.answered(501 * MS)
    congestion.sent(1, 501 * MS + IDLE_NS + 1)
    assert congestion.window == WINDOW_BYTES
    assert congestion.shortest_ns is None
    assert congestion.in_flight == 1
