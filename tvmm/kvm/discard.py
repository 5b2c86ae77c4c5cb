"""Pages of guest RAM that go back to the host, or are fetched from it in advance; and how many it has given now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.pages import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.memory.ram import RamBlock

__all__ = ["discard", "populate", "resident_bytes"]

ENTRY = 8
"""Bytes in /proc/self/pagemap for each page; the flags are in the last of them."""
READ_BYTES = 1 << 20
PRESENT, SWAPPED, EXCLUSIVE = 0x80, 0x40, 0x01
_COUNTED = bytes(bool(flags & SWAPPED) or flags & (PRESENT | EXCLUSIVE) == PRESENT | EXCLUSIVE for flags in range(256))


def discard(block: RamBlock, runs: Sequence[tuple[int, int]]) -> None:
    """Give pages back, as (first, count) of the block's: what is read there is zero. Without the interpreter lock.

    Raises `HostError` if the host does not take them; some may be gone then. Who copies RAM is to be told afterwards.
    """
    with ffi.from_buffer("uint8_t[]", block.view) as base:
        error = int(lib.tvmm_discard(base, len(base) // PAGE, _table(runs), len(runs), _backing(block)))
    if error:
        raise HostError(f"the host takes no pages of {block.name} back: {os.strerror(-error)}")


def _backing(block: RamBlock) -> int:
    if block.fd >= 0:
        return int(lib.TVMM_BACKED_SHARED)
    return int(lib.TVMM_BACKED_PRIVATE if block.unmap_file is None else lib.TVMM_BACKED_FILE)


def populate(block: RamBlock, runs: Sequence[tuple[int, int]]) -> None:
    """Have pages allocated, as (first, count). Without the interpreter lock. Raises `HostError` if the host cannot."""
    with ffi.from_buffer("uint8_t[]", block.view) as base:
        error = int(lib.tvmm_populate(base, len(base) // PAGE, _table(runs), len(runs)))
    if error:
        raise HostError(f"the host does not allocate pages of {block.name} in advance: {os.strerror(-error)}")


def _table(runs: Sequence[tuple[int, int]]) -> Any:
    return ffi.new("struct tvmm_run[]", list(runs))


def resident_bytes(block: RamBlock) -> int:
    """How much of the block the host has given memory for. Takes some ms for each GiB: for a worker thread."""
    if block.fd >= 0:
        return os.fstat(block.fd).st_blocks * 512
    with ffi.from_buffer("uint8_t[]", block.view) as base:
        start = int(ffi.cast("uintptr_t", base))
    return _resident(start, start + block.size)


def _resident(start: int, end: int) -> int:
    """Of this process' memory from `start` to `end`: whole pages that it has for itself, or that are swapped out.

    The page of zeros, which is what the kernel maps where nothing was ever written and somebody has read, is not one
    that the process has for itself. Lines of /proc/self/smaps would do, were neighbours not merged there.
    """
    count = 0
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(start // PAGE * ENTRY)
        left = (end - start) // PAGE * ENTRY
        while left and (entries := file.read(min(left, READ_BYTES))):
            left -= len(entries)
            count += entries[ENTRY - 1 :: ENTRY].translate(_COUNTED).count(1)
    return count * PAGE
