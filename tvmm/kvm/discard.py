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


def discard(block: RamBlock, runs: Sequence[tuple[int, int]]) -> None:
    """Give pages back, as (first, count) of the block's: what is read there is zero. Without the interpreter lock.

    Raises `HostError` if the host does not take them; some may be gone then. Who copies RAM is to be told afterwards.
    """
    with ffi.from_buffer("uint8_t[]", block.view) as base:
        error = int(lib.tvmm_discard(base, len(base) // PAGE, _table(runs), len(runs), block.fd >= 0))
    if error:
        raise HostError(f"the host takes no pages of {block.name} back: {os.strerror(-error)}")


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
    """Of this process' mappings within `start` and `end`, which begin and end with one of them."""
    total, within = 0, False
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
        for line in file:
            words = line.split(maxsplit=2)
            if within and words[0] == "Rss:":
                total += int(words[1]) << 10
            elif not words[0].endswith(":"):
                low, _, high = words[0].partition("-")
                within = int(low, 16) < end and int(high, 16) > start
    return total
