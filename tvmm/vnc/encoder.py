"""A viewer's encoder: rectangles of the canvas as bytes of an update, in the encoding and the pixels that it wants.

Pixel work is C's (`tvmm.kvm.rfb`), compression zlib's and Pillow's. What is decided here: how a rectangle is divided,
what each part becomes, and what goes into which compressed stream. Pixels are worked on in pieces of bounded size, so
that only the bytes of the update itself grow with the rectangle.

Tight and TightPNG (rfbproto, "Tight Encoding"): large areas of one colour first; what looks like a photograph goes as
JPEG, if the viewer allows it, and filtered by gradients if not; text and drawings stay as they are, with a palette
where that pays.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

from tvmm.kvm.rfb import AREA_MAX, PALETTE_MAX, Kind, Packing, Piece, PixelWork, Rows
from tvmm.vnc.pictures import jpeg, png
from tvmm.vnc.pixel_format import DEFAULT, PixelFormat, Rect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tvmm.kvm.scroll import Scroll
    from tvmm.screen import Canvas

__all__ = ["HEXTILE", "RAW", "SUPPORTED", "TIGHT", "TIGHT_PNG", "ZRLE", "Encoder", "EncoderSettings", "encode_scrolls"]

RAW, COPY_RECT, HEXTILE, TIGHT, ZRLE, TIGHT_PNG = 0, 1, 5, 7, 16, -260
SUPPORTED = (TIGHT, TIGHT_PNG, ZRLE, HEXTILE, RAW)

TIGHT_WIDTH_MAX = 2048
"""Pixels across that a viewer can take (rfbproto)."""
TIGHT_PLAIN_BYTES = 12
"""Fewer bytes are not compressed (rfbproto)."""
TIGHT_FILL, TIGHT_JPEG, TIGHT_PNG_CONTROL, TIGHT_FILTER = 0x80, 0x90, 0xA0, 0x40
FILTER_PALETTE, FILTER_GRADIENT = 1, 2
STREAM_PIXELS, STREAM_MONO, STREAM_INDEXED, STREAM_GRADIENT = 0, 1, 2, 3
PIECES_MAX = 400
"""Pieces of a rectangle. A picture that a guest made of nothing but changes of kind is cut into stripes instead."""
PALETTE_DIVISOR = 16
"""Pixels that there must be for each colour of a palette, as Tight does not compress the palette."""
ZRLE_TILE = 64
PHOTO_LEVELS = (0, 1, 2, 2, 2, 2, 2, 2, 2, 6)
"""Of zlib, for photographs: level 6 takes ten times as long there as 2 does, and saves a tenth of the bytes."""


class EncoderSettings(NamedTuple):
    """What the viewer wants."""

    encoding: int = RAW
    """One of `SUPPORTED`."""
    pixel_format: PixelFormat = DEFAULT
    """Checked, and of true colours (`PixelFormat.as_true_colour`)."""
    compress_level: int = 2
    """Of zlib: 0 (none) to 9."""
    quality: int | None = None
    """0 to 9, how good what goes as JPEG has to be. None: nothing may."""
    fine_quality: int | None = None
    """0 to 100 of JPEG's own, in place of what belongs to `quality`, where that is not None."""
    subsampling: int | None = None
    """0 to 5: a pixel of its own for each colour, one for 4, one for 2, none (grey), one for 8, one for 16."""


class DeflateStream:
    """One zlib stream (RFC 1950) over a whole connection, whose level may change between two pieces.

    Python's zlib cannot change the level of a stream. But raw deflate streams (RFC 1951), each flushed to a whole byte,
    are one valid stream when they come one after the other: a new one just does not refer to what was before.
    """

    def __init__(self) -> None:
        self._started = False
        self._level = -1
        self._deflate = zlib.compressobj()

    def compress(self, pieces: Iterable[bytes | memoryview], level: int) -> list[bytes]:
        """`pieces` in bytes from which the viewer gets all of them."""
        if level != self._level:
            self._level = level
            self._deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        done = [self._deflate.compress(piece) for piece in pieces]
        done.append(self._deflate.flush(zlib.Z_SYNC_FLUSH))
        if not self._started:
            self._started = True
            done.insert(0, b"\x78\x01")
        return [piece for piece in done if piece]


def pixel_packing(wanted: PixelFormat) -> Packing:
    """PIXEL of RFC 6143, 7.7."""
    maxima = (wanted.red_max, wanted.green_max, wanted.blue_max)
    shifts = (wanted.red_shift, wanted.green_shift, wanted.blue_shift)
    size = wanted.bytes_per_pixel
    return Packing(size, wanted.big_endian and size > 1, maxima, shifts, 0, size)


def zrle_packing(wanted: PixelFormat) -> Packing:
    """CPIXEL of RFC 6143, 7.7.5: without the byte of a pixel of four that has no colour in it."""
    packing = pixel_packing(wanted)
    if wanted.bits_per_pixel != 32 or wanted.depth > 24:
        return packing
    used = 0
    for maximum, shift in zip(packing.maxima, packing.shifts, strict=True):
        used |= maximum << shift
    if not used >> 24:
        return packing._replace(drop=int(packing.swapped), size=3)
    if not used & 0xFF:
        return packing._replace(drop=int(not packing.swapped), size=3)
    return packing


RGB_PACKING = Packing(4, False, (255, 255, 255), (0, 8, 16), 0, 3)


def tight_packing(wanted: PixelFormat) -> Packing:
    """TPIXEL of rfbproto: red, green and blue as bytes in place of a pixel of four that has 8 bits of each."""
    packing = pixel_packing(wanted)
    if wanted.bits_per_pixel == 32 and wanted.depth == 24 and packing.maxima == (255, 255, 255):
        return RGB_PACKING
    return packing


def compact_length(length: int) -> bytes:
    """A length below 2**22 in one to three bytes (rfbproto)."""
    if length < 1 << 7:
        return bytes((length,))
    if length < 1 << 14:
        return bytes((length & 127 | 128, length >> 7))
    if length >= 1 << 22:
        raise ValueError(f"{length} bytes are too many for one rectangle of Tight")
    return bytes((length & 127 | 128, length >> 7 & 127 | 128, length >> 14))


def encode_scrolls(scrolls: Iterable[Scroll]) -> tuple[int, list[bytes]]:
    """CopyRect rectangles (RFC 6143, 7.7.2): how many, and their bytes. They come before all others of an update."""
    chunks = [
        struct.pack(">4HiHH", one.x, one.y, one.width, one.height, COPY_RECT, one.x, one.source_y) for one in scrolls
    ]
    return len(chunks), chunks


def bands(rect: Rect, height: int) -> Iterator[Rect]:
    """A rectangle from top to bottom in parts of at most `height` lines."""
    for y in range(rect.y, rect.y + rect.height, height):
        yield Rect(rect.x, y, rect.width, min(height, rect.y + rect.height - y))


def columns(rect: Rect, width: int) -> Iterator[Rect]:
    """A rectangle from left to right in parts of at most `width` pixels across."""
    for x in range(rect.x, rect.x + rect.width, width):
        yield Rect(x, rect.y, min(width, rect.x + rect.width - x), rect.height)


class Encoder:
    """One viewer's streams and buffers, about 600 KiB and 256 KiB for each of five streams once it is used."""

    def __init__(self) -> None:
        self._work = PixelWork()
        self._zrle: DeflateStream | None = None
        self._tight: list[DeflateStream | None] = [None] * 4
        self._wanted: PixelFormat | None = None
        # Old browser viewers, which always name a quality, do not know the filter.
        self._had_quality = False
        self._settings = EncoderSettings()
        self.lossy: list[Rect] = []
        """What the last call sent as JPEG."""

    def encode(self, canvas: Canvas, rects: Iterable[Rect], settings: EncoderSettings) -> tuple[int, list[bytes]]:
        """How many rectangles, and their bytes with headers, in the order in which they have to be sent.

        They may be more than were asked for, and cover the same pixels. None of what is returned may be left out: each
        continues the compressed streams. Raises `ValueError` for a rectangle that is not on the canvas, or settings
        that cannot be.
        """
        self._set(settings)
        rects = list(rects)
        for rect in rects:
            # Before anything is compressed: half a rectangle would break the streams for good.
            if not (0 <= rect.x < rect.x + rect.width <= canvas.width):
                raise ValueError(f"{rect} is not on a canvas {canvas.width} pixels wide")
            if not (0 <= rect.y < rect.y + rect.height <= canvas.height):
                raise ValueError(f"{rect} is not on a canvas {canvas.height} pixels high")
        self.lossy = []
        chunks: list[bytes] = []
        if settings.encoding == RAW:
            count = sum(self._raw(canvas, rect, chunks) for rect in rects)
        elif settings.encoding == HEXTILE:
            count = sum(self._hextile(canvas, rect, chunks) for rect in rects)
        elif settings.encoding == ZRLE:
            count = sum(self._zrle_rect(canvas, rect, chunks) for rect in rects)
        else:
            count = sum(self._tight_rect(canvas, rect, chunks) for rect in rects)
        return count, chunks

    def _set(self, settings: EncoderSettings) -> None:
        if settings == self._settings and self._wanted is not None:
            return
        if settings.encoding not in SUPPORTED:
            raise ValueError(f"there is no encoding {settings.encoding} here")
        if not 0 <= settings.compress_level <= 9:
            raise ValueError(f"no compression of level {settings.compress_level}")
        if settings.quality is not None and not 0 <= settings.quality <= 9:
            raise ValueError(f"no quality {settings.quality}")
        if settings.fine_quality is not None and not 0 <= settings.fine_quality <= 100:
            raise ValueError(f"no quality {settings.fine_quality} of 100")
        if settings.subsampling is not None and not 0 <= settings.subsampling <= 5:
            raise ValueError(f"no subsampling {settings.subsampling}")
        wanted = settings.pixel_format
        if not wanted.true_colour:
            raise ValueError("the pixels of a viewer with a colour map are not converted to true colours")
        self._settings, self._wanted = settings, wanted
        self._pixel, self._cpixel, self._tpixel = pixel_packing(wanted), zrle_packing(wanted), tight_packing(wanted)
        self._had_quality |= settings.quality is not None
        self._may_jpeg = settings.quality is not None and wanted.bits_per_pixel in (16, 32)

    def _header(self, rect: Rect | Piece, chunks: list[bytes]) -> None:
        chunks.append(struct.pack(">4Hi", *rect[:4], self._settings.encoding))

    # --- Raw, Hextile, ZRLE ----------------------------------------------------------------------------------------

    def _raw(self, canvas: Canvas, rect: Rect, chunks: list[bytes]) -> int:
        self._header(rect, chunks)
        for band in bands(rect, max(1, AREA_MAX // rect.width)):
            chunks.append(bytes(self._work.raw(canvas, self._pixel, band)))
        return 1

    def _hextile(self, canvas: Canvas, rect: Rect, chunks: list[bytes]) -> int:
        count = 0
        for band in bands(rect, max(16, AREA_MAX // rect.width // 16 * 16)):
            self._header(band, chunks)
            chunks.append(bytes(self._work.hextile(canvas, self._pixel, band)))
            count += 1
        return count

    def _zrle_rect(self, canvas: Canvas, rect: Rect, chunks: list[bytes]) -> int:
        if self._zrle is None:
            self._zrle = DeflateStream()
        # Tiles go from left to right and top to bottom, so that bands of them may be cut anywhere between two tiles.
        parts = (part for band in bands(rect, ZRLE_TILE) for part in columns(band, AREA_MAX // ZRLE_TILE))
        tiles = (self._work.zrle(canvas, self._cpixel, part) for part in parts)
        done = self._zrle.compress(tiles, self._settings.compress_level)
        self._header(rect, chunks)
        chunks.append(sum(map(len, done)).to_bytes(4, "big"))
        chunks += done
        return 1

    # --- Tight and TightPNG ----------------------------------------------------------------------------------------

    def _tight_rect(self, canvas: Canvas, rect: Rect, chunks: list[bytes]) -> int:
        pieces = self._work.plan(canvas, rect, PIECES_MAX)
        if pieces is None:
            parts = columns(rect, TIGHT_WIDTH_MAX)
            kind = Kind.PHOTO if self._may_jpeg else Kind.FLAT
            pieces = [Piece(*band, kind) for part in parts for band in bands(part, max(1, AREA_MAX // part.width))]
        return sum(self._tight_piece(canvas, piece, chunks) for piece in pieces)

    def _tight_piece(self, canvas: Canvas, piece: Piece, chunks: list[bytes]) -> int:
        if piece.kind is Kind.SOLID:
            self._header(piece, chunks)
            self._tight_fill(canvas, piece, chunks)
            return 1
        if piece.kind is Kind.PHOTO and self._may_jpeg:
            settings = self._settings
            assert settings.quality is not None
            data = jpeg(canvas, piece[:4], settings.quality, settings.fine_quality, settings.subsampling)
            self.lossy.append(Rect(*piece[:4]))
            self._header(piece, chunks)
            chunks += (bytes((TIGHT_JPEG,)) + compact_length(len(data)), data)
            return 1
        count = 0
        for band in bands(Rect(*piece[:4]), max(1, AREA_MAX // piece.width)):
            self._header(band, chunks)
            if self._settings.encoding == TIGHT:
                self._tight_basic(canvas, band, piece.kind is Kind.PHOTO, chunks)
            else:
                self._tight_png(canvas, band, piece.kind is Kind.PHOTO, chunks)
            count += 1
        return count

    def _tight_fill(self, canvas: Canvas, piece: Piece | Rect, chunks: list[bytes]) -> None:
        pixel = self._work.raw(canvas, self._tpixel, (piece.x, piece.y, 1, 1))
        chunks.append(bytes((TIGHT_FILL,)) + pixel)

    def _tight_basic(self, canvas: Canvas, rect: Rect, photo: bool, chunks: list[bytes]) -> None:
        gradient = photo and self._tpixel.size == 3 and not self._had_quality
        # An index of 8 bits is no smaller than a pixel of 8.
        most = 2 if self._tpixel.size == 1 else min(PALETTE_MAX, max(2, rect.width * rect.height // PALETTE_DIVISOR))
        bits, rows = self._work.rows(canvas, self._tpixel, rect, Rows.GRADIENT if gradient else Rows.TIGHT, most)
        if not bits:
            self._tight_fill(canvas, rect, chunks)
            return
        stream = {1: STREAM_MONO, 8: STREAM_INDEXED, 32: STREAM_PIXELS}[bits]
        head = bytes((stream << 4,))
        if bits == 32 and gradient:
            stream = STREAM_GRADIENT
            head = bytes((stream << 4 | TIGHT_FILTER, FILTER_GRADIENT))
        elif bits != 32:
            palette = self._work.palette()
            head = bytes((stream << 4 | TIGHT_FILTER, FILTER_PALETTE, len(palette) // self._tpixel.size - 1)) + palette
        if len(rows) < TIGHT_PLAIN_BYTES:
            chunks.append(head + rows)
            return
        deflate = self._tight[stream]
        if deflate is None:
            deflate = self._tight[stream] = DeflateStream()
        level = self._settings.compress_level
        done = deflate.compress((rows,), PHOTO_LEVELS[level] if photo and bits == 32 else level)
        chunks.append(head + compact_length(sum(map(len, done))))
        chunks += done

    def _tight_png(self, canvas: Canvas, rect: Rect, photo: bool, chunks: list[bytes]) -> None:
        bits, rows = self._work.rows(canvas, RGB_PACKING, rect, Rows.PNG, PALETTE_MAX)
        if not bits:
            self._tight_fill(canvas, rect, chunks)
            return
        palette = b"" if bits == 32 else self._work.palette()
        level = self._settings.compress_level
        level = PHOTO_LEVELS[level] if photo and bits == 32 else level
        data = png(rect.width, rect.height, bits, palette, rows, level)
        chunks += (bytes((TIGHT_PNG_CONTROL,)) + compact_length(len(data)), data)
