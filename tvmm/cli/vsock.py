"""``tvmm vsock [NAME] PORT``: standard input and output, connected to a port of a machine's guest.

As netcat does it: the end of the input ends that direction alone, and the end of what the guest sends ends the verb.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import control, named
from tvmm.cli.output import message
from tvmm.config.units import parse_integer
from tvmm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser

__all__ = ["add_arguments", "run"]

STDIN, STDOUT = 0, 1
CHUNK = 64 * 1024
PENDING_LIMIT = 1 << 20
"""Bytes of input that wait for a guest which takes none; more than this is not read."""

_EXAMPLES = """\
  tvmm vsock web 5000                   talk to what listens at port 5000 in the guest
  tvmm vsock web 5000 < in > out        ends when the guest closes its side
  tvmm vsock 5000                       only one machine runs: no need to name it
  tvmm vsock --listen web 1234          wait for the guest to connect to port 1234 of the host
"""

_MORE = """\
The machine was started with --vsock PATH. Programs can do the same: connect to PATH, write "CONNECT PORT"
and a newline, and read "OK NUMBER" and a newline. What the guest connects to port N of the host, which is
CID 2, goes to the unix socket PATH_N.
Exit status: 0 when the guest has closed the connection, 2 if there was none.
"""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.completers import attach, machine_names

    parser.describe("Connect standard input and output to a port of a machine's guest.", _EXAMPLES, _MORE)
    name = parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="the machine, as 'tvmm ps' lists it; may be left out while only one runs",
    )
    parser.add_argument("port", metavar="PORT", help="port of the guest's program; with --listen the host's")
    parser.add_argument("--listen", action="store_true", help="wait for one connection by the guest")
    attach(name, machine_names)


def run(options: Mapping[str, Any]) -> int:
    """Carry bytes until the guest's side ends."""
    from tvmm.chardev.vsock_line import MAX_PORT

    port = parse_integer(options["port"], "port", 0, MAX_PORT)
    entry = named(options)
    with control(entry) as client:
        device = client.execute("x-query-info").get("vsock")
    if not device:
        raise ConfigError(f"{entry.name} has no vsock", "start it with --vsock PATH")
    if options.get("listen"):
        connection = _accept(device["path"], port)
    else:
        from tvmm.chardev.vsock_client import dial

        connection = dial(device["path"], port)
    with connection:
        _carry(connection)
    return 0


def _accept(path: str, port: int) -> socket.socket:
    """The guest's first connection to `port`. Nobody listens there any more when it is here."""
    from pathlib import Path

    import trio

    from tvmm.config.vsock import port_path
    from tvmm.control.listener import unix_listener

    async def accept() -> socket.socket:
        async with unix_listener(Path(port_path(path, port))) as listener:
            message(f"waiting for the guest to connect to port {port}")
            stream = await listener.accept()
            return socket.socket(fileno=stream.socket.detach())

    return trio.run(accept)


def _carry(connection: socket.socket) -> None:
    """Both directions. Raises `BrokenPipeError` if nobody reads the output any more."""
    connection.setblocking(False)
    pending = bytearray()
    reading = True
    while True:
        poll = select.poll()
        poll.register(connection, select.POLLIN | (select.POLLOUT if pending else 0))
        if reading and len(pending) < PENDING_LIMIT:
            poll.register(STDIN, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if STDIN in ready:
            data = os.read(STDIN, CHUNK)
            pending += data
            reading = bool(data)
        try:
            if pending:
                with suppress(BlockingIOError):
                    del pending[: connection.send(pending)]
            if not reading and not pending:
                connection.shutdown(socket.SHUT_WR)
                _drain(connection)
                return
        except OSError:
            # The guest takes no more, and may still have something to say.
            pending.clear()
            _drain(connection)
            return
        if not _show(connection):
            return


def _drain(connection: socket.socket) -> None:
    """What the guest still sends."""
    connection.setblocking(True)
    while _show(connection):
        pass


def _show(connection: socket.socket) -> bool:
    """Write what came. False: the guest's side has ended."""
    try:
        data = connection.recv(CHUNK)
    except BlockingIOError:
        return True
    except OSError as error:
        raise HostError(f"the connection to the guest is broken: {error.strerror or error}") from None
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(STDOUT, rest) :]
    return bool(data)
