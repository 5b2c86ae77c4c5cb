"""Guest RAM as a balloon deals with it: which of the guest's pages can be given back, and giving them back.

Only ordinary pages of the main block are. Page numbers that the driver makes up, or that mean a screen's memory, a ROM
or nothing at all, are left out and counted: such a driver harms nobody but itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.kvm.discard import discard, populate
from tvmm.memory.ram import MAIN_BLOCK
from tvmm.virtio.balloon import PAGE_BYTES, merge_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tvmm.memory.ram import GuestRam

__all__ = ["BalloonMemory", "Runs"]

Runs = list[tuple[int, int]]
"""Pages of the main block as (first, count), rising."""


class BalloonMemory:
    """Of `ram`. With `prealloc` pages that leave the balloon are allocated before the guest has them."""

    def __init__(self, ram: GuestRam, *, prealloc: bool = False) -> None:
        self.prealloc = prealloc
        self._ram = ram
        self._block = ram.blocks[MAIN_BLOCK]
        self._regions = [
            (region.gpa // PAGE_BYTES, region.size // PAGE_BYTES, region.offset // PAGE_BYTES)
            for region in ram.regions
            if region.block == MAIN_BLOCK and not (region.read_only or region.moves)
        ]

    def pages(self, numbers: Iterable[int]) -> tuple[Runs, int]:
        """Where the guest's page numbers lie, and how many of them are no RAM."""
        found: Runs = []
        strange = 0
        for first, count in merge_runs(numbers):
            strange += count
            for start, size, offset in self._regions:
                low, high = max(first, start), min(first + count, start + size)
                if low < high:
                    found.append((low - start + offset, high - low))
                    strange -= high - low
        return found, strange

    def whole_pages(self, pieces: Iterable[tuple[str, int, int]]) -> Runs:
        """The pages that lie whole in (block, offset, length) in bytes, each once."""
        runs: Runs = []
        for block, offset, length in sorted(pieces):
            first, end = -(-offset // PAGE_BYTES), (offset + length) // PAGE_BYTES
            if block != MAIN_BLOCK or end <= first:
                continue
            if runs and first <= sum(runs[-1]):
                start, count = runs[-1]
                runs[-1] = start, max(start + count, end) - start
            else:
                runs.append((first, end - first))
        return runs

    def give_back(self, runs: Sequence[tuple[int, int]]) -> None:
        """To the host, on any thread. Raises `HostError`; migration learns of the pages in any case."""
        for first, count in runs:
            self._ram.about_to_drop(MAIN_BLOCK, first * PAGE_BYTES, count * PAGE_BYTES)
        try:
            discard(self._block, runs)
        finally:
            for first, count in runs:
                self._ram.mark_block(MAIN_BLOCK, first * PAGE_BYTES, count * PAGE_BYTES)

    def take(self, runs: Sequence[tuple[int, int]]) -> None:
        """For pages that the guest is about to use again. Raises `HostError`: then they are allocated when touched."""
        if self.prealloc:
            populate(self._block, runs)
