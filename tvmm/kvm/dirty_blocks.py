"""Which blocks of a disk were written while it is copied (blk_dirty.h says when they are marked, and why that does)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.kvm.calls import ffi, lib

if TYPE_CHECKING:
    from tvmm.kvm.blk import BlkFile

__all__ = ["GRAIN", "DirtyBlocks", "all_zero"]

GRAIN = 1 << 16
"""Bytes of a block: a bit for it is 1/524288 of the disk, and small writes have no more than that copied again."""


class DirtyBlocks:
    """Bits for a disk of `size` bytes, none set. It must outlive the queues of a `BlkFile` that it is attached to, or
    its successor there.

    Queues mark at any time; one thread takes. `grain`: bytes of a block, a power of two.
    """

    def __init__(self, size: int, grain: int = GRAIN) -> None:
        if size < 0 or grain < 1 or grain & (grain - 1):
            raise ValueError(f"no blocks of {grain} bytes for {size}")
        self.size, self.grain = size, grain
        self.blocks = -(-size // grain)
        self._words = ffi.new("uint64_t[]", max(-(-self.blocks // 64), 1))
        self.raw = ffi.new("struct tvmm_blk_dirty *")
        self.raw.words, self.raw.blocks, self.raw.shift = self._words, self.blocks, grain.bit_length() - 1

    def attach(self, file: BlkFile) -> None:
        """Have the queues of `file` mark here from now on. None of them is served at the moment."""
        file.raw.dirty = self.raw

    @staticmethod
    def detach(file: BlkFile) -> None:
        """Have them mark nothing any more; who is at it may still do."""
        file.raw.dirty = ffi.NULL

    def mark(self, offset: int, length: int) -> None:
        """Bytes that have changed. What is behind the end is nobody's."""
        lib.tvmm_blk_dirty_mark(self.raw, offset, length)

    def fill(self) -> None:
        """All of it."""
        lib.tvmm_blk_dirty_fill(self.raw)

    def take(self, offset: int, limit: int) -> tuple[int, int] | None:
        """Clear the first run of marked blocks from byte `offset` on, as (offset, length), at most `limit` bytes or one
        block. None: there is nothing marked up to the end. What is read after this is what the blocks were at least.
        """
        first = ffi.new("uint64_t *")
        blocks = max(limit // self.grain, 1)
        count = int(lib.tvmm_blk_dirty_take(self.raw, -(-offset // self.grain), blocks, first))
        if not count:
            return None
        start = int(first[0]) * self.grain
        return start, min(start + count * self.grain, self.size) - start

    def count_bytes(self) -> int:
        """How much is marked, in whole blocks."""
        return int(lib.tvmm_blk_dirty_count(self.raw)) * self.grain


def all_zero(data: Any) -> bool:
    """Whether a buffer holds nothing but zeroes."""
    with ffi.from_buffer("uint8_t[]", data) as raw:
        return bool(lib.tvmm_all_zero(raw, len(raw)))
