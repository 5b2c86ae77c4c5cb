"""A machine that is saved while it runs: it is held for its state alone, and its pages are those of that moment.

In one of two ways. Write protection (`tvmm/kvm/live.h`): before the guest is held all pages are protected once, and
those that it wrote meanwhile again, until few are left. In the pause its state is taken and these few are protected:
that is the moment. Then it goes on, and threads write pages, each before it changes. What drops pages in between, a
reset or a balloon, waits until they are saved (`GuestRam.before_drop`).

Where the host or the kind of memory does not allow that, it is the dirty log: `tvmm.wiring.log_saving`.

Disks are flushed before the pause, so that little is left to do, and after it, so that they are no less safe than the
file.
"""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from tvmm.errors import HostError, UserError
from tvmm.kvm.dirty_log import make_tracker
from tvmm.kvm.live import Frozen, LiveCounters
from tvmm.kvm.pages import RamPages
from tvmm.kvm.serve import Waker
from tvmm.migration.threads import attentive, run_together, yielding
from tvmm.state import pack_sections
from tvmm.wiring.saving import SavingMachine, describe_machine, disk_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tvmm.kvm.dirty_log import DirtyTracker
    from tvmm.machine import Machine
    from tvmm.memory.ram import GuestRam
    from tvmm.snapshot.description import Description
    from tvmm.snapshot.writer import SnapshotWriter
    from tvmm.state import Section

__all__ = ["LiveMachine", "LiveReport", "LiveSaving", "Mechanism", "WriteProtected"]

THREADS = 2
"""They share the processors with the guest."""
ROUNDS, FEW_PAGES = 8, 128
"""How often what the guest wrote is protected again before it is held, at most, and when it is little enough: so many
pages take a quarter of a millisecond."""


class LiveReport(NamedTuple):
    """The parts of the pause in milliseconds: until nothing ran, the state, the last pages' protection or copies, until
    it ran again. How long it took to look at all pages before. By write protection: what was done about writes; by the
    dirty log: how many rounds there were, and by how many percent the guest was slowed.
    """

    stop_ms: float
    state_ms: float
    pages_ms: float
    resume_ms: float
    prepare_ms: float = 0.0
    counters: LiveCounters = LiveCounters()
    rounds: int = 0
    throttle: int = 0


class Mechanism(Protocol):
    """How the pages of one moment come into the file while the guest runs."""

    name: str
    """What users are told."""

    async def prepare(self) -> None:
        """All pages once, while the guest runs. Raises `UserError`, as all of these."""

    async def settle(self) -> None:
        """While it runs: until a pause is short."""

    async def freeze(self) -> bool:
        """The moment, in the pause. False: it is too early, and the guest is to go on and to `settle` again."""

    async def write(self) -> None:
        """The rest of the pages, as they were at the moment."""

    def told(self, report: LiveReport) -> LiveReport:
        """With what this mechanism knows."""


class LiveMachine(SavingMachine):
    """Held for as short as possible: its disks are flushed before and afterwards."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._local = True

    def tracker(self) -> DirtyTracker:
        """See `LeavingGuest`. It need not know what is free."""
        self._tracker = make_tracker(self._board, self._board.device_log)
        return self._tracker

    def flush(self) -> None:
        """Have its disks' data safe. On a worker thread. Raises `HostError`."""
        if self._board.devices is not None:
            self._board.devices.flush_disks()


class LiveSaving:
    """The pages and the moment of one save. `held` is told when the guest is asked to stop, and when it runs."""

    def __init__(self, machine: Machine, writer: SnapshotWriter, held: Callable[[bool], None]) -> None:
        """Raises `UserError` for what cannot be saved like this."""
        if writer.key.kind:
            raise UserError(
                "a live snapshot cannot be encrypted: its pages are written before they change",
                "save without --live, or encrypt the file afterwards",
            )
        self.report: LiveReport | None = None
        self.by = ""
        """The mechanism, once it is known."""
        self._machine = machine
        self._guest = LiveMachine(machine)
        self._writer = writer
        self._held = held

    async def write(self) -> Description:
        """All of it but the end of the file. Raises `UserError`; cancelled or not, the guest is as before then."""
        machine = self._machine
        await trio.to_thread.run_sync(self._guest.flush)
        description = await trio.to_thread.run_sync(describe_machine, machine, (), False)
        async with mechanism(self._guest, machine, self._writer) as memory:
            self.by = memory.name
            began = time.perf_counter()
            await memory.prepare()
            prepared = time.perf_counter()
            sections, running = await self._moment(memory)
            description = description._replace(
                saved_at_ns=time.time_ns(), running=running, disks=tuple(disk_files(machine.config))
            )
            await memory.write()
            assert self.report is not None
            self.report = memory.told(self.report._replace(prepare_ms=(prepared - began) * 1e3))
        await trio.to_thread.run_sync(self._guest.flush)
        return description._replace(sections=pack_sections(sections))

    async def _moment(self, memory: Mechanism) -> tuple[tuple[Section, ...], bool]:
        frozen = False
        with attentive():
            while not frozen:
                await memory.settle()
                began = time.perf_counter()
                self._held(True)
                try:
                    async with self._guest.held() as running:
                        stopped = time.perf_counter()
                        sections = await self._guest.save()
                        saved = time.perf_counter()
                        # Last, because to read a vCPU's state may write to RAM.
                        frozen = await memory.freeze()
                        done = time.perf_counter()
                finally:
                    self._held(False)
        parts = [(later - earlier) * 1e3 for earlier, later in
                 ((began, stopped), (stopped, saved), (saved, done), (done, time.perf_counter()))]  # fmt: skip
        self.report = LiveReport(parts[0], parts[1], parts[2], parts[3])
        return sections, running


@asynccontextmanager
async def mechanism(guest: LiveMachine, machine: Machine, writer: SnapshotWriter) -> AsyncIterator[Mechanism]:
    """Write protection where it works, else the dirty log; undone behind the block. Raises `UserError`."""
    async with AsyncExitStack() as stack:
        found: Mechanism
        try:
            live = await stack.enter_async_context(frozen_ram(machine.board.ram))
            found = WriteProtected(live, writer, len(machine.board.ram.blocks))
        except HostError:
            from tvmm.wiring.log_saving import logged

            found = await stack.enter_async_context(logged(guest, writer))
        yield found


class WriteProtected:
    """A `Mechanism`."""

    name = "write-protection"

    def __init__(self, live: Frozen, writer: SnapshotWriter, blocks: int) -> None:
        """`live` has the first `blocks` blocks of the file."""
        self._live = live
        self._writer = writer
        self._blocks = blocks

    async def prepare(self) -> None:
        """See `Mechanism`, as all of these."""
        await trio.to_thread.run_sync(self._live.arm)

    async def settle(self) -> None:
        """What was written is protected again."""
        for _ in range(ROUNDS):
            if await trio.to_thread.run_sync(self._live.rearm) <= FEW_PAGES:
                break

    async def freeze(self) -> bool:
        """It takes no worker thread's time to begin."""
        self._live.freeze()
        return True

    async def write(self) -> None:
        """Each page before it changes."""
        live, pages = self._live, self._writer.pages
        waker = _Abandoner(live)

        def write() -> None:
            yielding(lambda: live.write(pages))

        def write_images() -> None:
            pages.leave(self._blocks)
            with suppress(InterruptedError):
                pages.write(waker)

        try:
            await run_together([*[write] * THREADS, write_images], waker)
        except HostError as error:
            raise self._writer.cannot(error.message) from error
        finally:
            waker.close()

    def told(self, report: LiveReport) -> LiveReport:
        """What trapped."""
        return report._replace(counters=self._live.counters())


class _Abandoner(Waker):
    """Ends the threads that write pages, of RAM and of images."""

    def __init__(self, live: Frozen) -> None:
        super().__init__()
        self._live = live

    def wake(self) -> None:
        """See `Waker`."""
        self._live.abandon()
        super().wake()


@asynccontextmanager
async def frozen_ram(ram: GuestRam) -> AsyncIterator[Frozen]:
    """All blocks, with writes trapped within the block. Raises `HostError` where that cannot be."""
    lazily = [block.name for block in ram.blocks.values() if block.unmap_file is not None]
    if lazily:
        raise HostError(f"{lazily[0]} is mapped from the snapshot that the machine was restored from")
    files = {name: block.fd for name, block in ram.blocks.items() if block.fd >= 0}
    grains = [os.fstatvfs(block.fd).f_bsize if block.fd >= 0 else 0 for block in ram.blocks.values()]
    pages = RamPages([(name, block.view) for name, block in ram.blocks.items()], files=files)
    live = None
    try:
        live = Frozen(pages, grains=grains)
        await trio.to_thread.run_sync(live.open)
        ram.before_drop = live.secure
        yield live
    finally:
        ram.before_drop = None
        if live is not None:
            live.abandon()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_end, live)
        pages.close()


def _end(live: Frozen) -> None:
    try:
        live.end()
    finally:
        live.close()
