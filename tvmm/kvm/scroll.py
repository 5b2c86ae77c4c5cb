"""What of the picture only moved up or down, in C and without the interpreter lock (scroll.h)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from tvmm.kvm.calls import ffi, lib
from tvmm.screen import TILE_HEIGHT, TILE_WIDTH

if TYPE_CHECKING:
    from tvmm.screen import Canvas

__all__ = ["Scroll", "ScrollFinder"]


class Scroll(NamedTuple):
    """A rectangle that is what was at another height in the picture before."""

    x: int
    y: int
    width: int
    height: int
    source_y: int
    """Where its first line was."""

    def unseen(self, pending: bytes | bytearray, columns: int) -> bool:
        """Whether a viewer lacks some of what it would have to copy.

        `pending` has a 1 for each tile that it has not got as it was in the picture before, `columns` in a row.
        """
        return any(1 in pending[at : at + across] for at, across in _tiles(self, self.source_y, columns))

    def settle(self, damage: bytearray, columns: int) -> None:
        """Once it is sent: its tiles are not damaged any more."""
        for at, across in _tiles(self, self.y, columns):
            damage[at : at + across] = bytes(across)


def _tiles(scroll: Scroll, y: int, columns: int) -> list[tuple[int, int]]:
    """First tile and number of tiles, of each row of them that a rectangle from line `y` on touches."""
    left, right = scroll.x // TILE_WIDTH, -(-(scroll.x + scroll.width) // TILE_WIDTH)
    rows = range(y // TILE_HEIGHT, -(-(y + scroll.height) // TILE_HEIGHT))
    return [(row * columns + left, right - left) for row in rows]


class ScrollFinder:
    """Keeps the picture before: as many bytes as the canvas has, and about 1 MiB."""

    def __init__(self) -> None:
        self._raw = ffi.new("struct tvmm_scroll_finder *")
        self._raw.key = int.from_bytes(os.urandom(8), "little")
        self._previous = bytearray()
        self._generation = -1

    def update(self, canvas: Canvas, damage: bytes | bytearray) -> list[Scroll]:
        """What moved since the last call, to be copied one after the other in this order.

        `damage` has all tiles that changed since then. A viewer may use a `Scroll` if it has all of the picture of the
        last call where that comes from (`Scroll.unseen`), and gets it before anything else of this one. The first call,
        and the first one after a change of size, finds nothing. Raises `ValueError` for damage of another size.
        """
        if len(damage) != canvas.columns * canvas.rows:
            raise ValueError(f"{len(damage)} tiles of a canvas that has {canvas.columns * canvas.rows}")
        fresh = canvas.generation != self._generation or len(self._previous) != len(canvas.pixels)
        if fresh:
            self._generation = canvas.generation
            self._previous = bytearray(len(canvas.pixels))
            self._raw.width, self._raw.height = canvas.width, canvas.height
            damage = b"\1" * len(damage)
        with (
            ffi.from_buffer("uint8_t[]", self._previous, require_writable=True) as previous,
            ffi.from_buffer("uint8_t[]", canvas.pixels) as pixels,
            ffi.from_buffer("uint8_t[]", damage) as tiles,
        ):
            self._raw.previous, self._raw.previous_size = previous, len(previous)
            count = int(lib.tvmm_scroll_update(self._raw, pixels, len(pixels), tiles, len(tiles)))
        if count < 0:
            raise ValueError("the canvas is not of the size that it says")
        found = (self._raw.found[index] for index in range(0 if fresh else count))
        return [Scroll(one.x, one.y, one.width, one.height, one.source_y) for one in found]
