"""The real program from outside: a machine in the background, the verbs on it, its serial ports, its ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import PROMPT, SECONDS, call, command, read_until, started, until
from tvmm.control.registry import machines

pytestmark = pytest.mark.guest

SMALL = ("--memory", "64M")


@contextmanager
def background(name: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A machine that has come to its prompt and answers at its control socket; its output is thrown away from there."""
    with started("run", "--name", name, *SMALL, *options) as process:
        if "--serial" not in options:
            read_until(process.stdout, PROMPT)
        base = Path(os.environ["TVMM_RUNTIME_DIR"])
        until(lambda: _answers(base, name, process.pid) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        yield process


def _answers(base: Path, name: str, pid: int) -> bool:
    """Whether the machine of process `pid` listens; what a dead one of that name left does not count."""
    return any(entry[:3] == (name, True, pid) and entry.paths.console.exists() for entry in machines(base))


class Shared:
    """A machine that several tests look at, and the way to ask of it."""

    def __init__(self, directory: str, pid: int) -> None:
        self.environment = {**os.environ, "TVMM_RUNTIME_DIR": directory, "COLUMNS": "100"}
        self.pid = pid

    def ask(self, *arguments: str) -> str:
        """What a verb prints; it must succeed without a word on standard error."""
        status, out, err = call(*arguments, env=self.environment)
        assert (status, err) == (0, "")
        return out


@pytest.fixture(scope="module")
def web() -> Iterator[Shared]:
    """A machine named web with two CPUs, started once for all tests that leave it as it is."""
    with tempfile.TemporaryDirectory(prefix="tvmm-") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVMM_RUNTIME_DIR", directory)
        with background("web", "--cpus", "2", "--serial", "none", "--append", "run=cpus") as process:
            yield Shared(directory, process.pid)


# --- verbs ---


def test_ps(web: Shared) -> None:
    """The machine is listed with what it is made of, for people and for programs."""
    header, row = web.ask("ps").splitlines()
    assert header.split() == ["NAME", "PID", "STATUS", "CPUS", "MEMORY", "UPTIME"]
    assert row.split()[:5] == ["web", str(web.pid), "running", "2", "64M"]
    (record,) = json.loads(web.ask("ps", "--json"))
    assert (record["name"], record["pid"], record["memory"]) == ("web", web.pid, 64 << 20)
    assert Path(record["control"]).is_socket()


def test_info(web: Shared) -> None:
    """The overview names kernel and state; nobody has to name the only machine."""
    for name in ([], ["web"]):
        rows = dict(line.split(maxsplit=1) for line in web.ask("info", *name).splitlines())
        assert (rows["name"], rows["status"], rows["memory"]) == ("web", "running", "64M")
        assert rows["kernel"] == "built-in guest"


def test_info_memory(web: Shared) -> None:
    """The map has RAM from 0 and the interrupt controllers."""
    ranges = json.loads(web.ask("info", "--memory", "--json"))
    assert (ranges[0]["start"], ranges[0]["size"], ranges[0]["kind"]) == (0, 64 << 20, "ram")
    assert {"ioapic", "lapic"} <= {each["block"] for each in ranges}
    table = web.ask("info", "--memory").splitlines()
    assert len(table) == 1 + len(ranges)
    assert table[1].split()[:4] == ["0x000000000000", "0x000003ffffff", "64M", "ram"]


def test_info_cpus(web: Shared) -> None:
    """Both CPUs run, on threads of the machine's process."""
    cpus = json.loads(web.ask("info", "--cpus", "--json"))
    assert [cpu["x-state"] for cpu in cpus] == ["running", "running"]
    threads = {int(name) for name in os.listdir(f"/proc/{web.pid}/task")}
    assert {cpu["thread-id"] for cpu in cpus} <= threads


def test_tasks(web: Shared) -> None:
    """Each part of the machine has a task, and all that is asked for is told of it."""
    tasks = {task["name"]: task for task in json.loads(web.ask("tasks", "--json"))}
    assert {"vcpu/0", "vcpu/1", "serial0", "supervisor", "clock", "control"} <= tasks.keys()
    assert tasks["vcpu/0"]["waits-for"] == "a thread in Vcpu.run"
    assert "vcpu/1" in web.ask("tasks", "web")


def test_pause_and_resume(web: Shared) -> None:
    """A paused machine says so to all, is not powered off, and goes on when told to."""
    assert web.ask("pause", "web") == "web is paused\n"
    assert web.ask("pause") == "web was paused already\n"
    assert json.loads(web.ask("ps", "--json"))[0]["status"] == "paused"
    status, _, err = call("stop", "web", env=web.environment)
    assert (status, err.split(";")[0]) == (2, "tvmm: web is paused and cannot power off")
    assert web.ask("resume") == "web is running\n"
    assert web.ask("resume", "web") == "web was running already\n"


def test_names(web: Shared) -> None:
    """A name that is nearly right is suggested; one that is taken is refused."""
    status, _, err = call("info", "wbe", env=web.environment)
    assert (status, err) == (2, "tvmm: no machine is named 'wbe'; did you mean 'web'?\n")
    status, out, err = call("run", "--name", "web", env=web.environment)
    assert (status, out) == (2, "")
    assert err.startswith(f"tvmm: a machine named 'web' is already running (pid {web.pid}); ")
    assert err.count("\n") == 1


def test_console(web: Shared) -> None:
    """Through pipes too: the line's history, an answer, and the end of input is not the end."""
    with started("console", "web", environment=web.environment) as viewer:
        assert viewer.stdin is not None
        assert b"2 of 2 CPUs online" in read_until(viewer.stdout, PROMPT)
        viewer.stdin.write(b"echo through the console\n")
        viewer.stdin.close()
        read_until(viewer.stdout, b"\nthrough the console\r\n")
        assert viewer.poll() is None


# --- ends ---


def test_stop() -> None:
    """The guest powers off, its viewer hears of it, and both are gone when `stop` returns."""
    with background("web", "--serial", "none") as machine, started("console", "web") as viewer:
        read_until(viewer.stdout, PROMPT)
        assert call("stop", "web") == (0, "web powered off\n", "")
        assert machine.wait(SECONDS) == 0
        _, err = viewer.communicate(timeout=SECONDS)
        assert (viewer.returncode, err) == (0, b"tvmm: the machine has ended\n")
        assert machine.communicate() == (b"", b"")
    assert call("ps", "--json") == (0, "[]\n", "")


def test_stop_a_guest_that_does_not_heed_it() -> None:
    """After its time `stop` says what to do, and doing so ends the machine."""
    with background("web", "--serial", "none", "--append", "run=spinoff") as machine:
        status, _, err = call("stop", "--timeout", "300ms")
        assert (status, err.split(";")[0]) == (2, "tvmm: web did not power off within 300ms")
        assert "--force" in err
        assert call("stop", "--force") == (0, "web ended\n", "")
        out, err_bytes = machine.communicate(timeout=SECONDS)
    assert (machine.returncode, out, err_bytes) == (0, b"", b"tvmm: the machine was ended\n")


def test_two_signals_before_the_guest_runs() -> None:
    """A machine that waits to be resumed cannot heed the first; the second ends it."""
    with background("web", "--serial", "none", "--paused") as machine:
        assert json.loads(call("ps", "--json")[1])[0]["status"] == "prelaunch"
        assert machine.stderr is not None
        machine.send_signal(signal.SIGTERM)
        read_until(machine.stderr, b"\n")
        machine.send_signal(signal.SIGTERM)
        machine.communicate(timeout=SECONDS)
    assert machine.returncode == 128 + signal.SIGTERM


def test_two_signals_end_a_deaf_guest(registry: Path) -> None:
    """The second one does not wait for the grace period."""
    with background("web", "--append", "run=spinoff", "--serial", "none") as machine:
        assert machine.stderr is not None
        machine.send_signal(signal.SIGTERM)
        read_until(machine.stderr, b"a second signal ends it at once\n")
        machine.send_signal(signal.SIGTERM)
        _, err = machine.communicate(timeout=SECONDS)
    assert (machine.returncode, err) == (128 + signal.SIGTERM, b"tvmm: ended by SIGTERM\n")
    assert machines(registry) == []


def test_sigint_powers_the_guest_off() -> None:
    """What Ctrl-C sends to a machine in a script is a press of its power button."""
    with background("web") as machine:
        machine.send_signal(signal.SIGINT)
        out, err = machine.communicate(timeout=SECONDS)
    assert machine.returncode == 0
    assert b"power button: powering off" in out
    assert err.count(b"\n") == 1


@pytest.mark.parametrize("next_one", ["ps", "run"])
def test_what_a_killed_machine_leaves(next_one: str, registry: Path) -> None:
    """Its directory is cleared away by the next `ps`, and is not in the way of the next machine of that name."""
    with background("web") as machine:
        machine.kill()
        machine.wait(SECONDS)
    assert (registry / "web" / "control.sock").is_socket()
    status, _, err = call("info", "web")
    assert (status, err) == (2, "tvmm: machine 'web' is not running: its process ended without cleaning up\n")
    if next_one == "ps":
        assert call("ps", "--json") == (0, "[]\n", "tvmm: cleared away what is left of web\n")
        assert not (registry / "web").exists()
        return
    with background("web", "--serial", "none") as machine:
        assert json.loads(call("ps", "--json")[1])[0]["pid"] == machine.pid
        assert call("stop")[0] == 0


def test_output_that_nobody_reads_any_more(registry: Path) -> None:
    """When the reader of its output is gone a machine that still writes ends, in one line."""
    with started("run", *SMALL) as machine:
        read_until(machine.stdout, PROMPT)
        assert machine.stdout is not None
        assert machine.stdin is not None
        machine.stdout.close()
        machine.stdin.write(b"emit 100000\n")
        machine.stdin.close()
        assert machine.stderr is not None
        assert machine.stderr.read() == b"tvmm: standard output was closed by its reader\n"
        assert machine.wait(SECONDS) == 2
    assert machines(registry) == []


def test_a_list_that_nobody_reads() -> None:
    """A verb whose reader left ends by SIGPIPE's status, without a word."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(command("ps", "--json"), stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (128 + signal.SIGPIPE, b"")


# --- serial ports ---


@contextmanager
def viewing(spelled: str) -> Iterator[int]:
    """A descriptor of what tvmm said the serial port is at: ``pty:PATH``, ``unix:PATH`` or ``tcp:HOST:PORT``."""
    kind, _, where = spelled.partition(":")
    if kind == "pty":
        number = os.open(where, os.O_RDWR | os.O_NOCTTY)
        try:
            yield number
        finally:
            os.close(number)
        return
    host, _, port = where.rpartition(":")
    address: Any = where if kind == "unix" else (host, int(port))
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.connect(address)
        yield connection.fileno()


@pytest.mark.parametrize("kind", ["pty", "pty,link={}/link", "unix={}/serial", "tcp=127.0.0.1:0"])
def test_a_serial_port_for_viewers(kind: str) -> None:
    """tvmm says where it is; a viewer gets the history and types, others follow it, and the end is clean."""
    with tempfile.TemporaryDirectory(prefix="tvmm-") as directory:
        with started("run", *SMALL, "--serial", kind.format(directory)) as machine:
            said = read_until(machine.stderr, b"\n").decode()
            assert said.startswith("tvmm: the serial port is at ")
            where = said.rstrip().rpartition(" ")[2]
            with viewing(where) as viewer:
                assert b"64 MiB" in read_until(viewer, PROMPT)
                os.write(viewer, b"echo first\n")
                read_until(viewer, b"\nfirst\r\n" + PROMPT)
            with viewing(where) as viewer:
                os.write(viewer, b"echo second\n")
                read_until(viewer, b"\nsecond\r\n" + PROMPT)
            with viewing(where) as viewer:
                os.write(viewer, b"poweroff\n")
                out, err = machine.communicate(timeout=SECONDS)
        assert (machine.returncode, out, err) == (0, b"", b"")
        assert os.listdir(directory) == []


def test_a_serial_port_that_is_a_file(tmp_path: Path) -> None:
    """Every byte is in the file in the end; the next run begins it anew, or goes on with append."""
    path = tmp_path / "log"
    for number, option in enumerate(("", "", ",append=on")):
        order = f"run=echo,{'abc'[number]}{number} then=poweroff"
        assert call("run", *SMALL, "--serial", f"file={path}{option}", "--append", order) == (0, "", "")
    text = path.read_bytes()
    assert b"a0\r\n" not in text
    assert text.index(b"b1\r\n") < text.index(b"c2\r\n")


def test_no_serial_port() -> None:
    """The guest runs and ends; its output goes nowhere."""
    assert call("run", *SMALL, "--serial", "none", "--append", "run=emit,20000 then=poweroff") == (0, "", "")


def test_standard_input_and_output(registry: Path) -> None:
    """Commands that are piped in before the guest has booted are all carried out."""
    done = subprocess.run(
        command("run", *SMALL),
        input=b"echo one\necho two\npoweroff\n",
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.index(b"\none\r\n") < done.stdout.index(b"\ntwo\r\n")
    assert machines(registry) == []


def test_status_of_a_crash() -> None:
    """3, with a report of more than one line, each of them tvmm's."""
    status, _, err = call("run", *SMALL, "--append", "run=crash")
    assert status == 3
    assert err.startswith("tvmm: the guest crashed: vCPU 0: triple fault")
    assert all(line.startswith("tvmm: ") for line in err.splitlines())


def test_a_terminal_that_hangs_up() -> None:
    """A machine whose terminal is gone ends, and leaves nothing."""
    ours, theirs = pty.openpty()
    with started("run", *SMALL, "--name", "web", stdin=theirs, stdout=theirs) as machine:
        read_until(ours, PROMPT)
        os.close(theirs)
        os.close(ours)
        machine.send_signal(signal.SIGHUP)
        _, err = machine.communicate(timeout=SECONDS)
    assert machine.returncode in (0, 2), err
    assert b"Traceback" not in err
