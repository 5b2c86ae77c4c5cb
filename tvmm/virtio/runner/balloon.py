"""The balloon's runner: pages go back to the host on a worker thread, a bounded number at a time.

Chains of the inflate, deflate and report queues are in flight meanwhile. So a reset is done, and a hold returns, when
that thread has come back: no page is taken from a driver that has its queues back. Nothing is in flight when the device
is saved: the buffer of statistics stays in its ring until newer ones are wanted.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from tvmm.errors import HostError
from tvmm.records import check_record
from tvmm.virtio.balloon import CHAIN_BYTES, COMMAND_BYTES, STATS_BYTES, TURN_PAGES, Role, page_numbers
from tvmm.virtio.runner.base import QueueRun
from tvmm.virtio.runner.task import TaskRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.kvm.vring import Chain
    from tvmm.virtio.balloon import Balloon
    from tvmm.virtio.device import Activation
    from tvmm.virtio.runner.balloon_memory import BalloonMemory, Runs
    from tvmm.virtio.runner.base import Ends

__all__ = ["BalloonCounters", "BalloonRun", "BalloonRunner"]

MAX_INTERVAL_S = 0xFFFF_FFFF
"""Between two looks at statistics: as QEMU has it."""


CHANGE_SECONDS = 1.0
"""Between two words of how full the balloon is: a driver writes that down after every megabyte."""


class BalloonRun(NamedTuple):
    """What is saved."""

    queues: tuple[QueueRun, ...]


class BalloonCounters(NamedTuple):
    """Pages since the machine was made; `strange` ones were no RAM, `spared` ones need not be migrated."""

    inflated: int = 0
    deflated: int = 0
    reported: int = 0
    hinted: int = 0
    spared: int = 0
    strange: int = 0


class _Work(NamedTuple):
    """What a turn has taken off a queue: chains to be pushed, and pages to be dealt with."""

    role: str
    chain_ids: list[int]
    runs: Runs


class BalloonRunner(TaskRunner):
    """Serves `model`, whose pages are in `memory`."""

    def __init__(
        self,
        model: Balloon,
        ends: Ends,
        memory: BalloonMemory,
        warn: Callable[[str], None],
        name: str = "balloon",
    ) -> None:
        super().__init__(name, ends, len(model.queue_sizes))
        self.model = model
        self.counters = BalloonCounters()
        self.spare: Callable[[Runs], int] | None = None
        """During the first pass of a migration: takes pages that are free and says how many need not be sent.
        Under the bus lock, on Trio's thread."""
        self._memory = memory
        self._warn = warn
        self._warned = False
        self._busy = -1
        """The queue whose chains are in flight, or -1."""
        self._when_idle: list[Callable[[], None]] = []
        self._lost = False
        self.on_change: Callable[[], None] = _nobody_listens
        """Called on Trio's thread when the number of pages in the balloon has changed, at most once in a second."""
        self._change = trio.Event()
        model.on_actual = partial(self.look, self._changes)
        self._stats_read = False
        self._stats_wanted = False
        self._stats_news = trio.Event()
        self._interval_s = 0
        self._interval_changed = trio.Event()

    @property
    def _changes(self) -> int:
        """Stands for `actual` in place of a queue's number."""
        return len(self.rings)

    @property
    def ready(self) -> bool:
        """Whether there is a driver that inflates."""
        return 0 in self._serving

    # -- the slot's side ---------------------------------------------------------------------------------

    def reset(self, done: Callable[[], None]) -> None:
        """See `Runner`."""
        self._stats_read = self._stats_wanted = False
        super().reset(lambda: None)
        self._let_go(done)

    def stop_queue(self, index: int, done: Callable[[], None]) -> None:
        """See `Runner`."""
        if self.model.role(index) == Role.STATS:
            self._stats_read = False
        super().stop_queue(index, lambda: None)
        if index == self._busy:
            self._let_go(done)
        else:
            done()

    def _let_go(self, done: Callable[[], None]) -> None:
        """Call `done` once no page is taken any more; the chains in flight are nobody's then."""
        if self._busy < 0:
            done()
        else:
            self._lost = True
            self._when_idle.append(done)

    async def hold(self) -> None:
        """See `Holder`: waits for the thread, some milliseconds."""
        await super().hold()
        idle = trio.Event()
        with self.ends.bus_lock:
            if self._busy < 0:
                return
            self._when_idle.append(idle.set)
        with trio.CancelScope(shield=True):
            await idle.wait()

    # -- the tasks ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """See `Runner`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(super().run)
            nursery.start_soon(self._poll_stats)
            nursery.start_soon(self._tell_changes)

    async def attend(self, index: int) -> bool:
        """Serve one turn of a queue."""
        await trio.lowlevel.checkpoint()
        if index == self._changes:
            self._change.set()
            return False
        with self.ends.bus_lock:
            role = self.model.role(index)
            if role == Role.STATS:
                return self._attend_stats(index)
            if role == Role.HINT:
                return self._take_hints(index)
            if role == Role.NONE:
                return False
            work = self._take(index, role)
            if work is None:
                return False
            self._busy = index
        try:
            # From here to the end of the block nothing is cancelled: the chains would be lost.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._carry_out, work)
        finally:
            with self.ends.bus_lock:
                self._finish(index, work)
        return True

    def _carry_out(self, work: _Work) -> None:
        """On a worker thread, without the bus lock."""
        try:
            if work.role == Role.DEFLATE:
                self._memory.take(work.runs)
            else:
                self._memory.give_back(work.runs)
        except HostError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"{self.name}: {error}")

    # -- rings, under the bus lock -----------------------------------------------------------------------

    def _take(self, index: int, role: str) -> _Work | None:
        """Take chains off an inflate, deflate or report queue, as many as one turn deals with."""
        chains = self.offers(index)
        if not chains:
            return None
        if role == Role.REPORT:
            return self._take_reports(index, chains)
        numbers: list[int] = []
        taken = 0
        for chain in chains:
            if chain.writable_bytes or not chain.readable_bytes:
                self.refuse(index, "a buffer of page numbers that is not only to be read")
                return None
            if taken and len(numbers) + min(chain.readable_bytes, CHAIN_BYTES) // 4 > TURN_PAGES:
                break
            numbers += page_numbers(self.gather(chain, 0, CHAIN_BYTES))
            taken += 1
        self.put_back(index, len(chains) - taken)
        runs, strange = self._memory.pages(numbers)
        count = sum(count for _, count in runs)
        counted = self.counters
        if role == Role.INFLATE:
            counted = counted._replace(inflated=counted.inflated + count)
        else:
            counted = counted._replace(deflated=counted.deflated + count)
        self.counters = counted._replace(strange=counted.strange + strange)
        return _Work(role, [chain.id for chain in chains[:taken]], runs)

    def _take_reports(self, index: int, chains: list[Chain]) -> _Work | None:
        if any(chain.readable_bytes for chain in chains):
            self.refuse(index, "a report of free pages that is not only to be written")
            return None
        runs = self._memory.whole_pages(self._pieces(chains))
        if self.model.poison:
            # The guest wants to find in them what it has put there, and the host would give zeros (5.5.6.7.2).
            runs = []
        counted = self.counters
        self.counters = counted._replace(reported=counted.reported + sum(count for _, count in runs))
        return _Work(Role.REPORT, [chain.id for chain in chains], runs)

    def _pieces(self, chains: list[Chain]) -> list[tuple[str, int, int]]:
        """Of guest memory that the driver offers, as block, offset and length."""
        return [
            (*self.ends.memory.place(piece), len(piece))
            for chain in chains
            for piece in self.batch.writable(chain)
        ]

    def _finish(self, index: int, work: _Work) -> None:
        """Give the chains of a turn back, unless the driver has its queue back already."""
        self._busy = -1
        if not self._lost:
            self.push(index, [(number, 0) for number in work.chain_ids])
        self._lost = False
        waiting, self._when_idle = self._when_idle, []
        for call in waiting:
            call()

    def _take_hints(self, index: int) -> bool:
        """Which pages are free, or which request the next ones are for."""
        chains = self.offers(index)
        free: list[Chain] = []
        hinted: Runs = []
        for chain in chains:
            if not chain.readable_bytes:
                if self.model.hinting:
                    free.append(chain)
                continue
            if chain.writable_bytes or chain.readable_bytes != COMMAND_BYTES:
                self.refuse(index, "a number for hints that is not 4 bytes to be read")
                return False
            hinted += self._memory.whole_pages(self._pieces(free))
            free = []
            self.model.hint_command(int.from_bytes(self.gather(chain, 0, COMMAND_BYTES), "little"))
        hinted += self._memory.whole_pages(self._pieces(free))
        if hinted and self.spare is not None and not self.model.poison:
            counted, spared = self.counters, self.spare(hinted)
            pages = sum(count for _, count in hinted)
            self.counters = counted._replace(hinted=counted.hinted + pages, spared=counted.spared + spared)
        self.push(index, [(chain.id, 0) for chain in chains])
        return bool(chains)

    # -- statistics --------------------------------------------------------------------------------------

    def _attend_stats(self, index: int) -> bool:
        """Read the buffer if it is a new one; if newer ones are wanted, give it back for them."""
        chains = self.offers(index)
        if not chains:
            return False
        first, others = chains[0], len(chains) - 1
        if first.writable_bytes or not first.readable_bytes:
            self.refuse(index, "a buffer of statistics that is not only to be read")
            return False
        if not self._stats_read:
            self._stats_read, self._stats_wanted = True, False
            self.model.take_stats(self.gather(first, 0, STATS_BYTES), int(time.time()))
            news, self._stats_news = self._stats_news, trio.Event()
            news.set()
        elif self._stats_wanted:
            self._stats_read = self._stats_wanted = False
            self.put_back(index, others)
            self.push(index, [(first.id, 0)])
            return True
        self.put_back(index, len(chains))
        return False

    def _ask(self) -> bool:
        """Have the driver send new statistics. False: there is no driver that does."""
        index = self.model.queue_of(Role.STATS)
        if index is None or not self.serves(index):
            return False
        if self._stats_read:
            self._stats_wanted = True
        self.look(index)
        return True

    async def fresh_stats(self, patience_s: float) -> bool:
        """Ask the guest for new statistics and wait for them. False: it has not sent any in time."""
        with self.ends.bus_lock:
            news = self._stats_news
            if not self._ask():
                return False
        with trio.move_on_after(patience_s):
            await news.wait()
            return True
        return False

    @property
    def interval_s(self) -> int:
        """Seconds between two requests for statistics; 0: none but by `fresh_stats`."""
        return self._interval_s

    def set_interval(self, seconds: int) -> None:
        """0 to `MAX_INTERVAL_S`; `ValueError` otherwise. On Trio's thread."""
        if not 0 <= seconds <= MAX_INTERVAL_S:
            raise ValueError(f"{seconds} s is no interval")
        self._interval_s = seconds
        self._interval_changed.set()

    async def _poll_stats(self) -> None:
        while True:
            self._interval_changed = trio.Event()
            with trio.move_on_after(self._interval_s) if self._interval_s else trio.CancelScope():
                await self._interval_changed.wait()
            if self._interval_s:
                with self.ends.bus_lock:
                    self._ask()

    async def _tell_changes(self) -> None:
        told = self.model.actual
        while True:
            await self._change.wait()
            self._change = trio.Event()
            if told != self.model.actual:
                told = self.model.actual
                self.on_change()
                await trio.sleep(CHANGE_SECONDS)

    # -- hints, on Trio's thread -------------------------------------------------------------------------

    @property
    def gives_hints(self) -> bool:
        """Whether there is a driver that tells of free pages."""
        index = self.model.queue_of(Role.HINT)
        return index is not None and index in self._serving

    def begin_hints(self, spare: Callable[[Runs], int]) -> bool:
        """Ask the driver which pages are free, and have `spare` take them. False: there is no driver that tells."""
        with self.ends.bus_lock:
            if not self.gives_hints or not self.model.ask_for_hints():
                return False
            self.spare = spare
            return True

    def stop_hints(self) -> None:
        """What comes from now on is of no use; the driver keeps the pages."""
        with self.ends.bus_lock:
            self.spare = None
            self.model.stop_hints()

    def end_hints(self) -> None:
        """The driver may have its pages back."""
        with self.ends.bus_lock:
            self.spare = None
            self.model.end_hints()

    # -- saving, held ------------------------------------------------------------------------------------

    def save(self) -> BalloonRun:
        """See `Runner`."""
        return BalloonRun(self.save_queues())

    async def restore(self, activation: Activation, state: BalloonRun) -> None:
        """See `Runner`."""
        check_record(state, BalloonRun)
        with self.ends.bus_lock:
            self.restore_queues(activation, state.queues)
            self._stats_read, self._stats_wanted = bool(self.model.updated), False
        await trio.lowlevel.checkpoint()

    def arrived(self) -> None:
        """See `Runner`: hints were for the way here."""
        if self.model.accepted:
            self.model.end_hints()


def _nobody_listens() -> None:
    """Before somebody wants to hear of changes."""
