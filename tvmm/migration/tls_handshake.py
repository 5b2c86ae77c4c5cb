"""A TLS handshake in a thread, and the few bytes that follow it; then the socket goes on without TLS, with a key.

The socket does not block; poll waits for it together with a waker's descriptor, so whoever wakes gets the thread out
within milliseconds even if the peer does nothing.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from functools import partial
from typing import TYPE_CHECKING

from tvmm.errors import ProtocolError
from tvmm.migration.tls_errors import Side, explain

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from tvmm.migration.plain_thread import Wakeable

    T = TypeVar("T")

__all__ = ["TlsHandshake"]


class TlsHandshake:
    """`connection`, not blocking and not yet shaken hands on; `side` is for what goes wrong.

    Everything together may take `seconds` from now on: a byte now and then is not enough to keep a thread. Methods
    raise `InterruptedError` once `waker` is woken, and `ProtocolError` or `UserError` for what the peer does.
    """

    def __init__(self, connection: ssl.SSLSocket, side: Side, waker: Wakeable | None, seconds: float) -> None:
        self.socket = connection
        self._side = side
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(connection, select.POLLIN)
        self._writable.register(connection, select.POLLOUT)
        if waker is not None:
            self._readable.register(waker, select.POLLIN)
            self._writable.register(waker, select.POLLIN)
        self._descriptor = connection.fileno()

    def run(self) -> bytes:
        """Make the handshake; returns the peer's certificate (DER)."""
        self._until_done(self.socket.do_handshake)
        return self.socket.getpeercert(binary_form=True) or b""

    def send(self, data: bytes) -> None:
        """Send all of `data`, which is no more than a record."""
        self._until_done(partial(self.socket.send, data))

    def receive(self, count: int) -> bytes:
        """`count` bytes, or fewer if the peer ends the connection in order."""
        data = b""
        while len(data) < count:
            more = self._until_done(partial(self.socket.recv, count - len(data)))
            if not more:
                break
            data += more
        return data

    def detach(self) -> socket.socket:
        """The socket without TLS. The peer has to know that what follows is no record."""
        return socket.socket(fileno=self.socket.detach())

    def close(self) -> None:
        """Close the connection, unless it was detached."""
        self.socket.close()

    def _until_done(self, step: Callable[[], T]) -> T:
        """Repeat `step` each time the socket is ready for it."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                poll = self._readable
            except ssl.SSLWantWriteError:
                poll = self._writable
            except OSError as error:
                raise explain(error, self._side) from error
            self._wait(poll)

    def _wait(self, poll: select.poll) -> None:
        ready = poll.poll(max(int((self._deadline - time.monotonic()) * 1000), 0))
        if not ready:
            raise ProtocolError(f"the handshake with {self._side.peer} has stalled for {self._seconds:.3g} s")
        if any(descriptor != self._descriptor for descriptor, _ in ready):
            raise InterruptedError
