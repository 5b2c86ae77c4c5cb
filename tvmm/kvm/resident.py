"""How much of a mapping the host holds pages for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.kvm.calls import ffi, lib

if TYPE_CHECKING:
    from mmap import mmap

__all__ = ["resident_bytes"]


def resident_bytes(mapping: mmap) -> int:
    """Of a mapping of whole pages; takes some milliseconds for a gigabyte, without the interpreter lock."""
    with ffi.from_buffer("uint8_t[]", mapping) as start:
        return int(lib.tvmm_resident(start, len(mapping)))
