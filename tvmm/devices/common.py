"""What every register model does the same way: byte-wide registers behind wide accesses, untrusted records.

A PC splits a wide access to an 8-bit device into byte accesses at rising ports, lowest byte first; the models
of such devices do the same, so that each has one byte-wide `read` and `write` and no other path.

The records that `restore` gets come from a file or from a peer. A device checks each field through the
functions below *before* it changes anything, so that a bad record leaves it as it was. Messages name the
field and the range, never the value: a hostile value can be as long as its sender likes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def check_record(state: object, kind: type[tuple[object, ...]]) -> None:
    """Raise `ValueError` unless `state` is a record of `kind`."""
    if not isinstance(state, kind):
        raise ValueError(f"state is not a {kind.__name__}")


def check_uint(field: str, value: object, limit: int) -> int:
    """`value` if it is a whole number from 0 to `limit`; raises `ValueError` naming `field` if not."""
    if type(value) is not int or not 0 <= value <= limit:
        raise ValueError(f"{field} is not a whole number from 0 to {limit:#x}")
    return value


def check_int(field: str, value: object, low: int, high: int) -> int:
    """`value` if it is a whole number from `low` to `high`; raises `ValueError` naming `field` if not."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{field} is not a whole number from {low} to {high}")
    return value


def check_bits(field: str, value: object, mask: int) -> int:
    """`value` if it has no bit outside of `mask`; raises `ValueError` naming `field` if not."""
    bits = check_uint(field, value, mask)
    if bits & ~mask:
        raise ValueError(f"{field} has bits outside of {mask:#x}")
    return bits


def check_flag(field: str, value: object) -> bool:
    """`value` as a bool if it is one, or 0 or 1; raises `ValueError` naming `field` if not."""
    if not isinstance(value, int) or value not in (0, 1):
        raise ValueError(f"{field} is not a flag")
    return bool(value)


def check_bytes(field: str, value: object, minimum: int, maximum: int) -> bytes:
    """`value` if it is `minimum` to `maximum` bytes; raises `ValueError` naming `field` if not."""
    if type(value) is not bytes or not minimum <= len(value) <= maximum:
        raise ValueError(f"{field} is not a string of {minimum} to {maximum} bytes")
    return value
