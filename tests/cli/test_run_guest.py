"""`tvmm run` as a process, with the built-in guest: what it prints, what it leaves, how it ends."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tvmm.control.registry import machines

pytestmark = pytest.mark.guest

PROMPT = b"tvmm> "


@contextmanager
def started(*options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`tvmm run` with pipes, killed at the end of the block if it has not ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tvmm.cli", "run", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(fd: int, wanted: bytes) -> bytes:
    """What comes from `fd` up to and including `wanted`."""
    text = b""
    while wanted not in text:
        data = os.read(fd, 4096)
        assert data, text
        text += data
    return text


def told(process: subprocess.Popen[bytes], order: str) -> tuple[bytes, bytes, int]:
    """Give the guest an order at its first prompt; its output, tvmm's messages, and the status in the end."""
    assert process.stdout is not None
    read_until(process.stdout.fileno(), PROMPT)
    out, err = process.communicate(f"{order}\n".encode())
    return out, err, process.returncode


def test_a_guest_that_powers_off(registry: Path) -> None:
    """Status 0, not a word from tvmm, and nothing left in the registry."""
    with started() as process:
        _, err, status = told(process, "poweroff")
    assert (status, err) == (0, b"")
    assert machines(registry) == []


@pytest.mark.parametrize(
    ("order", "options", "status", "message"),
    [
        ("crash", [], 3, b"tvmm: the guest crashed: "),
        ("halt", [], 0, b"tvmm: the guest halted for good"),
        ("reboot", ["--no-reboot"], 0, b"tvmm: the guest reset the machine"),
    ],
)
def test_other_ends(order: str, options: list[str], status: int, message: bytes) -> None:
    """Each end has its status and a line that names it."""
    with started(*options) as process:
        _, err, code = told(process, order)
    assert err.startswith(message)
    assert code == status


def test_the_debug_exit_device_sets_the_status() -> None:
    """As with QEMU, the status is twice the value and one."""
    with started("--device", "isa-debug-exit") as process:
        _, err, code = told(process, "exit 5")
    assert code == 11
    assert err.startswith(b"tvmm: the guest ended the machine through isa-debug-exit")


def test_sigterm_powers_the_guest_off() -> None:
    """A guest that heeds its power button ends with status 0."""
    with started("--name", "web") as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), PROMPT)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 0
    assert err.count(b"\n") == 1
    assert b"SIGTERM: asked the guest to power off, it has 10s" in err


def test_a_guest_that_is_deaf_is_ended() -> None:
    """After the grace period the status tells the signal, and every line is tvmm's."""
    with started("--powerdown-timeout", "200ms") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        read_until(process.stdout.fileno(), PROMPT)
        process.stdin.write(b"spinoff\n")
        read_until(process.stdout.fileno(), b"spinoff\r\n")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert [line[:6] for line in err.splitlines()] == [b"tvmm: "] * 3
    assert err.endswith(b"tvmm: ended by SIGINT\n")


def test_the_terminal_is_as_before() -> None:
    """On a terminal Ctrl-A x ends the machine; by the time tvmm says so the terminal is no longer raw."""
    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        process = subprocess.Popen(
            [sys.executable, "-m", "tvmm.cli", "run"], stdin=theirs, stdout=theirs, stderr=subprocess.PIPE
        )
        with process:
            read_until(ours, PROMPT)
            assert termios.tcgetattr(theirs) != before
            os.write(ours, b"\x01x")
            assert process.stderr is not None
            assert process.stderr.readline() == b"tvmm: the machine was ended\n"
            assert termios.tcgetattr(theirs) == before
        assert process.returncode == 0
    finally:
        os.close(ours)
        os.close(theirs)
