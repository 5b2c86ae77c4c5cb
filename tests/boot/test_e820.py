"""The memory map."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.boot.e820 import RAM, RESERVED, MapEntry, memory_map
from tvmm.memory.layout import BASE_MEMORY_END, HIGH_MEMORY, HOLE_START, ONE_MIB, ram_ranges


def test_small_machine() -> None:
    """Base memory, the reserved rest of the first MiB, and what is above it."""
    assert memory_map(64 << 20) == (
        MapEntry(0, BASE_MEMORY_END, RAM),
        MapEntry(BASE_MEMORY_END, ONE_MIB - BASE_MEMORY_END, RESERVED),
        MapEntry(ONE_MIB, 63 << 20, RAM),
    )


def test_large_machine() -> None:
    """RAM that does not fit below the hole goes on at 4 GiB."""
    assert memory_map(5 << 30)[2:] == (
        MapEntry(ONE_MIB, HOLE_START - ONE_MIB, RAM),
        MapEntry(HIGH_MEMORY, 2 << 30, RAM),
    )


@settings(deadline=None, max_examples=200)
@given(st.integers(min_value=ONE_MIB + 1, max_value=1 << 42))
def test_every_size(size: int) -> None:
    """The map is sorted, has no overlap and no empty entry, and covers all RAM exactly."""
    entries = memory_map(size)
    assert all(entry.size > 0 for entry in entries)
    ends = [entry.start + entry.size for entry in entries]
    assert all(end <= entry.start for end, entry in zip(ends, entries[1:], strict=False))
    assert sum(entry.size for entry in entries) == sum(part.size for part in ram_ranges(size)) == size
    assert ends[-1] == ram_ranges(size)[-1].end
