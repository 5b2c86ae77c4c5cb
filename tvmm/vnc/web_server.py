"""The web console's server: HTTP/1.1 for one page, and two websockets on the same port.

    /        the page with noVNC, from package data
    /vnc     RFB in binary messages: the bytes go to `serve_viewer` as from any other viewer's connection
    /panel   the machine's figures as JSON, once a second

h11 reads requests; the rules (`web_rules`) say what is answered; wsproto frames what follows an upgrade. A server that
is one of websockets only would need a second port for the page, or the page's requests put back in front of it.

The peer is hostile until it has shown the token: a request has to be whole within `REQUEST_SECONDS` and within
`MAX_REQUEST` bytes, and connections that have shown none are limited by themselves. They cannot crowd out viewers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import h11
import trio
from wsproto.connection import Connection, ConnectionType

from tvmm.http_stream import GONE, complaint, next_request, send_answer
from tvmm.vnc.web_rules import Channel, refusal
from tvmm.vnc.web_stream import WebSocketStream

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from tvmm.vnc.web_rules import Rules

__all__ = ["WebConsole"]

MAX_REQUEST = 16 * 1024
"""Bytes of a request with its headers: a client could send headers without end."""

MAX_STRANGERS = 32
"""Connections that have not shown the token; more are cut. A browser opens six at once."""

MAX_CONNECTIONS = 128
"""Connections altogether."""

MAX_CHANNELS = 64
"""Websockets; half of them are panels."""

REQUEST_SECONDS = 15.0
"""For TLS's handshake, and for a request to be whole, also the time that an idle connection is kept."""

REPLY_SECONDS = 30.0
"""For a peer to take an answer or a message of the panel."""

CLOSE_SECONDS = 2.0
"""For a connection's end in good order."""

PANEL_SECONDS = 1.0
"""Between messages of the panel."""


class WebConsole:
    """One machine's console.

    ``serve_viewer`` speaks RFB on a stream until the viewer is gone; the peer's address is `HOST:PORT`. Connections
    that break (`trio.BrokenResourceError`, `ClosedResourceError`) end that viewer only; anything else that it raises
    comes out of `run`. ``panel`` gives what /panel sends, which JSON has to be able to hold; see `web_panel`.
    ``tls``: a server-side context, for https.
    """

    def __init__(
        self,
        rules: Rules,
        serve_viewer: Callable[[trio.abc.Stream, str], Awaitable[object]],
        panel: Callable[[], Mapping[str, Any]],
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = rules
        self._serve_viewer = serve_viewer
        self._panel = panel
        self._tls = tls
        self._changed = trio.Event()
        self._message = ""
        self._message_time = float("-inf")
        self.strangers = 0
        self.connections = 0
        self.channels = 0

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; closes the listeners."""
        await trio.serve_listeners(self._accept, list(listeners), task_status=task_status)

    def refresh(self) -> None:
        """Send the panel now: something happened that viewers should know at once, as that the machine has moved."""
        self._message_time = float("-inf")
        self._changed.set()
        self._changed = trio.Event()

    async def _accept(self, stream: trio.SocketStream) -> None:
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:
            await trio.aclose_forcefully(stream)
            return
        await self.serve(stream, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

    async def serve(self, stream: trio.abc.Stream, peer: str) -> None:
        """Serve one connection until its end, and close it."""
        if self.strangers >= MAX_STRANGERS or self.connections >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        visitor = _Visitor(self)
        try:
            if self._tls:
                stream = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
                with trio.fail_after(REQUEST_SECONDS):
                    await stream.do_handshake()
            await self._talk(stream, peer, visitor)
            with trio.move_on_after(CLOSE_SECONDS):
                await stream.aclose()
        except* GONE:
            pass
        finally:
            visitor.leave()
            await trio.aclose_forcefully(stream)

    async def _talk(self, stream: trio.abc.Stream, peer: str, visitor: _Visitor) -> None:
        """Answer requests until one is the last."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        while True:
            try:
                with trio.fail_after(REQUEST_SECONDS):
                    request = await next_request(stream, http)
            except h11.RemoteProtocolError as error:
                told = complaint(http, error)
                if told:
                    await send_answer(stream, http, refusal(*told), REPLY_SECONDS)
                return
            if request is None:
                return
            answer = self._rules.answer(request.method, request.target, request.headers)
            if isinstance(answer, Channel) and self.channels >= MAX_CHANNELS:
                answer = refusal(503, "Too many viewers are connected.")
            if isinstance(answer, Channel):
                visitor.admit()
                await self._switch(stream, http, answer, peer)
                return
            if answer.status in (200, 304):
                visitor.admit()
            await send_answer(stream, http, answer, REPLY_SECONDS, head=request.method == b"HEAD")
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def _switch(self, stream: trio.abc.Stream, http: h11.Connection, channel: Channel, peer: str) -> None:
        """Turn the connection into a websocket and serve it until one side closes it."""
        hello = http.send(h11.InformationalResponse(status_code=101, headers=channel.headers))
        with trio.fail_after(REPLY_SECONDS):
            await stream.send_all(hello or b"")
        if http.trailing_data[0]:
            return  # RFC 6455, 4.1: a client sends nothing before it has the answer
        connection = Connection(ConnectionType.SERVER)
        self.channels += 1
        try:
            async with (
                WebSocketStream(stream, connection, text_ignored=channel.path == "/panel") as websocket,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(websocket.watch)
                if channel.path == "/vnc":
                    await self._serve_viewer(websocket, peer)
                else:
                    nursery.start_soon(self._send_panel, websocket)
                    while await websocket.receive_some():
                        pass
                nursery.cancel_scope.cancel()
        finally:
            self.channels -= 1

    async def _send_panel(self, websocket: WebSocketStream) -> None:
        while True:
            with trio.fail_after(REPLY_SECONDS):
                await websocket.send_text(self._figures())
            with trio.move_on_after(PANEL_SECONDS):
                await self._changed.wait()

    def _figures(self) -> str:
        """The panel's message; all viewers of one moment get the same, so its rates cover the same time."""
        now = trio.current_time()
        if now - self._message_time > PANEL_SECONDS / 2:
            self._message = json.dumps(self._panel(), allow_nan=False, separators=(",", ":"))
            self._message_time = now
        return self._message


class _Visitor:
    """One connection in the server's counts."""

    def __init__(self, console: WebConsole) -> None:
        self._console = console
        self._strange = True
        console.strangers += 1
        console.connections += 1

    def admit(self) -> None:
        """It has shown the token."""
        if self._strange:
            self._strange = False
            self._console.strangers -= 1

    def leave(self) -> None:
        """It is gone."""
        self.admit()
        self._console.connections -= 1
