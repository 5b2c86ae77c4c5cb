"""Pages and state of a guest that arrives: taken in side by side, checked, loaded, and kept until Commit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from tvmm.errors import ProtocolError, TvmmError, UserError
from tvmm.migration.destination import DestinationEvent
from tvmm.migration.link import LinkLost
from tvmm.migration.messages import (
    Absent,
    Absentees,
    Cancel,
    Commit,
    ImageHashes,
    Partial,
    Ready,
    RoundDone,
    State,
)
from tvmm.migration.threads import the_cause
from tvmm.migration.wire import readable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tvmm.migration.disk_arrival import ArrivingDisks
    from tvmm.migration.guest import ArrivingGuest
    from tvmm.migration.link import Link
    from tvmm.migration.postcopy_destination import PartialArrival
    from tvmm.migration.receivers import ReceiverLanes

__all__ = ["Intake"]

SILENCE_SECONDS = 600.0
"""A source that has said nothing for so long, and moved no page, is gone."""
COMMIT_SECONDS = 60.0
"""For COMMIT after READY. The source has taken the guest back long before."""


class Intake:
    """Of one guest. `move` takes events to the destination's table, and why; `populated` returns when nobody allocates
    RAM in advance any more; `partial` is there if the source may go on before all pages are here.
    """

    def __init__(
        self,
        guest: ArrivingGuest,
        lanes: ReceiverLanes,
        disks: ArrivingDisks,
        partial: PartialArrival | None,
        populated: Callable[[], Awaitable[None]],
        move: Callable[[DestinationEvent, str], None],
    ) -> None:
        self.rounds = 0
        self.confirmed_ns = 0
        """When the source was last told of a round: it has paused the guest after that."""
        self.committed_ns = 0
        self.state: State | None = None
        self._guest = guest
        self._lanes = lanes
        self._disks = disks
        self._partial = partial
        self._populated = populated
        self._move = move
        self._state_news = trio.Event()
        self._commit_news = trio.Event()

    async def memory_is_here(self, link: Link, begun_ns: int) -> None:
        """In place of rounds, and as if there had been one, which began at `begun_ns`. Raises `LinkLost`."""
        self.rounds = 1
        self.confirmed_ns = time.perf_counter_ns()
        await link.send(RoundDone(0, self.confirmed_ns - begun_ns))

    async def run(self, link: Link, *, verify: bool) -> None:
        """To Commit, or to another end that was told to `move`. Raises `TvmmError` and `UserError`."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, link)
                nursery.start_soon(self._disks.receive, link)
                pages_ns = 0 if self.rounds else await self._take_pages(link)
                await self._state_news.wait()
                state = self.state
                assert state is not None
                if state.last_round != self.rounds - 1:
                    raise ProtocolError("the state does not belong to the last round")
                if verify:
                    # Before the state is loaded: KVM writes clocks into memory then.
                    await self._verify(state)
                begun = time.perf_counter_ns()
                await self._guest.load(state.sections, self.confirmed_ns)
                if verify and (wrong := await self._guest.loaded_otherwise(state.sections)):
                    raise ProtocolError(f"what was loaded differs from the source's: {', '.join(wrong)}")
                await self._disks.complete(verify=verify)
                # First the state, then the word: COMMIT may be here before `send` returns.
                self._move(DestinationEvent.LOADED, "")
                await link.send(Ready(pages_ns, time.perf_counter_ns() - begun))
                with trio.move_on_after(COMMIT_SECONDS) as patience:
                    await self._commit_news.wait()
                if patience.cancelled_caught:
                    self._move(DestinationEvent.OVERDUE, f"its source did not give it up within {COMMIT_SECONDS:g} s")
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise the_cause(group, (ProtocolError, UserError, TvmmError)) from None

    async def _listen(self, link: Link) -> None:
        """What the source says on the control connection."""
        while True:
            moved = self._lanes.bytes_moved + self._disks.bytes_moved
            with trio.move_on_after(SILENCE_SECONDS) as patience:
                message = await link.receive()
            if patience.cancelled_caught:
                if self._lanes.bytes_moved + self._disks.bytes_moved > moved:
                    continue  # One round may take hours.
                raise LinkLost(f"its source has said nothing for {SILENCE_SECONDS:g} s, and moved no page")
            if isinstance(message, State):
                self._move(DestinationEvent.STATE, "")
                self.state = message
                self._state_news.set()
            elif isinstance(message, ImageHashes):
                self._disks.take_hashes(message)
            elif self._partial is not None and isinstance(message, Absent | Absentees | Partial):
                await self._partial.take(message, link, self._populated)
            elif isinstance(message, Commit):
                if self._partial is not None and not self._partial.keep():
                    raise LinkLost("the connection for page requests broke")
                self.committed_ns = time.perf_counter_ns()
                self._move(DestinationEvent.COMMIT, "")
                self._commit_news.set()
                return
            elif isinstance(message, Cancel):
                self._move(DestinationEvent.CANCEL, f"its source keeps it: {readable(message.reason) or 'cancelled'}")
                return
            else:
                raise ProtocolError(f"the source sent {type(message).__name__} out of order")

    async def _take_pages(self, link: Link) -> int:
        """Until the last round is in place. Returns the nanoseconds that the last one took."""
        last = False
        took = 0
        self.confirmed_ns = time.perf_counter_ns()
        while not last:
            begun = time.perf_counter_ns()
            number, last = await self._lanes.receive_round()
            took = time.perf_counter_ns() - begun
            self.rounds = number + 1
            if not last:
                self.confirmed_ns = time.perf_counter_ns()
                await link.send(RoundDone(number, took))
        return took

    async def _verify(self, state: State) -> None:
        ours = await self._guest.hashes()
        names = list(self._guest.ram.blocks)
        wrong = [name for name, mine, theirs in zip(names, ours, state.hashes, strict=False) if mine != theirs]
        if wrong or len(ours) != len(state.hashes):
            raise ProtocolError(f"RAM block {', '.join(wrong) or '?'} differs from the source's")
