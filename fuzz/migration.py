"""Migrations of fake guests over a wire that damages them.

    python -m fuzz.migration [--runs 1000] [--seed 1] [--at-once 8]

Openings, messages, frames of pages and of disks that are copied, requests for pages, descriptors of memory, compressed
pieces and TLS records are damaged, cut short, dropped, repeated, put in another order and forged. A post-copy that is
cut is begun anew until it is through. Both sides must end as their tables have it, with the guest on one side at most
and with its disk, raise nothing but what they are to raise, and leave nothing behind.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from typing import TYPE_CHECKING

import trio

from fuzz.common import Watch, fail, options
from tests.support.mangled_runs import PATIENCE, mangled_run
from tests.support.patience import hurry

if TYPE_CHECKING:
    from tests.support.mangled_runs import Ending

WARM_UP_RUNS = 100
REPORT_RUNS = 200
M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3
"""mallopt(3): one heap for all threads, and buffers of a MiB go back to the host, so that growth means a leak."""


async def batch(seeds: list[int], at_once: int, watch: Watch | None) -> Counter[tuple[str, str]]:
    """All of them, some at a time; how often each pair of states was the end."""
    endings: Counter[tuple[str, str]] = Counter()
    todo = iter(seeds)

    async def work() -> None:
        for seed in todo:
            try:
                ending: Ending = await mangled_run(seed)
            except Exception as error:
                error.add_note(f"seed {seed}")
                raise
            endings[ending.source.value, ending.destination.value] += 1
            if watch is not None and not endings.total() % REPORT_RUNS:
                print(f"{endings.total():6} runs  {watch.line()}", flush=True)

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(work)
    return endings


async def main() -> None:
    """All runs, and the figures."""
    chosen = options(
        __doc__ or "",
        (("runs", 1000, "how many"), ("seed", 1, "the first run's"), ("at-once", 8, "runs side by side")),
    )
    hurry(setattr, **PATIENCE)
    libc = ctypes.CDLL(None)
    libc.mallopt(M_ARENA_MAX, 1)
    libc.mallopt(M_MMAP_THRESHOLD, 256 << 10)
    await batch(list(range(WARM_UP_RUNS)), chosen.at_once, None)
    watch = Watch()
    endings = await batch(list(range(chosen.seed, chosen.seed + chosen.runs)), chosen.at_once, watch)
    for (source, destination), count in endings.most_common():
        print(f"{count:6} times {source} at the source, {destination} at the destination")
    if chosen.runs >= 100 and len(endings) < 4:
        fail("the runs did not end in different ways: this shows nothing")
    watch.judge()
    print(watch.line())


if __name__ == "__main__":
    trio.run(main)
