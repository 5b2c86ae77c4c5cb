"""Pages into and out of a file: C against a plain twin, holes, and everything that can be wrong with a file."""

from __future__ import annotations

import mmap
import os
import random
import threading
from typing import TYPE_CHECKING

import pytest

from tvmm.errors import HostError, ImageError
from tvmm.kvm.serve import Waker
from tvmm.kvm.snapshot import CHUNK_PAGES, PageSource, SnapshotPages, data_runs, map_chunks, page_sum
from tvmm.memory.ram import RamBlock
from tvmm.snapshot.format import page_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = 4096
SEED = bytes(range(32))
KEY = page_key(SEED)
PAGES = 3 * CHUNK_PAGES + 5
OFFSET = 2 << 20
WORD = (1 << 64) - 1


def plain_sum(page: bytes, number: int, key: bytes) -> int:
    """The twin of `tvmm_snapshot_sum`, from docs/snapshots.md."""
    keys = [int.from_bytes(key[at : at + 8], "little") for at in range(0, len(key), 8)]
    words = [int.from_bytes(page[at : at + 8], "little") for at in range(0, PAGE, 8)]
    total = 0
    for at in range(0, 512, 2):
        total += (words[at] + keys[at] & WORD) * (words[at + 1] + keys[at + 1] & WORD)
    total &= (1 << 128) - 1
    folded = ((total & WORD) + keys[512] & WORD) * ((total >> 64) + keys[513] & WORD)
    mixed = ((folded ^ folded >> 64) & WORD) + (number + 1) * 0x9E3779B97F4A7C15 & WORD
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & WORD
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & WORD
    return mixed ^ mixed >> 31


def memory(pages: int = PAGES) -> mmap.mmap:
    """Zeros at a page's boundary."""
    return mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def scattered(seed: int = 1) -> mmap.mmap:
    """Single pages, runs, a chunk without any, and the last page."""
    dice = random.Random(seed)
    block = memory()
    for page in [0, 1, 5, 40, 41, CHUNK_PAGES - 1, *range(2 * CHUNK_PAGES, 2 * CHUNK_PAGES + 100), PAGES - 1]:
        block[page * PAGE : (page + 1) * PAGE] = dice.randbytes(PAGE)
    return block


@pytest.fixture
def waker() -> Iterator[Waker]:
    """Of the threads of a test."""
    waker = Waker()
    yield waker
    waker.close()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A file that is as long as it has to be."""
    fd = os.open(tmp_path / "pages", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.ftruncate(fd, OFFSET + PAGES * PAGE)
    yield fd
    os.close(fd)


def pages_of(block: mmap.mmap | None, fd: int, sums: bytes | None = None) -> SnapshotPages:
    """One block at `OFFSET`."""
    view = memoryview(block) if block is not None else None
    return SnapshotPages([PageSource("pc.ram", PAGES, OFFSET, view)], KEY, fd, sums=sums)


@pytest.mark.parametrize("seed", range(3))
def test_the_sum_of_a_page_is_that_of_the_twin(seed: int) -> None:
    """It is part of the format: other programs may compute it."""
    dice = random.Random(seed)
    page, number = dice.randbytes(PAGE), dice.randrange(1 << 40)
    assert page_sum(page, number, KEY) == plain_sum(page, number, KEY)


def test_what_is_written_is_there_and_zeros_are_holes(fd: int, waker: Waker) -> None:
    """Each page at its place, the sums those of the twin, and no blocks for a chunk of zeros."""
    block = scattered()
    pages = pages_of(block, fd)
    pages.write(waker)
    sums = memoryview(pages.sums()).cast("Q")
    pages.close()
    assert os.pread(fd, len(block), OFFSET) == block[:]
    for chunk in range(4):
        expected = 0
        for page in range(chunk * CHUNK_PAGES, min((chunk + 1) * CHUNK_PAGES, PAGES)):
            data = block[page * PAGE : (page + 1) * PAGE]
            if any(data):
                expected += plain_sum(data, OFFSET // PAGE + page, KEY)
        assert sums[chunk] == expected & WORD
    assert sums[1] == 0
    try:
        assert os.lseek(fd, OFFSET + CHUNK_PAGES * PAGE, os.SEEK_DATA) >= OFFSET + 2 * CHUNK_PAGES * PAGE
    except OSError:
        pytest.fail("the file has no data")


def test_pages_that_are_put_one_by_one_have_the_same_sums(fd: int, waker: Waker) -> None:
    """In any order, from several threads."""
    block = scattered()
    whole = pages_of(block, fd)
    whole.write(waker)
    order = list(range(PAGES))
    random.Random(3).shuffle(order)
    single = pages_of(memory(), fd)

    def put(part: list[int]) -> None:
        for page in part:
            single.put(0, page, memoryview(block)[page * PAGE : (page + 1) * PAGE])

    threads = [threading.Thread(target=put, args=(order[at::3],)) for at in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert single.sums() == whole.sums()
    assert single.pages_done == whole.pages_done == PAGES
    with pytest.raises(HostError):
        single.put(0, PAGES - 1, memoryview(block)[: 2 * PAGE])


def test_threads_share_the_chunks(fd: int, waker: Waker) -> None:
    """Together they write and read all of it, once."""
    block, copy = scattered(), memory()
    writing = pages_of(block, fd)
    run = [threading.Thread(target=writing.write, args=(waker,)) for _ in range(3)]
    for thread in run:
        thread.start()
    for thread in run:
        thread.join()
    assert writing.pages_done == PAGES
    reading = pages_of(copy, fd, writing.sums())
    threads = [threading.Thread(target=reading.read, args=(waker,), kwargs={"keep": True}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reading.pages_done == PAGES
    assert copy[:] == block[:]


@pytest.mark.parametrize("keep", [False, True])
def test_a_changed_byte_is_found(fd: int, waker: Waker, *, keep: bool) -> None:
    """And told with the number of its chunk."""
    writing = pages_of(scattered(), fd)
    writing.write(waker)
    os.pwrite(fd, b"!", OFFSET + 2 * CHUNK_PAGES * PAGE + 12345)
    reading = pages_of(memory() if keep else None, fd, writing.sums())
    with pytest.raises(ImageError, match=r"checksum of chunk 2 of pc\.ram differs"):
        reading.read(waker, keep=keep)


def test_pages_that_change_places_are_found(fd: int, waker: Waker) -> None:
    """A page's number is part of its sum."""
    writing = pages_of(scattered(), fd)
    writing.write(waker)
    first, second = os.pread(fd, PAGE, OFFSET), os.pread(fd, PAGE, OFFSET + PAGE)
    os.pwrite(fd, second + first, OFFSET)
    with pytest.raises(ImageError, match="chunk 0"):
        pages_of(None, fd, writing.sums()).read(waker, keep=False)


def test_a_file_that_became_shorter_is_found(fd: int, waker: Waker) -> None:
    """While it is open."""
    writing = pages_of(scattered(), fd)
    writing.write(waker)
    os.ftruncate(fd, OFFSET + 2 * CHUNK_PAGES * PAGE)
    with pytest.raises(ImageError, match="chunk 2"):
        pages_of(None, fd, writing.sums()).read(waker, keep=False)


def test_a_disk_that_is_full_is_told(waker: Waker) -> None:
    """As the kernel says it."""
    fd = os.open("/dev/full", os.O_RDWR)
    try:
        with pytest.raises(HostError, match="No space left on device"):
            pages_of(scattered(), fd).write(waker)
    finally:
        os.close(fd)


def test_who_is_woken_stops(fd: int, waker: Waker) -> None:
    """Whoever writes or reads."""
    waker.wake()
    with pytest.raises(InterruptedError):
        pages_of(scattered(), fd).write(waker)
    with pytest.raises(InterruptedError):
        pages_of(None, fd).read(waker, keep=False)


def test_a_file_in_place_of_a_block(fd: int, waker: Waker) -> None:
    """The pages are the file's, what is written stays here, and a block that is zeroed is zero."""
    block = scattered()
    writing = pages_of(block, fd)
    writing.write(waker)
    ram = RamBlock("pc.ram", PAGES * PAGE, shared=False)
    map_chunks(ram, fd, OFFSET, writing.sums())
    assert ram.map[:] == block[:]
    ram.map[:4] = b"mine"
    assert os.pread(fd, 4, OFFSET) == block[:4]
    ram.zero()
    assert not any(ram.map[:])
    ram.close()


@pytest.mark.parametrize(
    ("sums", "runs"),
    [
        ([0] * 8, []),
        ([1, 0, 0, 0, 0, 0, 1, 1, 0], [(0, 2 << 20), (6 << 20, 8 << 20)]),
        ([0, 0, 0, 0, 0, 0, 0, 0, 5], [(8 << 20, 9 << 20)]),
    ],
)
def test_only_what_has_data_is_mapped(sums: list[int], runs: list[tuple[int, int]]) -> None:
    """In pieces of 2 MiB, so that what is left can have huge pages."""
    assert data_runs(sums, 9 << 20) == runs


def test_a_process_does_not_run_out_of_mappings() -> None:
    """Every other piece has data: neighbours are joined, and nothing is left out."""
    sums = [1, 0, 0, 0] * 5000
    runs = data_runs(sums, len(sums) << 20)
    assert len(runs) <= 2000
    for at, data in enumerate(sums):
        assert not data or any(start <= at << 20 < end for start, end in runs)
