"""A connection that Trio has made, for an engine in C: the descriptor of its own, or one end of a pair that is pumped.

What is encrypted passes through Python. A thread with a loop of its own does that for each such connection, because the
machine's event loop may itself be waiting for the page that comes over it.
"""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EngineEnd", "engine_end"]

PUMP_BYTES = 1 << 18
USER_TIMEOUT_MS = 20_000
"""Bytes that nobody acknowledges for so long: the network is broken. TCP itself would hope for a quarter of an hour."""


class EngineEnd:
    """`fd` is a stream socket; `close` makes the other side see the end."""

    def __init__(self, end: socket.socket, on_close: Callable[[], None] = lambda: None) -> None:
        self._end = end
        self._on_close = on_close

    @property
    def fd(self) -> int:
        """-1 once it is closed."""
        return self._end.fileno()

    def break_off(self) -> None:
        """The connection breaks, for both sides, while an engine may be at work on it. From any thread."""
        try:
            self._end.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """No engine is at work on it. Idempotent."""
        self.break_off()
        self._end.close()
        self._on_close()
        self._on_close = lambda: None


def engine_end(stream: trio.abc.Stream) -> EngineEnd:
    """`stream` is the end's own from now on."""
    if isinstance(stream, trio.SocketStream):
        plain = socket.socket(fileno=stream.socket.detach())
        _be_quick(plain)
        return EngineEnd(plain)
    assert isinstance(stream, trio.SSLStream)
    below = stream.transport_stream
    assert isinstance(below, trio.SocketStream)
    _be_quick(below.socket)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    pump = threading.Thread(target=trio.run, args=(_pump, stream, theirs), name="tvmm page requests", daemon=True)
    pump.start()
    return EngineEnd(ours, pump.join)


def _be_quick(connection: socket.socket | trio.socket.SocketType) -> None:
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


async def _pump(secured: trio.SSLStream[trio.SocketStream], pair: socket.socket) -> None:
    """Until either end is gone."""
    inner = trio.SocketStream(trio.socket.from_stdlib_socket(pair))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_carry, secured, inner, nursery.cancel_scope)
            nursery.start_soon(_carry, inner, secured, nursery.cancel_scope)
    finally:
        inner.socket.close()
        secured.transport_stream.socket.close()


async def _carry(origin: trio.abc.ReceiveStream, end: trio.abc.SendStream, over: trio.CancelScope) -> None:
    try:
        while data := await origin.receive_some(PUMP_BYTES):
            await end.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        pass
    over.cancel()
