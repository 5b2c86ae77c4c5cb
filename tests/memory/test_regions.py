"""The region table: what is backed by what, and refusal of everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.errors import ConfigError, MemoryAccessError
from tvmm.memory.layout import HIGH_MEMORY, HOLE_START, Range, ram_ranges
from tvmm.memory.regions import ADDRESS_LIMIT, Region, RegionTable


def table(*regions: Region) -> RegionTable:
    """A table of these regions."""
    made = RegionTable()
    for region in regions:
        made.add(region)
    return made


def test_ram_leaves_the_hole_out() -> None:
    """RAM above 3 GiB goes on at 4 GiB, and none is lost."""
    assert ram_ranges(1 << 30) == (Range(0, 1 << 30),)
    assert ram_ranges(HOLE_START) == (Range(0, HOLE_START),)
    assert ram_ranges(5 << 30) == (Range(0, HOLE_START), Range(HIGH_MEMORY, 2 << 30))


def test_an_access_may_span_touching_regions() -> None:
    """Pieces come in order and cover the access."""
    regions = table(Region(0, 0x1000, "a", 0), Region(0x1000, 0x1000, "b", 0x500))
    assert [(piece[0].block, *piece[1:]) for piece in regions.spans(0xFFE, 4)] == [("a", 0xFFE, 2), ("b", 0x500, 2)]


@pytest.mark.parametrize(("gpa", "length"), [(0x1000, 1), (0xFFF, 2), (0, -1), (1 << 60, 1), (0x1FFF, 2)])
def test_an_access_outside_is_refused(gpa: int, length: int) -> None:
    """Not one byte may lie outside."""
    regions = table(Region(0, 0x1000, "a", 0), Region(0x1800, 0x800, "b", 0))
    with pytest.raises(MemoryAccessError):
        regions.spans(gpa, length)


@pytest.mark.parametrize(
    "region",
    [
        Region(0xFFF, 2, "b", 0),
        Region(0, 0x3000, "b", 0),
        Region(0x5000, 0, "b", 0),
        Region(-1, 1, "b", 0),
        Region(ADDRESS_LIMIT - 1, 2, "b", 0),
    ],
)
def test_bad_regions_are_refused(region: Region) -> None:
    """Overlap, nothing, and wrap-around are errors and change nothing."""
    regions = table(Region(0, 0x1000, "a", 0), Region(0x2000, 0x1000, "c", 0))
    with pytest.raises(ConfigError):
        regions.add(region)
    assert len(regions) == 2


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=12), st.integers(0, 50), st.integers(0, 12))
def test_spans_agree_with_a_byte_map(wanted: list[tuple[int, int]], gpa: int, length: int) -> None:
    """Looking up by bisection gives what a map of every byte gives."""
    regions, owner = RegionTable(), {}
    for number, (start, size) in enumerate(wanted):
        covered = range(start, start + size)
        if any(byte in owner for byte in covered):
            with pytest.raises(ConfigError):
                regions.add(Region(start, size, str(number), 100 * number))
            continue
        regions.add(Region(start, size, str(number), 100 * number))
        owner.update({byte: (str(number), 100 * number + byte - start) for byte in covered})
    expected = [owner.get(byte) for byte in range(gpa, gpa + length)]
    if None in expected:
        with pytest.raises(MemoryAccessError):
            regions.spans(gpa, length)
    else:
        found = [
            (region.block, offset + index)
            for region, offset, count in regions.spans(gpa, length)
            for index in range(count)
        ]
        assert found == expected


def test_a_region_that_moves() -> None:
    """It goes from one place to another; who looks at the table in between sees it at the old place or not at all."""
    fixed, here = Region(0, 0x1000, "a", 0), Region(0x4000, 0x1000, "b", 0, moves=True)
    regions = table(fixed, here)
    looking = iter(regions)
    assert list(regions.fixed()) == [fixed]
    regions.remove(here)
    assert regions.find(0x4000) is None
    assert len(regions) == 1
    there = here._replace(gpa=0x2000)
    regions.add(there)
    assert regions.find(0x2FFF) == there
    assert list(looking) == [fixed, here]
    with pytest.raises(ValueError, match="not in tuple"):
        regions.remove(here)
