"""`tvmm top`: machines that come, go, hang or say strange things, plain text, and a real terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.cli.fakes import running
from tests.control.fakes import FakeMachine
from tests.support.process import SECONDS, Terminal, started
from tvmm.cli import main
from tvmm.cli.metrics_view import Table
from tvmm.cli.top_screen import LEAST_COLUMNS, LEAST_LINES, drawing, is_quit
from tvmm.cli.top_watch import Watched, Watches
from tvmm.control.registry import machines
from tvmm.metrics.catalog import metric
from tvmm.metrics.model import Reading, Sample

Capture = pytest.CaptureFixture[str]


class Busy(FakeMachine):
    """A machine whose clock and counters are ten times ahead at each look."""

    looks = 0

    async def metrics(self) -> Reading:
        self.looks += 1
        return Reading(
            10.0 * self.looks,
            [
                Sample(metric("tvmm_machine_state"), ("running",), 1),
                Sample(metric("tvmm_machine_uptime_seconds"), (), 65.0),
                Sample(metric("tvmm_vcpu_exits_total"), ("0", "io"), 1000 * self.looks),
                Sample(metric("tvmm_vcpu_exits_in_c_total"), ("0",), 0),
            ],
        )


class Leaving(Busy):
    """One that ends soon."""

    async def metrics(self) -> Reading:
        if self.looks == 3:
            self.ended.set()
        return await super().metrics()


class Strange(FakeMachine):
    """A machine of another version, or one that lies."""

    async def metrics(self) -> Any:
        return Reading(1.0, [Sample(metric("tvmm_tasks"), (), "many")])  # type: ignore[arg-type]


def rows(capsys: Capture) -> dict[str, list[str]]:
    """The cells of each machine's row, by name."""
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["NAME", "STATE", "UPTIME"]
    return {line.split()[0]: line.split() for line in lines[1:]}


def test_once(registry: Path, capsys: Capture) -> None:
    """A row for each machine with what it did between two looks."""
    with running(registry, Busy("web")), running(registry, Strange("odd")):
        assert main(["top", "--once", "-d", "0.1"]) == 0
    found = rows(capsys)
    assert found["web"][1:5] == ["running", "1m5s", "0.0", "100"]
    assert found["odd"][1:3] == ["no", "metrics"]


def test_details_of_one(registry: Path, capsys: Capture) -> None:
    """Its exits by reason."""
    with running(registry, Busy("web")):
        assert main(["top", "--once", "--delay", "100ms", "web"]) == 0
    out = capsys.readouterr().out
    assert "BY REASON" in out
    assert "io 100" in out


def test_so_many_looks(registry: Path, capsys: Capture) -> None:
    """Text for each, and an empty line between them."""
    with running(registry, Busy("web")), running(registry, Busy("db")):
        assert main(["top", "--batch", "-n", "3", "-d", "0.1", "web", "db"]) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert len(blocks) == 3
    for block in blocks:
        # In the order in which they were named.
        assert [line.split()[0] for line in block.splitlines()] == ["NAME", "web", "db"]


def test_json(registry: Path, capsys: Capture) -> None:
    """One object in each line."""
    with running(registry, Busy("web")):
        assert main(["top", "--json", "-n", "2", "-d", "0.1"]) == 0
    looks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(looks) == 2
    [machine] = looks[0]["machines"]
    assert (machine["name"], machine["state"], machine["exits"]) == ("web", "running", 100.0)


def test_without_machines(registry: Path, capsys: Capture) -> None:
    """It says so; that is no error."""
    assert main(["top", "--once", "-d", "0.1"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "no machine is running" in err


def test_a_name_that_is_none(registry: Path) -> None:
    """As with other verbs: the nearest one, and status 2."""
    with running(registry, Busy("web")):
        assert main(["top", "--once", "wbe"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [["-d", "0"], ["-d", "2h"], ["-d", "x"], ["-n", "0"], ["-n", "x"], ["--once", "-n", "2"], ["-d"]],
)
def test_bad_options(registry: Path, arguments: list[str]) -> None:
    """Each ends with status 2 before anything is looked at."""
    assert main(["top", *arguments]) == 2


def test_named_machine_ends(registry: Path, capsys: Capture) -> None:
    """Then there is nothing left to do."""
    with running(registry, Leaving("web")):
        assert main(["top", "--batch", "-d", "0.1", "web"]) == 0
    assert "web has ended" in capsys.readouterr().err


def test_machines_come_and_go(registry: Path) -> None:
    """Sessions of those that stay are kept, also when another one takes a name."""
    with Watches() as watches, running(registry, Busy("web")) as web:
        assert isinstance(web, Busy)
        [first] = watches.look(machines(registry))
        with running(registry, Busy("db")):
            both = watches.look(machines(registry))
            assert [one.entry.name for one in both] == ["db", "web"]
            assert both[1] is first
        assert watches.look(machines(registry)) == [first]
        assert web.looks == 3
        assert first.rates is not None
        assert first.rates.per_second("tvmm_vcpu_exits_total") == 100
        assert watches.look([]) == []


def test_machine_that_is_gone_is_unreachable(registry: Path) -> None:
    """Between two looks at the registry it may end; its row says that it does not answer, and why not is no matter."""
    with running(registry, Busy("web")):
        [entry] = machines(registry)
        watched = Watched(entry)
        watched.look()
        assert watched.row().state == "running"
    watched.look()
    assert (watched.row().state, watched.rates) == ("unreachable", None)


def test_hung_machine_is_left_alone_for_a_while(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked, given up, and not asked again at once."""
    monkeypatch.setattr("tvmm.cli.top_watch.ANSWER_SECONDS", 0.2)
    import trio

    class Hung(Busy):
        async def metrics(self) -> Reading:
            self.looks += 1
            await trio.sleep_forever()
            raise AssertionError

    with running(registry, Hung("web")) as machine:
        [entry] = machines(registry)
        watched = Watched(entry)
        watched.look()
        watched.look()
        assert watched.row().state == "unreachable"
        assert isinstance(machine, Hung)
        assert machine.looks == 1


# --- the drawing -------------------------------------------------------------------------------------------------


TABLE = Table(("NAME", "IOPS"), [(f"vm{index}", str(index)) for index in range(50)], "IOPS")


def drawn(columns: int, lines: int, *tables: Table) -> list[str]:
    """What a terminal of that size shows."""
    console = Console(width=columns, height=lines, color_system=None)
    with console.capture() as capture:
        console.print(drawing("title", tables, columns, lines))
    return capture.get().splitlines()


def test_everything_fits_if_it_can() -> None:
    """Title, an empty line, header, rows."""
    found = drawn(80, 60, TABLE)
    assert [line.split() for line in found[:4]] == [["title"], [], ["NAME", "IOPS"], ["vm0", "0"]]
    assert len(found) == 53


@pytest.mark.parametrize("lines", [LEAST_LINES, 10, 24, 52])
def test_no_more_lines_than_there_are(lines: int) -> None:
    """And it says how many rows are not shown."""
    found = drawn(80, lines, TABLE, TABLE)
    assert len(found) <= lines
    hidden = int(found[-1].split()[2])
    assert hidden + sum(line.startswith("vm") for line in found) == 100


@pytest.mark.parametrize(("columns", "lines"), [(LEAST_COLUMNS - 1, 24), (80, LEAST_LINES - 1), (1, 1)])
def test_too_small(columns: int, lines: int) -> None:
    """It says so, whatever there is room for."""
    assert drawn(columns, lines, TABLE)[0][:3] == "the terminal"[: min(columns, 3)]


def test_narrow_terminals_cut_columns() -> None:
    """No line is longer than the terminal."""
    wide = Table(tuple(f"COLUMN{index}" for index in range(20)), [("x" * 30,) * 20])
    assert all(len(line) <= 50 for line in drawn(50, 24, wide))


def test_markup_is_text() -> None:
    """A machine may be called what it likes."""
    table = Table(("NAME",), [("[red]web[/red]",)])
    assert "[red]web[/red]" in "\n".join(drawn(80, 24, table))


@pytest.mark.parametrize(
    ("typed", "ends"),
    [(b"q", True), (b"Q", True), (b"\x1b", True), (b"\x04", True), (b"xxq", True), (b"x", False), (b"\x1b[A", False)],
)
def test_keys(typed: bytes, ends: bool) -> None:
    """q, Escape and Ctrl-D; a cursor key begins with Escape and is none."""
    assert is_quit(typed) is ends


# --- the real program on a real terminal -------------------------------------------------------------------------


@contextmanager
def top_on(terminal: Terminal, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`tvmm top` with the terminal as its input and output, that has shown something."""
    arguments = ("top", "-d", "100ms", *options)
    environment = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    theirs = terminal.theirs
    with terminal, started(*arguments, stdin=theirs, stdout=theirs, environment=environment) as process:
        terminal.read_until(b"q ends it")
        yield process


def test_quit_key(registry: Path) -> None:
    """q ends it with status 0, and the terminal is as it was."""
    terminal = Terminal()
    with running(registry, Busy("web")), top_on(terminal, "web") as process:
        terminal.read_until(b"io 100")
        assert terminal.is_raw()
        terminal.type(b"q")
        assert process.wait(SECONDS) == 0
        assert terminal.attributes() == terminal.before


def test_interrupt_key(registry: Path) -> None:
    """As Ctrl-C does."""
    terminal = Terminal()
    with running(registry, Busy("web")), top_on(terminal) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
        assert terminal.attributes() == terminal.before


def test_end_of_the_machine_on_a_terminal(registry: Path) -> None:
    """It says what happened, on a terminal that is itself again."""
    terminal = Terminal()
    with running(registry, Leaving("web")), top_on(terminal, "web") as process:
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
        assert b"web has ended" in err
        assert termios.tcgetattr(terminal.theirs) == terminal.before
