"""A server that is away, by a clock that is told: what is said, and when requests fail."""

from __future__ import annotations

from tvmm.nbd.outage import DELAYS_S, STEADY_S, Outage


def test_one_line_when_it_goes_and_one_when_it_comes() -> None:
    """Four connections are lost and come back one by one: two lines."""
    outage = Outage("disk0", 30)
    lines = [outage.lost(number, "it was closed", 100 + number / 10) for number in range(4)]
    assert lines[0] == (
        "disk0: the connection is lost (it was closed); requests wait for up to 30 s while it is tried again"
    )
    assert lines[1:] == ["", "", ""]
    assert outage.deadline == 130
    assert [outage.back(number, 102 + number) for number in range(4)] == [
        "", "", "", "disk0: connected again after 5 s",
    ]  # fmt: skip
    assert not outage.is_down


def test_attempts_become_rarer() -> None:
    """The first comes at once, later ones once a second; each connection has its own."""
    outage = Outage("disk0", 30)
    outage.lost(0, "x", 0)
    assert [outage.next_delay(0) for _ in range(9)] == [*DELAYS_S, 1.0, 1.0]
    assert outage.next_delay(1) == 0
    outage.back(0, 10)
    outage.lost(0, "x", 10 + STEADY_S)
    assert outage.next_delay(0) == 0


def test_requests_fail_in_the_end() -> None:
    """After the deadline that is said once, with the last reason, and the line about the return comes still."""
    outage = Outage("disk0", 30)
    assert outage.lost(0, "x", 0)
    assert outage.overdue("refused", 30) == (
        "disk0: no connection has held for 30 s (refused); requests fail from now on, and it is tried again"
    )
    assert outage.overdue("refused", 31) == ""
    assert outage.back(0, 45) == "disk0: connected again after 45 s"


def test_without_patience() -> None:
    """Requests fail at once, and the first line says so."""
    outage = Outage("disk0", 0)
    assert outage.lost(0, "x", 5) == "disk0: the connection is lost (x); requests fail while it is tried again"
    assert outage.deadline == 5
    assert outage.overdue("x", 5) == ""
    assert outage.back(0, 6)


def test_a_server_that_drops_every_connection() -> None:
    """It is one outage, with two lines, a deadline that holds, and one line about that; then it is over."""
    outage = Outage("disk0", 30)
    lines = []
    for second in range(29):
        lines += [outage.lost(0, "x", second), outage.back(0, second + 0.5)]
        assert outage.deadline == 30
    lines += [outage.lost(0, "x", 29.5), outage.overdue("x", 30), outage.back(0, 31)]
    lines += [outage.lost(0, "x", 32), outage.overdue("x", 32), outage.back(0, 33)]
    said = [line for line in lines if line]
    assert [line.split()[1] for line in said] == ["the", "connected", "no", "connected"]
    assert outage.lost(0, "again", 33 + STEADY_S)
    assert outage.deadline == 63 + STEADY_S
