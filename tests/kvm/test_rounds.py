"""Pages into a file in rounds: whatever was written in between, at the end it is as if all had been written at once."""

from __future__ import annotations

import mmap
import os
import random
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tvmm.errors import HostError
from tvmm.kvm.pages import PageBitmap
from tvmm.kvm.rounds import SnapshotRounds
from tvmm.kvm.serve import Waker
from tvmm.kvm.snapshot import CHUNK_PAGES, PageSource, SnapshotPages
from tvmm.snapshot.format import page_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PAGE = 4096
KEY = page_key(bytes(range(32)))
SIZES = (2048 + 3 * CHUNK_PAGES + 5, 70)
"""More than a unit, and less than a chunk."""
OFFSETS = (2 << 20, 24 << 20)
END = OFFSETS[1] + SIZES[1] * PAGE


class Rig:
    """Two blocks of memory, a file, and what is between them."""

    def __init__(self, folder: Path, room: int = 64) -> None:
        self.fd = os.open(folder / "pages", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        os.ftruncate(self.fd, END)
        self.maps = [mmap.mmap(-1, size * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for size in SIZES]
        self.bitmap = PageBitmap(("a", "b"), SIZES)
        self.pages = self.source()
        self.rounds = SnapshotRounds(self.pages, self.bitmap, room)
        self.waker = Waker()
        self.dice = random.Random(room)

    def source(self, maps: list[mmap.mmap] | None = None, sums: bytes | None = None) -> SnapshotPages:
        """The file's pages."""
        named = zip("ab", SIZES, OFFSETS, maps or self.maps, strict=True)
        return SnapshotPages(
            [PageSource(name, size, offset, memoryview(each), sparse=True) for name, size, offset, each in named],
            KEY,
            self.fd,
            sums=sums,
        )

    def fill(self, block: int, page: int, *, zero: bool = False) -> None:
        """Write to a page, and mark it."""
        self.maps[block][page * PAGE : (page + 1) * PAGE] = bytes(PAGE) if zero else self.dice.randbytes(PAGE)
        self.bitmap.mark("ab"[block], page)

    def scatter(self, count: int) -> None:
        """Runs and single pages of both blocks: some with zeros, some with what they had."""
        for _ in range(count):
            block = self.dice.choice((0, 0, 0, 1))
            first = self.dice.randrange(SIZES[block])
            for page in range(first, min(first + self.dice.choice((1, 1, 3, 40)), SIZES[block])):
                if self.dice.randrange(4):
                    self.fill(block, page, zero=not self.dice.randrange(3))
                else:
                    self.bitmap.mark("ab"[block], page)

    def together(self, call: Callable[[], object], threads: int = 3) -> None:
        """On some threads."""
        running = [threading.Thread(target=call) for _ in range(threads)]
        for each in running:
            each.start()
        for each in running:
            each.join()

    def round(self) -> None:
        """What is marked."""
        self.rounds.begin()
        self.together(lambda: self.rounds.write(self.waker))
        self.rounds.end_first()

    def check(self, maps: list[mmap.mmap] | None = None) -> None:
        """The file has what memory has, and the sums of a file that was written from it at once."""
        maps = maps or self.maps
        for offset, size, each in zip(OFFSETS, SIZES, maps, strict=True):
            assert os.pread(self.fd, size * PAGE, offset) == each[:]
        sums = self.pages.sums()
        fd, self.fd = self.fd, os.memfd_create("whole")
        whole = self.source(maps)
        whole.write(self.waker)
        assert whole.sums() == sums
        assert whole.pages_data == self.pages.pages_data
        whole.close()
        os.close(self.fd)
        self.fd = fd

    def close(self) -> None:
        """All of it."""
        self.rounds.close()
        self.pages.close()
        self.waker.close()
        os.close(self.fd)


@contextmanager
def rig(folder: Path, room: int = 64) -> Iterator[Rig]:
    """Closed afterwards."""
    made = Rig(folder, room)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("seed", range(3))
def test_rounds_end_with_what_memory_has(tmp_path: Path, seed: int) -> None:
    """Pages that come again, with other bytes, the same or zeros; in the end some that were kept in a pause."""
    with rig(tmp_path, room=40 * seed) as made:
        made.scatter(30)
        made.bitmap.fill()
        made.round()
        assert made.pages.pages_done == sum(SIZES)
        for count in (20, 5, 0, 1):
            made.scatter(count)
            made.round()
            assert made.bitmap.count() == 0
        made.scatter(10)
        marked = made.bitmap.count()
        made.rounds.begin()
        left: list[int] = []
        made.together(lambda: left.append(made.rounds.keep()))
        assert sum(left) == made.bitmap.count() == marked - made.rounds.kept_bytes // PAGE
        made.round()
        now = [mmap.mmap(-1, len(each)) for each in made.maps]
        for copy, each in zip(now, made.maps, strict=True):
            copy[:] = each[:]
        # The guest goes on, and nobody reads its memory any more.
        made.scatter(50)
        made.rounds.begin()
        made.together(lambda: made.rounds.put(made.waker))
        made.check(now)
        assert made.pages.pages_done == sum(SIZES)


def test_memory_that_was_never_used_stays_a_hole(tmp_path: Path) -> None:
    """Of the file, and of the memory."""
    with rig(tmp_path) as made:
        made.fill(0, 700)
        made.bitmap.fill()
        made.round()
        made.check()
        assert os.fstat(made.fd).st_blocks * 512 <= 64 << 10
        assert made.pages.pages_data == 1


def test_pages_that_change_while_they_are_written_are_right_at_the_end(tmp_path: Path) -> None:
    """Bytes and sums agree even for pages that were dropped, of which nobody is told; a reader of the file says so."""
    with rig(tmp_path) as made:
        for page in range(0, SIZES[0], 2):
            made.fill(0, page)
        over = threading.Event()

        def write() -> None:
            dice = random.Random(5)
            while not over.is_set():
                page = dice.randrange(SIZES[0])
                made.maps[0][page * PAGE : page * PAGE + 8] = dice.randbytes(8)
                made.bitmap.mark("a", page)
                made.maps[0].madvise(mmap.MADV_DONTNEED, dice.randrange(SIZES[0]) * PAGE, PAGE)

        writer = threading.Thread(target=write)
        writer.start()
        made.bitmap.fill()
        for _ in range(20):
            made.round()
        over.set()
        writer.join()
        made.round()
        again = [mmap.mmap(-1, len(each)) for each in made.maps]
        reader = made.source(again, made.pages.sums())
        reader.read(made.waker, keep=True)
        reader.close()


def test_a_round_ends_when_it_is_woken_or_the_file_cannot_be_written(tmp_path: Path) -> None:
    """Without a word in the first case, with an error in the second, which ends all threads."""
    with rig(tmp_path) as made:
        made.scatter(10)
        made.waker.wake()
        made.round()
        assert made.rounds.bytes == 0
    with rig(tmp_path) as made:
        made.scatter(10)
        os.close(made.fd)
        made.fd = os.open(tmp_path / "pages", os.O_RDONLY)
        pages = made.source()
        rounds = SnapshotRounds(pages, made.bitmap, 0)
        rounds.begin()
        with pytest.raises(HostError, match="Bad file descriptor"):
            rounds.write(made.waker)
        rounds.write(made.waker)
        rounds.close()
        rounds.close()
        pages.close()
