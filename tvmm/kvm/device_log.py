"""Which pages of guest RAM tvmm itself has written, for migration: KVM's dirty log has what vCPUs write, and no more.

Devices mark after each write, in C (dirty.h, which says why nothing is lost) and in Python. Without migration the log
is off, a mark is one branch, and there are no bitmaps.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib

if TYPE_CHECKING:
    from tvmm.kvm.memory_map import MappedRam

__all__ = ["PAGE_SIZE", "DeviceLog"]

PAGE_SIZE = 1 << int(lib.TVMM_DIRTY_PAGE_SHIFT)
"""Bytes that one bit stands for, as in KVM's log."""


class DeviceLog:
    """A bit for each page of each RAM block. Close it before the RAM, and after everything that marks.

    `start` and `stop` are for one thread at a time; `mark` and marking in C for any thread at any time.
    """

    def __init__(self, ram: MappedRam) -> None:
        """Of the blocks that `ram` has now. Off."""
        self._buffers = {name: ffi.from_buffer("uint8_t[]", block.view) for name, block in ram.blocks.items()}
        self._index_of = {name: index for index, name in enumerate(self._buffers)}
        blocks = [
            {"base": buffer, "pages": -(-len(buffer) // PAGE_SIZE), "words": ffi.NULL}
            for buffer in self._buffers.values()
        ]
        self.raw = ffi.new("struct tvmm_device_log *", {"on": 0, "count": len(blocks), "blocks": blocks})
        self.on = False
        """Whether writes are marked."""

    def start(self) -> None:
        """Forget all marks, and mark from now on; nothing happens if it is on already.

        Every write that was not marked because the log was off is to be seen by whoever reads RAM after this
        returns. Takes some milliseconds: for a worker thread. Raises `HostError` without memory for the bitmaps
        (a bit for each page), or if the kernel has no membarrier(2); the log is off then.
        """
        if self.on:
            return
        # Before C's flag and the barrier that follows it, so that they do for this flag too. A Python writer that
        # saw it too early marks in vain: C says no.
        self.on = True
        error = -int(lib.tvmm_device_log_start(self.raw))
        if error:
            self.on = False
            if error == errno.ENOMEM:
                raise HostError("the host has no memory for the log of written pages", "free some and start again")
            raise HostError(f"the log of written pages: membarrier: {os.strerror(error)}", "allow membarrier(2)")

    def stop(self) -> None:
        """Mark no more. The marks that there are can still be taken, and bitmaps stay until `close`."""
        self.on = False
        lib.tvmm_device_log_stop(self.raw)

    def close(self) -> None:
        """Let go of bitmaps and RAM. Nothing marks any more."""
        self.on = False
        lib.tvmm_device_log_free(self.raw)
        for buffer in self._buffers.values():
            ffi.release(buffer)
        self._buffers.clear()
        self._index_of.clear()

    def mark(self, block_name: str, offset: int, length: int) -> None:
        """`length` bytes at `offset` of a block have been written. Nothing happens while the log is off.

        Raises `KeyError` for a block that it does not have, `ValueError` unless the bytes are in the block.
        """
        buffer = self._buffers[block_name]
        if offset < 0 or length < 0 or offset + length > len(buffer):
            raise ValueError(f"{length} bytes at {offset:#x} are not in {block_name}")
        if self.on:
            self._mark(buffer + offset, length)

    def mark_written(self, written: memoryview) -> None:
        """The same for bytes of a block themselves; what is in no block is left alone."""
        if self.on:
            with ffi.from_buffer("uint8_t[]", written) as buffer:
                self._mark(buffer, len(buffer))

    def _mark(self, start: Any, length: int) -> None:
        # C looks at its own flag: this one is set first, and there may be no bitmaps yet.
        if self.raw.on:
            lib.tvmm_device_log_mark(self.raw, start, length)

    def pending_words(self, block_name: str) -> Any:
        """The marks of a block that were not taken yet, as a ``uint64_t *`` of cffi to look at; NULL before `start`."""
        return self.raw.blocks[self._index_of[block_name]].words

    def merge_into(self, block_name: str, words: Any) -> int:
        """Take the marks of a block and set their bits in `words` too; how many marks there were.

        `words` has a bit for each page, the lowest first: ceil(pages / 64) words of 64 bits, as a buffer or as a
        ``uint64_t *`` of cffi.
        A page may be read once its mark is taken: what is written later is marked anew. Raises `KeyError` for a
        block that it does not have.
        """
        if isinstance(words, memoryview):
            words = ffi.from_buffer("uint64_t[]", words, require_writable=True)
        return int(lib.tvmm_device_log_take(self.raw, self._index_of[block_name], words))
