"""A balloon, from its options, and what there is to tell of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tvmm.control.balloon_target import BalloonInfo
from tvmm.kvm.discard import resident_bytes
from tvmm.memory.ram import MAIN_BLOCK
from tvmm.virtio.balloon import PAGE_BYTES, STATS, Balloon, BalloonSettings
from tvmm.virtio.runner.balloon import BalloonRunner
from tvmm.virtio.runner.balloon_memory import BalloonMemory
from tvmm.wiring.measures import balloon_samples
from tvmm.wiring.ring import ring_features

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.board import Board
    from tvmm.config.balloon import BalloonConfig
    from tvmm.memory.ram import GuestRam
    from tvmm.wiring.devices import Devices

__all__ = ["BalloonPart", "make_balloon"]


class BalloonPart:
    """`BalloonTarget` of `tvmm.control.balloon_target`, over `runner`."""

    def __init__(self, name: str, runner: BalloonRunner, ram: GuestRam) -> None:
        self.runner = runner
        self._name = name
        self._ram = ram
        self.fresh_stats = runner.fresh_stats
        self.set_interval = runner.set_interval

    def info(self) -> BalloonInfo:
        """See `BalloonTarget`."""
        runner, memory = self.runner, self._ram.size
        model = runner.model
        with runner.ends.bus_lock:
            return BalloonInfo(
                self._name,
                memory,
                memory - model.target * PAGE_BYTES,
                memory - model.actual * PAGE_BYTES,
                runner.ready,
                model.settings.deflate_on_oom,
                runner.counters._asdict(),
            )

    async def resident(self) -> int:
        """See `BalloonTarget`."""
        return await trio.to_thread.run_sync(resident_bytes, self._ram.blocks[MAIN_BLOCK])

    def set_memory(self, memory: int) -> None:
        """See `BalloonTarget`."""
        kept = min(memory, self._ram.size)
        with self.runner.ends.bus_lock:
            self.runner.model.set_target((self._ram.size - kept) // PAGE_BYTES)

    def stats(self) -> tuple[Mapping[str, int | None], int]:
        """See `BalloonTarget`."""
        model = self.runner.model
        with self.runner.ends.bus_lock:
            return {name: model.stats.get(tag) for tag, name in enumerate(STATS)}, model.updated

    @property
    def interval_s(self) -> int:
        """See `BalloonTarget`."""
        return self.runner.interval_s


def make_balloon(devices: Devices, board: Board, options: BalloonConfig) -> None:
    """Put it into a slot of `devices`. Raises `UserError`."""
    ram = board.ram
    settings = BalloonSettings(
        ram.size // PAGE_BYTES, options.deflate_on_oom, options.free_page_hint, options.free_page_reporting
    )
    model = Balloon(settings, ring_features(options))
    slot = devices.place(model, options)
    memory = BalloonMemory(ram, prealloc=board.config.memory.prealloc)
    runner = BalloonRunner(model, slot.ends(), memory, devices.warn, options.id)
    devices.host.stack.callback(runner.close)
    runner.set_interval(options.interval_s)
    slot.connect(runner)
    part = devices.balloon = BalloonPart(options.id, runner, ram)
    devices.measures[options.id] = lambda: balloon_samples(part.info())
    runner.on_change = lambda: devices.on_event("BALLOON_CHANGE", {"actual": part.info().actual}, "")
