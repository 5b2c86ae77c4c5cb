"""A machine that is saved while it runs: it is held for its state alone, and its pages follow, as they were then.

`tvmm/kvm/live.h` has what happens to the pages. Before the guest is held all of them are protected once, and those that
it wrote meanwhile again, until few are left. In the pause its state is taken and these few are protected: that is the
moment. Then it goes on, and threads write pages, each before it changes.

What drops pages in between, a reset or a balloon, waits until they are saved (`GuestRam.before_drop`). Disks are
flushed before the pause, so that little is left to do, and after it, so that they are no less safe than the file.
"""

from __future__ import annotations

import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import trio

from tvmm.errors import HostError, UserError
from tvmm.kvm.live import Frozen, LiveCounters
from tvmm.kvm.pages import RamPages
from tvmm.kvm.serve import Waker
from tvmm.migration.threads import attentive, run_together, yielding
from tvmm.state import pack_sections
from tvmm.wiring.saving import SavingMachine, describe_machine, disk_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tvmm.machine import Machine
    from tvmm.memory.ram import GuestRam
    from tvmm.snapshot.description import Description
    from tvmm.snapshot.writer import SnapshotWriter
    from tvmm.state import Section

__all__ = ["LiveMachine", "LiveReport", "LiveSaving"]

THREADS = 2
"""They share the processors with the guest."""
ROUNDS, FEW_PAGES = 8, 128
"""How often what the guest wrote is protected again before it is held, at most, and when it is little enough: so many
pages take a quarter of a millisecond."""


class LiveReport(NamedTuple):
    """The parts of the pause in milliseconds: until nothing ran, the state, the last pages' protection, until it ran
    again. What was done about writes, and how long it took to protect all pages before.
    """

    stop_ms: float
    state_ms: float
    protect_ms: float
    resume_ms: float
    arm_ms: float
    counters: LiveCounters


class LiveMachine(SavingMachine):
    """Held for as short as possible: its disks are flushed before and afterwards."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._local = True

    def flush(self) -> None:
        """Have its disks' data safe. On a worker thread. Raises `HostError`."""
        if self._board.devices is not None:
            self._board.devices.flush_disks()


class LiveSaving:
    """The pages and the moment of one save. `held` is told the times, of `time.perf_counter`, at which the guest is
    asked to stop, and at which it runs.
    """

    def __init__(self, machine: Machine, writer: SnapshotWriter, held: Callable[[bool], None]) -> None:
        """Raises `UserError` for what cannot be saved like this."""
        if writer.key.kind:
            raise UserError(
                "a live snapshot cannot be encrypted: its pages are written before they change",
                "save without --live, or encrypt the file afterwards",
            )
        self.report: LiveReport | None = None
        self._machine = machine
        self._guest = LiveMachine(machine)
        self._writer = writer
        self._held = held
        self._arm_ms = 0.0

    async def write(self) -> Description:
        """All of it but the end of the file. Raises `UserError`; cancelled or not, the guest is as before then."""
        machine = self._machine
        await trio.to_thread.run_sync(self._guest.flush)
        description = await trio.to_thread.run_sync(describe_machine, machine, (), False)
        async with frozen_ram(machine.board.ram) as live:
            await self._protect(live)
            sections, running = await self._moment(live)
            description = description._replace(
                saved_at_ns=time.time_ns(), running=running, disks=tuple(disk_files(machine.config))
            )
            await self._pages(live)
            assert self.report is not None
            self.report = self.report._replace(counters=live.counters())
        await trio.to_thread.run_sync(self._guest.flush)
        return description._replace(sections=pack_sections(sections))

    async def _protect(self, live: Frozen) -> None:
        began = time.perf_counter()
        await trio.to_thread.run_sync(live.arm)
        self._arm_ms = (time.perf_counter() - began) * 1e3

    async def _moment(self, live: Frozen) -> tuple[tuple[Section, ...], bool]:
        with attentive():
            for _ in range(ROUNDS):
                if await trio.to_thread.run_sync(live.rearm) <= FEW_PAGES:
                    break
            began = time.perf_counter()
            self._held(True)
            try:
                async with self._guest.held() as running:
                    stopped = time.perf_counter()
                    sections = await self._guest.save()
                    saved = time.perf_counter()
                    # Last, because to read a vCPU's state may write to RAM. It takes no worker thread's time to begin.
                    live.freeze()
                    frozen = time.perf_counter()
            finally:
                self._held(False)
        parts = [(later - earlier) * 1e3 for earlier, later in
                 ((began, stopped), (stopped, saved), (saved, frozen), (frozen, time.perf_counter()))]  # fmt: skip
        self.report = LiveReport(parts[0], parts[1], parts[2], parts[3], self._arm_ms, live.counters())
        return sections, running

    async def _pages(self, live: Frozen) -> None:
        pages = self._writer.pages
        waker = _Abandoner(live)

        def write() -> None:
            yielding(lambda: live.write(pages))

        def write_images() -> None:
            pages.leave(len(self._machine.board.ram.blocks))
            pages.write(waker)

        try:
            await run_together([*[write] * THREADS, write_images], waker)
        except HostError as error:
            raise self._writer.cannot(error.message) from error
        finally:
            waker.close()


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
    """All blocks, with writes trapped within the block. Raises `UserError` where that cannot be."""
    lazily = [block.name for block in ram.blocks.values() if block.unmap_file is not None]
    if lazily:
        raise UserError(
            f"{lazily[0]} is still mapped from the snapshot that the machine was restored from",
            "save without --live, or restore with --eager",
        )
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
