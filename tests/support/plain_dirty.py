"""`DirtyBlocks` in plain Python, for comparison."""

from __future__ import annotations


class PlainDirty:
    """Numbers of marked blocks in a set."""

    def __init__(self, size: int, grain: int) -> None:
        self.size, self.grain = size, grain
        self.blocks = -(-size // grain)
        self.marked: set[int] = set()

    def mark(self, offset: int, length: int) -> None:
        """Every block that has one of the bytes."""
        if length:
            self.marked.update(range(offset // self.grain, min((offset + length - 1) // self.grain + 1, self.blocks)))

    def fill(self) -> None:
        """All."""
        self.marked.update(range(self.blocks))

    def take(self, offset: int, limit: int) -> tuple[int, int] | None:
        """The first run."""
        first = min((block for block in self.marked if block * self.grain >= offset), default=None)
        if first is None:
            return None
        end = first
        while end in self.marked and end - first < max(limit // self.grain, 1):
            self.marked.remove(end)
            end += 1
        return first * self.grain, min(end * self.grain, self.size) - first * self.grain

    def count_bytes(self) -> int:
        """In whole blocks."""
        return len(self.marked) * self.grain
