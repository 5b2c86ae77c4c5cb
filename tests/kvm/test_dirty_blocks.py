"""Blocks of a disk that were written: C against its twin in Python, and several threads at once."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.plain_dirty import PlainDirty
from tvmm.kvm.dirty_blocks import DirtyBlocks, all_zero

GRAIN = 4096
SIZES = st.integers(0, 200 * GRAIN + 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("mark"), st.integers(0, 210 * GRAIN), st.integers(0, 140 * GRAIN)),
        st.tuples(st.just("take"), st.integers(0, 210 * GRAIN), st.integers(0, 150 * GRAIN)),
        st.tuples(st.just("fill"), st.just(0), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(SIZES, STEPS)
def test_the_same_runs_as_in_python(size: int, steps: list[tuple[str, int, int]]) -> None:
    """Marks, runs that are taken, and what is left, for any size and any order."""
    ours, plain = DirtyBlocks(size, GRAIN), PlainDirty(size, GRAIN)
    for what, first, second in steps:
        if what == "mark":
            ours.mark(first, second)
            plain.mark(first, second)
        elif what == "fill":
            ours.fill()
            plain.fill()
        else:
            assert ours.take(first, second) == plain.take(first, second)
        assert ours.count_bytes() == plain.count_bytes()


def test_marks_behind_the_end_are_nobodys() -> None:
    """A mark that begins, or goes on, behind the last block touches no other memory."""
    blocks = DirtyBlocks(65 * GRAIN, GRAIN)
    blocks.mark(64 * GRAIN, 1 << 62)
    blocks.mark(1 << 62, 1 << 20)
    assert blocks.count_bytes() == GRAIN


def test_no_mark_is_lost_to_a_taker() -> None:
    """Threads mark blocks, each after it has counted; what a taker sees last is what was counted last."""
    blocks = DirtyBlocks(256 * GRAIN, GRAIN)
    counts, seen = [0] * 256, [0] * 256

    def write(first: int) -> None:
        for turn in range(1500):
            block = (first + turn * 7) % 128 + first // 128 * 128
            counts[block] += 1
            blocks.mark(block * GRAIN, 1)

    # Each has its own half: counting is no atomic step.
    writers = [threading.Thread(target=write, args=(half * 128,)) for half in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers) or blocks.count_bytes():
        run = blocks.take(0, 64 * GRAIN)
        for block in range(run[0] // GRAIN, (run[0] + run[1]) // GRAIN) if run else ():
            seen[block] = counts[block]
    assert seen == counts


@pytest.mark.parametrize("length", [0, 1, 2, 63, 64, 4096])
def test_zeroes_are_told(length: int) -> None:
    """Any byte that is not zero counts, wherever it is."""
    assert all_zero(bytes(length))
    for place in {0, length // 2, length - 1} if length else ():
        data = bytearray(length)
        data[place] = 1
        assert not all_zero(data)


@pytest.mark.parametrize(("size", "grain"), [(-1, 4096), (1, 0), (1, 3)])
def test_no_such_blocks(size: int, grain: int) -> None:
    """Sizes that are none are refused."""
    with pytest.raises(ValueError, match="no blocks"):
        DirtyBlocks(size, grain)
