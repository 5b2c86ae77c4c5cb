"""Pages of guest RAM, for migration: where their bytes lie, and one bit for each.

Blocks have numbers, which are their places in the list that the two sides of a migration agreed on.
"""

from __future__ import annotations

import errno
import hashlib
import os
from typing import TYPE_CHECKING, Any

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tvmm.kvm.serve import Waker

__all__ = ["PAGE", "PageBitmap", "RamPages", "ram_hash"]

PAGE = int(lib.TVMM_PAGE)
HASH_PIECE = 1 << 22
"""Bytes between two looks at whether a hash is still wanted: about 3 ms."""


class RamPages:
    """The bytes of RAM blocks, for C. Keeps the blocks' buffers exported until `close`, which comes before theirs."""

    def __init__(
        self, blocks: Iterable[tuple[str, memoryview]], *, fresh: bool = False, files: Mapping[str, int] | None = None
    ) -> None:
        """(name, bytes) of each block in order; whole pages, or `ValueError`. `files` are descriptors by block of what
        is mapped there as a whole: their holes are not read, which would allocate them.

        `fresh`: all of it is zero now and nobody but the lanes' receivers writes to it, so that a zero page need not be
        looked at as long as nothing else came for it. Else a read of memory that was never used would allocate it.
        """
        named = list(blocks)
        for name, view in named:
            if not len(view) or len(view) % PAGE:
                raise ValueError(f"block {name} has {len(view)} bytes, which are no whole pages")
        self.names = tuple(name for name, _ in named)
        self.pages = tuple(len(view) // PAGE for _, view in named)
        self._buffers = [ffi.from_buffer("uint8_t[]", view) for _, view in named]
        self._written = [
            ffi.new("uint64_t[]", _words(pages)) if fresh else ffi.NULL for pages in self.pages
        ]
        table = [
            {"base": base, "pages": pages, "written": written, "fd": (files or {}).get(name, -1)}
            for name, base, pages, written in zip(self.names, self._buffers, self.pages, self._written, strict=True)
        ]
        self.raw = ffi.new("struct tvmm_ram_pages *", {"count": len(table), "blocks": table})

    @property
    def total(self) -> int:
        """Pages of all blocks."""
        return sum(self.pages)

    def populate(self, waker: Waker) -> None:
        """Have the host allocate all of it, on a thread of its own while pages are awaited, or while they come.

        A page that has to be allocated when it arrives costs two to twenty times as much as the copy. Raises
        `InterruptedError` when `waker` is woken, and `HostError` if the host cannot: then pages are allocated as they
        come.
        """
        error = -int(lib.tvmm_ram_populate(self.raw, waker.raw))
        if error == errno.EINTR:
            raise InterruptedError("the memory is no longer wanted")
        if error:
            raise HostError(f"the host does not allocate the guest's memory in advance: {os.strerror(error)}")

    def close(self) -> None:
        """Let go of the RAM; idempotent. No lane may be at work, nor be used again."""
        self.raw.count = 0
        for buffer in self._buffers:
            ffi.release(buffer)
        self._buffers.clear()


class PageBitmap:
    """One bit for each page of each block, all clear. Bits are set and taken atomically, by any thread."""

    def __init__(self, names: Sequence[str], pages: Sequence[int]) -> None:
        """The blocks' names and their sizes in pages, in order."""
        self.names, self.pages = tuple(names), tuple(pages)
        self._words = {
            name: ffi.new("uint64_t[]", _words(count)) for name, count in zip(self.names, self.pages, strict=True)
        }
        table = [
            {"pages": count, "words": self._words[name]} for name, count in zip(self.names, self.pages, strict=True)
        ]
        self.raw = ffi.new("struct tvmm_bitmap *", {"count": len(table), "blocks": table})

    @classmethod
    def of(cls, ram: RamPages) -> PageBitmap:
        """For the pages of `ram`."""
        return cls(ram.names, ram.pages)

    def count(self) -> int:
        """How many bits are set."""
        return sum(int(lib.tvmm_bits_count(words, len(words))) for words in self._words.values())

    def fill(self) -> None:
        """Set all of them."""
        for name, count in zip(self.names, self.pages, strict=True):
            lib.tvmm_bits_set(self._words[name], 0, count)

    def clear(self) -> None:
        """Clear all of them. No lane may be at work."""
        for words in self._words.values():
            ffi.memmove(words, bytes(ffi.sizeof(words)), ffi.sizeof(words))

    def mark(self, name: str, first: int, count: int = 1) -> None:
        """Set the bits of `count` pages of a block. Raises `ValueError` if it has no such pages."""
        if first < 0 or count < 0 or first + count > self.pages[self.names.index(name)]:
            raise ValueError(f"block {name} has no {count} pages from {first} on")
        lib.tvmm_bits_set(self._words[name], first, count)

    def test(self, name: str, page: int) -> bool:
        """Whether a page's bit is set."""
        return bool(self._words[name][page // 64] >> page % 64 & 1)

    def merge(self, other: PageBitmap) -> int:
        """Set what is set in `other`, which is of the same blocks. How many bits are new."""
        if (other.names, other.pages) != (self.names, self.pages):
            raise ValueError("the bitmaps are of different blocks")
        return sum(
            int(lib.tvmm_bits_merge(words, other._words[name], len(words))) for name, words in self._words.items()
        )

    def pack(self) -> bytes:
        """All words, block after block, little endian: 32 KiB for each GiB of RAM."""
        return b"".join(bytes(ffi.buffer(words)) for words in self._words.values())

    @classmethod
    def unpack(cls, names: Sequence[str], pages: Sequence[int], data: bytes) -> PageBitmap:
        """Of these blocks what `pack` gave. Raises `ValueError` unless it is as long, and has bits of pages only."""
        bitmap = cls(names, pages)
        expected = sum(ffi.sizeof(words) for words in bitmap._words.values())
        if len(data) != expected:
            raise ValueError(f"a bitmap of {len(data)} bytes, where the memory takes {expected}")
        at = 0
        for (name, words), count in zip(bitmap._words.items(), bitmap.pages, strict=True):
            size = ffi.sizeof(words)
            ffi.memmove(words, data[at : at + size], size)
            at += size
            if count % 64 and words[len(words) - 1] >> count % 64:
                raise ValueError(f"a bitmap has pages that {name} has not")
        return bitmap

    def words(self, name: str) -> memoryview:
        """A block's words, 64 bits each, bit 0 of word 0 first; writable. Bits behind the last page must stay clear."""
        return memoryview(ffi.buffer(self._words[name])).cast("Q")


def ram_hash(view: memoryview, waker: Waker | None = None, fd: int = -1) -> bytes:
    """SHA-256 of a block's bytes, without the interpreter lock. Raises `InterruptedError` when `waker` is woken.

    `fd` is of the file that is mapped there, if there is one: its holes are zeros, and stay holes.
    """
    digest = hashlib.sha256()
    for start, end, hole in _stretches(len(view), fd):
        for at in range(start, end, HASH_PIECE):
            if waker is not None and waker.raw.wanted:
                raise InterruptedError("the hash is no longer wanted")
            piece = min(end - at, HASH_PIECE)
            digest.update(bytes(piece) if hole else view[at : at + piece])
    return digest.digest()


def _stretches(length: int, fd: int) -> Iterator[tuple[int, int, bool]]:
    """Start, end, and whether it is a hole."""
    at = 0
    while fd >= 0 and at < length:
        try:
            data = min(os.lseek(fd, at, os.SEEK_DATA), length)
        except OSError as error:
            if error.errno != errno.ENXIO:
                break
            data = length
        if data > at:
            yield at, data, True
        if data == length:
            return
        at = min(os.lseek(fd, data, os.SEEK_HOLE), length)
        yield data, at, False
    if at < length:
        yield at, length, False


def _words(pages: int) -> int:
    return (pages + 63) // 64


def log_slot_table(slots: Sequence[tuple[int, int, int, int]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """`struct tvmm_log_slot` initialisers from (slot, block, first page, pages), and what they point to."""
    scratch = [ffi.new("uint64_t[]", _words(pages)) for _, _, _, pages in slots]
    table = [
        {"slot": slot, "block": block, "first": first, "pages": pages, "scratch": words}
        for (slot, block, first, pages), words in zip(slots, scratch, strict=True)
    ]
    return table, scratch
