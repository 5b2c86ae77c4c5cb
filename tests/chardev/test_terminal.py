"""The terminal comes back as it was, whichever way a program ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from typing import Any

import pytest

from tvmm.chardev.terminal import RawTerminal, raw_attributes

PROGRAM = """
import os, signal, sys
from tvmm.chardev.terminal import RawTerminal
terminal = RawTerminal(0)
terminal.__enter__()
print("raw", flush=True)
exec(sys.argv[1])
"""


@pytest.fixture
def terminal() -> Iterator[int]:
    """A terminal in its usual mode."""
    master, slave = os.openpty()
    yield slave
    os.close(master)
    os.close(slave)


def is_raw(fd: int) -> bool:
    """Whether keys arrive at once, as they are and without an echo."""
    attributes = termios.tcgetattr(fd)
    return (
        not attributes[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        and not attributes[0] & termios.ICRNL
    )


def test_raw_inside_the_block(terminal: int) -> None:
    """The terminal is raw in the block, with newlines of output still translated, and as before after it."""
    before = termios.tcgetattr(terminal)
    with RawTerminal(terminal):
        assert is_raw(terminal)
        assert termios.tcgetattr(terminal)[1] & termios.OPOST
    assert termios.tcgetattr(terminal) == before


def test_restored_after_an_exception(terminal: int) -> None:
    """An exception does not leave the terminal raw."""
    before = termios.tcgetattr(terminal)
    with pytest.raises(KeyError), RawTerminal(terminal):
        raise KeyError
    assert termios.tcgetattr(terminal) == before


def test_what_is_no_terminal_is_left_alone() -> None:
    """A pipe can be named where a terminal is expected."""
    reading, writing = os.pipe()
    with RawTerminal(reading):
        os.write(writing, b"a")
        assert os.read(reading, 1) == b"a"
    os.close(reading)
    os.close(writing)


def test_given_attributes_are_not_changed(terminal: int) -> None:
    """Raw attributes are a copy, so that the saved ones stay what they were."""
    before: list[Any] = termios.tcgetattr(terminal)
    raw = raw_attributes(before, output=True)
    assert before == termios.tcgetattr(terminal)
    assert not raw[1] & termios.OPOST


def run_on(terminal: int, code: str) -> int:
    """Run `code` in a process whose terminal is raw; its exit status."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, code], stdin=terminal, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"raw\n"
    return process.returncode


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("sys.exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGTERM); signal.pause()", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGHUP); signal.pause()", -signal.SIGHUP),
    ],
    ids=["exit", "SIGTERM", "SIGHUP"],
)
def test_restored_when_the_process_ends(terminal: int, code: str, status: int) -> None:
    """A process that ends inside the block gives the terminal back, and ends for the reason it had."""
    before = termios.tcgetattr(terminal)
    assert run_on(terminal, code) == status
    assert termios.tcgetattr(terminal) == before


def test_child_does_not_restore(terminal: int) -> None:
    """A forked child that exits leaves its parent's terminal raw; the parent restores it."""
    code = (
        "child = os.fork()\n"
        "if not child: sys.exit(0)\n"
        "os.waitpid(child, 0)\n"
        "import termios\n"
        "sys.exit(10 if termios.tcgetattr(0)[3] & termios.ICANON else 20)"
    )
    before = termios.tcgetattr(terminal)
    assert run_on(terminal, code) == 20
    assert termios.tcgetattr(terminal) == before


def test_two_terminals_and_one_signal(terminal: int) -> None:
    """A signal gives back every terminal that the process has made raw."""
    master, other = os.openpty()
    before = termios.tcgetattr(terminal), termios.tcgetattr(other)
    code = (
        "second = RawTerminal(int(os.environ['OTHER'])); second.__enter__()\n"
        "os.kill(os.getpid(), signal.SIGTERM); signal.pause()"
    )
    environment = {**os.environ, "OTHER": str(other)}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, code],
        stdin=terminal,
        stdout=subprocess.DEVNULL,
        env=environment,
        pass_fds=[other],
        check=False,
    )
    assert process.returncode == -signal.SIGTERM
    assert (termios.tcgetattr(terminal), termios.tcgetattr(other)) == before
    os.close(master)
    os.close(other)


def test_handlers_of_others_are_left_alone(terminal: int) -> None:
    """A program that handles a signal itself keeps its handler; one that does not has its default back."""
    signals: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    hangup = signal.getsignal(signal.SIGHUP)
    try:
        with RawTerminal(terminal):
            signal.raise_signal(signal.SIGTERM)
            assert is_raw(terminal)
        assert signals == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) is hangup
    finally:
        signal.signal(signal.SIGTERM, previous)
