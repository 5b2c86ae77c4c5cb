"""``tvmm console [NAME]``: this terminal on the serial line of a running machine.

The machine sends what its line said last and then what comes; what is typed goes to the guest. Any number
of consoles may be open, and none can hold up the guest.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from typing import TYPE_CHECKING, Any

from tvmm.chardev.terminal import RawTerminal
from tvmm.cli.machines import named
from tvmm.cli.output import message
from tvmm.config.serial import SerialConfig
from tvmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser
    from tvmm.control.registry import MachineEntry

__all__ = ["Keys", "add_arguments", "connect", "run", "shuttle"]

CHUNK_BYTES = 65536

_EXAMPLES = """\
  tvmm console web                      Ctrl-A d leaves, the machine goes on
  tvmm console web --escape ctrl-]      for guests that need Ctrl-A
  tvmm console web < /dev/null          only look
"""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.parser import add_name

    parser.describe(
        "Connect this terminal to a machine's serial line. Every key goes to the guest but the escape key: "
        "behind it, d (or x) leaves the console and the escape key itself sends that key.",
        _EXAMPLES,
    )
    add_name(parser)
    parser.add_argument(
        "--escape", metavar="KEY", help="the escape key: ctrl-a to ctrl-z, ctrl-], none (default ctrl-a)"
    )


def run(options: Mapping[str, Any]) -> int:
    """Stay connected until the user leaves or the machine ends."""
    escape = SerialConfig.parse(f"stdio,escape={options.get('escape', 'ctrl-a')}").escape
    entry = named(options)
    source, sink = sys.stdin.fileno(), sys.stdout.fileno()
    sys.stdout.flush()
    with connect(entry) as line:
        if escape and os.isatty(source):
            message(f"connected to {entry.name}; Ctrl-{chr(ord(escape) | 0x40)} d leaves")
        with RawTerminal(source):
            left = shuttle(line, source, sink, Keys(escape if os.isatty(source) else ""))
    message(f"left the console of {entry.name}" if left else f"{entry.name} has closed its console")
    return 0


def connect(entry: MachineEntry) -> socket.socket:
    """A connection to the machine's serial line. Raises `HostError`."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        line.connect(str(entry.paths.console))
    except OSError as error:
        line.close()
        hint = (
            "its serial line may lead nowhere, see 'tvmm info'"
            if isinstance(error, FileNotFoundError)
            else ""
        )
        raise HostError(f"the console of {entry.name} cannot be reached: {error.strerror}", hint) from error
    return line


class Keys:
    """Finds the escape among what is typed."""

    def __init__(self, escape: str) -> None:
        self._escape = escape.encode()
        self._pending = False
        self.left = False

    def feed(self, data: bytes) -> bytes:
        """What of `data` is for the guest; `left` is set when the user wants to leave."""
        if not self._escape:
            return data
        out = bytearray()
        for value in data:
            key = bytes([value])
            if not self._pending:
                if key == self._escape:
                    self._pending = True
                else:
                    out += key
                continue
            self._pending = False
            if key in b"dDxX":
                self.left = True
                break
            if key == self._escape:
                out += key
        return bytes(out)


def shuttle(line: socket.socket, source: int, sink: int, keys: Keys) -> bool:
    """Carry bytes between the line and the two descriptors; True if the user left, False if the line was
    closed.

    The end of `source` ends typing, not looking.
    """
    line.setblocking(False)
    typed = b""
    reads = {source, line.fileno()}
    while not keys.left:
        # While something waits for the line nothing more is read: the terminal is where to wait then.
        wanted = reads - {source} if typed else reads
        readable, writable, _ = select.select(list(wanted), [line] if typed else [], [])
        if line.fileno() in readable:
            try:
                data = line.recv(CHUNK_BYTES)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                return False
            _write_all(sink, data)
        if source in readable:
            data = os.read(source, CHUNK_BYTES)
            if not data:
                reads.discard(source)
            typed += keys.feed(data)
        if writable or typed:
            try:
                typed = typed[line.send(typed) :]
            except BlockingIOError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                return False
    return True


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            # Another program on this terminal has made it non-blocking.
            select.select([], [descriptor], [])
