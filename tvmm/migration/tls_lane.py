"""One TLS connection as a thread uses it that moves RAM: whole buffers out, what is there in, and out of it at once.

The socket does not block; poll waits for it together with a waker's descriptor, so whoever wakes gets the thread out
within milliseconds even if the peer does nothing. OpenSSL works on the caller's memory without the interpreter lock.

Rejected: MemoryBIO with many records for each call of the kernel's, which halves the receiver's time there and costs it
twice that in copies (1.6 to 2.2 CPU seconds for a GiB, beside 1.4 to 1.6 of a socket), whatever the size; kernel
TLS, which needs Python 3.12 and a kernel with CONFIG_TLS. The order of ciphers is OpenSSL's, which stdlib's ssl does
not let anybody change for TLS 1.3: AES-256-GCM first, and of the three the second fastest where processors have AES
instructions (2.5 GB/s beside 2.7 of AES-128-GCM and 2.0 of ChaCha20-Poly1305, by ``openssl speed``, 16 KiB records).

What it costs (`bench.tls_lane`, over loopback, both ends on two processors): 2.5 CPU seconds for a GiB beside 0.5 of
plain sockets, three fifths of it the receiver's. Of both, one third is AES and two fifths are the kernel's, which is
called once for each record of 16 KiB that is sent and twice for each that is received; a seventh is Python's.
Holding records back with TCP_CORK, and other sizes of buffers, do not change that.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from typing import TYPE_CHECKING, Protocol

from tvmm.errors import ProtocolError
from tvmm.migration.tls_errors import Side, explain

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["BUFFER_BYTES", "STALL_SECONDS", "LaneCancelled", "TlsLane", "Wakeable"]

STALL_SECONDS = 30.0
"""How long a peer may take or give nothing at all: one that only keeps the connection must not keep the thread."""
BUFFER_BYTES = 4 << 20
"""Send and receive buffer that the kernel is asked for; it gives what net.core.wmem_max and rmem_max allow. Large ones
let both ends work for longer between two waits."""


SEND_BYTES = 1 << 20
"""What is sent between two looks at the waker: about a millisecond's worth."""


class Wakeable(Protocol):
    """`tvmm.kvm.serve.Waker`, or the end of a socket pair: readable once the thread is wanted elsewhere."""

    def fileno(self) -> int:
        """The descriptor to poll."""


class LaneCancelled(Exception):
    """The waker has been woken. The lane is of no use any more: a record may be half sent."""


class TlsLane:
    """`connection` after its handshake, not blocking; `side` is for what goes wrong.

    To be used by one thread at a time: OpenSSL does not take two. Everything raises `LaneCancelled`, and
    `ProtocolError` or `UserError` for what the peer does.
    """

    def __init__(
        self,
        connection: ssl.SSLSocket,
        side: Side,
        waker: Wakeable | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.socket = connection
        self.peer_certificate = b""
        """DER, once the handshake is done: connections of one peer have the same."""
        self._side = side
        self._stall_ms = int(stall_seconds * 1000)
        self._deadline: float | None = None
        self._broken: OSError | None = None
        self._readable, self._writable, self._woken = select.poll(), select.poll(), select.poll()
        self._readable.register(connection, select.POLLIN)
        self._writable.register(connection, select.POLLOUT)
        if waker is not None:
            for poll in (self._readable, self._writable, self._woken):
                poll.register(waker, select.POLLIN)
        self._descriptor = connection.fileno()

    def handshake(self, seconds: float) -> None:
        """Make the handshake, and have nothing take longer than `seconds` from now until `established`."""
        self._deadline = time.monotonic() + seconds
        self._until_done(self.socket.do_handshake)
        self.peer_certificate = self.socket.getpeercert(binary_form=True) or b""

    def established(self) -> None:
        """From now on a peer may be silent for the stall limit, time after time."""
        self._deadline = None

    def send_all(self, data: memoryview | bytes) -> None:
        """Send all of `data`."""
        with memoryview(data).cast("B") as view:
            sent = 0
            while sent < len(view):
                self._check_woken()
                # OpenSSL comes back when it has sent all, or cannot: to a fast peer, not before the end.
                rest = view[sent : sent + SEND_BYTES]
                sent += self._until_done(lambda rest=rest: self.socket.send(rest))  # type: ignore[misc]

    def recv_into(self, buffer: memoryview) -> int:
        """Wait for data and put all that is there into `buffer`, as far as it goes; returns the number of bytes.

        0: the peer has ended the connection in order. One that was cut raises `ProtocolError`.
        """
        self._check_woken()
        if self._broken is not None:
            raise explain(self._broken, self._side) from self._broken
        with buffer.cast("B") as view:
            got = self._until_done(lambda: self.socket.recv_into(view))
            if not got:
                return 0
            # A read gives one record, of at most 16 KiB.
            while got < len(view):
                try:
                    more = self.socket.recv_into(view[got:], len(view) - got)
                except ssl.SSLWantReadError:
                    break
                except OSError as error:
                    # First what came before it.
                    self._broken = error
                    break
                if not more:
                    break
                got += more
            return got

    def recv_exactly(self, buffer: memoryview) -> None:
        """Fill `buffer`. Raises `ProtocolError` if the peer ends before."""
        with buffer.cast("B") as view:
            got = 0
            while got < len(view):
                more = self.recv_into(view[got:])
                if not more:
                    raise ProtocolError(f"{self._side.peer} ended the connection {len(view) - got} bytes too early")
                got += more

    def finish(self) -> None:
        """Tell the peer that nothing follows, so that it can tell the end from a cut. It may go on sending."""
        try:
            self._until_done(self.socket.unwrap, reads=False)
        except ssl.SSLWantReadError:
            return  # Ours is out; theirs has not come, and need not.

    def close(self) -> None:
        """Close the connection. To be called by the thread that uses it, or once that is out."""
        self.socket.close()

    def _until_done(self, step: Callable[[], T], *, reads: bool = True) -> T:
        """Repeat `step` each time the socket is ready for it. Without `reads`, to have to read is the end of it."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                if not reads:
                    raise
                poll = self._readable
            except ssl.SSLWantWriteError:
                poll = self._writable
            except OSError as error:
                raise explain(error, self._side) from error
            self._wait(poll)

    def _wait(self, poll: select.poll) -> None:
        limit = self._stall_ms
        if self._deadline is not None:
            limit = max(min(limit, int((self._deadline - time.monotonic()) * 1000)), 0)
        ready = poll.poll(limit)
        if not ready:
            what = "the handshake" if self._deadline is not None else "the connection"
            raise ProtocolError(f"{what} with {self._side.peer} has stalled for {limit / 1000:.3g} s")
        if any(descriptor != self._descriptor for descriptor, _ in ready):
            raise LaneCancelled

    def _check_woken(self) -> None:
        if self._woken.poll(0):
            raise LaneCancelled


def prepare(connection: socket.socket) -> None:
    """Set `connection`, connected and plain, up for a lane."""
    connection.setblocking(False)
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
