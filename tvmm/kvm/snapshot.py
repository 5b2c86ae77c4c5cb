"""Pages into and out of a snapshot file, by threads that share one `SnapshotPages` (snapshot.h, docs/snapshots.md)."""

from __future__ import annotations

import os
import sys
from array import array
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.errors import HostError, ImageError
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.pages import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.kvm.serve import Waker
    from tvmm.memory.ram import RamBlock

__all__ = ["CHUNK_PAGES", "PageSource", "SnapshotPages", "map_chunks", "page_sum"]

CHUNK_PAGES = int(lib.TVMM_SNAPSHOT_CHUNK)
KEY_BYTES = 8 * int(lib.TVMM_PAGE_KEY)
EINTR = 4
MAP_UNIT_CHUNKS = 2
"""What is mapped from a file and what stays anonymous changes at multiples of 2 MiB: both can have large pages."""
MAX_PIECES = 2000
"""Mappings of one block at most: a process has some 65,000, and each costs the kernel memory and time."""


class PageSource(NamedTuple):
    """A block of pages and its place in the file. `view` is the memory, None to read without keeping anything; `fd` of
    the file that is mapped there as a whole, -1 for none. `sparse`: private memory of which the kernel knows what was
    never written. `skip`: it is left alone by `write` and `read`.
    """

    name: str
    pages: int
    offset: int
    view: memoryview | None = None
    fd: int = -1
    sparse: bool = False
    skip: bool = False


class SnapshotPages:
    """The page area of one file. Keeps the blocks' buffers exported until `close`."""

    def __init__(
        self, blocks: Sequence[PageSource], key: bytes, fd: int, direct_fd: int = -1, sums: bytes | None = None
    ) -> None:
        """`key` of `page_key`; `direct_fd` is the same file opened with O_DIRECT, -1 for none; `sums` those of the
        table, for a file that is read. The descriptors stay the caller's.
        """
        if sys.byteorder != "little":
            raise AssertionError("KVM on x86 is little-endian")
        self.blocks = tuple(blocks)
        counts = [-(-block.pages // CHUNK_PAGES) for block in self.blocks]
        self._sums = ffi.new("uint64_t[]", max(sum(counts), 1))
        if sums is not None:
            if len(sums) != 8 * sum(counts):
                raise ValueError("the sums are not those of the blocks")
            ffi.memmove(self._sums, sums, len(sums))
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        self._key = ffi.new("uint64_t[]", KEY_BYTES // 8)
        ffi.memmove(self._key, key, KEY_BYTES)
        self._buffers = [ffi.from_buffer("uint8_t[]", block.view) for block in self.blocks if block.view is not None]
        for buffer, block in zip(self._buffers, [each for each in self.blocks if each.view is not None], strict=True):
            if len(buffer) != block.pages * PAGE:
                raise ValueError(f"block {block.name} has {len(buffer)} bytes, not {block.pages} pages")
            if int(ffi.cast("uintptr_t", buffer)) % PAGE:
                raise ValueError(f"block {block.name} does not begin at a page")
        bases = iter(self._buffers)
        table = [
            {
                "base": next(bases) if block.view is not None else ffi.NULL,
                "pages": block.pages,
                "written": ffi.NULL,
                "fd": block.fd,
            }
            for block in self.blocks
        ]
        self._ram = ffi.new("struct tvmm_ram_pages *", {"count": len(table), "blocks": table})
        at, places = 0, []
        for block, count in zip(self.blocks, counts, strict=True):
            places.append(
                {"offset": block.offset, "sums": self._sums + at, "sparse": block.sparse, "skip": block.skip}
            )
            at += count
        self._places = ffi.new("struct tvmm_snapshot_block[]", places)
        self._chunks = at
        self._raw = ffi.new(
            "struct tvmm_snapshot *",
            {"ram": self._ram, "blocks": self._places, "key": self._key, "fd": fd, "direct_fd": direct_fd},
        )

    @property
    def raw(self) -> Any:
        """``struct tvmm_snapshot *``, for others that put pages."""
        return self._raw

    def leave(self, count: int) -> None:
        """`write` leaves the first `count` blocks to others. Before it."""
        for index in range(count):
            self._places[index].skip = True

    @property
    def pages_done(self) -> int:
        """How many pages have been looked at so far."""
        return int(self._raw.pages_done)

    @property
    def pages_data(self) -> int:
        """Those of them that are not zero."""
        return int(self._raw.pages_data)

    @property
    def bytes_done(self) -> int:
        """What has moved to or from the file."""
        return int(self._raw.bytes_done)

    def write(self, waker: Waker) -> None:
        """Write chunks until none is left, beside other threads that do the same; without the interpreter lock.

        Raises `InterruptedError` when `waker` is woken, `HostError` when the file cannot be written.
        """
        self._check(int(lib.tvmm_snapshot_write(self._raw, waker.raw)), reading=False)

    def read(self, waker: Waker, *, keep: bool) -> None:
        """Read chunks until none is left, in the same way, and compare their checksums. With `keep` into the blocks'
        views, which are zero.

        Raises `InterruptedError`, and `ImageError` for what cannot be read or is not what was written.
        """
        scratch = ffi.NULL
        if not keep:
            # Aligned for O_DIRECT, and for loads of 32 bytes.
            room = ffi.new("uint8_t[]", (CHUNK_PAGES + 1) * PAGE)
            scratch = room + (-int(ffi.cast("uintptr_t", room)) % PAGE)
        self._check(int(lib.tvmm_snapshot_read(self._raw, waker.raw, scratch)), reading=True)

    def put(self, block: int, first: int, pages: memoryview | int, count: int = 0) -> None:
        """Write pages of block number `block` from `first` on, whose bytes are `pages` (aligned to a page; or the
        address of `count` of them). Each page of a block that is written so is put once, zeros or not. From any
        thread. Raises `HostError`.
        """
        if isinstance(pages, int):
            error = int(lib.tvmm_snapshot_put(self._raw, block, first, count, ffi.cast("uint8_t *", pages)))
        else:
            with ffi.from_buffer("uint8_t[]", pages) as bytes_:
                error = int(lib.tvmm_snapshot_put(self._raw, block, first, len(bytes_) // PAGE, bytes_))
        if error:
            raise write_error(-error)

    def sums(self) -> bytes:
        """The checksums of all chunks, block by block, 8 bytes each. Right once everything has been written."""
        return bytes(ffi.buffer(self._sums, 8 * self._chunks))

    def _check(self, result: int, *, reading: bool) -> None:
        if result == -EINTR:
            raise InterruptedError("the pages are no longer wanted")
        raw = self._raw
        if not result:
            return
        name, chunk = self.blocks[raw.bad_block].name, int(raw.bad_chunk)
        if raw.failure == lib.TVMM_SNAPSHOT_DIFFERS:
            raise ImageError(f"it is damaged: the checksum of chunk {chunk} of {name} differs")
        if raw.failure == lib.TVMM_SNAPSHOT_SHORT:
            raise ImageError(f"it is cut short: it ends before chunk {chunk} of {name} does")
        if reading:
            raise ImageError(f"chunk {chunk} of {name} cannot be read: {os.strerror(raw.error)}")
        raise write_error(int(raw.error))

    def close(self) -> None:
        """Let go of the memory; idempotent. No thread may be at work."""
        for buffer in self._buffers:
            ffi.release(buffer)
        self._buffers.clear()


def write_error(number: int) -> HostError:
    """For an errno of writing a snapshot."""
    return HostError(os.strerror(number))


def page_sum(page: bytes, number: int, key: bytes) -> int:
    """What a page adds to its chunk's checksum; `number` is its offset in the file in pages."""
    words = array("Q", page)
    with ffi.from_buffer("uint64_t[]", words) as from_, ffi.from_buffer("uint64_t[]", bytearray(key)) as by:
        return int(lib.tvmm_snapshot_sum(ffi.cast("uint8_t *", from_), number, by))


def map_chunks(block: RamBlock, fd: int, offset: int, sums: bytes) -> None:
    """Have a private `block` read as its pages in a file from `offset` on; what is written to it stays here.

    `sums` are those of its chunks: where they are 0 the block stays as it is, zeros without a file. The descriptor may
    be closed afterwards. Raises `HostError`; then the block is of no use.
    """
    from functools import partial

    from tvmm.kvm.remap import map_anonymous

    if block.fd >= 0:
        raise ValueError(f"{block.name} is shared: no private mapping can take its place")
    block.unmap_file = partial(map_anonymous, block)
    lib.tvmm_tell_bus_errors()
    with ffi.from_buffer("uint8_t[]", block.view) as base:
        for start, end in data_runs(memoryview(sums).cast("Q"), block.size):
            error = int(lib.tvmm_map_file(base + start, end - start, fd, offset + start, 0))
            if error:
                raise HostError(f"the host does not map a file as {block.name}: {os.strerror(-error)}")


def data_runs(sums: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Stretches of a block of `size` bytes in which there is data, in bytes, at multiples of 2 MiB; `MAX_PIECES` at
    most, those that are close together as one.
    """
    unit = MAP_UNIT_CHUNKS * CHUNK_PAGES * PAGE
    used = [any(sums[at : at + MAP_UNIT_CHUNKS]) for at in range(0, len(sums), MAP_UNIT_CHUNKS)]
    runs: list[tuple[int, int]] = []
    for index, data in enumerate(used):
        if data and runs and runs[-1][1] == index:
            runs[-1] = runs[-1][0], index + 1
        elif data:
            runs.append((index, index + 1))
    if len(runs) > MAX_PIECES:
        gaps = sorted(after[0] - before[1] for before, after in pairwise(runs))
        widest = gaps[-MAX_PIECES]
        joined = runs[:1]
        for run in runs[1:]:
            if run[0] - joined[-1][1] < widest or len(joined) == MAX_PIECES:
                joined[-1] = joined[-1][0], run[1]
            else:
                joined.append(run)
        runs = joined
    return [(start * unit, min(end * unit, size)) for start, end in runs]
