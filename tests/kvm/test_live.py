"""Live snapshots of memory that is written to meanwhile: what is decided against a twin, and the rest by threads."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.plain_live import PlainLive
from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.live import CHUNK, CHUNK_BYTES, Frozen
from tvmm.kvm.pages import PAGE, RamPages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SIZES = (4 * CHUNK_BYTES + 7 * PAGE, CHUNK_BYTES, 3 * PAGE)


@contextmanager
def frozen(
    kind: str = "private", sizes: tuple[int, ...] = SIZES, pool: int = 64
) -> Iterator[tuple[Frozen, list[mmap.mmap]]]:
    """Memory of that kind, with a snapshot that was opened."""
    files = {}
    maps = []
    for index, size in enumerate(sizes):
        if kind == "shared":
            files[str(index)] = os.memfd_create("live")
            os.ftruncate(files[str(index)], size)
            maps.append(mmap.mmap(files[str(index)], size, mmap.MAP_SHARED))
        else:
            maps.append(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            maps[-1].madvise(mmap.MADV_HUGEPAGE if kind == "huge" else mmap.MADV_NOHUGEPAGE)
    pages = RamPages([(str(index), memoryview(each)) for index, each in enumerate(maps)], files=files)
    live = Frozen(pages, pool=pool)
    try:
        try:
            live.open()
        except HostError as error:
            pytest.skip(str(error))
        yield live, maps
    finally:
        live.abandon()
        live.end()
        live.close()
        pages.close()
        for fd in files.values():
            os.close(fd)


class Writer(threading.Thread):
    """Writes to pages without the interpreter lock, as whoever waits for the handler must."""

    def __init__(self, maps: list[mmap.mmap], seed: int) -> None:
        super().__init__()
        self._bases = [ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in maps]
        self._pages = [len(each) // PAGE for each in maps]
        self._random = random.Random(seed)
        self._stop_now = False
        self.writes = 0
        self.start()

    def run(self) -> None:
        while not self._stop_now:
            block = self._random.randrange(len(self._bases))
            first = self._random.randrange(self._pages[block])
            count = min(self._random.choice((1, 1, 1, 8, 200)), self._pages[block] - first)
            for page in range(first, first + count):
                place = self._bases[block] + page * PAGE + self._random.randrange(PAGE - 8)
                ctypes.memset(place, self.writes % 255 + 1, 8)
                self.writes += 1

    def stop(self) -> None:
        """Returns when it has written for the last time."""
        self._stop_now = True
        self.join()


def touch(maps: list[mmap.mmap], seed: int) -> None:
    """Something in two pages of three; the others were never there."""
    chosen = random.Random(seed)
    for each in maps:
        for page in range(len(each) // PAGE):
            if chosen.randrange(3):
                each[page * PAGE : page * PAGE + 8] = chosen.randbytes(8)


def taken(live: Frozen, into: list[bytearray]) -> int:
    """Take until there is nothing left; the number of chunks."""
    buffer = bytearray(CHUNK_BYTES)
    count = 0
    while (piece := live.take(buffer)) is not None:
        at = piece.first * PAGE
        into[piece.block][at : at + piece.pages * PAGE] = buffer[: piece.pages * PAGE]
        for page in range(piece.pages):
            if not piece.data[page // 64] >> page % 64 & 1:
                assert not any(buffer[page * PAGE : (page + 1) * PAGE])
        count += 1
    return count


@pytest.mark.parametrize("seed", range(6))
def test_claims_are_those_of_the_twin(seed: int) -> None:
    """Random writes, claims and ends of copies: both decide alike, and what is taken is of the moment."""
    chosen = random.Random(seed)
    sizes = (2 * CHUNK_BYTES + 3 * PAGE, 40 * PAGE)
    memory = [mmap.mmap(-1, size) for size in sizes]
    for each in memory:
        for page in range(len(each) // PAGE):
            if chosen.randrange(3):
                each[page * PAGE] = chosen.randrange(1, 256)
    pages = RamPages([(str(index), memoryview(each)) for index, each in enumerate(memory)])
    live = Frozen(pages, pool=chosen.choice((1, 20, 5000)))
    twin = PlainLive([memoryview(each) for each in memory], int(live.raw.pool_pages))
    first, count = ffi.new("uint64_t *"), ffi.new("uint32_t *")
    open_pages: set[tuple[int, int]] = set()
    copying: list[int] = []
    copies = [bytearray(size) for size in sizes]
    room, piece, absent = ffi.new("uint8_t[]", CHUNK_BYTES), ffi.new("struct tvmm_live_piece *"), ffi.new("uint64_t[8]")

    def write(block: int, page: int) -> None:
        if (block, page) not in open_pages:
            answer = int(lib.tvmm_live_fault(live.raw, block, page, first, count))
            ours = ("lift" if answer == lib.TVMM_LIVE_LIFT else "wait", int(first[0]), int(count[0]))
            theirs = twin.fault(block, page)
            assert ours[0] == theirs[0]
            if ours[0] == "wait":
                return
            assert ours == theirs
            open_pages.update((block, each) for each in range(ours[1], ours[1] + ours[2]))
        assert (block, page) in open_pages
        memory[block][page * PAGE] = chosen.randrange(256)

    def write_some() -> None:
        block = chosen.randrange(2)
        start = chosen.randrange(sizes[block] // PAGE)
        for page in range(start, min(start + chosen.choice((1, 2, 100)), sizes[block] // PAGE)):
            write(block, page)

    for _ in range(20):
        write_some()
    assert open_pages == twin.noted
    open_pages.clear()
    live.freeze()
    twin.phase = "saving"
    moment = [bytes(each) for each in memory]
    while live.left or copying:
        what = chosen.randrange(4)
        if what < 2:
            write_some()
        elif what == 2 and live.left:
            number = int(lib.tvmm_live_claim(live.raw))
            assert number == twin.claim()
            copying.append(number)
        elif copying:
            number = copying.pop(chosen.randrange(len(copying)))
            lib.tvmm_live_fill(live.raw, number, room, piece, absent)
            found = bytes(ffi.buffer(room, piece.pages * PAGE))
            check([found], [twin.fill(number)])
            at = piece.first * PAGE
            copies[piece.block][at : at + len(found)] = found
            open_pages.update((piece.block, page) for page in range(piece.first, piece.first + piece.pages))
            lib.tvmm_live_saved(live.raw, number)
            twin.saved(number)
    assert int(lib.tvmm_live_claim(live.raw)) == lib.TVMM_LIVE_NONE
    check(copies, moment)
    live.end()
    live.close()
    pages.close()


@pytest.mark.parametrize("kind", ["private", "huge", "shared"])
@pytest.mark.parametrize("pool", [1, 100000])
def test_it_is_the_memory_of_one_moment(kind: str, pool: int) -> None:
    """Two threads write all the time but for the moment; two others take."""
    with frozen(kind, pool=pool) as (live, maps):
        touch(maps, 1)
        writers = [Writer(maps, seed) for seed in (2, 3)]
        live.arm()
        live.rearm()
        for writer in writers:
            writer.stop()
        live.freeze()
        moment = [bytes(each) for each in maps]
        copies = [bytearray(size) for size in SIZES]
        writers = [Writer(maps, seed) for seed in (4, 5)]
        counts: list[int] = []
        takers = [threading.Thread(target=lambda: counts.append(taken(live, copies))) for _ in range(2)]
        for taker in takers:
            taker.start()
        for taker in takers:
            taker.join()
        for writer in writers:
            writer.stop()
            assert writer.writes
        check(copies, moment)
        assert sum(counts) == live.chunks


@pytest.mark.parametrize("kind", ["private", "huge", "shared"])
def test_memory_that_was_never_used_stays_so(kind: str) -> None:
    """It is neither allocated by being protected nor by being taken, and a write in between is not in the copy."""
    size = 8 * CHUNK_BYTES
    with frozen(kind, (size,)) as (live, maps):
        maps[0][PAGE] = 1
        live.arm()
        live.freeze()
        writer = threading.Thread(target=ctypes.memset, args=(address_of(maps[0]) + 6 * CHUNK_BYTES, 1, 8))
        writer.start()
        writer.join()
        copies = [bytearray(size)]
        taken(live, copies)
        expected = bytearray(size)
        expected[PAGE] = 1
        check(copies, [expected])
        assert maps[0][6 * CHUNK_BYTES] == 1
        assert resident(maps[0]) <= (2 if kind != "huge" else 2 * CHUNK)


@pytest.mark.parametrize("step", ["open", "arm", "freeze", "some"])
def test_it_can_be_given_up_at_any_step(step: str) -> None:
    """Writers go on, and takers come back."""
    with frozen() as (live, maps):
        touch(maps, 1)
        writer = Writer(maps, 2)
        if step != "open":
            live.arm()
        if step in ("freeze", "some"):
            live.freeze()
        if step == "some":
            live.take(bytearray(CHUNK_BYTES))
        live.abandon()
        with pytest.raises(InterruptedError):
            live.take(bytearray(CHUNK_BYTES))
        live.end()
        before = writer.writes
        while writer.writes == before:
            pass
        writer.stop()
        ctypes.memset(address_of(maps[0]), 7, PAGE)
        assert maps[0][0] == 7


def test_pages_can_be_dropped_once_they_are_secure() -> None:
    """`secure` waits for their chunk, which is taken before others, and not for ever when the snapshot is given up."""
    with frozen() as (live, maps):
        touch(maps, 1)
        live.arm()
        live.secure("0", 0, PAGE)
        maps[0].madvise(mmap.MADV_DONTNEED, 0, PAGE)
        live.freeze()
        moment = [bytes(each) for each in maps]
        copies = [bytearray(size) for size in SIZES]
        dropped = threading.Event()

        def drop() -> None:
            live.secure("0", 3 * CHUNK_BYTES, CHUNK_BYTES)
            maps[0].madvise(mmap.MADV_DONTNEED, 3 * CHUNK_BYTES, CHUNK_BYTES)
            dropped.set()

        dropper = threading.Thread(target=drop)
        dropper.start()
        buffer = bytearray(CHUNK_BYTES)
        while not dropped.is_set() and (piece := live.take(buffer)) is not None:
            at = piece.first * PAGE
            copies[piece.block][at : at + piece.pages * PAGE] = buffer[: piece.pages * PAGE]
        dropper.join()
        taken(live, copies)
        check(copies, moment)
        assert not any(maps[0][3 * CHUNK_BYTES : 4 * CHUNK_BYTES])
    with frozen() as (live, maps):
        live.arm()
        live.freeze()
        waiter = threading.Thread(target=live.secure, args=("0", 0, SIZES[0]))
        waiter.start()
        live.abandon()
        waiter.join()
        with pytest.raises(HostError):
            live.secure("0", 0, SIZES[0] + PAGE)


def test_the_kernels_own_writes_wait_too() -> None:
    """A read(2) into protected memory: the bytes of the moment are saved, the file's are there afterwards."""
    with frozen(pool=4 * CHUNK) as (live, maps):
        touch(maps, 1)
        live.arm()
        live.freeze()
        moment = [bytes(each) for each in maps]
        data = random.Random(9).randbytes(3 * CHUNK_BYTES)
        file = os.memfd_create("data")
        os.write(file, data)
        with memoryview(maps[0]) as view:
            assert os.preadv(file, [view[PAGE + 8 : PAGE + 8 + len(data)]], 0) == len(data)
        os.close(file)
        copies = [bytearray(size) for size in SIZES]
        taken(live, copies)
        check(copies, moment)
        check([maps[0][PAGE + 8 : PAGE + 8 + len(data)]], [data])


def test_memory_that_cannot_be_protected_is_refused(tmp_path: object) -> None:
    """A file that is mapped privately; huge pages of 1 GiB."""
    file = os.open(f"{tmp_path}/file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(file, CHUNK_BYTES)
    mapped = mmap.mmap(file, CHUNK_BYTES, mmap.MAP_PRIVATE)
    os.close(file)
    pages = RamPages([("0", memoryview(mapped))])
    live = Frozen(pages)
    try:
        with pytest.raises(HostError, match=r"file mapped privately|CAP_SYS_PTRACE"):
            live.open()
    finally:
        live.end()
        live.close()
    with pytest.raises(HostError, match="too large for a live snapshot"):
        Frozen(pages, grains=[1 << 30])
    pages.close()


def check(found: Sequence[bytes | bytearray], expected: Sequence[bytes | bytearray]) -> None:
    """That both have the same bytes; says in few words where not."""
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        pages = [at // PAGE for at in range(0, len(other), PAGE) if one[at : at + PAGE] != other[at : at + PAGE]]
        assert not pages, f"block {index}: {len(pages)} pages differ, {pages[:10]}"


def address_of(mapped: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapped))


def resident(mapped: mmap.mmap) -> int:
    """Pages that the process has there, but for the kernel's page of zeros."""
    from tvmm.kvm.discard import _resident

    start = address_of(mapped)
    return _resident(start, start + len(mapped)) // PAGE
