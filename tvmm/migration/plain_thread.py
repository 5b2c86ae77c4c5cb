"""A plain connection for a thread that passes bytes through a buffer, such as compressed ones."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from tvmm.migration.senders import STALL_MS

if TYPE_CHECKING:
    import trio

    from tvmm.kvm.serve import Waker

__all__ = ["PlainThreadStream"]


class PlainThreadStream:
    """A `ThreadStream` over a socket that does not block. Only a sender's peer can stall: a receiver waits for ever."""

    def __init__(self, stream: trio.SocketStream, waker: Waker) -> None:
        self._stream = stream
        self._socket = stream.socket._sock  # type: ignore[attr-defined]
        self._waker_fd = waker.fileno()
        self._poll = select.poll()
        self._poll.register(self._waker_fd, select.POLLIN)

    def send_all(self, data: memoryview) -> None:
        """See `ThreadStream`."""
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, STALL_MS)

    def recv_into(self, buffer: memoryview) -> int:
        """See `ThreadStream`."""
        while True:
            try:
                return int(self._socket.recv_into(buffer))
            except BlockingIOError:
                self._wait(select.POLLIN, None)

    def _wait(self, event: int, stall_ms: int | None) -> None:
        self._poll.register(self._socket, event)
        ready = self._poll.poll(stall_ms)
        if not ready:
            raise TimeoutError
        if any(fd == self._waker_fd for fd, _ in ready):
            raise InterruptedError

    def close(self) -> None:
        """See `ThreadStream`."""
        self._stream.socket.close()
