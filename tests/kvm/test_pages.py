"""Pages and their bits: the C half against Python's sets and hashes."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kvm.lane_rig import Ram
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.discard import resident_bytes
from tvmm.kvm.pages import PAGE, PageBitmap, RamPages, ram_hash
from tvmm.kvm.serve import Waker
from tvmm.memory.ram import RamBlock

NAMES, PAGES = ("a", "b"), (130, 64)


@given(st.lists(st.tuples(st.integers(0, 129), st.integers(0, 129))), st.sets(st.integers(0, 129)))
def test_bitmap_is_a_set(runs: list[tuple[int, int]], others: set[int]) -> None:
    """Runs that are marked, and another bitmap's bits, are what is set; new ones are counted once."""
    bitmap, other, model = PageBitmap(NAMES, PAGES), PageBitmap(NAMES, PAGES), set()
    for first, count in runs:
        count = min(count, 130 - first)
        bitmap.mark("a", first, count)
        model |= set(range(first, first + count))
    for page in others:
        other.mark("a", page)
    assert bitmap.count() == len(model)
    assert bitmap.merge(other) == len(others - model)
    assert {page for page in range(130) if bitmap.test("a", page)} == model | others
    words = bitmap.words("a")
    assert {64 * word + bit for word in range(len(words)) for bit in range(64) if words[word] >> bit & 1} == (
        model | others
    )
    bitmap.fill()
    assert bitmap.count() == 194
    assert bitmap.words("a")[2] == 3
    bitmap.clear()
    assert bitmap.count() == 0


def test_bitmap_refuses_other_pages() -> None:
    """Pages that a block does not have, and bitmaps of other blocks."""
    bitmap = PageBitmap(NAMES, PAGES)
    for first, count in ((130, 1), (-1, 1), (0, 131), (3, -1)):
        with pytest.raises(ValueError, match="has no"):
            bitmap.mark("a", first, count)
    with pytest.raises(ValueError, match="different blocks"):
        bitmap.merge(PageBitmap(NAMES, (130, 65)))


def test_ram_is_whole_pages() -> None:
    """Anything else is refused by name."""
    for size in (0, 100, PAGE + 1):
        with pytest.raises(ValueError, match="block x"):
            RamPages([("x", memoryview(bytearray(size)))])


def test_zero_test_sees_each_byte() -> None:
    """A page is zero if all of its bytes are."""
    with ExitStack() as stack:
        ram = Ram(stack)
        base = ram.pages.raw.blocks[0].base
        assert lib.tvmm_page_is_zero(base)
        for at in range(PAGE):
            ram.blocks[0].view[at] = 1
            assert not lib.tvmm_page_is_zero(base)
            ram.blocks[0].view[at] = 0


def test_page_hash_sees_each_bit_and_the_key() -> None:
    """No two of a page, its neighbours by one bit, and the page under another key hash alike."""
    page = bytearray(os.urandom(PAGE))
    key = ffi.new("uint64_t[]", lib.TVMM_PAGE_KEY)
    ffi.buffer(key)[:] = os.urandom(ffi.sizeof(key))
    seen = {int(lib.tvmm_page_hash(ffi.from_buffer("uint8_t[]", page), key))}
    for bit in range(0, 8 * PAGE, 7):
        page[bit // 8] ^= 1 << bit % 8
        seen.add(int(lib.tvmm_page_hash(ffi.from_buffer("uint8_t[]", page), key)))
        page[bit // 8] ^= 1 << bit % 8
    ffi.buffer(key)[:] = os.urandom(ffi.sizeof(key))
    seen.add(int(lib.tvmm_page_hash(ffi.from_buffer("uint8_t[]", page), key)))
    assert len(seen) == 2 + len(range(0, 8 * PAGE, 7))


def test_hash_of_a_block() -> None:
    """SHA-256 of its bytes; a waker ends it."""
    data = os.urandom((4 << 20) + 3 * PAGE)
    waker = Waker()
    try:
        assert ram_hash(memoryview(data), waker) == hashlib.sha256(data).digest()
        waker.wake()
        with pytest.raises(InterruptedError):
            ram_hash(memoryview(data), waker)
    finally:
        waker.close()


def test_populate_allocates_all_of_it() -> None:
    """Each page has memory afterwards, and still reads zero; a waker ends it."""
    block, waker = RamBlock("x", 5 << 20, shared=True), Waker()
    ram = RamPages([("x", block.view)])
    try:
        ram.populate(waker)
        assert os.fstat(block.fd).st_blocks * 512 == 5 << 20
        assert bytes(block.view) == bytes(5 << 20)
        waker.wake()
        with pytest.raises(InterruptedError):
            ram.populate(waker)
    finally:
        ram.close()
        ram.close()
        block.close()
        waker.close()


@pytest.mark.parametrize("holes", [(), (0,), (1,), (3,), (0, 1, 2, 3), (1, 3)])
def test_hash_leaves_holes_alone(holes: tuple[int, ...]) -> None:
    """What was never written, or was given back, counts as zeros and stays away."""
    block = RamBlock("x", 4 * PAGE)
    try:
        for page in set(range(4)) - set(holes):
            block.view[page * PAGE : page * PAGE + 4] = b"data"
        assert resident_bytes(block) == (4 - len(holes)) * PAGE
        expected = hashlib.sha256(b"".join((b"" if page in holes else b"data").ljust(PAGE, b"\0") for page in range(4)))
        assert ram_hash(block.view, None, block.fd) == expected.digest()
        assert resident_bytes(block) == (4 - len(holes)) * PAGE
    finally:
        block.close()
