"""Checks of the records that `restore` gets: each names the field and the range, never the value.

A record comes from a file or from a peer and may hold anything, of any length. Every field is checked before the first
assignment, so that a bad record leaves a device as it was.
"""

from __future__ import annotations

__all__ = [
    "check_bits",
    "check_bytes",
    "check_flag",
    "check_int",
    "check_record",
    "check_uint",
    "check_uints",
]


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


def check_uints(field: str, value: object, count: int, limit: int) -> tuple[int, ...]:
    """`value` if it is a tuple of `count` numbers from 0 to `limit`; raises `ValueError` naming `field` if not."""
    if type(value) is not tuple or len(value) != count:
        raise ValueError(f"{field} is not a tuple of {count} numbers")
    for entry in value:
        check_uint(field, entry, limit)
    return value
