"""Post-copy at the destination, from Commit to the last page: connections, cuts and recoveries, on a thread.

The machine's event loop may wait for a missing page itself: a device that it serves looks at the guest's memory. With
the network down such a wait ends only when the source has come again, so whoever lets it in must not be that loop. This
thread has a loop of its own and touches no guest memory. What happens is told to the machine's loop by `report`, which
may be heard of late.

Within this thread at most one connection is served at a time: whoever has `_turn`. A source that comes anew is believed
by session, token and certificate, and breaks off the connection that there was: it would not come if that still worked.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from tvmm.errors import ProtocolError, TvmmError, UserError
from tvmm.migration.absent import pieces_of
from tvmm.migration.destination import DestinationEvent
from tvmm.migration.engine_end import engine_end
from tvmm.migration.lane_arrival import add_lanes
from tvmm.migration.link import Link, LinkLost, listen
from tvmm.migration.messages import (
    Answer,
    Failure,
    Query,
    Received,
    Recover,
    Refuse,
    Rejoin,
    Resumed,
    Running,
)
from tvmm.migration.reception import Reception, same
from tvmm.migration.threads import the_cause
from tvmm.migration.wire import MAX_MESSAGE, TOKEN_BYTES, Opening

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.migration.lane_arrival import Session
    from tvmm.migration.link import Address
    from tvmm.migration.postcopy_destination import PartialArrival
    from tvmm.migration.receivers import ReceiverLanes
    from tvmm.migration.secure import Securer

__all__ = ["PageService"]

HELLO_SECONDS = 30.0
REJOIN_SECONDS = 30.0
"""For all connections of a source that has come anew."""
FAREWELL_SECONDS = 1.0
LISTEN_SECONDS = 10.0


class PageService:
    """Of one guest that runs here. `report` is called on this thread with events of the table, and why."""

    def __init__(
        self,
        arrival: PartialArrival,
        lanes: ReceiverLanes,
        security: Securer,
        session: Session,
        report: Callable[[DestinationEvent, str], None],
        say: Callable[[str], None],
        random: Callable[[int], bytes],
    ) -> None:
        self.final: Link | None = None
        """The connection to a source that has yet to hear that no page is missing."""
        self._arrival = arrival
        self._lanes = lanes
        self._security = security
        self._session = session
        self._report = report
        self._say = say
        self._random = random
        self._ready = threading.Event()
        self._loop: trio.lowlevel.TrioToken | None = None
        self._rejoining = self._on_purpose = self._whole = False
        self._cut_because = ""
        self._fetching: trio.CancelScope | None = None
        self._rejoin_scope: trio.CancelScope | None = None

    # --- on the machine's thread ---

    async def start(self, link: Link, listeners: Sequence[trio.SocketListener]) -> None:
        """Return when the thread serves `listeners`; `link` it uses from `started` on, until it ends."""
        over = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def ended() -> None:
            self._ready.set()
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(over.set)

        self._over = over
        await self._arrival.loop_thread().give(partial(self._main, link, listeners), ended)
        await trio.to_thread.run_sync(self._ready.wait)

    def started(self, running: Running) -> None:
        """The guest runs: tell the source, and fetch pages."""
        self._post(lambda: self._started.send_nowait(running))

    async def wait(self) -> None:
        """Until no page is missing. Cancelled, it ends the thread."""
        try:
            await self._over.wait()
        finally:
            self.stop()
            with trio.CancelScope(shield=True):
                await self._over.wait()

    def stop(self) -> None:
        """End the thread, whatever is missing."""
        self._post(lambda: self._nursery.cancel_scope.cancel())

    def pause(self) -> None:
        """Cut the connection on purpose: the source gets none until `allow`."""

        def pause() -> None:
            self._on_purpose = True
            self._cut("the migration was paused here")

        self._post(pause)

    async def allow(self, address: Address | None) -> None:
        """Let the source come again, at `address` too. Raises `UserError` if nobody can listen there."""
        done = threading.Event()
        troubles: list[str] = []

        def allow() -> None:
            self._on_purpose = False
            if address is None:
                done.set()
            else:
                self._nursery.start_soon(self._listen_too, address, troubles, done)

        self._post(allow)
        await trio.to_thread.run_sync(done.wait, LISTEN_SECONDS)
        if troubles:
            raise UserError(troubles[0])

    def engine_ended(self, stop: str, why: str) -> None:
        """On the engine's thread."""

        def ended() -> None:
            if stop in ("COMPLETE", "RELEASED"):
                self._whole = True
                for scope in (self._fetching, self._rejoin_scope):
                    if scope is not None:
                        scope.cancel()
                if not self._turn.locked():
                    self._complete.set()
            else:
                self._cut(f"the connection for page requests broke: {why or 'the source has closed it'}")

        self._post(ended)

    def _post(self, call: Callable[[], object]) -> None:
        """Have it called by this thread's loop, if there still is one."""
        if self._loop is not None:
            with suppress(trio.RunFinishedError):
                self._loop.run_sync_soon(call)

    # --- on this thread ---

    async def _main(self, link: Link, listeners: Sequence[trio.SocketListener]) -> None:
        self._complete = trio.Event()
        self._turn = trio.Lock()
        self._arrivals: dict[int, trio.SocketStream] = {}
        self._requests: trio.abc.Stream | None = None
        self._news = trio.Event()
        self._token = b""
        self._started, started = trio.open_memory_channel[Running](1)
        self._reception = Reception(self, self._security, self._say)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for listener in listeners:
                nursery.start_soon(self._reception.accept, listener, nursery)
            nursery.start_soon(self._first, link, started)
            self._loop = trio.lowlevel.current_trio_token()
            self._arrival.on_end = self.engine_ended
            # The last page may have come before that.
            self._whole = not self._arrival.remaining
            self._ready.set()
            await self._complete.wait()
            nursery.cancel_scope.cancel()
        for stream in self._arrivals.values():
            stream.socket.close()
        self._arrival.on_end = lambda stop, why: None

    async def _listen_too(self, address: Address, troubles: list[str], done: threading.Event) -> None:
        try:
            async with listen(address) as listeners, trio.open_nursery() as nursery:
                for listener in listeners:
                    nursery.start_soon(self._reception.accept, listener, self._nursery)
                done.set()
        except UserError as error:
            troubles.append(str(error))
            done.set()

    async def _first(self, link: Link, started: trio.MemoryReceiveChannel[Running]) -> None:
        async with self._turn:
            running = await started.receive()
            with trio.move_on_after(FAREWELL_SECONDS):
                # One that does not get the word asks for it.
                with suppress(LinkLost):
                    await link.send(running)
            await self._fetch(link)

    async def _fetch(self, link: Link) -> None:
        """Until no page is missing, or the connection is cut. With `_turn`."""
        with trio.CancelScope() as self._fetching:
            if self._cut_because or self._whole:
                self._fetching.cancel()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._hear, link)
                    nursery.start_soon(self._take_pages)
            except BaseExceptionGroup as group:
                cause = the_cause(group, (TvmmError,))
                if not isinstance(cause, TvmmError):
                    raise
                self._cut_because = self._cut_because or str(cause)
        self._fetching = None
        if self._whole:
            self.final = link
            self._complete.set()
            return
        await self._sever(link)

    async def _hear(self, link: Link) -> None:
        message = await link.receive()
        raise ProtocolError(f"the source sent {type(message).__name__} out of order")

    async def _take_pages(self) -> None:
        """One round has all that is missing; that it is over says nothing, and that no page is missing says all."""
        await self._lanes.receive_round()

    def _cut(self, why: str) -> None:
        self._cut_because = self._cut_because or why
        if self._fetching is not None:
            self._fetching.cancel()

    async def _sever(self, link: Link) -> None:
        """All connections are of no use any more."""
        why, self._cut_because = self._cut_because or "the connection broke", ""
        self._arrival.cuts += 1
        self._drop_connections()
        with trio.CancelScope(shield=True):
            await link.close()
        self._say(f"the guest waits for its source: {why}")
        self._report(DestinationEvent.LOST, why)

    def _drop_connections(self) -> None:
        assert self._arrival.thread is not None
        self._arrival.thread.connect(None)
        self._lanes.drop()

    # --- what the reception asks ---

    def knows(self, token: bytes) -> bool:
        """Whether a connection is of the source: it comes anew with its first token, and gets one for the others."""
        return same(token, self._session.token) or (bool(self._token) and same(token, self._token))

    async def take_lane(self, stream: trio.SocketStream, number: int) -> None:
        """See `Desk`."""
        if not self._rejoining or number >= self._session.lanes or number in self._arrivals:
            raise ProtocolError(f"connection {number} for pages is one too many")
        self._arrivals[number] = stream
        self._tell()

    async def take_requests(self, stream: trio.abc.Stream) -> None:
        """See `Desk`."""
        if not self._rejoining or self._requests is not None:
            raise ProtocolError("a second connection for page requests")
        self._check_identity(stream)
        self._requests = stream
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def take_screen(self, stream: trio.abc.Stream) -> None:
        """See `Desk`."""
        raise ProtocolError("a connection for the screen has no place here")

    async def take_storage(self, stream: trio.SocketStream) -> None:
        """See `Desk`."""
        raise ProtocolError("a connection for disks has no place here")

    async def take_memory(self, stream: trio.abc.Stream) -> None:
        """See `Desk`."""
        raise ProtocolError("a connection for memory has no place here")

    async def serve_query(self, link: Link) -> None:
        """See `Desk`: the guest runs here."""
        with trio.move_on_after(HELLO_SECONDS):
            question = await link.receive()
            known = isinstance(question, Query) and same(question.session, self._session.session)
            await link.send(Answer("running" if known else "unknown"))

    async def serve_control(self, link: Link, opening: Opening) -> None:
        """See `Desk`."""
        with trio.move_on_after(FAREWELL_SECONDS):
            await link.send(Refuse(("another machine has arrived",)))

    async def serve_recovery(self, link: Link) -> bool:
        """See `Desk`."""
        link.inbox.limit = MAX_MESSAGE
        with trio.move_on_after(HELLO_SECONDS) as patience:
            await self._check(link)
        if patience.cancelled_caught:
            raise LinkLost("a source that has come anew does not say which it is")
        return await self._recover(link)

    def _check_identity(self, stream: trio.abc.Stream) -> None:
        if self._session.identity and not same(self._security.identity(stream), self._session.identity):
            raise ProtocolError("a connection comes from somebody else than the guest")

    async def _check(self, link: Link) -> None:
        """Raise `ProtocolError` unless it is the guest's source that has come."""
        message = await link.receive()
        if not isinstance(message, Recover) or not same(message.session, self._session.session):
            raise ProtocolError("a source that has come anew is not that of the guest")
        self._check_identity(link.stream)

    async def _recover(self, link: Link) -> bool:
        """Go on with this connection; whether it is still in use afterwards."""
        if self._on_purpose:
            await link.send(Failure("it was paused there, and 'migrate-recover' is wanted there first"))
            return False
        # Whoever came before is gone, or it would not have come again.
        self._cut("the source has come on a new connection")
        if self._rejoin_scope is not None:
            self._rejoin_scope.cancel()
        async with self._turn:
            try:
                self._rejoining = True
                self._cut_because = ""
                self._report(DestinationEvent.RECOVER, "")
                joined = False
                with trio.CancelScope() as self._rejoin_scope:
                    joined = self._whole or await self._rejoin(link)
                if self._rejoin_scope.cancelled_caught and not self._whole:
                    self._not_rejoined("the source has come once more")
            finally:
                self._rejoin_scope = None
                self._rejoining = False
                self._forget_arrivals()
            if joined or self._whole:
                await self._fetch(link)
        return self.final is link

    def _not_rejoined(self, why: str) -> None:
        self._drop_connections()
        self._say(f"a recovery came to nothing: {why}")
        self._report(DestinationEvent.LOST, why)

    async def _rejoin(self, link: Link) -> bool:
        """What has come, and new connections."""
        assert self._arrival.pager is not None
        self._token = self._random(TOKEN_BYTES)
        try:
            with trio.move_on_after(REJOIN_SECONDS) as patience:
                for piece in pieces_of(Received, self._arrival.pager.received):
                    await link.send(piece)
                await link.send(Rejoin(self._token))
                await self._gather(link)
            if patience.cancelled_caught:
                raise LinkLost("its connections for pages did not come")
            await self._connect()
            await link.send(Resumed())
        except (TvmmError, OSError) as error:
            self._not_rejoined(str(error))
            return False
        self._report(DestinationEvent.REJOINED, "")
        return True

    async def _gather(self, link: Link) -> None:
        """Until all connections are here. Raises `LinkLost` when the one that they belong to is gone."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear, link)
                while len(self._arrivals) < self._session.lanes or self._requests is None:
                    await self._news.wait()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise the_cause(group, (TvmmError,)) from None

    async def _connect(self) -> None:
        """Lanes and the connection for requests that have come are in use from now on."""
        arrivals, self._arrivals = self._arrivals, {}
        requests, self._requests = self._requests, None
        assert requests is not None
        assert self._arrival.thread is not None
        try:
            await add_lanes(self._lanes, arrivals, self._session, self._security)
        finally:
            for stream in arrivals.values():
                stream.socket.close()
        self._arrival.thread.connect(engine_end(requests))

    def _forget_arrivals(self) -> None:
        for stream in self._arrivals.values():
            stream.socket.close()
        self._arrivals.clear()
        if self._requests is not None:
            self._nursery.start_soon(trio.aclose_forcefully, self._requests)
            self._requests = None
