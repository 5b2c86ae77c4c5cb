"""Pre-copy at the source: pages in rounds while the guest runs, until the rest is little enough for a pause.

What a round has measured, and what should come next, is the business of `tvmm.migration.policy`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from tvmm.errors import ProtocolError
from tvmm.migration.messages import RoundDone
from tvmm.migration.policy import Advice, Decision, Policy, Round
from tvmm.migration.source import SourceEvent
from tvmm.migration.talk import Ended

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tvmm.kvm.dirty_log import DirtyTracker
    from tvmm.migration.disk_departure import LeavingDisks
    from tvmm.migration.guest import LeavingGuest
    from tvmm.migration.progress import Progress
    from tvmm.migration.senders import SenderLanes
    from tvmm.migration.status import MigrationParameters
    from tvmm.migration.talk import Talk

__all__ = ["Rounds"]

ROUND_SECONDS = 120.0
"""For the word that a round is in place, after its last byte went into a buffer: on a slow path some megabytes of it
are still under way then."""
LOOK_AT_ONCE_PAGES = 16 << 30 >> 12
"""RAM whose dirty log is read within half a millisecond: a change of threads takes longer."""


class Rounds:
    """Of one migration. `changed` is called when one begins."""

    def __init__(
        self,
        guest: LeavingGuest,
        disks: LeavingDisks,
        progress: Progress,
        parameters: MigrationParameters,
        changed: Callable[[], None],
    ) -> None:
        self.number = 0
        """Of the next one."""
        self._guest = guest
        self._disks = disks
        self._progress = progress
        self._parameters = parameters
        self._changed = changed
        self._policy = Policy(
            int(parameters.max_downtime_ms * 1e6), max_throttle=parameters.max_throttle_percent
        )
        self._wants_postcopy = parameters.postcopy == "now"
        self._refill = False
        self._talk: Talk
        self._lanes: SenderLanes
        self._tracker: DirtyTracker

    # --- what others ask ---

    def set_parameters(self, parameters: MigrationParameters) -> None:
        """The longest pause may change on the way."""
        self._parameters = parameters
        self._policy.max_downtime_ns = int(parameters.max_downtime_ms * 1e6)

    def leave_soon(self) -> None:
        """The guest is to go before its memory, once the first pass is over."""
        self._wants_postcopy = True
        if self.number:
            self._lanes.group.stop_round()

    def begin(self, talk: Talk, lanes: SenderLanes, tracker: DirtyTracker) -> None:
        """All pages are to be sent over `lanes`, and again what `tracker` finds written; it has been started."""
        self._talk = talk
        self._lanes = lanes
        self._tracker = tracker
        lanes.bitmap.fill()

    def ram_was_reset(self) -> None:
        """All of it has to be sent again."""
        self._refill = True

    def spare(self, block_name: str, runs: Sequence[tuple[int, int]]) -> int:
        """Pages that are free need not be sent, unless they were written since."""
        try:
            spared = self._tracker.spare(self._lanes.bitmap, block_name, runs)
        except OSError:
            return 0
        self._lanes.spared += spared
        return spared

    def sync(self) -> None:
        """Mark what was written."""
        if self._refill:
            self._refill = False
            self._lanes.bitmap.fill()
        self._tracker.sync(self._lanes.bitmap)

    # --- while the guest runs ---

    async def one(self) -> tuple[Round, Advice]:
        """The next round. Raises `Ended`, `LinkLost` or `ProtocolError`."""
        self._progress.begin_round(self.number)
        self._policy.extra_ns = self._disks.expected_ns
        self._changed()
        done = await self._send(self.number)
        advice = self._policy.after(done)
        self._progress.end_round(done, advice, self._policy.bytes_per_second)
        self.number += 1
        return done, advice

    async def _send(self, number: int) -> Round:
        begun = trio.current_time()
        lanes = self._lanes
        result = await lanes.send_round(number)
        answer = await self._talk.expect(RoundDone, ROUND_SECONDS, f"confirm round {number}")
        if answer.number != number:
            raise ProtocolError(f"the destination confirms round {answer.number} in place of {number}")
        elapsed = trio.current_time() - begun
        # Before it is looked at what was written: a page that was told of before that may have been written since.
        self._guest.stop_hints()
        await self._look()
        return Round(result.pages, result.bytes, int(elapsed * 1e9), lanes.bitmap.count())

    async def _look(self) -> None:
        if self._lanes.pages.total <= LOOK_AT_ONCE_PAGES:
            self.sync()
        else:
            await trio.to_thread.run_sync(self.sync)

    def _leaves(self) -> bool:
        """Whether it is time for post-copy: the user wants it, or rounds do not get the guest there."""
        if "postcopy" not in self._talk.granted or not self._disks.is_ready:
            return False
        return self._wants_postcopy or self._policy.hopeless

    async def converge(self, done: Round, advice: Advice, leave: Callable[[], Awaitable[None]]) -> bool:
        """Rounds after the first pass, which has said `done` and `advice`, until it is time to stop the guest.

        Whether it leaves pages behind then: `leave` was awaited in that case. They have `timeout_s`: the first pass
        takes what it takes. Raises `Ended`, `LinkLost` or `ProtocolError`.
        """
        slowed = 0
        with trio.move_on_after(self._parameters.timeout_s or math.inf) as patience:
            while True:
                while self._leaves() or advice.decision is not Decision.SWITCH or not self._disks.is_ready:
                    if self._leaves():
                        self._progress.leave(slowed)
                        await self._disks.rest()
                        await leave()
                        return True
                    if advice.decision is Decision.THROTTLE:
                        slowed = advice.throttle
                        self._guest.throttle(slowed)
                    elif advice.decision is Decision.SWITCH:
                        await self._disks.wait_turn()
                    done, advice = await self.one()
                if not await self._disks.rest():
                    return False
                # Meanwhile the guest has written to its RAM.
                done, advice = await self.one()
                if advice.expected_ns <= self._policy.max_downtime_ns and self._disks.is_ready:
                    return False
                self._disks.go_on()
        if patience.cancelled_caught:
            late = self._did_not_converge(done, advice) if self._disks.is_ready else self._disks.did_not_converge()
            raise Ended(SourceEvent.OVERDUE, *late)
        return False

    def _did_not_converge(self, done: Round, advice: Advice) -> tuple[str, str]:
        speed = self._progress.status().ram.throughput
        reason = (
            f"the guest did not come to rest within {self._parameters.timeout_s:g} s: "
            f"{done.dirty_after} pages dirty after round {self.number}, {speed / 1e6:.0f} MB/s, "
            f"a pause of {advice.expected_ns / 1e6:.0f} ms where {self._parameters.max_downtime_ms:g} ms are allowed"
        )
        return reason, "allow a longer pause with --max-downtime, or more time with --timeout"
