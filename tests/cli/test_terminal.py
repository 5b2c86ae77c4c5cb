"""The real program on a real terminal: its keys, and the terminal's mode afterwards, whatever ended the machine."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.process import PROMPT, SECONDS, Terminal, call, started, until

pytestmark = pytest.mark.guest


@contextmanager
def machine_on(terminal: Terminal, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`tvmm run` with the terminal as its input and output, at the guest's prompt."""
    arguments = ("run", "--name", "web", "--memory", "64M", *options)
    with terminal, started(*arguments, stdin=terminal.theirs, stdout=terminal.theirs) as process:
        terminal.read_until(PROMPT)
        assert terminal.is_raw()
        yield process


def finish(terminal: Terminal, process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Status and messages of a machine that is about to end; the terminal is as it was before."""
    _, err = process.communicate(timeout=SECONDS)
    assert terminal.attributes() == terminal.before
    return process.returncode, err


def test_power_off() -> None:
    """A guest that powers off: 0, and not a word."""
    terminal = Terminal()
    with machine_on(terminal) as process:
        terminal.type(b"poweroff\r")
        assert finish(terminal, process) == (0, b"")


def test_guest_crash() -> None:
    """A guest that crashes: 3, and the report comes when lines are lines again."""
    terminal = Terminal()
    with machine_on(terminal) as process:
        terminal.type(b"crash\r")
        status, err = finish(terminal, process)
    assert status == 3
    assert err.startswith(b"tvmm: the guest crashed: ")


def test_two_signals() -> None:
    """SIGTERM twice to a guest that does not listen: 143."""
    terminal = Terminal()
    with machine_on(terminal) as process:
        terminal.type(b"spinoff\r")
        terminal.read_until(b"interrupts off\r\n")
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"tvmm: SIGTERM: asked the guest to power off")
        process.send_signal(signal.SIGTERM)
        assert finish(terminal, process) == (128 + signal.SIGTERM, b"tvmm: ended by SIGTERM\n")


def test_interrupt_from_outside() -> None:
    """SIGINT presses the power button, and the guest heeds it: 0."""
    terminal = Terminal()
    with machine_on(terminal) as process:
        process.send_signal(signal.SIGINT)
        terminal.read_until(b"powering off")
        status, err = finish(terminal, process)
    assert (status, err.count(b"\n")) == (0, 1)


def test_interrupt_key_is_the_guests() -> None:
    """Ctrl-C on the terminal reaches the guest and not tvmm."""
    terminal = Terminal()
    with machine_on(terminal) as process:
        terminal.type(b"spin\r")
        terminal.read_until(b"spin\r\n")
        terminal.type(b"\x03")
        terminal.read_until(b"^C\r\n" + PROMPT)
        terminal.type(b"poweroff\r")
        assert finish(terminal, process) == (0, b"")


def test_help_and_prompt() -> None:
    """Ctrl-A h lists the keys; at Ctrl-A c orders are for tvmm, while the guest's output waits; Ctrl-A x ends it."""
    terminal = Terminal()
    with machine_on(terminal) as process:
        terminal.type(b"\x01h")
        assert b"Ctrl-A x       end the machine" in terminal.read_until(b"Ctrl-A Ctrl-A  send Ctrl-A\r\n")
        terminal.type(b"\x01c")
        terminal.read_until(b"(tvmm) ")
        terminal.type(b"status\r")
        assert b"web is running: PVH ELF, 1 CPUs, 64 MiB" in terminal.read_until(b"exits\r\n(tvmm) ")
        terminal.type(b"pause\r")
        terminal.read_until(b"paused\r\n(tvmm) ")
        terminal.type(b"status\r")
        terminal.read_until(b"web is paused")
        terminal.type(b"nonsense\r")
        terminal.read_until(b"unknown command 'nonsense'")
        terminal.type(b"resume\r")
        terminal.read_until(b"running\r\n(tvmm) ")
        terminal.type(b"c\r")
        terminal.type(b"echo back again\r")
        terminal.read_until(b"\nback again\r\n")
        terminal.type(b"\x01x")
        assert finish(terminal, process) == (0, b"tvmm: the machine was ended\n")


def test_quit_while_the_guest_babbles() -> None:
    """The escape works however much the guest writes and whether or not anybody reads."""
    terminal = Terminal()
    with machine_on(terminal) as process:
        terminal.type(b"emit 100000000\r")
        terminal.read_until(b"emit 100000000\r\n")
        terminal.type(b"\x01x")
        assert finish(terminal, process) == (0, b"tvmm: the machine was ended\n")


def test_console_on_a_terminal() -> None:
    """`tvmm console` makes its terminal raw, leaves by Ctrl-A x, and the machine goes on."""
    first, second = Terminal(), Terminal()
    with machine_on(first) as process, second:
        until(lambda: call("info", "web")[0] == 0)
        with started("console", "web", stdin=second.theirs, stdout=second.theirs) as viewer:
            second.read_until(PROMPT)
            assert second.is_raw()
            second.type(b"echo seen by both\r")
            second.read_until(b"\nseen by both\r\n")
            first.read_until(b"\nseen by both\r\n")
            second.type(b"\x01x")
            status, err = finish(second, viewer)
        assert (status, err.splitlines()[-1]) == (0, b"tvmm: left the console; the machine goes on")
        first.type(b"poweroff\r")
        assert finish(first, process) == (0, b"")
