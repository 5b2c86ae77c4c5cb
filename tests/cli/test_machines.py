"""Verbs for running machines, against real control sockets of machines without guests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fakes import HeedingMachine, running
from tests.control.fakes import FakeMachine
from tvmm.cli import main
from tvmm.cli.output import format_age, table_lines
from tvmm.control.registry import machines

Capture = pytest.CaptureFixture[str]


def answer(capsys: Capture, *arguments: str) -> Any:
    """The JSON that a verb prints."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_ps_without_machines(capsys: Capture) -> None:
    """An empty list is no error, for people and for programs."""
    assert main(["ps"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "no machine is running" in err
    assert answer(capsys, "ps") == []


def test_ps(registry: Path, capsys: Capture) -> None:
    """Each machine has a row with its state and size."""
    with running(registry, FakeMachine("web")), running(registry, FakeMachine("db", cpu_count=1)):
        assert main(["ps"]) == 0
        header, first, second = capsys.readouterr().out.splitlines()
        rows = answer(capsys, "ps")
    assert header.split() == ["NAME", "PID", "STATUS", "CPUS", "MEMORY", "UPTIME"]
    assert first.split()[:5] == ["db", str(os.getpid()), "running", "1", "256M"]
    assert second.split()[:5] == ["web", str(os.getpid()), "running", "2", "256M"]
    assert [(row["name"], row["cpus"], row["memory"]) for row in rows] == [
        ("db", 1, 256 << 20),
        ("web", 2, 256 << 20),
    ]


def test_ps_clears_away_stale_machines(registry: Path, capsys: Capture) -> None:
    """What a crashed machine left behind is removed, and the user hears of it."""
    child = orphan(registry, "old")
    child.kill()
    child.wait()
    assert child.stdout is not None
    child.stdout.close()
    assert main(["ps"]) == 0
    assert "cleared away what is left of old" in capsys.readouterr().err
    assert machines(registry) == []


def test_ps_of_a_machine_that_does_not_answer(registry: Path, capsys: Capture) -> None:
    """It is listed as unreachable, and the others as they are."""
    child = orphan(registry, "hung")
    try:
        rows = answer(capsys, "ps")
    finally:
        finish(child)
    assert [(row["name"], row["status"], row["pid"]) for row in rows] == [("hung", "unreachable", child.pid)]


def test_info(registry: Path, capsys: Capture) -> None:
    """The overview tells state, size, serial line and what the machine adds."""
    with running(registry, FakeMachine("web")):
        assert main(["info", "web"]) == 0
        text = capsys.readouterr().out
        record = answer(capsys, "info")
    lines = dict(line.split(None, 1) for line in text.splitlines())
    assert lines["name"] == "web"
    assert lines["memory"] == "256M"
    assert lines["serial"] == "pty:/dev/pts/3"
    assert lines["ports"] == "console0.0 unix:/tmp/hvc"
    assert lines["kernel"] == "built-in"
    assert record["status"] == "running"
    assert record["memory"] == 256 << 20


def test_info_memory(registry: Path, capsys: Capture) -> None:
    """The flat view has a row for each range, with its last address."""
    with running(registry, FakeMachine("web")):
        assert main(["info", "web", "--memory"]) == 0
        _, ram, lapic = capsys.readouterr().out.splitlines()
        assert answer(capsys, "info", "--memory")[1]["block"] == "lapic"
    assert ram.split() == ["0x000000000000", "0x00000fffffff", "256M", "ram", "ram", "machine"]
    assert lapic.split() == ["0x0000fee00000", "0x0000fee00fff", "4k", "mmio", "lapic", "kvm"]


def test_info_cpus(registry: Path, capsys: Capture) -> None:
    """Each processor has a row."""
    with running(registry, FakeMachine("web")):
        assert main(["info", "--cpus"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["CPU", "THREAD", "STATE", "EXITS"],
        ["0", "1000", "running", "0"],
        ["1", "1001", "running", "7"],
    ]


def test_info_virtio(registry: Path, capsys: Capture) -> None:
    """Each queue in use has a row with its counts and what one kick carried; below stands what went wrong."""
    with running(registry, FakeMachine("web")):
        assert main(["info", "web", "--virtio"]) == 0
        header, disk, net, rng, *notes = capsys.readouterr().out.splitlines()
        record = answer(capsys, "info", "--virtio")
    columns = "DEVICE TRANSPORT PLACE STATUS QUEUE CHAINS KICKS INTERRUPTS SUPPRESSED EXITS CHAINS/KICK ERRORS"
    assert header.split() == columns.split()
    assert disk.split() == "disk0 pci 00:02.0 DRIVER_OK 0 100 10 4 96 1 10.0 0".split()
    assert net.split() == "net0 mmio 0xfeb00000 reset - - - - - - - -".split()
    assert rng.split() == "rng0 pci 00:03.0 reset - - - - - - - -".split()
    assert notes == ["net0: driver mistakes 1, last a\ufffdloop", "rng0: throttled 3"]
    assert record[0]["queues"][0]["chains"] == 100
    assert record[1]["last-error"] == "a\nloop"


def test_sendkey(registry: Path) -> None:
    """One combination or several, on the only machine or the one that is named; a key is no name."""
    with running(registry, FakeMachine("web")) as machine:
        assert main(["sendkey", "ctrl-alt-delete"]) == 0
        assert main(["sendkey", "web", "a", "ret", "--hold", "5"]) == 0
        assert main(["sendkey", "a", "b"]) == 0
        assert machine.typed == [([29, 56, 111], 100), ([30], 5), ([28], 5), ([30], 100), ([48], 100)]


def test_resize(registry: Path, capsys: Capture) -> None:
    """A disk gets the size, or that much more; the user hears from what to what."""
    with running(registry, FakeMachine("web")) as machine:
        assert main(["resize", "web", "disk0", "20G"]) == 0
        assert machine.sizes["disk0"] == 20 << 30
        assert main(["resize", "disk0", "+512M"]) == 0
        assert machine.sizes["disk0"] == (20 << 30) + (512 << 20)
        assert main(["resize", "disk0", "--shrink", "1G"]) == 0
        assert machine.sizes["disk0"] == 1 << 30
    assert capsys.readouterr().out.splitlines() == [
        "disk0 of web: 1G -> 20G",
        "disk0 of web: 20G -> 20992M",
        "disk0 of web: 20992M -> 1G",
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["disk0", "512M"], "disk0 has 1G and would lose what is behind 512M; allow it with --shrink"),
        (["disk9", "2G"], "web has no disk 'disk9'; there are: disk0, disk1"),
        (["disk1", "2G"], "disk1 is read-only"),
        (["web", "disk0", "0", "--shrink"], "must be a number of bytes above 0"),
    ],
)
def test_resize_refused(registry: Path, capsys: Capture, arguments: list[str], complaint: str) -> None:
    """What cannot be, or would lose data, is told in one line and changes nothing."""
    with running(registry, FakeMachine("web")) as machine:
        assert main(["resize", *arguments]) == 2
        assert machine.sizes == {"disk0": 1 << 30, "disk1": 1 << 20}
    err = capsys.readouterr().err
    assert complaint in err
    assert err.count("\n") == 1


def test_tasks(registry: Path, capsys: Capture) -> None:
    """Each task has a row with what it waits for."""
    with running(registry, FakeMachine("web")):
        assert main(["tasks", "web"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert answer(capsys, "tasks")[0]["wakeups"] == 3
    assert lines[1].split(None, 4) == ["vcpu/0", "3", "1.0ms", "1s", "a thread in run"]


def test_pause_and_resume(registry: Path, capsys: Capture) -> None:
    """Both say what they did, and that there was nothing to do."""
    with running(registry, FakeMachine("web")) as machine:
        for verb, text, state in (
            ("pause", "web is paused", "paused"),
            ("pause", "web was paused already", "paused"),
            ("resume", "web is running", "running"),
            ("resume", "web was running already", "running"),
        ):
            assert main([verb, "web"]) == 0
            assert capsys.readouterr().out == f"{text}\n"
            assert machine.run_state() == state


def test_unknown_names_get_the_nearest(registry: Path, capsys: Capture) -> None:
    """A slip of the finger is met with the name that was meant."""
    with running(registry, FakeMachine("webserver")):
        assert main(["pause", "websever"]) == 2
    assert capsys.readouterr().err == "tvmm: no machine is named 'websever'; did you mean 'webserver'?\n"


def test_a_name_is_needed_when_there_is_a_choice(registry: Path, capsys: Capture) -> None:
    """With several machines the user is asked for one."""
    with running(registry, FakeMachine("a")), running(registry, FakeMachine("b")):
        assert main(["pause"]) == 2
    assert "name one of: a, b" in capsys.readouterr().err


def test_stop(registry: Path, capsys: Capture) -> None:
    """A guest that heeds its power button is gone when stop returns, and its name is free."""
    with running(registry, HeedingMachine("web")) as machine:
        assert main(["stop", "web"]) == 0
        assert machines(registry) == []
    assert capsys.readouterr().out == "web powered off\n"
    assert machine.button_presses == 1


def test_stop_of_a_guest_that_does_not_heed_it(registry: Path, capsys: Capture) -> None:
    """After the timeout the user hears how to go on, and the machine still runs."""
    with running(registry, FakeMachine("web")) as machine:
        assert main(["stop", "web", "--timeout", "50ms"]) == 2
        assert machine.run_state() == "running"
    err = capsys.readouterr().err
    assert err.startswith("tvmm: web did not power off within 50ms; ")
    assert "--force" in err
    assert machine.button_presses == 1


def test_stop_of_a_paused_machine(registry: Path, capsys: Capture) -> None:
    """A paused guest cannot see its button, so it is not pressed."""
    with running(registry, HeedingMachine("web")) as machine:
        main(["pause"])
        assert main(["stop"]) == 2
        assert machine.button_presses == 0
    assert "web is paused and cannot power off; 'tvmm resume web' it first" in capsys.readouterr().err


def test_stop_by_force(registry: Path, capsys: Capture) -> None:
    """--force ends a machine without asking its guest."""
    with running(registry, FakeMachine("web")) as machine:
        assert main(["stop", "--force"]) == 0
        assert machines(registry) == []
    assert capsys.readouterr().out == "web ended\n"
    assert machine.button_presses == 0


def test_stop_by_force_of_what_does_not_answer(registry: Path, capsys: Capture) -> None:
    """A machine whose control socket is dead is killed, with what it left behind."""
    child = orphan(registry, "hung")
    try:
        assert main(["stop", "hung", "--force"]) == 0
        assert child.wait() == -9
    finally:
        finish(child)
    assert capsys.readouterr().out == "hung did not answer and was killed\n"


def test_console(registry: Path, capfd: Capture) -> None:
    """What the line says is shown until the machine hangs up."""
    with running(registry, FakeMachine("web"), console=b"login: "):
        assert main(["console", "web"]) == 0
    out, err = capfd.readouterr()
    assert out == "login: "
    assert "the machine has ended" in err


def test_console_that_is_not_there(registry: Path, capsys: Capture) -> None:
    """A machine without a console is told in one line."""
    with running(registry, FakeMachine("web")):
        assert main(["console"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_tables_align() -> None:
    """Columns are as wide as their widest cell, numbers to the right, and cells cannot move the cursor."""
    assert table_lines(("NAME", "N"), [("a", "1"), ("long-name", "100"), ("\x1b[2J", "5")], right="N") == [
        "NAME         N",
        "a            1",
        "long-name  100",
        "\ufffd[2J         5",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (8.9, "8s"), (127, "2m7s"), (3600, "1h0m"), (273_600, "3d4h")]
)
def test_ages(seconds: float, text: str) -> None:
    """The two largest units."""
    assert format_age(seconds) == text


ORPHAN = """
import sys, time
from pathlib import Path
from tvmm.control.registry import register
with register(Path(sys.argv[1]), sys.argv[2]):
    print("ready", flush=True)
    sys.stdin.read()
"""


def orphan(base: Path, name: str) -> subprocess.Popen[str]:
    """A process that is registered as a machine and serves no control socket."""
    child = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(base), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def finish(child: subprocess.Popen[str]) -> None:
    """Let an orphan end, and wait for it."""
    child.communicate()
