"""Where connections to a destination come in: what each is for, and what becomes of those that are for nothing."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Protocol

import trio

from tvmm.errors import ProtocolError, UserError
from tvmm.migration.link import Link, LinkLost, read_opening, with_nodelay
from tvmm.migration.messages import FROM_SOURCE
from tvmm.migration.wire import Kind, Opening, Reply, Security, common_version

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.migration.secure import Securer

__all__ = ["Desk", "Doors", "Reception", "same"]

MAX_STRANGERS = 32
"""Connections at a time beside those for pages: one carries the guest that arrives, one may ask for it, and all others
only say nothing or what is refused. More would keep descriptors from the machine."""
OPENING_SECONDS = 10.0
"""For a connection to say that, handshake included."""
ACCEPT_AGAIN_SECONDS = 0.1
"""After an accept(2) that failed: without descriptors it would fail at once again, and again."""

_WANTED = {
    Security.PLAIN: Reply.WANTS_PLAIN,
    Security.TLS: Reply.WANTS_TLS,
    Security.PAIR: Reply.WANTS_PAIRING,
}
_WITH_TOKEN = (Kind.LANE, Kind.SCREEN, Kind.STORAGE, Kind.RAM, Kind.REQUESTS, Kind.RECOVER)


class Desk(Protocol):
    """Who serves a connection that has said what it is for. All may raise what `Link` raises, and `UserError`."""

    def knows(self, token: bytes) -> bool:
        """Whether a connection with that token belongs to the migration that is under way."""

    async def take_lane(self, stream: trio.SocketStream, number: int) -> None:
        """Keep it: it is the desk's from now on."""

    async def take_storage(self, stream: trio.SocketStream) -> None:
        """Keep a connection for blocks of disks: it is the desk's from now on."""

    async def take_screen(self, stream: trio.abc.Stream) -> None:
        """Show the guest's screen there to those who looked at it at the source: the stream is the desk's then."""

    async def take_memory(self, stream: trio.abc.Stream) -> None:
        """Take descriptors from it: it is the desk's then."""

    async def take_requests(self, stream: trio.abc.Stream) -> None:
        """Keep it, for requests of missing pages: it is the desk's from now on."""

    async def serve_recovery(self, link: Link) -> bool:
        """A source that has lost its connections has come anew; whether the desk keeps this one."""

    async def serve_query(self, link: Link) -> None:
        """Answer a question."""

    async def serve_control(self, link: Link, opening: Opening) -> None:
        """A source with a machine."""


class Reception:
    """Lets connections in. `say` is told of each that comes to nothing."""

    def __init__(self, desk: Desk, security: Securer, say: Callable[[str], None]) -> None:
        self._desk = desk
        self._security = security
        self._say = say
        self._strangers = 0

    async def accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Take connections until cancelled, each into a task of its own."""
        while True:
            try:
                stream = await listener.accept()
            except OSError:
                # Out of descriptors, or a connection that was gone before it was accepted.
                await trio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: trio.SocketStream) -> None:
        """Whatever is wrong with a connection ends it alone."""
        kept = False
        self._strangers += 1
        try:
            opening, secured = await self._let_in(stream)
            if secured is None:
                return
            if opening.kind is Kind.LANE:
                await self._desk.take_lane(stream, opening.lane)
                kept = True
            elif opening.kind is Kind.STORAGE:
                await self._desk.take_storage(stream)
                kept = True
            elif opening.kind is Kind.SCREEN:
                await self._desk.take_screen(secured)
                kept = True
            elif opening.kind is Kind.RAM:
                await self._desk.take_memory(secured)
                kept = True
            elif opening.kind is Kind.QUERY:
                await self._desk.serve_query(Link(secured, FROM_SOURCE))
            elif opening.kind is Kind.CONTROL:
                await self._desk.serve_control(Link(secured, FROM_SOURCE), opening)
            elif opening.kind is Kind.REQUESTS:
                await self._desk.take_requests(secured)
                kept = True
            else:
                kept = await self._desk.serve_recovery(Link(secured, FROM_SOURCE))
        except (LinkLost, ProtocolError, UserError) as error:
            self._say(f"a connection was refused: {error}")
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            # It is gone.
            return
        finally:
            self._strangers -= 1
            if not kept:
                await trio.aclose_forcefully(stream)

    async def _let_in(self, stream: trio.SocketStream) -> tuple[Opening, trio.abc.Stream | None]:
        """The opening, and the secured stream if it may go on; a lane is secured later, by its thread."""
        if self._strangers > MAX_STRANGERS:
            await stream.send_all(Reply.TOO_MANY.to_bytes())
            raise ProtocolError(f"there are {MAX_STRANGERS} others")
        try:
            with trio.fail_after(OPENING_SECONDS):
                with_nodelay(stream)
                opening = await read_opening(stream)
                reply = self._judge(opening)
                await stream.send_all(reply.to_bytes())
                if reply is not Reply.GO:
                    return opening, None
                if opening.kind in (Kind.LANE, Kind.STORAGE):
                    return opening, stream
                return opening, await self._security.wrap(stream)
        except trio.TooSlowError:
            raise LinkLost(f"it did not say within {OPENING_SECONDS:g} s what it wants") from None

    def _judge(self, opening: Opening) -> Reply:
        if opening.security is not self._security.kind:
            return _WANTED[self._security.kind]
        try:
            common_version(opening)
        except ProtocolError:
            return Reply.NO_COMMON_VERSION
        if opening.kind in _WITH_TOKEN and not self._desk.knows(opening.token):
            return Reply.NO_SUCH_TOKEN
        return Reply.GO


class Doors:
    """Where connections come in, which somebody else may serve for a while."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._closed, self._opened = trio.Event(), trio.Event()
        self._listeners: Sequence[trio.SocketListener] = ()

    async def keep(self, reception: Reception, listeners: Sequence[trio.SocketListener], nursery: trio.Nursery) -> None:
        """Let connections in, in `nursery`, except between `close` and `open`."""
        self._listeners = listeners
        while True:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as doors:
                    for listener in listeners:
                        doors.start_soon(reception.accept, listener, nursery)
            self._closed.set()
            await self._opened.wait()
            self._closed, self._opened = trio.Event(), trio.Event()

    async def close(self) -> Sequence[trio.SocketListener]:
        """The listeners: nobody here uses them until `open`."""
        self._scope.cancel()
        await self._closed.wait()
        return self._listeners

    def open(self) -> None:
        """Undo `close`."""
        self._opened.set()


def same(ours: bytes, theirs: bytes) -> bool:
    """Whether two secrets are equal, in a time that does not tell how far they are."""
    return hmac.compare_digest(ours, theirs)
