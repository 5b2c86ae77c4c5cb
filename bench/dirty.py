"""Dirty tracking: what it costs the guest that writes, and whoever looks, for each tracker.

    python -m bench.dirty [--seconds N] [--rates 20000,100000,0] [--period-ms 20] [--size-mib 256]

The built-in guest's `dirty` writes pages at a rate (0: flat out) while a thread looks each period and has the pages
protected again, chunk by chunk as lanes do it, without sending anything. Figures: pages/s that the guest reached,
its longest pause, pages found at each look, milliseconds of a look and of protecting again. "off" is the guest without
tracking. Last come the parts of tracking 4 GiB in which nothing is written.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from itertools import pairwise
from typing import NamedTuple

import trio

from tvmm import Machine, MachineConfig
from tvmm.board import Board
from tvmm.kvm.calls import lib
from tvmm.kvm.dirty_log import DirtyTracker, KvmBitmapTracker, make_tracker
from tvmm.kvm.lanes import CHUNK_PAGES
from tvmm.kvm.pages import PAGE, PageBitmap, RamPages
from tvmm.kvm.system import Kvm
from tvmm.memory.ram import GuestRam

PROMPT = "tvmm> "
MEMORY_MIB = 512


class RingBoard(Board):
    """One that has dirty rings on every host: this guest stays in user mode, where they do not overflow."""

    def _check_rings(self) -> None:
        pass


class Case(NamedTuple):
    """One way to track."""

    name: str
    ring: int = 0
    manual: bool = True
    chunk: int = 0

    def tracker(self, board: Board) -> DirtyTracker:
        """Of this kind."""
        return make_tracker(board) if self.ring else KvmBitmapTracker(board.vm, board.ram, manual=self.manual)


CASES = (
    Case("off"),
    Case("bitmap, plain", manual=False),
    Case("bitmap, manual, chunks of 512", chunk=512),
    Case("bitmap, manual, chunks of 4096", chunk=4096),
    Case("bitmap, manual, chunks of 16384", chunk=16384),
    Case("ring of 4096", ring=4096),
    Case("ring of 65536", ring=65536),
)


class Looks(NamedTuple):
    """What the looks found and took."""

    pages: list[int]
    look_ms: list[float]
    protect_ms: list[float]

    def __str__(self) -> str:
        if not self.pages:
            return ""
        found, look, protect = (statistics.median(values) for values in self)
        cost = 1e3 * (sum(self.look_ms) + sum(self.protect_ms)) / max(sum(self.pages), 1)
        return f"  {found:8.0f} pages/look, look {look:6.3f} ms, protect {protect:6.3f} ms, {cost:6.3f} us/page"


def protect(tracker: DirtyTracker, bitmap: PageBitmap, chunk: int) -> None:
    """Have the pages in `bitmap` protected again, as lanes do."""
    block = bitmap.raw.blocks[0]
    for first in range(0, block.pages, chunk):
        count = min(chunk, block.pages - first)
        lib.tvmm_log_clear(tracker.log, 0, first, count, block.words + first // 64)


def look(case: Case, board: Board, bitmap: PageBitmap, tracker: DirtyTracker, end: float, period: float) -> Looks:
    """Look until `end`, on a thread."""
    looks = Looks([], [], [])
    while time.monotonic() < end:
        started = time.perf_counter()
        looks.pages.append(tracker.sync(bitmap))
        looked = time.perf_counter()
        if tracker.log is not None:
            protect(tracker, bitmap, case.chunk)
        done = time.perf_counter()
        bitmap.clear()
        looks.look_ms.append((looked - started) * 1e3)
        looks.protect_ms.append((done - looked) * 1e3)
        time.sleep(max(0.0, period - (time.perf_counter() - started)))
    return looks


async def measure(case: Case, rate: int, options: argparse.Namespace) -> None:
    """One guest, from its start to its figures."""
    memory = f"{MEMORY_MIB}M" + (f",dirty-ring={case.ring}" if case.ring else "")
    config = MachineConfig.parse(memory=memory)
    board = await trio.to_thread.run_sync(RingBoard if case.ring else Board, config)
    async with Machine(config, board=board) as vm:
        await vm.resume()
        await vm.wait_serial(PROMPT)
        # Once over all of it, so that no page is allocated while it counts.
        await vm.send_serial(f"dirty 0 {options.size_mib}M 1\n")
        await vm.wait_serial(PROMPT)
        tracker, looks = None, Looks([], [], [])
        if case.name != "off":
            tracker = case.tracker(board)
            bitmap = PageBitmap([block.name for block in board.ram.blocks.values()], [MEMORY_MIB * (1 << 20) // PAGE])
            await trio.to_thread.run_sync(tracker.start)
        await vm.send_serial(f"dirty {rate} {options.size_mib}M {options.seconds}\n")
        if tracker is not None:
            end = time.monotonic() + options.seconds - 0.2
            looks = await trio.to_thread.run_sync(look, case, board, bitmap, tracker, end, options.period_ms / 1e3)
        text = (await vm.wait_serial(PROMPT)).decode()
        if tracker is not None:
            await trio.to_thread.run_sync(tracker.stop)
        found = re.search(r": (\d+) pages/s, (\d+) errors, longest pause (\d+) us", text)
        if not found or found[2] != "0":
            raise SystemExit(f"the guest printed {text!r}")
        exits = f", {board.rings.full_exits} full" if board.rings is not None else ""
        print(f"  {case.name:32} {int(found[1]):8} pages/s, pause {int(found[3]):7} us{looks}{exits}", flush=True)


def clean_scan() -> None:
    """4 GiB in a VM without a vCPU: milliseconds of the start, of protecting all of it once, of a look, of the end."""
    config = MachineConfig.parse(memory="4G").memory
    for manual in (False, True):
        with Kvm() as kvm:
            vm = kvm.create_vm()
        ram = GuestRam(config)
        for slot, region in enumerate(ram.regions):
            vm.set_memory(slot, region.gpa, ram.blocks[region.block].view[region.offset : region.offset + region.size])
        pages = RamPages((name, block.view) for name, block in ram.blocks.items())
        bitmap, tracker = PageBitmap.of(pages), KvmBitmapTracker(vm, ram, manual=manual)
        times = [time.perf_counter()]
        tracker.start()
        times.append(time.perf_counter())
        tracker.sync(bitmap)
        if tracker.log is not None:
            protect(tracker, bitmap, CHUNK_PAGES)
        bitmap.clear()
        times.append(time.perf_counter())
        if tracker.sync(bitmap):
            raise SystemExit("somebody wrote")
        times.append(time.perf_counter())
        tracker.stop()
        times.append(time.perf_counter())
        pages.close()
        vm.release_memory()
        ram.close()
        vm.close()
        start, first, again, stop = ((after - before) * 1e3 for before, after in pairwise(times))
        print(
            f"  {'manual' if manual else 'plain':8} start {start:.2f}, first look and protection {first:.2f}, "
            f"look {again:.3f} (goal: below 2), stop {stop:.2f} ms"
        )


def main() -> None:
    """All cases at all rates."""
    parser = argparse.ArgumentParser(description="the cost of dirty tracking")
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rates", default="20000,100000,0")
    parser.add_argument("--period-ms", type=float, default=20.0)
    parser.add_argument("--size-mib", type=int, default=256)
    options = parser.parse_args()
    for rate in map(int, options.rates.split(",")):
        print(f"{rate} pages/s" if rate else "flat out")
        for case in CASES:
            trio.run(measure, case, rate, options)
    print("4 GiB, nothing written")
    clean_scan()


if __name__ == "__main__":
    main()
