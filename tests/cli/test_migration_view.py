"""How a migration is told: texts out of records."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from hypothesis import given
from rich.console import Console

from tests.control.fake_migration import ACTIVE, CANCELLED, COMPLETED, FAILED, LAST_PASS, SETUP, SWITCHOVER
from tests.control.test_migration_info import statuses
from tvmm.cli.migration_display import JsonLines, Lines, Live, Nothing, choose, panel
from tvmm.cli.migration_view import (
    amount,
    arrived_share,
    lost_text,
    plain_line,
    progress_rows,
    still_here_text,
    summary_lines,
)
from tvmm.control.migration_info import info_of
from tvmm.migration.status import NO_MIGRATION, DiskProgress, MigrationStatus

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (512, "512"), (999, "999"), (1000, "0.977k"), (1536, "1.5k"), (1 << 30, "1G"), (1 << 62, "4E")],
)
def test_amounts(count: float, text: str) -> None:
    """Three digits and a unit; never four digits or an exponent."""
    assert amount(count) == text


@pytest.mark.parametrize(
    ("status", "share"), [(SETUP, 0.0), (ACTIVE, 0.25), (LAST_PASS, 1 - 1 / 256), (COMPLETED, 1.0)]
)
def test_the_bar(status: MigrationStatus, share: float) -> None:
    """It shows what of RAM is at the destination."""
    assert arrived_share(status) == share


def test_rows_before_the_first_page() -> None:
    """There is nothing to tell but that it connects."""
    assert progress_rows(SETUP) == [("phase", "connecting")]
    assert plain_line(SETUP) == "connecting"
    assert plain_line(SETUP._replace(state="cancelling")) == "cancelling"


def test_rows_in_a_round() -> None:
    """Phase, bytes, throughput, pages, dirty rate, throttling, prediction and time left."""
    assert progress_rows(LAST_PASS) == [
        ("phase", "round 3"),
        ("RAM", "1G, 4M left"),
        ("sent", "900M at 400M/s over 2 connections"),
        ("pages", "240000 whole, 14336 zero, 70 unchanged; rounds 3"),
        ("dirtied", "78.1M/s, 20000 pages/s"),
        ("slowed", "guest by 20 %"),
        ("pause", "4.25ms if it were now"),
        ("time left", "unknown"),
    ]
    assert ("time left", "about 1.5s") in progress_rows(ACTIVE)
    assert plain_line(LAST_PASS) == (
        "round 3: 900M sent at 400M/s, 4M of 1G left, 78.1M/s dirtied, guest slowed by 20 %, "
        "pause 4.25ms if it were now"
    )
    assert plain_line(ACTIVE).endswith("0/s dirtied, about 1.5s to go")


def test_the_summary() -> None:
    """Where to, how long, the measured pause with its parts, and what it took."""
    assert summary_lines("web", COMPLETED) == [
        "web has moved to tcp:127.0.0.1:4444 in 2.11s; the guest was paused for 6.12ms",
        "  pause:  stop 0.5ms, last pages 2.25ms, state 0.75ms, transfer 1ms, restore 1.25ms, resume 0.375ms",
        "  sent:   904M for 1G of RAM in 4 rounds, 428M/s over 2 connections",
        "  pages:  240000 whole, 14336 zero, 70 unchanged",
        "  guest:  slowed by up to 20 % to get it done",
    ]
    once = COMPLETED._replace(ram=COMPLETED.ram._replace(rounds=1))
    assert summary_lines("web", once)[2] == "  sent:   904M for 1G of RAM in 1 round, 428M/s over 2 connections"
    bare = MigrationStatus("completed", peer="unix:/a", guest="destination")
    assert summary_lines("web", bare) == ["web has moved to unix:/a in unknown; the guest was paused for unknown"]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (FAILED, "web has not moved: the destination hung up in round 3; its own output says why; its guest goes on"),
        (FAILED._replace(error=""), "web has not moved: no reason given; its guest goes on at the source"),
        (CANCELLED, "cancelled: the guest of web goes on at the source"),
        (FAILED._replace(guest="unknown", error="no answer", error_hint=""),
         "it is not known whether web has moved: no answer; it is paused here: look at tcp:127.0.0.1:4444,"),
    ],
)  # fmt: skip
def test_a_guest_that_has_not_moved(status: MigrationStatus, text: str) -> None:
    """The user hears where the guest is; that of which nobody knows is not said to be here."""
    assert still_here_text("web", status).startswith(text)


def test_disks_that_are_copied() -> None:
    """A row and a part of the bar while they are, a line in the end; nothing where none are."""
    disks = DiskProgress(1 << 30, 3 << 20, 1 << 29, 2 << 20, 0, 1, 1e6, 2e6, 1 << 20)
    early = SETUP._replace(disks=disks)
    assert progress_rows(early)[1] == (
        "disks",
        "1G, 512M left; 3M sent at 977k/s, 1.91M/s written, slowed to 1M/s",
    )
    assert arrived_share(early) == 0.5
    assert "disks 1G, 512M left" in plain_line(early)
    assert "512M of disks left" in plain_line(ACTIVE._replace(disks=disks))
    [line] = [each for each in summary_lines("web", COMPLETED._replace(disks=disks)) if "disks:" in each]
    assert line.startswith("  disks:  3M for 1G in 1 round; the source's images are as they were")
    assert not [each for each in summary_lines("web", COMPLETED) if "disk" in each]


def test_a_process_that_died() -> None:
    """Before the switchover the guest died with it; in the middle of it it may have moved."""
    assert "(round 3), and its guest with it" in lost_text("web", LAST_PASS)
    assert "its guest may run at tcp:127.0.0.1:4444: look there" in lost_text("web", SWITCHOVER)
    told = lost_text("web", SWITCHOVER._replace(state="postcopy-active"))
    assert "memory that its guest at tcp:127.0.0.1:4444 has not got yet" in told
    assert "discarded" not in told


@given(statuses)
def test_any_status_can_be_told(status: MigrationStatus) -> None:
    """No text holds what a terminal would act on, whatever a machine says of itself."""
    for line in (plain_line(status), *summary_lines("web", status), *(text for _, text in progress_rows(status))):
        assert line.isprintable()
    assert 0 <= arrived_share(status) <= 1


def drawn(status: MigrationStatus) -> list[str]:
    """The panel on a terminal of 70 columns."""
    out = StringIO()
    Console(file=out, width=70, force_terminal=True, color_system=None, legacy_windows=False).print(panel(status))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_panel() -> None:
    """A bar, and a row for each thing that is known; nothing is taken for markup."""
    bar, *rows = drawn(ACTIVE._replace(phase="[bold]first pass"))
    assert set(bar.strip()) <= set("━╸╺ ")
    assert rows[0].split(None, 1) == ["phase", "[bold]first pass"]
    assert rows[-1].startswith("time left")
    assert len(rows) == len(progress_rows(ACTIVE))
    assert all(len(line) <= 70 for line in (bar, *rows))


def test_a_live_panel_leaves_nothing() -> None:
    """It is drawn over, and cleared at the end."""
    out = StringIO()
    console = Console(file=out, width=70, force_terminal=True, color_system=None, legacy_windows=False)
    with Live(console) as live:
        live.update(info_of(ACTIVE._replace(total_ms=100.0)))
        # It may be over in a moment.
        assert not out.getvalue()
        live.update(info_of(ACTIVE))
        live.update(info_of(LAST_PASS))
    assert "round 3" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")


def test_lines_are_few(capsys: Capture) -> None:
    """A log gets a line for a phase, and another one after two seconds of it."""
    lines = Lines()
    for milliseconds in (0.0, 100.0, 1999.0, 2000.0, 2100.0):
        lines.update(info_of(ACTIVE._replace(total_ms=milliseconds)))
    lines.update(info_of(LAST_PASS._replace(total_ms=2101.0)))
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said] == ["first", "first", "round"]


def test_json_lines(capsys: Capture) -> None:
    """An object a line; the last one is the whole status with the outcome."""
    display = JsonLines()
    display.update(info_of(ACTIVE))
    display.end(info_of(COMPLETED), "moved", 0)
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == info_of(ACTIVE)
    assert last == {**info_of(COMPLETED), "outcome": "moved", "exit-status": 0}


def test_nothing_is_nothing(capsys: Capture) -> None:
    """--quiet prints nothing."""
    with Nothing() as display:
        display.update(info_of(ACTIVE))
        display.end(info_of(NO_MIGRATION), "moved", 0)
    assert capsys.readouterr() == ("", "")


def test_the_display_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A panel needs a terminal that can move its cursor."""
    assert isinstance(choose(as_json=True, quiet=False), JsonLines)
    assert type(choose(as_json=False, quiet=True)) is Nothing
    assert isinstance(choose(as_json=False, quiet=False), Lines)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose(as_json=False, quiet=False), Lines)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(choose(as_json=False, quiet=False), Live)
