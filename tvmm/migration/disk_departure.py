"""The disks of a guest that leaves: copied while it writes to them, beside its RAM, and the rest in its pause.

A first pass and rounds come before RAM's, since a disk is larger: otherwise RAM would be sent again and again
meanwhile. From then on rounds of blocks go on beside those of pages, until both are close. What is written is marked
by the disk's own queues (`tvmm.kvm.dirty_blocks`).
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from tvmm.errors import ProtocolError, TvmmError
from tvmm.kvm.lanes import set_lane_buffers
from tvmm.kvm.serve import Waker
from tvmm.migration.disk_frames import LAST_ROUND
from tvmm.migration.disk_policy import DiskPolicy, DiskRound
from tvmm.migration.disk_sender import DiskSender
from tvmm.migration.messages import Copies, ImageHashes, Images, Stored
from tvmm.migration.source import SourceEvent
from tvmm.migration.status import DiskProgress
from tvmm.migration.talk import Ended
from tvmm.migration.threads import run_together, the_cause, yielding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AsyncExitStack

    from tvmm.kvm.lanes import LaneGroup
    from tvmm.migration.disk_files import DiskOrigin
    from tvmm.migration.guest import LeavingGuest
    from tvmm.migration.messages import Image
    from tvmm.migration.secure import Securer
    from tvmm.migration.status import MigrationParameters
    from tvmm.migration.talk import Talk

__all__ = ["FEATURE", "LeavingDisks"]

FEATURE = "storage"
COPIES_SECONDS = 60.0
"""For the destination to make its images."""
STORED_SECONDS = 600.0
"""For the word that a round is stable: a disk that is slow to write may have gigabytes of the first pass in its host's
page cache."""
BREATH_SECONDS = 0.01
"""Between two rounds beside RAM's: each has the destination's disk write back what it has."""
TURN_SECONDS = 0.1
"""How long RAM waits for disks, at most, between two of its own rounds."""


class LeavingDisks:
    """Of one migration. Where no disks are to be copied nothing here does anything."""

    def __init__(self, guest: LeavingGuest, parameters: MigrationParameters) -> None:
        self.is_wanted = parameters.copy_storage
        self._guest = guest
        self._parameters = parameters
        self._policy = DiskPolicy(int(parameters.max_downtime_ms * 1e6))
        self._images: tuple[Image, ...] = ()
        self._origins: list[DiskOrigin] = []
        self._sender: DiskSender | None = None
        self._talk: Talk
        self._waker: Waker
        self._busy = trio.Lock()
        self._rests = False
        self._number = 0
        self._stored: Stored | None = None
        self._news = trio.Event()
        self._dirty_rate = self._throughput = self._begun = 0.0

    # --- what others ask ---

    @property
    def wants(self) -> tuple[str, ...]:
        """For `Talk.greet`."""
        return (FEATURE,) if self.is_wanted else ()

    async def details(self) -> tuple[Images, ...]:
        """For `Talk.greet` too. Raises `UserError` if there is nothing that could be copied."""
        if not self.is_wanted:
            return ()
        self._images = await trio.to_thread.run_sync(self._guest.images)
        return (Images(self._images),)

    def set_parameters(self, parameters: MigrationParameters) -> None:
        """The longest pause may change on the way."""
        self._policy.max_downtime_ns = int(parameters.max_downtime_ms * 1e6)

    @property
    def total(self) -> int:
        """Bytes of all disks that are copied."""
        return sum(origin.size for origin in self._origins)

    @property
    def expected_ns(self) -> int:
        """What they would add to the pause now."""
        return self._policy.expected_ns(self._dirty()) if self._origins else 0

    @property
    def is_ready(self) -> bool:
        """Whether that is little enough."""
        return not self._origins or self._policy.is_ready(self._dirty())

    def progress(self) -> DiskProgress:
        """As it is now."""
        sender = self._sender
        if sender is None:
            return DiskProgress()
        return DiskProgress(
            total=self.total,
            transferred=sender.sent,
            remaining=min(self._dirty(), self.total),
            copied=sender.copied,
            zeroed=sender.zeroed,
            rounds=self._number + 1,
            throughput=self._throughput or sender.sent / max(trio.current_time() - self._begun, 1e-3),
            dirty_rate=self._dirty_rate,
            slowed_to=self._policy.slow,
        )

    def _dirty(self) -> int:
        return sum(origin.changes.count_bytes() for origin in self._origins)

    # --- setup ---

    async def open(
        self,
        stack: AsyncExitStack,
        talk: Talk,
        connect: Callable[[], Awaitable[trio.SocketStream]],
        security: Securer,
        group: LaneGroup,
    ) -> None:
        """Once the destination has welcomed this migration: a connection, and all changes are marked from now on.

        Raises what `connect` and `Securer` raise, `Ended` and `ProtocolError`. Undone by `stack`.
        """
        if not self.is_wanted:
            return
        if FEATURE not in talk.granted:
            raise ProtocolError("the destination does not copy disks, and has not refused to")
        places = (await talk.hear(Copies, COPIES_SECONDS, "make its images")).places
        if not places or len(set(places)) < len(places) or not set(places) <= set(range(len(self._images))):
            raise ProtocolError("the destination wants disks copied that there are not")
        origins = await trio.to_thread.run_sync(self._guest.open_images, places)
        for origin in origins:
            stack.callback(origin.close)
        self._talk = talk
        talk.aside[Stored] = self._take_word
        self._waker = Waker()
        stack.callback(self._waker.close)
        stream = await connect()
        try:
            set_lane_buffers(stream.socket)  # type: ignore[arg-type]  # Trio's has the methods of a plain one
            wrapped = await security.wrap_lane(stream, self._waker)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        codec = None
        if self._parameters.compress == "zstd":
            from tvmm.migration.zstd import Compressor

            codec = Compressor()
        sender = DiskSender(wrapped, origins, group, self._waker, codec)
        stack.callback(sender.close)
        for origin in origins:
            stack.callback(origin.disk.stop_tracking)
            origin.changes = await origin.disk.track_changes()
        self._origins, self._sender = origins, sender

    def _take_word(self, word: Stored) -> None:
        if self._stored is not None or word.number != self._number or word.sync_ns < 0:
            raise ProtocolError(f"the destination confirms round {word.number} of disks, which is not under way")
        self._stored = word
        self._news.set()

    # --- while the guest runs ---

    async def first_pass(self, listen: Callable[[], Awaitable[None]]) -> None:
        """All of it, and rounds until RAM is worth beginning with. `listen` hears the destination's bad news meanwhile.

        Rounds have `timeout_s`, the first pass takes what it takes. Raises `Ended`, `LinkLost` and others.
        """
        if not self._origins:
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                await self._round()
                with trio.move_on_after(self._parameters.timeout_s or math.inf) as patience:
                    while not self.is_ready:
                        await self._round()
                if patience.cancelled_caught:
                    raise Ended(SourceEvent.OVERDUE, *self.did_not_converge())
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise the_cause(group, (Ended, TvmmError)) from None

    def did_not_converge(self) -> tuple[str, str]:
        """Why it was given up, and what to do."""
        reason = (
            f"the guest's disks did not come to rest within {self._parameters.timeout_s:g} s: "
            f"{self._dirty() / 1e6:.0f} MB to be copied again after round {self._number}, "
            f"{self._policy.bytes_per_second / 1e6:.0f} MB/s, {self._dirty_rate / 1e6:.0f} MB/s written"
        )
        return reason, "allow a longer pause with --max-downtime, or more time with --timeout"

    async def keep_up(self) -> None:
        """Round after round, until cancelled. Raises `LinkLost` and others."""
        while self._origins:
            await trio.sleep(BREATH_SECONDS)
            async with self._busy:
                if not self._rests and self._dirty():
                    await self._round()

    async def wait_turn(self) -> None:
        """Return when disks are ready, or after a moment."""
        with trio.move_on_after(TURN_SECONDS):
            while not self.is_ready:
                await trio.sleep(BREATH_SECONDS)

    async def rest(self) -> bool:
        """One last round, and `keep_up` begins no more. Whether that has taken time."""
        if not self._origins:
            return False
        self._rests = True
        async with self._busy:
            if self._dirty():
                await self._round()
        return True

    def go_on(self) -> None:
        """Undo `rest`."""
        self._rests = False

    async def _round(self) -> None:
        sender = self._sender
        assert sender is not None
        begun, sent = trio.current_time(), sender.sent
        self._begun = self._begun or begun
        self._stored, self._news = None, trio.Event()
        call = partial(sender.send_round, self._number)
        # The first one leaves the processors to the guest, as RAM's does.
        await run_together([call if self._number else partial(yielding, call)], self._waker)
        with trio.move_on_after(STORED_SECONDS) as patience:
            await self._news.wait()
        if patience.cancelled_caught:
            raise Ended(SourceEvent.OVERDUE, f"the destination did not store round {self._number} of disks in time")
        assert self._stored is not None
        elapsed = max(trio.current_time() - begun, 1e-6)
        dirty = self._dirty()
        self._dirty_rate, self._throughput = dirty / elapsed, (sender.sent - sent) / elapsed
        done = DiskRound(sender.sent - sent, int(elapsed * 1e9), self._stored.sync_ns, dirty)
        self._number += 1
        advice = self._policy.after(done)
        for origin in self._origins:
            origin.disk.slow_writes(advice.slow)

    # --- in the pause ---

    @asynccontextmanager
    async def finishing(self) -> AsyncIterator[None]:
        """While the block does other things, with the guest held, all that is left is sent; all of it when the block is
        left. Raises `LinkLost` and others, as the block does.
        """
        if not self._origins:
            yield
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._finish)
                yield
        except BaseExceptionGroup as group:
            raise the_cause(group, (Ended, TvmmError)) from None

    async def _finish(self) -> None:
        assert self._sender is not None
        await run_together([partial(self._sender.send_round, self._number | LAST_ROUND)], self._waker)
        if self._parameters.verify:
            hashes = [await trio.to_thread.run_sync(origin.hash) for origin in self._origins]
            await self._talk.say(ImageHashes(tuple(hashes)))
