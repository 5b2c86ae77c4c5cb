"""The memory map that a PC's firmware would give: which physical addresses are RAM that the kernel may use.

Both boot protocols carry the same entries (ACPI 6, table 15-4 has the type numbers), packed differently.
The 3 GiB to 4 GiB hole is in no entry: kernels place PCI windows where nothing is claimed.
"""

from __future__ import annotations

from typing import NamedTuple

from tvmm.memory.layout import BASE_MEMORY_END, ONE_MIB, ram_ranges

__all__ = ["RAM", "RESERVED", "MapEntry", "memory_map"]

RAM = 1
RESERVED = 2


class MapEntry(NamedTuple):
    """`size` bytes from `start` are of the E820 type `kind`."""

    start: int
    size: int
    kind: int


def memory_map(ram_size: int) -> tuple[MapEntry, ...]:
    """The map of a machine with `ram_size` bytes of RAM, sorted, without overlaps.

    The last KiB of base memory (the MP table) and the legacy window up to 1 MiB are reserved. `ram_size`
    must be more than 1 MiB.
    """
    low, *high = ram_ranges(ram_size)
    return (
        MapEntry(0, BASE_MEMORY_END, RAM),
        MapEntry(BASE_MEMORY_END, ONE_MIB - BASE_MEMORY_END, RESERVED),
        MapEntry(ONE_MIB, low.size - ONE_MIB, RAM),
        *(MapEntry(part.start, part.size, RAM) for part in high),
    )
