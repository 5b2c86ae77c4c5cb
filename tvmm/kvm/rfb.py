"""The pixel work of RFB's encodings, in C and without the interpreter lock (rfb.h).

A `PixelWork` is a buffer with its scratch space. What its methods return is only good until the next call.
"""

from __future__ import annotations

import os
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.kvm.calls import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.screen import Canvas

__all__ = ["AREA_MAX", "PALETTE_MAX", "Kind", "Packing", "Piece", "PixelWork", "Rows"]

AREA_MAX = int(lib.TVMM_RFB_AREA_MAX)
"""Pixels that any call takes."""
PALETTE_MAX = int(lib.TVMM_RFB_PALETTE_MAX)
FORMATS_KEPT = 32
"""Conversion tables that are kept, of 3 KiB each: viewers that want the same pixels share them."""
TILES_BYTES = 4096
"""Bytes for what is not pixels: one for each tile of Hextile or ZRLE, or each row of PNG."""


class Packing(NamedTuple):
    """How a pixel is written: `size` bytes, the lowest first, of the sum of three colours.

    Each colour is one of 256 values, which the maximum and the shift give; with `swapped`, the bytes of the sum, as one
    of `width` bytes, are turned round first. `drop` bytes are then left out at the start.
    """

    width: int
    swapped: bool
    maxima: tuple[int, int, int]
    """Of red, green and blue."""
    shifts: tuple[int, int, int]
    drop: int
    size: int


class Kind(IntEnum):
    """Of a piece of a picture."""

    SOLID = lib.TVMM_RFB_SOLID
    """One colour, and large."""
    FLAT = lib.TVMM_RFB_FLAT
    """Text and drawings."""
    PHOTO = lib.TVMM_RFB_PHOTO
    """Many colours that change from pixel to pixel."""


class Piece(NamedTuple):
    """A rectangle of one kind."""

    x: int
    y: int
    width: int
    height: int
    kind: Kind


class Rows(IntEnum):
    """What rows of indices or pixels are for."""

    TIGHT = lib.TVMM_RFB_ROWS_TIGHT
    GRADIENT = lib.TVMM_RFB_ROWS_GRADIENT
    """As for Tight, and pixels of three bytes less what a viewer predicts."""
    PNG = lib.TVMM_RFB_ROWS_PNG


@lru_cache(maxsize=FORMATS_KEPT)
def _tables(packing: Packing) -> Any:
    raw = ffi.new("struct tvmm_rfb_format *")
    for table, maximum, shift in zip((raw.red, raw.green, raw.blue), packing.maxima, packing.shifts, strict=True):
        for level in range(256):
            value = ((level * maximum + 127) // 255 << shift).to_bytes(packing.width, "little")
            if packing.swapped:
                value = value[::-1]
            table[level] = int.from_bytes(value[packing.drop : packing.drop + packing.size], "little")
    raw.bytes = packing.size
    shifts = [max(0, int(table[255]).bit_length() - 8) for table in (raw.red, raw.green, raw.blue)]
    raw.shifted = all(
        list(table) == [level << shift for level in range(256)]
        for table, shift in zip((raw.red, raw.green, raw.blue), shifts, strict=True)
    )
    raw.red_shift, raw.green_shift, raw.blue_shift = shifts
    raw.plain = (
        packing.maxima == (255, 255, 255)
        and packing.shifts == (16, 8, 0)
        and not packing.swapped
        and not packing.drop
        and packing.size >= 3
    )
    return raw


class PixelWork:
    """One viewer's buffers, about 600 KiB. Belongs to one thread at a time."""

    def __init__(self) -> None:
        self._job = ffi.new("struct tvmm_rfb_job *")
        self._job.palette.key = int.from_bytes(os.urandom(4), "little") | 1
        self._buffer = bytearray(4 * AREA_MAX + TILES_BYTES + lib.TVMM_RFB_SLACK)
        self._view = memoryview(self._buffer)
        self._out = ffi.from_buffer("uint8_t[]", self._buffer, require_writable=True)
        self._job.out, self._job.room = self._out, len(self._buffer)
        self._rect = ffi.new("struct tvmm_rfb_rect *")
        self._bits = ffi.new("uint32_t *")
        self._tables: Any = None
        self._packing: Packing | None = None

    def _prepare(self, canvas: Canvas, packing: Packing | None, rect: Sequence[int]) -> Any:
        if packing is not None and packing is not self._packing:
            self._tables, self._packing = _tables(packing), packing
            self._job.format = self._tables
        self._rect.x, self._rect.y, self._rect.width, self._rect.height = rect
        self._job.width, self._job.height = canvas.width, canvas.height
        self._job.canvas_size = len(canvas.pixels)
        return ffi.from_buffer("uint8_t[]", canvas.pixels)

    def _run(self, function: Any, canvas: Canvas, packing: Packing, rect: Sequence[int], *more: Any) -> memoryview:
        with self._prepare(canvas, packing, rect) as pixels:
            self._job.canvas = pixels
            used = int(function(self._job, self._rect, *more))
        if used < 0:
            raise ValueError(f"a rectangle {tuple(rect)} is not on the canvas or too large")
        return self._view[:used]

    def raw(self, canvas: Canvas, packing: Packing, rect: Sequence[int]) -> memoryview:
        """The pixels of a rectangle (x, y, width, height).

        Like the others, raises `ValueError` unless it is on the canvas, not empty, and of at most `AREA_MAX` pixels.
        """
        return self._run(lib.tvmm_rfb_raw, canvas, packing, rect)

    def hextile(self, canvas: Canvas, packing: Packing, rect: Sequence[int]) -> memoryview:
        """The tiles of a rectangle (RFC 6143, 7.7.4)."""
        return self._run(lib.tvmm_rfb_hextile, canvas, packing, rect)

    def zrle(self, canvas: Canvas, packing: Packing, rect: Sequence[int]) -> memoryview:
        """The tiles of a rectangle before they are compressed (RFC 6143, 7.7.6)."""
        return self._run(lib.tvmm_rfb_zrle, canvas, packing, rect)

    def plan(self, canvas: Canvas, rect: Sequence[int], limit: int) -> list[Piece] | None:
        """A rectangle in pieces of at most 2048 pixels across; None if there would be more than `limit`.

        Only pieces that are `FLAT` have at most `AREA_MAX` pixels.
        """
        pieces = ffi.new("struct tvmm_rfb_piece[]", limit)
        with self._prepare(canvas, None, rect) as pixels:
            self._job.canvas = pixels
            count = int(lib.tvmm_rfb_plan(self._job, self._rect, 1, pieces, limit))
        if count == -1:
            raise ValueError(f"a rectangle {tuple(rect)} is not on the canvas")
        if count < 0:
            return None
        found = ((pieces[index].rect, pieces[index].kind) for index in range(count))
        return [Piece(rect.x, rect.y, rect.width, rect.height, Kind(kind)) for rect, kind in found]

    def rows(
        self, canvas: Canvas, packing: Packing, rect: Sequence[int], rows: Rows, colours: int
    ) -> tuple[int, memoryview]:
        """The pixels as indices of at most `colours` colours, 1 to `PALETTE_MAX`, or as they are if there are more.

        The number is the bits of an index, 0 with one colour, whose rows are empty; 32 for pixels. Then `palette` has
        the colours. For PNG each row has its filter byte, and pixels have 3 bytes.
        """
        view = self._run(lib.tvmm_rfb_piece_rows, canvas, packing, rect, rows, colours, self._bits)
        return int(self._bits[0]), view

    def palette(self) -> bytes:
        """The colours of the last call of `rows`, as its pixels are written."""
        assert self._packing is not None
        count, size = int(self._job.palette.count), self._packing.size
        values = bytes(ffi.buffer(self._job.palette.colours, 4 * count))
        if size == 4:
            return values
        return b"".join(values[at : at + size] for at in range(0, 4 * count, 4))
