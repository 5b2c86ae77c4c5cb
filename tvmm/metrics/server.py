"""The endpoint that Prometheus reads: HTTP/1.1 for one page.

h11 reads requests, the rules (`http_rules`) say what is answered, `read` gives the numbers and `expose` their text.

The peer is anybody who reaches it: a request has to be whole within `REQUEST_SECONDS` and `MAX_REQUEST` bytes, there
are no more than `MAX_CONNECTIONS` at once, and however often they ask, and for however many forms of it, pages are made
one after the other with a rest after each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
import trio

from tvmm.http_stream import GONE, complaint, next_request, send_answer
from tvmm.metrics.http_rules import Page, Reply, refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tvmm.metrics.http_rules import Rules

__all__ = ["MetricsServer"]

MAX_REQUEST = 8 * 1024
"""Bytes of a request with its headers: a client could send headers without end."""

MAX_CONNECTIONS = 16
"""At once; more are cut. A Prometheus keeps one open."""

REQUEST_SECONDS = 10.0
"""For a request to be whole."""

IDLE_SECONDS = 150.0
"""How long a connection is kept between two requests: Prometheus asks once a minute or so."""

REPLY_SECONDS = 10.0
"""For a peer to take an answer."""

CLOSE_SECONDS = 2.0
"""For a connection's end in good order."""

FRESH_SECONDS = 0.1
"""For which numbers that were read are told to everybody who asks."""

REST_FACTOR = 4.0
"""How much longer than it took to make a page none is made: at most a fifth of the time goes into that."""


class MetricsServer:
    """One machine's endpoint. ``expose`` gives the page and its media type for an Accept header; it may wait."""

    def __init__(self, rules: Rules, expose: Callable[[str], Awaitable[tuple[bytes, str]]]) -> None:
        self._rules = rules
        self._expose = expose
        self._pages: dict[str, tuple[float, bytes, str]] = {}
        self._making = trio.Lock()
        self._rested_at = float("-inf")
        self.connections = 0

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; closes the listeners."""
        await trio.serve_listeners(self.serve, list(listeners), task_status=task_status)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection until its end, and close it."""
        if self.connections >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        self.connections += 1
        try:
            await self._talk(stream)
            with trio.move_on_after(CLOSE_SECONDS):
                await stream.aclose()
        except* GONE:
            pass
        finally:
            self.connections -= 1
            await trio.aclose_forcefully(stream)

    async def _talk(self, stream: trio.abc.Stream) -> None:
        """Answer requests until one is the last."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        while True:
            try:
                request = await _next_request(stream, http)
            except h11.RemoteProtocolError as error:
                told = complaint(http, error)
                if told:
                    await send_answer(stream, http, refusal(*told), REPLY_SECONDS)
                return
            if request is None:
                return
            answer = self._rules.answer(request.method, request.target, list(request.headers))
            reply = await self._page(answer) if isinstance(answer, Page) else answer
            await send_answer(stream, http, reply, REPLY_SECONDS, head=request.method == b"HEAD")
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def _page(self, page: Page) -> Reply:
        """The numbers, as they were not longer than `FRESH_SECONDS` ago."""
        async with self._making:
            now = trio.current_time()
            self._pages = {accept: made for accept, made in self._pages.items() if now - made[0] < FRESH_SECONDS}
            if page.accept not in self._pages:
                await trio.sleep_until(self._rested_at)
                began = trio.current_time()
                body, media_type = await self._expose(page.accept)
                if len(self._pages) < MAX_CONNECTIONS:
                    self._pages[page.accept] = began, body, media_type
                now = trio.current_time()
                self._rested_at = now + REST_FACTOR * (now - began)
            else:
                _, body, media_type = self._pages[page.accept]
        headers = [(b"content-type", media_type.encode()), (b"cache-control", b"no-store")]
        return Reply(200, headers, body)


async def _next_request(stream: trio.abc.Stream, http: h11.Connection) -> h11.Request | None:
    """See `next_request`. `TooSlowError` if it does not begin for `IDLE_SECONDS`, or is not whole `REQUEST_SECONDS`
    after its beginning.
    """
    with trio.fail_after(IDLE_SECONDS) as scope:
        begun = False

        def begin() -> None:
            nonlocal begun
            if not begun:
                begun = True
                scope.deadline = trio.current_time() + REQUEST_SECONDS

        return await next_request(stream, http, begin)
