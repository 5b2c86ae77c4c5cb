"""A plain connection for a thread that passes bytes through a buffer, such as compressed or encrypted ones."""

from __future__ import annotations

import select
import socket
from typing import Protocol

from tvmm.migration.senders import STALL_MS

__all__ = ["BUFFER_BYTES", "PlainThreadStream", "Wakeable", "prepare"]

BUFFER_BYTES = 4 << 20
"""Send and receive buffer that the kernel is asked for; it gives what net.core.wmem_max and rmem_max allow. Large ones
let both ends work for longer between two waits."""


class Wakeable(Protocol):
    """`tvmm.kvm.serve.Waker`, or the end of a pipe: readable once the thread is wanted elsewhere."""

    def fileno(self) -> int:
        """The descriptor to poll."""


class PlainThreadStream:
    """A `ThreadStream` over a socket that does not block. Only a sender's peer can stall: a receiver waits for ever."""

    def __init__(self, connection: socket.socket, waker: Wakeable | None = None) -> None:
        self.close = connection.close
        self._socket = connection
        self._readable, self._writable, self._woken = select.poll(), select.poll(), select.poll()
        self._readable.register(connection, select.POLLIN)
        self._writable.register(connection, select.POLLOUT)
        if waker is not None:
            for poll in (self._readable, self._writable, self._woken):
                poll.register(waker, select.POLLIN)
        self._descriptor = connection.fileno()

    def send_all(self, data: memoryview) -> None:
        """See `ThreadStream`."""
        if self._woken.poll(0):
            raise InterruptedError
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                self._wait(self._writable, STALL_MS)

    def recv_into(self, buffer: memoryview) -> int:
        """See `ThreadStream`."""
        if self._woken.poll(0):
            raise InterruptedError
        while True:
            try:
                return int(self._socket.recv_into(buffer))
            except BlockingIOError:
                self._wait(self._readable, None)

    def _wait(self, poll: select.poll, stall_ms: int | None) -> None:
        ready = poll.poll(stall_ms)
        if not ready:
            raise TimeoutError
        if any(descriptor != self._descriptor for descriptor, _ in ready):
            raise InterruptedError


def prepare(connection: socket.socket) -> None:
    """Set `connection` up for a lane."""
    connection.setblocking(False)
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
