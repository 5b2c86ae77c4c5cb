"""What every register model does the same way: byte-wide registers behind wide accesses, and the checks of records.

A PC splits a wide access to an 8-bit device into byte accesses at rising ports, lowest byte first; the models
of such devices do the same, so that each has one byte-wide `read` and `write` and no other path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.records import check_bits, check_bytes, check_flag, check_int, check_record, check_uint

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "check_bits",
    "check_bytes",
    "check_flag",
    "check_int",
    "check_record",
    "check_uint",
    "read_bytewise",
    "write_bytewise",
]


def read_bytewise(read_byte: Callable[[int], int], offset: int, size: int) -> int:
    """A read of `size` bytes at `offset` as that many byte reads, lowest offset first."""
    value = 0
    for index in range(size):
        value |= read_byte(offset + index) << (8 * index)
    return value


def write_bytewise(write_byte: Callable[[int, int], None], offset: int, size: int, value: int) -> None:
    """A write of `size` bytes at `offset` as that many byte writes, lowest offset first."""
    for index in range(size):
        write_byte(offset + index, value >> (8 * index) & 0xFF)
