"""Stream sockets for network devices: connected to a unix socket's path, or handed over; closed at the end.

All of it blocks for moments, and is for a worker thread, or for a task that knows that a unix socket answers at once.
"""

from __future__ import annotations

import os
import socket
import stat

from tvmm.errors import ConfigError, HostError
from tvmm.virtio.net import NetBackend

__all__ = ["StreamWire", "closed_stream", "connect_stream", "inherited_stream", "prepare"]

CONNECT_SECONDS = 2.0
"""A listener whose queue is full makes who connects wait."""
SEND_BUFFER = 1 << 20
"""Bytes to ask for; the kernel gives less to who has no rights. The default has room for two of the longest frames."""


class StreamWire:
    """What a network device sends its frames through: one stream, with each frame behind its length.

    It has no offloads: who is at the other end sees plain frames.
    """

    is_stream = True
    backend = NetBackend()

    def __init__(self, name: str, connection: socket.socket) -> None:
        """`name` is for messages; the connection is the wire's from here on."""
        self.name = name
        self._connection = connection
        self._next: socket.socket | None = None

    @property
    def fds(self) -> tuple[int, ...]:
        """See `Wire`."""
        return (self._connection.fileno(),)

    def offer(self, connection: socket.socket) -> int:
        """One that is to follow; its descriptor. The old one stays open until `swap`."""
        self._next = connection
        return connection.fileno()

    def swap(self) -> None:
        """Nobody uses the old one any more."""
        if self._next is not None:
            self._connection.close()
            self._connection, self._next = self._next, None

    def close(self) -> None:
        """Let go. The other end sees it."""
        for connection in (self._connection, self._next):
            if connection is not None:
                connection.close()

    def set_offload(self, features: int) -> None:
        """There are none to set."""

    def attach(self, pair: int, on: bool) -> None:
        """There is one pair of queues."""

    def set_carrier(self, up: bool) -> None:
        """The other end cannot be told."""


def prepare(connection: socket.socket) -> socket.socket:
    """As a server wants it."""
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return connection


def connect_stream(path: str) -> socket.socket:
    """A connection to whoever listens at `path`. Raises `HostError`."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(CONNECT_SECONDS)
        connection.connect(path)
    except OSError as error:
        connection.close()
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            what = "there is no such socket" if isinstance(error, FileNotFoundError) else "nobody listens there"
            raise HostError(f"net stream: cannot connect to {path}: {what}", "start its other end first") from error
        if isinstance(error, TimeoutError):
            raise HostError(f"net stream: {path} does not answer", "its other end is busy or stuck") from error
        raise HostError(f"net stream: cannot connect to {path}: {error.strerror or error}") from error
    return prepare(connection)


def closed_stream() -> socket.socket:
    """A connection whose other end is closed, for one that is still to come."""
    near, far = socket.socketpair()
    far.close()
    return prepare(near)


def inherited_stream(fd: int) -> socket.socket:
    """The connection that whoever started us has opened for us. Raises `ConfigError`."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ConfigError(f"net fd={fd} is no socket", "net stream needs a connected stream socket")
    except OSError as error:
        raise ConfigError(f"net fd={fd} is not open", "the program that starts tvmm has to pass it on") from error
    connection = socket.socket(fileno=fd)
    if connection.type != socket.SOCK_STREAM:
        connection.detach()
        raise ConfigError(f"net fd={fd} is no stream socket", "SOCK_STREAM, connected")
    try:
        connection.getpeername()
    except OSError as error:
        connection.detach()
        raise ConfigError(f"net fd={fd} is not connected", "connect it first") from error
    connection.set_inheritable(False)
    return prepare(connection)
