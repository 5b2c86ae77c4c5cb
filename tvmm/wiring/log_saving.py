"""A machine that is saved while it runs by the dirty log: `tvmm.wiring.live_saving` has the order of steps.

Pages go to their places in the file while the guest runs, in rounds, as pre-copy sends them: what KVM's log and the
devices' say was written is written again, until it is little, or until rounds shrink no more and the guest is slowed
down. In the pause the last pages are copied to memory, which takes a millisecond for each 2 MiB or less, and they are
written when the guest goes on.

Compared with write protection: it works with any memory and without rights, slows each page's first write less, but
writes pages more than once, and the moment is at the end of the save and not at its beginning.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from tvmm.errors import HostError, UserError
from tvmm.kvm.pages import PAGE, PageBitmap
from tvmm.kvm.rounds import SnapshotRounds
from tvmm.kvm.serve import Waker
from tvmm.migration.policy import FIXED_NS, Decision, Policy, Round
from tvmm.migration.threads import run_together, yielding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tvmm.kvm.dirty_log import DirtyTracker
    from tvmm.snapshot.writer import SnapshotWriter
    from tvmm.wiring.live_saving import LiveMachine, LiveReport

__all__ = ["Logged", "logged"]

THREADS, ONE_THREAD_PAGES = 2, 8192
"""They share the processors with the guest. Up to so many pages one is enough, and leaves the others to vCPUs."""
POLITE_ROUNDS = 3
"""The guest's processors come first in the first of them. Later ones have to be faster than the guest writes."""
PAUSE_NS = 12_000_000
"""The longest pause that is reckoned with: a busy host adds to it."""
COPY_SPEED = 4.0
"""Bytes a nanosecond that are copied into memory that is there."""
COPY_SHARE, COPY_MAX = 8, 1 << 14
"""Pages that the guest wrote last: at most an eighth of its RAM, and no more than 64 MiB."""
MAX_ROUNDS = 400
"""Each of them pays, or slows the guest: this many is a fault of that reckoning."""
TRIES = 8
"""How often the guest is held and had written too much since the last look."""
LATE = 2.0
"""Times the pages that were reckoned with: more is too many."""
AT_ONCE_PAGES = 512
"""Copied in less time than it takes to start threads."""


class Logged:
    """A `Mechanism`."""

    name = "dirty-log"

    def __init__(self, guest: LiveMachine, writer: SnapshotWriter, tracker: DirtyTracker) -> None:
        """`tracker` has been started. Raises `HostError` without memory for copies."""
        blocks = guest.ram.blocks
        bitmap = PageBitmap(tuple(blocks), [block.size // PAGE for block in blocks.values()])
        self._blocks = len(blocks)
        room = max(min(sum(bitmap.pages) // COPY_SHARE, COPY_MAX), 1)
        limit = min(PAUSE_NS, FIXED_NS + int(room * PAGE / COPY_SPEED))
        self._policy = Policy(limit, speed=COPY_SPEED)
        self._too_many = int(LATE * (limit - FIXED_NS) * COPY_SPEED / PAGE)
        self._guest = guest
        self._writer = writer
        self._tracker = tracker
        self._refill = False
        self._tries = self._number = self._throttle = 0
        self._rounds = SnapshotRounds(writer.pages, bitmap, room)

    def close(self) -> None:
        """No thread is at work."""
        self._rounds.close()

    def ram_was_reset(self) -> None:
        """All of it has to be written again."""
        self._refill = True

    # --- while the guest runs ---

    async def prepare(self) -> None:
        """See `Mechanism`, as all of these."""
        self._writer.pages.leave(self._blocks)
        self._advice = self._policy.after(await self._round(self._writer.write_pages))
        self._rounds.end_first()

    async def settle(self) -> None:
        """Rounds, until what is left fits into the pause."""
        while self._advice.decision is not Decision.SWITCH:
            if self._advice.decision is Decision.THROTTLE:
                self._throttle = self._advice.throttle
                self._guest.throttle(self._throttle)
            done = await self._round()
            self._advice = self._policy.after(done)
            hopeless = self._policy.hopeless and self._advice.decision is not Decision.THROTTLE
            if hopeless or self._number >= MAX_ROUNDS:
                raise self._too_fast(done.dirty_after)

    async def _round(self, *others: Callable[[Waker], None]) -> Round:
        began = time.perf_counter()
        self._number += 1
        rounds = self._rounds
        rounds.begin(self._tracker.log)
        threads = 1 if rounds.bitmap.count() <= ONE_THREAD_PAGES else THREADS
        politely = self._number <= POLITE_ROUNDS and not self._throttle
        await self._together(rounds.write, *others, threads=threads, politely=politely)
        elapsed = time.perf_counter() - began
        await trio.to_thread.run_sync(self._sync)
        return Round(rounds.pages, rounds.bytes, int(elapsed * 1e9), rounds.bitmap.count())

    def _sync(self) -> None:
        if self._refill:
            self._refill = False
            self._rounds.bitmap.fill()
        try:
            self._tracker.sync(self._rounds.bitmap)
        except OSError as error:
            raise HostError(f"it is not known which pages the guest wrote: {error.strerror}") from error

    async def _together(
        self,
        call: Callable[[Waker], None],
        *others: Callable[[Waker], None],
        threads: int = THREADS,
        politely: bool = False,
    ) -> None:
        """`call` on some threads, the others on one each. `politely`: the guest's processors come first."""
        waker = Waker()

        def write() -> None:
            try:
                if politely:
                    yielding(partial(call, waker))
                else:
                    call(waker)
            except HostError as error:
                raise self._writer.cannot(error.message) from error

        try:
            await run_together([*[write] * threads, *(partial(other, waker) for other in others)], waker)
        finally:
            waker.close()

    def _too_fast(self, pages: int) -> UserError:
        return UserError(
            f"the guest writes to its memory faster than it can be saved: {pages} pages were left after "
            f"{self._number} rounds, though it was slowed by {self._throttle}%",
            "save without --live, or when it has less to do",
        )

    # --- the moment ---

    async def freeze(self) -> bool:
        """Copies of the last pages; what there is no room for is written at once."""
        self._sync()
        rounds = self._rounds
        pages = rounds.bitmap.count()
        self._tries += 1
        if pages > self._too_many:
            if self._tries >= TRIES:
                raise self._too_fast(pages)
            self._advice = self._policy.after(Round(0, 0, 0, pages))
            if self._advice.decision is Decision.SWITCH:
                self._advice = self._advice._replace(decision=Decision.AGAIN)
            return False
        rounds.begin()
        left = rounds.keep() if pages <= AT_ONCE_PAGES else sum(await self._keep())
        if left:
            rounds.begin()
            await self._together(rounds.write)
        return True

    async def _keep(self) -> list[int]:
        left: list[int] = []

        async def keep() -> None:
            left.append(await trio.to_thread.run_sync(self._rounds.keep))

        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for _ in range(THREADS):
                    nursery.start_soon(keep)
        return left

    # --- afterwards ---

    async def write(self) -> None:
        """The guest goes on unhindered."""
        self._guest.throttle(0)
        await trio.to_thread.run_sync(self._tracker.stop)
        self._rounds.begin()
        await self._together(self._rounds.put, politely=True)

    def told(self, report: LiveReport) -> LiveReport:
        """How hard it was."""
        return report._replace(rounds=self._number, throttle=self._throttle)


@asynccontextmanager
async def logged(guest: LiveMachine, writer: SnapshotWriter) -> AsyncIterator[Logged]:
    """Within the block written pages are logged, and the guest may be slowed down. Raises `HostError`."""
    tracker = guest.tracker()
    try:
        await trio.to_thread.run_sync(tracker.start)
        memory = await trio.to_thread.run_sync(Logged, guest, writer, tracker)
        try:
            async with guest.on_reset(memory.ram_was_reset):
                yield memory
        finally:
            memory.close()
    finally:
        guest.throttle(0)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(tracker.stop)
