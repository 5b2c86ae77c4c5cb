"""`tvmm console NAME`: the user's terminal connected to the serial line of a running machine.

Plain system calls in one loop, no Trio: two descriptors, one socket, and the program ends with them. Nothing
here blocks but `poll`, apart from the terminal's own output, so that the escape works whatever the guest
does.
"""

from __future__ import annotations

import os
import select
import socket
from enum import Enum
from typing import TYPE_CHECKING

from tvmm.chardev.escape import Escape, Kind
from tvmm.chardev.terminal import RawTerminal
from tvmm.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ConsoleEnd", "run_console"]

CHUNK = 16 * 1024

PENDING_LIMIT = 1 << 20
"""Typed bytes that wait for a machine which takes none; more than this is not read from the terminal."""

CONNECT_SECONDS = 5.0
"""How long a machine may take to accept; longer only if its loop hangs."""


class ConsoleEnd(Enum):
    """Why a console ended; the values are lines to show."""

    DETACHED = "left the console; the machine goes on"
    GONE = "the machine has ended"
    OUTPUT_CLOSED = "nobody reads the console's output any more"


def run_console(path: Path, name: str, *, stdin: int = 0, stdout: int = 1) -> ConsoleEnd:
    """Show the serial line served at socket `path` until the user leaves or machine `name` ends.

    A terminal at `stdin` is raw meanwhile, and Ctrl-A x leaves; other input passes unchanged, and its end
    does not end the console. Raises `HostError` if nobody serves the line.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_SECONDS)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise HostError(f"no machine named {name} is running", "see 'tvmm ps'") from None
        except OSError as error:
            raise HostError(f"cannot reach the console of {name}: {error.strerror or error}") from None
        connection.setblocking(False)
        with RawTerminal(stdin):
            return _Console(connection, stdin, stdout).run()


class _OutputClosed(Exception):
    """Our own reader is gone."""


class _Console:
    """One session, with what was typed and not yet taken in `_pending`."""

    def __init__(self, connection: socket.socket, stdin: int, stdout: int) -> None:
        self._connection = connection
        self._stdin = stdin
        self._stdout = stdout
        self._escape = Escape(prompt=False) if os.isatty(stdin) else None
        self._pending = bytearray()
        self._input_open = True

    def run(self) -> ConsoleEnd:
        """Carry bytes until either end is reached."""
        try:
            while True:
                ready = self._wait()
                if self._stdin in ready and not self._type():
                    return ConsoleEnd.DETACHED
                if self._connection.fileno() in ready:
                    self._send()
                    self._show()
        except ConnectionError:
            return ConsoleEnd.GONE
        except _OutputClosed:
            return ConsoleEnd.OUTPUT_CLOSED

    def _wait(self) -> set[int]:
        """Wait until something can be done; the descriptors with which."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN | (select.POLLOUT if self._pending else 0))
        if self._input_open and len(self._pending) < PENDING_LIMIT:
            poll.register(self._stdin, select.POLLIN)
        return {fd for fd, _ in poll.poll()}

    def _type(self) -> bool:
        """Take what was typed; whether the user stays."""
        try:
            data = os.read(self._stdin, CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            self._input_open = False
        if self._escape is None:
            self._pending += data
            return True
        for event in self._escape.feed(data):
            if event.kind is Kind.SEND:
                self._pending += event.data
            elif event.kind is Kind.HELP:
                self._write(self._escape.help())
            elif event.kind is Kind.QUIT:
                return False
        return True

    def _send(self) -> None:
        """Give the machine as much of what was typed as it takes."""
        try:
            if self._pending:
                del self._pending[: self._connection.send(self._pending)]
        except BlockingIOError:
            pass

    def _show(self) -> None:
        """Write what the machine sent."""
        try:
            data = self._connection.recv(CHUNK)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError
        self._write(data)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._stdout, rest) :]
            except BlockingIOError:
                # Somebody else made it non-blocking: the flag belongs to all who share the terminal.
                poll = select.poll()
                poll.register(self._stdout, select.POLLOUT)
                poll.poll()
            except OSError:
                raise _OutputClosed from None
