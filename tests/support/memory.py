"""Guest memory that a test can look into: sparse, checked against its size, with a record of the writes."""

from __future__ import annotations

from itertools import pairwise

from tvmm.errors import MemoryAccessError
from tvmm.memory.layout import Range, ram_ranges

__all__ = ["FakeMemory"]


class FakeMemory:
    """`size` bytes of RAM where a machine of that size has them; bytes that nobody wrote are zero.

    `writes` has the range of each write in order. Writes are kept as they came, not spread over a buffer, so
    that gigabytes of RAM cost nothing.
    """

    def __init__(self, size: int) -> None:
        self.ranges = ram_ranges(size)
        self.writes: list[Range] = []
        self._data: list[bytes] = []

    def read(self, gpa: int, length: int) -> bytes:
        """`length` bytes at `gpa`, the latest write winning; raises `MemoryAccessError` outside of RAM."""
        self._check(gpa, length)
        result = bytearray(length)
        for written, data in zip(self.writes, self._data, strict=True):
            start, end = max(written.start, gpa), min(written.end, gpa + length)
            if start < end:
                result[start - gpa : end - gpa] = data[start - written.start : end - written.start]
        return bytes(result)

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        """Keep `data`; raises `MemoryAccessError`, and keeps nothing, unless all of it is RAM."""
        self._check(gpa, len(data))
        self.writes.append(Range(gpa, len(data)))
        self._data.append(bytes(data))

    def overlapping_writes(self) -> list[tuple[Range, Range]]:
        """Pairs of writes that share bytes: a loader that puts two things in one place."""
        ordered = sorted(self.writes)
        return [(a, b) for a, b in pairwise(ordered) if b.start < a.end]

    def _check(self, gpa: int, length: int) -> None:
        if length < 0 or not any(ram.start <= gpa and gpa + length <= ram.end for ram in self.ranges):
            raise MemoryAccessError(f"{length} bytes at {gpa:#x} are not RAM")
