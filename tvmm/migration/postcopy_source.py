"""Post-copy at the source: the guest goes before its memory, which is sent from here until nothing is missing there.

`Departure` is the switchover, up to Commit; `Serving` is all that follows. What is sent does not change any more: the
guest is paused here for good, unless the destination abandons it before Commit.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from tvmm.errors import ProtocolError, TvmmError
from tvmm.kvm.page_server import PageServer
from tvmm.kvm.pages import PageBitmap
from tvmm.memory.ram import MAIN_BLOCK
from tvmm.migration.absent import difference, pieces_of
from tvmm.migration.engine_end import engine_end
from tvmm.migration.link import LinkLost, open_connection
from tvmm.migration.messages import Absent, Absentees, Complete, Discarded, Partial
from tvmm.migration.page_threads import EngineThread
from tvmm.migration.receivers import LAST_ROUND
from tvmm.migration.recovering import Recovery, recover
from tvmm.migration.source import TERMINAL, SourceEvent, SourceState
from tvmm.migration.status import PostcopyProgress
from tvmm.migration.talk import Ended
from tvmm.migration.threads import the_cause
from tvmm.migration.wire import Kind, Opening

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tvmm.migration.commit import Commitment
    from tvmm.migration.link import Address, Link
    from tvmm.migration.progress import Progress
    from tvmm.migration.secure import Securer
    from tvmm.migration.senders import SenderLanes
    from tvmm.migration.talk import Talk

__all__ = ["Departure", "Serving"]

DISCARD_SECONDS = 60.0
"""For the destination to throw away what is dirty, before the guest is paused."""
COMPLETE_SECONDS = 60.0
"""For the word that all is there, once all has been sent. Pages that somebody has lost on the way are sent again after
that: a source does not wait for ever for a destination that waits for them."""
LAST_WORD_SECONDS = 1.0
"""A connection for pages that breaks may be that of a destination which has them all, and says so on another one."""
AUTO_RECOVER_SECONDS, AGAIN_SECONDS = 10.0, 0.5
"""How long the source tries to connect again by itself, and how often, before it waits for the user."""


class Departure:
    """Pages that stay behind when the guest goes: named, kept, and served."""

    def __init__(self, lanes: SenderLanes) -> None:
        self.server: PageServer
        self.on_end: Callable[[], None] = lambda: None
        """Told on the event loop when the connection for requests is gone."""
        self.thread: EngineThread | None = None
        self._lanes = lanes
        self._named = PageBitmap.of(lanes.pages)
        self._absent = PageBitmap.of(lanes.pages)
        self._requests: trio.abc.Stream | None = None
        self.lost = ""
        """Why there is no connection for requests any more; '' if there is one."""
        self._loop = trio.lowlevel.current_trio_token()

    async def announce(self, talk: Talk, address: Address, security: Securer, token: bytes) -> None:
        """While the guest runs: open the connection for requests, and name what is dirty."""
        stream = await open_connection(address, Opening(Kind.REQUESTS, security.kind, token=token))
        self._requests = await security.wrap(stream)
        count = await self._name(talk)
        await talk.say(Absentees(count))
        await talk.expect(Discarded, DISCARD_SECONDS, "throw away what is dirty")

    async def _name(self, talk: Talk) -> int:
        """What is marked in `MAIN_BLOCK` and was not named yet: how many pages."""
        difference(self._lanes.bitmap, self._named, self._absent)
        for name in self._absent.names:
            if name != MAIN_BLOCK:
                words = self._absent.words(name)
                words[:] = memoryview(bytes(words.nbytes)).cast("Q")
        self._named.merge(self._absent)
        for piece in pieces_of(Absent, self._absent):
            await talk.say(piece)
        return self._absent.count()

    async def leave_behind(self, talk: Talk) -> None:
        """In the pause, when all that is dirty is marked: name the rest, and keep all of it out of the last round."""
        await self._name(talk)
        difference(self._named, PageBitmap.of(self._lanes.pages), self._absent)
        difference(self._lanes.bitmap, self._absent, self._lanes.bitmap)
        await talk.say(Partial(self._absent.count()))

    def serve(self) -> None:
        """Behind the last round: pages go to whoever asks for them."""
        assert self._requests is not None
        self._lanes.bitmap.merge(self._absent)
        self._lanes.group.forget_hashes()
        self._lanes.group.begin_round()
        self.server = PageServer(self._lanes.group)
        self.thread = EngineThread(self.server, self._ended, idle=False)
        self.connect(self._requests)
        self._requests = None

    def _ended(self, stop: str, why: str) -> None:
        """On the engine's thread."""
        with suppress(trio.RunFinishedError):
            self._loop.run_sync_soon(self._tell, why)

    def _tell(self, why: str) -> None:
        self.lost = f"the connection for page requests broke: {why or 'the destination has closed it'}"
        self.on_end()

    def connect(self, requests: trio.abc.Stream) -> None:
        """Serve on a new connection."""
        assert self.thread is not None
        self.lost = ""
        self.thread.connect(engine_end(requests))

    async def close(self) -> None:
        """Whatever became of it."""
        if self._requests is not None:
            await trio.aclose_forcefully(self._requests)
        if self.thread is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.thread.close)


class Serving:
    """Of one guest that runs elsewhere. `move` takes events to the source's table, `tell` announces words."""

    def __init__(
        self,
        departure: Departure,
        lanes: SenderLanes,
        progress: Progress,
        move: Callable[[SourceEvent], SourceState],
        state: Callable[[], SourceState],
        tell: Callable[[str], None],
    ) -> None:
        self.link: Link | None = None
        """The connection of the last recovery, if there was one."""
        self.state = state()
        self._state = state
        self._departure = departure
        self._lanes = lanes
        self._progress = progress
        self._move_to = move
        self._tell = tell
        self.ended: Ended | None = None
        """Why the guest did not go, if in the end it did not."""
        self._wanted = trio.Event()
        self._given_up = self._on_purpose = False
        self._fetching: trio.CancelScope | None = None
        self._cut_because = ""
        self._cuts = 0
        self._waiting = False
        self._last_word = Complete()
        self._bytes_before = lanes.bytes_moved
        departure.on_end = self._requests_ended

    # --- the user's side ---

    def pause(self) -> None:
        """Cut the connections, and wait for `go_on`."""
        self._on_purpose = True
        self._cut("it was paused by the user")

    def go_on(self) -> None:
        """Connect again."""
        self._on_purpose = False
        self._wanted.set()

    def give_up(self) -> None:
        """Nobody has answered, and a person knows that the guest does not run there."""
        self._given_up = True
        self._wanted.set()

    def progress(self) -> PostcopyProgress:
        """As it is now."""
        counters = self._departure.server.counters
        return PostcopyProgress(
            requests=counters.pages,
            faults=self._last_word.faults,
            median_fault_ms=self._last_word.median_fault_ns / 1e6,
            bytes=counters.bytes + self._lanes.bytes_moved - self._bytes_before,
            cuts=self._cuts,
            waiting=self._waiting,
        )

    # --- the task ---

    def _move(self, event: SourceEvent) -> SourceState:
        self.state = self._move_to(event)
        return self.state

    async def run(
        self,
        number: int,
        hear: Callable[[], Awaitable[object]],
        commitment: Commitment,
        connect: Callable[[], Recovery],
    ) -> None:
        """Until nothing is missing there, or a person has decided that the guest does not run there.

        `number` is that of the next round, `hear` waits for the next message of the destination, and `connect` is what
        a recovery needs, as it is then.
        """
        while self.state not in TERMINAL:
            if self.state is SourceState.SERVING:
                self._tell("postcopy-active")
                await self._serve(number, hear if self.link is None else self.link.receive)
                number += 1
                if self.link is not None and self._state() is not SourceState.DONE:
                    await self.link.close()
            elif self.state is SourceState.UNHEARD:
                self._pause("the destination was given the guest and does not answer", known=False)
                await self._wanted.wait()
                if self._given_up:
                    self._move(SourceEvent.CANCEL)
                    self.ended = Ended(SourceEvent.CANCEL, "it was given up without an answer of the destination",
                                       "the guest is paused here: 'tvmm resume' lets it go on")  # fmt: skip
                else:
                    self._tell("postcopy-recover-setup")
                    self.ended = await commitment.ask_again()
                    self.state = self._state()
            else:
                self.link = await self._recover(connect)

    def _pause(self, why: str, *, known: bool = True) -> None:
        self._progress.error = why
        self._progress.guest = "destination" if known else "unknown"
        self._wanted = trio.Event()
        self._waiting = not known or self._on_purpose
        self._tell("postcopy-paused")

    async def _serve(self, number: int, hear: Callable[[], Awaitable[object]]) -> None:
        """Until all is there, or the connection is cut."""
        self._progress.error = ""
        self._progress.guest = "destination"
        with trio.CancelScope() as self._fetching:
            if self._cut_because:
                self._fetching.cancel()
            elif self._departure.lost:
                self._requests_ended()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._push, number)
                    await self._hear(hear)
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                cause = the_cause(group, (TvmmError, Ended))
                if not isinstance(cause, TvmmError | Ended):
                    raise
                self._cut_because = self._cut_because or str(cause)
        self._fetching = None
        if self.state is SourceState.DONE:
            return
        self._cuts += 1
        self._drop()
        self._move(SourceEvent.LOST)
        why, self._cut_because = self._cut_because or "the connection broke", ""
        self._pause(why)

    async def _push(self, number: int) -> None:
        """All that is missing and nobody has asked for yet."""
        try:
            await self._lanes.send_round(number | LAST_ROUND)
        except LinkLost:
            await trio.sleep(LAST_WORD_SECONDS)
            raise
        await trio.sleep(COMPLETE_SECONDS)
        raise LinkLost(f"the destination did not say within {COMPLETE_SECONDS:g} s that all pages have come")

    async def _hear(self, hear: Callable[[], Awaitable[object]]) -> None:
        message = await hear()
        if not isinstance(message, Complete):
            raise ProtocolError(f"the destination sent {type(message).__name__} out of order")
        self._complete(message)

    def _complete(self, word: Complete) -> None:
        self._last_word = word
        self._move(SourceEvent.COMPLETE)

    def _requests_ended(self) -> None:
        """A destination that has all pages closes this connection too, and says so on another one."""
        if self._fetching is not None:
            self._fetching.deadline = trio.current_time() + LAST_WORD_SECONDS
            self._cut_because = self._cut_because or self._departure.lost

    def _cut(self, why: str) -> None:
        self._cut_because = self._cut_because or why
        if self._fetching is not None:
            self._fetching.cancel()

    def _drop(self) -> None:
        assert self._departure.thread is not None
        self._departure.thread.connect(None)
        self._lanes.drop()

    async def _recover(self, connect: Callable[[], Recovery]) -> Link | None:
        """By itself for a while, then whenever the user wants it: one connection, in use if the state is SERVING."""
        patient_until = trio.current_time() + (0.0 if self._on_purpose else AUTO_RECOVER_SECONDS)
        if not self._progress.error:
            self._pause("the answer to Commit was lost")
        while True:
            asked = self._wanted.is_set()
            if not asked:
                left = patient_until - trio.current_time()
                self._waiting = left <= 0
                if self._waiting:
                    self._tell("postcopy-paused")
                with trio.move_on_after(min(left, AGAIN_SECONDS) if left > 0 else math.inf):
                    await self._wanted.wait()
                asked = self._wanted.is_set()
            self._wanted = trio.Event()
            self._waiting = False
            self._move(SourceEvent.RECOVER)
            if asked:
                self._tell("postcopy-recover-setup")
            try:
                welcomed = partial(self._tell, "postcopy-recover")
                recovered = await recover(connect(), self._lanes, self._departure, welcomed)
            except (TvmmError, OSError) as error:
                self._drop()
                self._move(SourceEvent.LOST)
                self._progress.error = str(error)
                if asked:
                    # What says no is told at once; a connection that broke may be the next moment's.
                    patience = AUTO_RECOVER_SECONDS if isinstance(error, LinkLost) else 0.0
                    patient_until = trio.current_time() + patience
                    self._pause(str(error))
                continue
            if isinstance(recovered, Complete):
                self._complete(recovered)
                return None
            self._move(SourceEvent.RESUMED)
            return recovered
