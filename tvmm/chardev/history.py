"""The last bytes a guest wrote, addressed by how many it had written before them.

Absolute positions let any number of readers share one buffer: a reader is one integer, a late reader finds
out how much it missed by subtraction, and nothing has to be told when a reader goes away. A list of chunks
was tried first and dropped: guests write single bytes, and a chunk per byte costs fifty times its content.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["HISTORY_BYTES", "History", "Piece"]

HISTORY_BYTES = 64 * 1024
"""What is kept per port. A guest that writes forever to a console nobody reads must not fill host memory."""


class Piece(NamedTuple):
    """What a reader gets: `missed` bytes were dropped before `data`, which begins at `position`."""

    missed: int
    position: int
    data: bytes


class History:
    """A bounded window on an endless sequence of bytes; the oldest go first."""

    def __init__(self, capacity: int = HISTORY_BYTES) -> None:
        if capacity <= 0:
            raise ValueError("a history holds at least one byte")
        self.capacity = capacity
        self.end = 0
        """Position behind the newest byte: how many bytes were ever appended."""
        self._kept = bytearray()

    @property
    def start(self) -> int:
        """Position of the oldest byte that is still kept."""
        return self.end - len(self._kept)

    def append(self, data: bytes) -> None:
        """Add `data` at the end; what no longer fits is dropped from the start."""
        self.end += len(data)
        self._kept += data if len(data) <= self.capacity else data[-self.capacity :]
        if len(self._kept) > self.capacity:
            del self._kept[: len(self._kept) - self.capacity]

    def read(self, position: int, limit: int = HISTORY_BYTES) -> Piece:
        """Up to `limit` bytes from `position` on, or from the oldest kept byte if that is newer.

        Raises `ValueError` for a position that is negative or ahead of `end`.
        """
        if not 0 <= position <= self.end:
            raise ValueError(f"position {position} is not within 0..{self.end}")
        first = max(position, self.start)
        offset = first - self.start
        with memoryview(self._kept) as view:
            return Piece(first - position, first, bytes(view[offset : offset + limit]))
