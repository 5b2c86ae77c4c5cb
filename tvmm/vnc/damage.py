"""What of the screen a viewer has not seen yet: one byte a tile, whatever happens in the meantime.

A slow viewer's damage is a union of what happened since, never a list. Whole rows and the whole screen are handled by
operations on bytes and on one large integer, which cost microseconds for the largest screen; nothing here loops over
tiles.
"""

from __future__ import annotations

from tvmm.screen import TILE_HEIGHT, TILE_WIDTH
from tvmm.vnc.pixel_format import Rect

__all__ = ["RECTS_MAX", "Damage"]

RECTS_MAX = 128
"""Rectangles of an update. A guest that draws a chessboard of tiles could have thousands; then those between are sent
too. There are at most 100 rows of tiles, so this many are always enough."""


class Damage:
    """Damaged tiles of a screen of `width` x `height` pixels; nothing at first."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.columns = -(-width // TILE_WIDTH)
        self.rows = -(-height // TILE_HEIGHT)
        self.tiles = bytearray(self.columns * self.rows)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return 1 in self.tiles

    def count(self) -> int:
        """Damaged tiles."""
        return self.tiles.count(1)

    def add(self, tiles: bytes | bytearray) -> None:
        """The tiles too that are 1 in `tiles`. Raises `ValueError` if that is of another size of screen."""
        if len(tiles) != len(self.tiles):
            raise ValueError(f"{len(tiles)} tiles for a screen that has {len(self.tiles)}")
        union = int.from_bytes(self.tiles, "little") | int.from_bytes(tiles, "little")
        self.tiles[:] = union.to_bytes(len(self.tiles), "little")

    def remove(self, tiles: bytes | bytearray) -> None:
        """Not the tiles any more that are 1 in `tiles`, which is of the same size."""
        ours = int.from_bytes(self.tiles, "little")
        self.tiles[:] = (ours & ~int.from_bytes(tiles, "little")).to_bytes(len(self.tiles), "little")

    def add_rect(self, rect: Rect) -> None:
        """All tiles that `rect` touches."""
        self._fill(rect, 1)

    def remove_rect(self, rect: Rect) -> None:
        """None of the tiles any more that `rect` touches."""
        self._fill(rect, 0)

    def clear(self) -> None:
        """Nothing is damaged."""
        self.tiles[:] = bytes(len(self.tiles))

    def take(self, region: Rect, limit: int = 0) -> list[Rect]:
        """Rectangles of what is damaged in `region`, which is rounded up to tiles; it is not damaged any more.

        From the top to the bottom, at most `RECTS_MAX` of them. With `limit` (tiles) no more rows of tiles are looked
        at once that many damaged tiles are in: the others stay for the next time.
        """
        clipped = region.clip(self.width, self.height)
        if not clipped.area:
            return []
        left, right = clipped.x // TILE_WIDTH, -(-clipped.right // TILE_WIDTH)
        top, bottom = clipped.y // TILE_HEIGHT, -(-clipped.bottom // TILE_HEIGHT)
        runs: list[tuple[int, list[tuple[int, int]]]] = []
        found = 0
        for row in range(top, bottom):
            if limit and found >= limit:
                break
            spans = self._spans(row, left, right)
            if spans:
                runs.append((row, spans))
                found += sum(end - start for start, end in spans)
                at = row * self.columns
                self.tiles[at + left : at + right] = bytes(right - left)
        gap = 0
        rects = _merged(runs)
        while len(rects) > RECTS_MAX:
            gap = 2 * gap + 1
            rects = _merged([(row, _closed(spans, gap)) for row, spans in runs])
        return [self._pixels(*rect) for rect in rects]

    def _spans(self, row: int, left: int, right: int) -> list[tuple[int, int]]:
        """Runs of damaged tiles in a row, as columns from and to."""
        spans = []
        base = row * self.columns
        start = self.tiles.find(1, base + left, base + right)
        while start >= 0:
            end = self.tiles.find(0, start, base + right)
            if end < 0:
                end = base + right
            spans.append((start - base, end - base))
            start = self.tiles.find(1, end, base + right)
        return spans

    def _pixels(self, left: int, top: int, right: int, bottom: int) -> Rect:
        x, y = left * TILE_WIDTH, top * TILE_HEIGHT
        return Rect(x, y, min(right * TILE_WIDTH, self.width) - x, min(bottom * TILE_HEIGHT, self.height) - y)

    def _fill(self, rect: Rect, value: int) -> None:
        clipped = rect.clip(self.width, self.height)
        if not clipped.area:
            return
        left, right = clipped.x // TILE_WIDTH, -(-clipped.right // TILE_WIDTH)
        line = bytes((value,)) * (right - left)
        for row in range(clipped.y // TILE_HEIGHT, -(-clipped.bottom // TILE_HEIGHT)):
            self.tiles[row * self.columns + left : row * self.columns + right] = line


def _closed(spans: list[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """With those joined that no more than `gap` tiles lie between."""
    joined = [spans[0]]
    for start, end in spans[1:]:
        if start - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _merged(runs: list[tuple[int, list[tuple[int, int]]]]) -> list[tuple[int, int, int, int]]:
    """Left, top, right, bottom of rectangles: equal runs in rows below each other are one."""
    rects: list[tuple[int, int, int, int]] = []
    growing: dict[tuple[int, int], int] = {}
    last = -1
    for row, spans in runs:
        here = set(spans) if row == last + 1 else set()
        for span in [span for span in growing if span not in here]:
            rects.append((span[0], growing.pop(span), span[1], last + 1))
        for span in spans:
            growing.setdefault(span, row)
        last = row
    rects.extend((start, top, end, last + 1) for (start, end), top in growing.items())
    rects.sort(key=lambda rect: (rect[1], rect[0]))
    return rects
