"""Counters become rates."""

from __future__ import annotations

import json

import pytest

from tvmm.vnc.web_panel import Figures, Move, Panel


class Bench:
    """A machine and a clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.figures = Figures("vm", "running", vcpu_seconds=(1.0,), disks={"d": (0, 10)}, nets={"n": (5, 0)})
        self.panel = Panel(lambda: self.figures, lambda: self.now)


def test_the_first_message_has_no_rates() -> None:
    """There is nothing to compare with."""
    message = Bench().panel()
    assert message["vcpus"] == [0.0]
    assert message["disks"] == [{"name": "d", "in": 0.0, "out": 0.0}]
    assert message["migration"] is None


def test_rates_are_per_second() -> None:
    """Whatever the time between two messages is."""
    bench = Bench()
    bench.panel()
    bench.now += 2
    bench.figures = bench.figures._replace(vcpu_seconds=(2.0, 1.0), disks={"d": (200, 10)}, nets={"n": (5, 8)})
    message = bench.panel()
    assert message["vcpus"] == [0.5, 0.0]
    assert message["disks"] == [{"name": "d", "in": 100.0, "out": 0.0}]
    assert message["nets"] == [{"name": "n", "in": 0.0, "out": 4.0}]


def test_counters_that_begin_anew_are_no_negative_rate() -> None:
    """A device was exchanged."""
    bench = Bench()
    bench.panel()
    bench.now += 1
    bench.figures = bench.figures._replace(disks={"d": (0, 3)})
    assert bench.panel()["disks"] == [{"name": "d", "in": 0.0, "out": 0.0}]


def test_no_time_is_no_rate() -> None:
    """Two messages at the same moment."""
    bench = Bench()
    bench.panel()
    bench.figures = bench.figures._replace(vcpu_seconds=(9.0,))
    assert bench.panel()["vcpus"] == [0.0]


@pytest.mark.parametrize(
    ("move", "fraction"),
    [(Move("connecting"), 0.0), (Move("round 2", 70, 25, 100), 0.75), (Move("round 2", 70, 300, 100), 0.0)],
)
def test_progress(move: Move, fraction: float) -> None:
    """What is left may be more than there is, for a moment; a progress bar goes from 0 to 1."""
    bench = Bench()
    bench.figures = bench.figures._replace(move=move, moved="http://there/")
    message = json.loads(json.dumps(bench.panel()))
    assert message["migration"]["fraction"] == fraction
    assert message["moved"] == "http://there/"
