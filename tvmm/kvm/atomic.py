"""An atomic access to guest memory, for instructions that tvmm does in place of the CPU."""

from __future__ import annotations

from tvmm.kvm.calls import ffi, lib

__all__ = ["compare_exchange"]


def compare_exchange(view: memoryview, expected: bytes, desired: bytes) -> bytes:
    """LOCK CMPXCHG on `view`, which is as long as the other two (1, 2, 4, 8 or 16 bytes) and aligned to its length.

    Returns what was there; it was replaced if that equals `expected`.
    """
    if not len(view) == len(expected) == len(desired):
        raise ValueError("operands differ in size")
    old = ffi.new("uint8_t[]", expected)
    if lib.tvmm_compare_exchange(ffi.from_buffer(view), old, desired, len(expected)) < 0:
        raise ValueError(f"no compare-exchange of {len(expected)} bytes")
    return bytes(ffi.buffer(old, len(expected)))
