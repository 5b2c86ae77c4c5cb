"""The destination of a migration: listens, takes pages and state in, and starts the guest once it is given up.

What may follow what is `tvmm.migration.destination`; this module does it. One source is served at a time; strangers,
refused machines and junk cost nothing but their connection. Whoever comes later to ask what has become of a guest is
answered.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from tvmm.errors import HostError, IncomingFailed, ProtocolError, TvmmError, UserError, collapse
from tvmm.kvm.pages import PAGE
from tvmm.migration.admission import Request, granted, read_request, why_refused
from tvmm.migration.destination import INCOMPLETE, MAY_RUN, DestinationEvent, DestinationState, after
from tvmm.migration.disk_arrival import ArrivingDisks
from tvmm.migration.hand_over import MEMFD, MemoryArrival, only_here
from tvmm.migration.intake import Intake
from tvmm.migration.lane_arrival import NOBODY, LaneArrivals, Session
from tvmm.migration.link import Link, LinkLost
from tvmm.migration.messages import (
    Answer,
    Failure,
    Goodbye,
    Grants,
    Query,
    Recover,
    Refuse,
    RoundDone,
    Running,
    Watched,
    Welcome,
)
from tvmm.migration.receivers import ReceiverLanes
from tvmm.migration.reception import Doors, Reception, same
from tvmm.migration.status import MigrationStatus, RamProgress
from tvmm.migration.threads import attentive, run_together
from tvmm.migration.wire import MAX_MESSAGE, TOKEN_BYTES, Opening, common_version, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.migration.guest import ArrivingGuest
    from tvmm.migration.link import Address
    from tvmm.migration.postcopy_destination import PartialArrival
    from tvmm.migration.postcopy_service import PageService
    from tvmm.migration.secure import Securer

__all__ = ["Incoming"]

HELLO_SECONDS = 30.0
ANSWER_SECONDS = 60.0
"""How long the source may still ask what has become of the guest, if it has not said that it knows. It gives up
sooner by itself."""
SCREEN_SECONDS = 30.0
"""For the connection for the screen, of a source that has said that there are viewers."""
FAREWELL_SECONDS = 1.0
CODE_LOOK_SECONDS = 1.0

_WORDS = {
    DestinationState.LOADING: "device",
    DestinationState.RUNNING: "completed",
    DestinationState.FETCHING: "postcopy-active",
    DestinationState.SEVERED: "postcopy-paused",
    DestinationState.REJOINING: "postcopy-recover",
}


class Incoming:
    """Serves `listeners` until a guest has arrived (and its source knows), or has been abandoned."""

    def __init__(
        self,
        guest: ArrivingGuest,
        security: Securer,
        changed: Callable[[MigrationStatus], None],
        say: Callable[[str], None],
        listening: str = "",
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`listening` is where, for people; `say` gets a line about each connection that comes to nothing. The token
        for lanes is of `random`.
        """
        self.state = DestinationState.WAITING
        self.listening = listening
        self._guest = guest
        self._disks = ArrivingDisks(guest)
        self._security = security
        self._changed = changed
        self._say = say
        self._session = NOBODY
        self._random = random
        self._granted: frozenset[str] = frozenset()
        """Features that this migration has."""
        self._lanes: ReceiverLanes
        self._arrivals = LaneArrivals()
        self._intake: Intake | None = None
        self._memory = MemoryArrival()
        self._handed_over = 0
        self._copies = trio.Event()
        """Memory is to be filled with copies, and is not another one's."""
        self._decided = trio.Event()
        self._answered = trio.Event()
        self._screen_came = trio.Event()
        self._whole = trio.Event()
        """All pages are here, or no guest is."""
        self._populated = trio.Event()
        self._doors = Doors()
        self._partial: PartialArrival | None = None
        """Set where the source may go on before all pages are here."""
        self._service: PageService | None = None
        self._watched = False
        self._in_doubt = False
        self._abandon: trio.CancelScope | None = None
        self._begun = 0.0
        self._peer = ""
        self._error = ""
        self._word = "none"

    # --- the user's side ---

    def _postcopy(self) -> PageService:
        if self._service is None or self.state not in INCOMPLETE:
            raise UserError("there is no post-copy under way")
        return self._service

    def pause(self) -> None:
        """Cut the connections of a post-copy; the source is not let in before `recover`."""
        self._postcopy().pause()

    async def recover(self, address: Address | None) -> None:
        """Let the source in again, at `address` too. Raises `UserError`."""
        await self._postcopy().allow(address)

    @property
    def _ram_bytes(self) -> int:
        return sum(block.size for block in self._guest.ram.blocks.values())

    @property
    def status(self) -> MigrationStatus:
        """As it is now."""
        partial = self._partial if self._partial is not None and self._partial.begun else None
        return MigrationStatus(
            state=self._word,
            incoming=True,
            peer=self._peer,
            error=self._error,
            guest="destination" if self.state in MAY_RUN else "source",
            total_ms=(time.perf_counter() - self._begun) * 1e3 if self._begun else None,
            ram=RamProgress(
                total=self._ram_bytes,
                transferred=self._lanes.bytes_moved if self._begun else 0,
                rounds=0 if MEMFD in self._granted or self._intake is None else self._intake.rounds,
                handed_over=self._handed_over,
                remaining=partial.remaining * PAGE if partial is not None else 0,
            ),
            disks=self._disks.progress(),
            connections=self._session.lanes,
            listening=self.listening,
            postcopy=partial.progress() if partial is not None else None,
        )

    async def run(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Return when the guest is here and its source knows. Raises `IncomingFailed` if it was abandoned."""
        with ReceiverLanes(self._guest.ram) as self._lanes:
            try:
                with collapse():
                    await self._serve(listeners)
            finally:
                # No task is left that could let another one in.
                self._disks.close()
                self._arrivals.close()
                with trio.CancelScope(shield=True):
                    if self._partial is not None:
                        await self._partial.close()
                    await self._memory.close()
        if self.state is DestinationState.ABANDONED:
            raise IncomingFailed(f"the guest did not arrive: {self._error}", "it is the source's, if that is alive")

    async def _serve(self, listeners: Sequence[trio.SocketListener]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._populate)
            # Before anybody is let in: later a guest would wait for it.
            await self._guest.rehearse()
            reception = Reception(self, self._security, self._say)
            nursery.start_soon(self._doors.keep, reception, listeners, nursery)
            nursery.start_soon(self._watch_code)
            await self._decided.wait()
            await self._whole.wait()
            # A source that lost the connection may come back and ask; any other one is told why.
            limit = ANSWER_SECONDS if self.state is DestinationState.RUNNING or self._in_doubt else FAREWELL_SECONDS
            with trio.move_on_after(limit):
                await self._answered.wait()
            if self._watched:
                with trio.move_on_after(SCREEN_SECONDS):
                    await self._screen_came.wait()
            nursery.cancel_scope.cancel()

    async def _populate(self) -> None:
        """Allocate RAM while nobody waits for it: a page that has to be allocated when it comes costs many times as
        much as its copy. What may be handed over needs none.
        """
        if MEMFD in self._guest.features():
            await self._copies.wait()
        if self._guest.has_room():
            await run_together([self._lanes.populate], self._lanes.waker)
        self._populated.set()

    async def _watch_code(self) -> None:
        """A pairing code that is of no use any more: say so, instead of waiting for ever."""
        while self.state is DestinationState.WAITING:
            if self._security.is_void:
                raise IncomingFailed("the pairing code was tried too often, or is too old", "use the next one")
            await trio.sleep(CODE_LOOK_SECONDS)

    # --- what the reception asks ---

    def knows(self, token: bytes) -> bool:
        """Whether a lane belongs to the migration that is under way."""
        return bool(self._session.token) and same(token, self._session.token)

    async def take_lane(self, stream: trio.SocketStream, number: int) -> None:
        """See `Desk`."""
        self._arrivals.take(stream, number, self._session)

    async def take_storage(self, stream: trio.SocketStream) -> None:
        """See `Desk`."""
        self._disks.take_stream(stream)

    async def take_memory(self, stream: trio.abc.Stream) -> None:
        """See `Desk`."""
        if not only_here(self._granted):
            raise ProtocolError("a connection for memory has no place here")
        self._memory.take(stream)

    async def take_screen(self, stream: trio.abc.Stream) -> None:
        """See `Desk`. It may be here before the control connection's last words."""
        if self.state is not DestinationState.RUNNING or self._screen_came.is_set():
            raise ProtocolError("a connection for the screen has no place here")
        if self._is_somebody_else(stream):
            raise ProtocolError("a connection for the screen comes from somebody else than the guest")
        self._guest.show_screen(stream)
        self._screen_came.set()

    def _is_somebody_else(self, stream: trio.abc.Stream) -> bool:
        expected = self._session.identity
        return bool(expected) and not same(self._security.identity(stream), expected)

    async def serve_query(self, link: Link) -> None:
        """What has become of a guest. Whoever asks before it was given up is told that it was abandoned, and then it
        is.
        """
        with trio.move_on_after(HELLO_SECONDS):
            question = await link.receive()
            if not isinstance(question, Query):
                raise ProtocolError("a connection for a question asks none")
            if self._session is NOBODY or not same(question.session, self._session.session):
                await link.send(Answer("unknown"))
                return
            if self.state is not DestinationState.STARTING:
                self._move(DestinationEvent.QUERY, "its source has lost the connection and takes it back")
            await self._decided.wait()
            await link.send(Answer("running" if self.state in MAY_RUN else "abandoned"))
            self._answered.set()

    async def take_requests(self, stream: trio.abc.Stream) -> None:
        """See `Desk`."""
        if self._partial is None or self.state is not DestinationState.RECEIVING:
            raise ProtocolError("a connection for page requests has no place here")
        if self._is_somebody_else(stream):
            raise ProtocolError("a connection for page requests comes from somebody else than the guest")
        self._partial.take_requests(stream)

    async def serve_recovery(self, link: Link) -> bool:
        """See `Desk`: one that has not heard yet that all is here. While pages are missing, the service listens."""
        with trio.move_on_after(HELLO_SECONDS):
            message = await link.receive()
            if not isinstance(message, Recover) or not same(message.session, self._session.session):
                raise ProtocolError("a source that has come anew is not that of the guest")
            if self._partial is None or self.state is not DestinationState.RUNNING:
                raise ProtocolError("there is nothing to recover")
            await link.send(self._partial.last_word())
            await self._after_all(link)
        return False

    # --- the migration ---

    def _move(self, event: DestinationEvent, why: str = "") -> None:
        following = after(self.state, event)
        if following is None:
            raise ProtocolError(f"the source sent {event.value} while the destination was {self.state.value}")
        was, self.state = self.state, following
        if was in (DestinationState.READY, DestinationState.STARTING) and following is DestinationState.ABANDONED:
            # The source may have sent COMMIT, unless it has taken the guest back with a word.
            self._in_doubt = event is not DestinationEvent.CANCEL
        if following is DestinationState.ABANDONED and was is not following:
            self._error = why
            self._word = "failed"
            self._changed(self.status)
            self._decided.set()
            self._whole.set()
            if self._partial is not None:
                self._partial.give_up()
            if self._abandon is not None:
                self._abandon.cancel()
        if following is DestinationState.LOADING:
            self._word = _WORDS[following]
        if following in MAY_RUN and was is not following:
            self._word = _WORDS[following]
            self._error = why if following is DestinationState.SEVERED else ""
            self._changed(self.status)
            self._decided.set()
            if following is DestinationState.RUNNING:
                self._whole.set()

    async def serve_control(self, link: Link, opening: Opening) -> None:
        with trio.move_on_after(HELLO_SECONDS) as patience:
            request = await read_request(link)
        if patience.cancelled_caught:
            raise LinkLost("it did not say what is to be moved")
        refusal = await why_refused(request, self._guest, self._disks, link)
        # Looked at last: who is slow to say what it wants keeps nobody else out.
        if refusal is None and self.state is not DestinationState.WAITING:
            refusal = Refuse(("another machine is arriving, or has arrived",))
        if refusal is not None:
            self._say(f"a machine was refused: {'; '.join(refusal.reasons)}")
            # One that does not read it would be kept for ever.
            with trio.move_on_after(FAREWELL_SECONDS):
                await link.send(refusal)
            return
        await self._receive_guest(link, request, common_version(opening))

    async def _receive_guest(self, link: Link, request: Request, version: int) -> None:
        """From here on this machine has parts of the guest: it arrives, or is abandoned."""
        hello, wants, images = request
        self._granted = granted(wants, self._guest, link)
        if "postcopy" in self._granted:
            from tvmm.migration.postcopy_destination import PartialArrival

            self._partial = PartialArrival(self._guest.ram, self._lanes, self._lost_requests)
        identity = self._security.identity(link.stream)
        self._session = Session(hello.session, self._random(TOKEN_BYTES), identity, hello.lanes, hello.compress)
        self._intake = Intake(
            self._guest, self._lanes, self._disks, self._partial, self._populated.wait, self._move
        )
        self._peer = readable(hello.name)
        self._begun = time.perf_counter()
        self._word = "active"
        self._move(DestinationEvent.HELLO)
        self._changed(self.status)
        try:
            with trio.CancelScope() as self._abandon, attentive():
                try:
                    if wants.features:
                        await link.send(Grants(tuple(sorted(self._granted))))
                    await link.send(Welcome(version, self._session.token))
                    link.inbox.limit = MAX_MESSAGE
                    if MEMFD not in self._granted:
                        await self._take_taps_over(link)
                    await self._disks.begin(link, images)
                    if MEMFD in self._granted:
                        await self._take_memory_over(link, self._intake)
                    else:
                        self._copies.set()
                        await self._arrivals.gather(self._lanes, self._session, self._security)
                    await self._disks.gather(self._security, identity, hello.compress)
                    await self._intake.run(link, verify=hello.verify)
                except LinkLost as error:
                    self._move(DestinationEvent.LOST, str(error))
                except (ProtocolError, UserError, HostError) as error:
                    self._break(str(error))
                # Connected or not: after COMMIT the guest is nobody else's.
                if self.state is DestinationState.STARTING:
                    await self._start(link, self._intake)
        finally:
            self._abandon = None
        if self._service is not None and self.state in INCOMPLETE:
            await self._fetch_the_rest(link)
        else:
            await self._after_all(link)

    def _lost_requests(self, why: str) -> None:
        """Before Commit: nobody waits for a page any more, and nothing may run on what they got in place of it."""
        if self.state in (DestinationState.RECEIVING, DestinationState.LOADING, DestinationState.READY):
            self._move(DestinationEvent.LOST, why)

    async def _fetch_the_rest(self, link: Link) -> None:
        """The guest runs, and pages are missing: the service sees to them, until none is."""
        assert self._service is not None
        assert self._partial is not None
        try:
            await self._service.wait()
        finally:
            self._doors.open()
        self._partial.whole()
        self._move(DestinationEvent.COMPLETE)
        final = self._service.final
        if final is None:
            return
        try:
            with trio.move_on_after(FAREWELL_SECONDS), suppress(LinkLost):
                await final.send(self._partial.last_word())
            await self._after_all(final)
        finally:
            if final is not link:
                await final.close()

    def _news_of_service(self, event: DestinationEvent, why: str) -> None:
        """Told by the service some time ago; that all is here may be known already."""
        if after(self.state, event) is not None:
            self._move(event, why)

    def _break(self, why: str) -> None:
        if after(self.state, DestinationEvent.BROKEN) is not None:
            self._move(DestinationEvent.BROKEN, why)

    async def _take_memory_over(self, link: Link, intake: Intake) -> None:
        """In place of lanes and rounds."""
        begun = time.perf_counter_ns()
        self._session = self._session._replace(lanes=0)
        await self._memory.lend(self._guest, self._granted)
        self._handed_over = self._ram_bytes
        await intake.memory_is_here(link, begun)

    async def _take_taps_over(self, link: Link) -> None:
        """Beside copies of memory."""
        if only_here(self._granted):
            begun = time.perf_counter_ns()
            await self._memory.lend(self._guest, self._granted)
            await link.send(RoundDone(0, time.perf_counter_ns() - begun))

    async def _start(self, link: Link, intake: Intake) -> None:
        """COMMIT has come: nothing but a failure of our own keeps the guest from running."""
        assert intake.state is not None
        partial = self._partial if self._partial is not None and self._partial.begun else None
        with trio.CancelScope(shield=True):
            try:
                self._guest.take_disks()
                if partial is not None:
                    # First who fetches pages: what starts may be stopped by a missing one at once.
                    await self._start_service(partial, link)
                await self._guest.start(intake.state.running)
            except (UserError, TvmmError) as error:
                if self._service is not None:
                    self._service.stop()
                self._guest.release_disks()
                self._move(DestinationEvent.BROKEN, str(error))
                return
            if self._service is not None:
                self._move(DestinationEvent.STARTED_PARTIAL)
                self._service.started(Running(time.perf_counter_ns() - intake.committed_ns))
                self._guest.announce()
                return
            self._move(DestinationEvent.STARTED)
            with trio.move_on_after(FAREWELL_SECONDS):
                # One that does not get the word asks for it.
                with suppress(LinkLost):
                    await link.send(Running(time.perf_counter_ns() - intake.committed_ns))
            self._guest.announce()

    async def _start_service(self, partial: PartialArrival, link: Link) -> None:
        from tvmm.migration.postcopy_service import PageService

        token = trio.lowlevel.current_trio_token()
        self._service = PageService(
            partial,
            self._lanes,
            self._security,
            self._session,
            lambda event, why: token.run_sync_soon(self._news_of_service, event, why),
            lambda line: token.run_sync_soon(self._say, line),
            self._random,
        )
        await self._service.start(link, await self._doors.close())

    async def _after_all(self, link: Link) -> None:
        """A last word to the source, and its own."""
        if self.state is DestinationState.ABANDONED:
            with trio.move_on_after(FAREWELL_SECONDS), suppress(LinkLost):
                await link.send(Failure(self._error))
            if not self._in_doubt:
                self._answered.set()
            return
        try:
            while True:
                message = await link.receive()
                if isinstance(message, Watched):
                    self._watched = True
                if isinstance(message, Goodbye):
                    self._answered.set()
                    return
        except (LinkLost, ProtocolError):
            return
