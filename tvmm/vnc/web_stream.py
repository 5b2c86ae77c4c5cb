"""A websocket as a `trio.abc.Stream`: bytes in, bytes out, message borders mean nothing.

Nothing is gathered: a message's bytes are handed on as they arrive, so its length needs no cap. Compression is never
agreed on, so nothing grows when it is taken apart. Fragments, pings and empty frames cost one small read at most.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import trio
from wsproto.connection import Connection, ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

if TYPE_CHECKING:
    from wsproto.events import Event

__all__ = ["WebSocketStream"]

READ_SIZE = 4096
"""Bytes taken from the transport at once: what a viewer sends is small, and a read full of empty frames (680 of them)
must not hold up the event loop."""

FRAME_SIZE = 65536
"""Bytes in a frame that is sent. A browser shows a message when it is whole, and pings wait for the end of a frame."""

PING_SECONDS = 30.0
"""How long a peer may be silent until it is pinged, and then how long it may take to answer."""

CLOSE_SECONDS = 2.0
"""For the closing frame of a stream that is closed in good order."""


class WebSocketStream(trio.abc.Stream):
    """The stream over an open websocket. Owns `transport` and closes it.

    ``connection``: wsproto's, with the handshake done. Text is refused (close code 1003) unless ``text_ignored``.
    One task may receive and one may send, as with every trio stream; `send_text` and `send_all` are both sending.
    """

    def __init__(self, transport: trio.abc.Stream, connection: Connection, *, text_ignored: bool = False) -> None:
        self._transport = transport
        self._connection = connection
        self._text_ignored = text_ignored
        self._pending = bytearray()
        self._frames = trio.StrictFIFOLock()
        self._sending = False
        self._receiving = False
        self._ended = False
        self._closed = False
        self._torn = False
        self._heard = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, or none if the peer has closed. BrokenResourceError if it broke the websocket protocol."""
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this websocket")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            while not self._pending and not self._ended:
                self._check_open()
                await self._take_in()
            self._check_open()
        finally:
            self._receiving = False
        part = bytes(self._pending[:max_bytes])
        del self._pending[: len(part)]
        return part

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes as binary messages of `FRAME_SIZE` at most."""
        with self._sole_sender(), memoryview(data) as view:
            await trio.lowlevel.checkpoint()
            self._check_open()
            for start in range(0, len(view), FRAME_SIZE):
                await self._send(self._binary(view[start : start + FRAME_SIZE]))

    async def send_text(self, text: str) -> None:
        """Send one text message."""
        with self._sole_sender():
            await self._send(TextMessage(data=text))

    async def wait_send_all_might_not_block(self) -> None:
        """As the transport has it."""
        with self._sole_sender():
            async with self._frames:
                self._check_open()
                await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close in good order if the peer takes a last frame soon; the transport is closed in any case."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            if self._connection.state is ConnectionState.OPEN and not self._frames.locked():
                await self._farewell(CloseReason.NORMAL_CLOSURE)
        finally:
            # TLS says goodbye as well, to a peer that need not take it.
            with trio.move_on_after(CLOSE_SECONDS):
                await self._transport.aclose()

    async def watch(self) -> None:
        """Ping a silent peer and cut the connection if it is gone. For a task beside those that use the stream.

        Needs somebody to receive: the answers come in there.
        """
        while True:
            heard = self._heard
            await trio.sleep(PING_SECONDS)
            if self._heard != heard:
                continue
            with trio.move_on_after(PING_SECONDS):
                await self._send(Ping())
                await trio.sleep_forever()
            if self._heard == heard:
                self._closed = True
                await trio.aclose_forcefully(self._transport)
                return

    async def _take_in(self) -> None:
        """Read once from the transport and act on what came."""
        data = await self._transport.receive_some(READ_SIZE)
        self._heard += 1
        self._connection.receive_data(bytes(data) or None)
        for event in self._connection.events():
            if isinstance(event, BytesMessage):
                self._pending += event.data
            elif isinstance(event, TextMessage):
                if not self._text_ignored:
                    await self._farewell(CloseReason.UNSUPPORTED_DATA)
                    raise trio.BrokenResourceError("a text message came where bytes belong")
            elif isinstance(event, Ping):
                await self._send(event.response())
            elif isinstance(event, CloseConnection):
                await self._end(event)
                return
            else:
                assert isinstance(event, Pong)

    async def _end(self, event: CloseConnection) -> None:
        state = self._connection.state
        if state is ConnectionState.OPEN:  # wsproto says so of a peer that broke the protocol
            await self._farewell(CloseReason(event.code))
            raise trio.BrokenResourceError("the peer broke the websocket protocol")
        self._ended = True
        if state is ConnectionState.REMOTE_CLOSING:
            await self._farewell(CloseReason.NORMAL_CLOSURE)

    async def _farewell(self, code: CloseReason) -> None:
        with trio.move_on_after(CLOSE_SECONDS):
            try:
                async with self._frames:
                    if not self._torn:
                        await self._transport.send_all(self._connection.send(CloseConnection(code=code)))
            except (trio.BrokenResourceError, trio.ClosedResourceError, LocalProtocolError):
                pass  # it has gone already

    def _binary(self, data: memoryview) -> Event | bytes:
        """A binary message. A server's is its length and the bytes (RFC 6455, 5.2); wsproto would take twenty times as
        long as that takes.
        """
        length = len(data)
        if self._connection.client or self._connection.state is not ConnectionState.OPEN or length < 126:
            return BytesMessage(data=bytes(data))
        head = b"\x82\x7e" + length.to_bytes(2, "big") if length < 65536 else b"\x82\x7f" + length.to_bytes(8, "big")
        return b"".join((head, data))

    async def _send(self, event: Event | bytes) -> None:
        """Send one frame whole; a task that is cancelled amid one leaves a stream that nothing can be sent on."""
        async with self._frames:
            self._check_open()
            if self._torn:
                raise trio.BrokenResourceError("a frame was not sent to its end")
            try:
                frame = event if isinstance(event, bytes) else self._connection.send(event)
            except LocalProtocolError:
                raise trio.BrokenResourceError("the peer has closed the websocket") from None
            self._torn = True
            await self._transport.send_all(frame)
            self._torn = False

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this websocket was closed")

    def _sole_sender(self) -> _Sole:
        return _Sole(self)


class _Sole:
    """Tells a second sender off; trio's own guard for this is private."""

    def __init__(self, stream: WebSocketStream) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        if self._stream._sending:
            raise trio.BusyResourceError("another task is sending on this websocket")
        self._stream._sending = True

    def __exit__(self, *_: object) -> None:
        self._stream._sending = False
