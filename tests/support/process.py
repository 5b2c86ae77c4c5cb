"""The real program as a process: started, talked to through pipes or a terminal, waited for with a limit."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["PROMPT", "SECONDS", "Terminal", "call", "command", "read_until", "started", "until"]

PROMPT = b"tvmm> "
"""The built-in guest's."""
SECONDS = 30.0
"""Far above what anything here takes: a hang is to fail, and not to stall the suite."""
POLL_SECONDS = 0.01
SHOWN = 500


def command(*arguments: str) -> list[str]:
    """`tvmm` with `arguments`, by this interpreter."""
    return [sys.executable, "-m", "tvmm.cli", *arguments]


def call(*arguments: str, under: Sequence[str] = (), **options: Any) -> tuple[int, str, str]:
    """Run `tvmm` to its end: status, standard output, standard error. `under` is a command that starts it."""
    done = subprocess.run(
        [*under, *command(*arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        **options,
    )
    return done.returncode, done.stdout, done.stderr


@contextmanager
def started(
    *arguments: str,
    stdin: int = subprocess.PIPE,
    stdout: int = subprocess.PIPE,
    environment: Mapping[str, str] | None = None,
    under: Sequence[str] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """`tvmm` in the background, killed at the end of the block if it has not ended.

    `under` is a command that starts it, and becomes it.
    """
    process = subprocess.Popen(
        [*under, *command(*arguments)],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, **(environment or {})},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(fd: Any, wanted: bytes, seconds: float = SECONDS) -> bytes:
    """What comes from a descriptor, or an object with one, up to and including `wanted`.

    A terminal adds a carriage return to the guest's own; it is left out.
    """
    number = fd if isinstance(fd, int) else fd.fileno()
    deadline = time.monotonic() + seconds
    text, last = bytearray(), 0
    while wanted not in text[last:]:
        last = max(len(text) - len(wanted), 0)
        ready, _, _ = select.select([number], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"{wanted!r} did not come within {seconds} s; last was {bytes(text[-SHOWN:])!r}"
        data = os.read(number, 4096)
        assert data, f"the end came before {wanted!r}; last was {bytes(text[-SHOWN:])!r}"
        text += data
        if b"\r\r\n" in text[last:]:
            text[last:] = text[last:].replace(b"\r\r\n", b"\r\n")
    return bytes(text)


def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait for what another process brings about without telling us."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{condition} did not come true within {seconds} s"
        time.sleep(POLL_SECONDS)


class Terminal:
    """A pseudo-terminal: `theirs` is for the process, we type and read at the other side. A context manager."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.before = self.attributes()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *details: object) -> None:
        os.close(self.ours)
        os.close(self.theirs)

    def attributes(self) -> list[Any]:
        """As of tcgetattr(3)."""
        return termios.tcgetattr(self.theirs)

    def is_raw(self) -> bool:
        """Whether keys arrive one by one and unechoed."""
        return not self.attributes()[3] & (termios.ICANON | termios.ECHO)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.ours, keys)

    def read_until(self, wanted: bytes) -> bytes:
        """What is shown, up to and including `wanted`."""
        return read_until(self.ours, wanted)
