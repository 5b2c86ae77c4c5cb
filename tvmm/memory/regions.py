"""Which guest-physical addresses are backed by which RAM block: one sorted table, checked at each access.

A RAM block is a named run of host memory (``pc.ram``, ``vga.vram``); a region maps a part of it to a guest-physical
address. Looking up an address is a bisection, and an access must lie wholly inside regions that touch.

A region may move while others look: a change makes a new table, and who is in the old one stays in the old one.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ConfigError, MemoryAccessError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Region", "RegionTable"]

ADDRESS_LIMIT = 1 << 52


class Region(NamedTuple):
    """`size` bytes of block `block`, from `offset` on, seen by the guest at `gpa`.

    One that `moves` is where the guest has put it: nothing that is made once, such as a DMA map, has it.
    """

    gpa: int
    size: int
    block: str
    offset: int
    read_only: bool = False
    moves: bool = False

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.gpa + self.size


class RegionTable:
    """Regions in ascending order that do not overlap."""

    def __init__(self) -> None:
        self._table: tuple[tuple[int, ...], tuple[Region, ...]] = ((), ())

    def __iter__(self) -> Iterator[Region]:
        return iter(self._table[1])

    def __len__(self) -> int:
        return len(self._table[1])

    def fixed(self) -> Iterator[Region]:
        """Those that do not move."""
        return (region for region in self if not region.moves)

    def add(self, region: Region) -> None:
        """Insert it. Raises `ConfigError` for an empty, wrapping or overlapping one."""
        if region.size <= 0 or region.gpa < 0 or region.offset < 0 or region.end > ADDRESS_LIMIT:
            raise ConfigError(f"memory region {region.gpa:#x}+{region.size:#x} is empty or leaves the address space")
        starts, regions = self._table
        index = bisect_right(starts, region.gpa)
        for neighbour in regions[max(index - 1, 0) : index + 1]:
            if region.gpa < neighbour.end and neighbour.gpa < region.end:
                raise ConfigError(
                    f"memory region {region.gpa:#x}+{region.size:#x} of {region.block} overlaps "
                    f"{neighbour.gpa:#x}+{neighbour.size:#x} of {neighbour.block}"
                )
        self._table = (
            (*starts[:index], region.gpa, *starts[index:]),
            (*regions[:index], region, *regions[index:]),
        )

    def remove(self, region: Region) -> None:
        """Take it out. Raises `ValueError` if it is not there."""
        starts, regions = self._table
        index = regions.index(region)
        self._table = starts[:index] + starts[index + 1 :], regions[:index] + regions[index + 1 :]

    def find(self, gpa: int) -> Region | None:
        """The region that holds `gpa`, if there is one."""
        starts, regions = self._table
        index = bisect_right(starts, gpa) - 1
        if index < 0:
            return None
        region = regions[index]
        return region if gpa < region.end else None

    def spans(self, gpa: int, length: int) -> list[tuple[Region, int, int]]:
        """The access as pieces (region, offset into its block, length), in order.

        Raises `MemoryAccessError` unless all of it is backed; a length of 0 needs no backing.
        """
        if length < 0:
            raise MemoryAccessError(f"access of {length} bytes at {gpa:#x}")
        pieces = []
        at, left = gpa, length
        while left:
            region = self.find(at)
            if region is None:
                raise MemoryAccessError(f"guest address {at:#x} is not RAM (access of {length} bytes at {gpa:#x})")
            count = min(left, region.end - at)
            pieces.append((region, region.offset + at - region.gpa, count))
            at += count
            left -= count
        return pieces
