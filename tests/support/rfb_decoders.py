"""A viewer's side of RFB's encodings, plain and by the specification: the oracle for encoders.

A picture is a list of lines of pixel values, as the viewer's format has them. Where a JPEG or a PNG came, values are
made from its colours.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

from tvmm.vnc.pixel_format import PixelFormat, Rect

RAW, COPY_RECT, HEXTILE, TIGHT, ZRLE, TIGHT_PNG = 0, 1, 5, 7, 16, -260


class Reader:
    """Bytes from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        piece = self.data[self.at : self.at + count]
        assert len(piece) == count, "the data ends early"
        self.at += count
        return piece

    def number(self, count: int, signed: bool = False) -> int:
        """Big-endian."""
        return int.from_bytes(self.take(count), "big", signed=signed)

    def compact(self) -> int:
        """Tight's length."""
        value = 0
        for shift in (0, 7, 14):
            byte = self.number(1)
            if shift == 14:
                return value | byte << 14
            value |= (byte & 127) << shift
            if not byte & 128:
                return value
        raise AssertionError

    @property
    def done(self) -> bool:
        """Whether all of it was read."""
        return self.at == len(self.data)


class Viewer:
    """A picture and the streams of one connection."""

    def __init__(self, width: int, height: int, wanted: PixelFormat) -> None:
        self.width, self.height, self.wanted = width, height, wanted
        self.lines = [[0] * width for _ in range(height)]
        self.lossy: list[Rect] = []
        """What came as JPEG since this was cleared."""
        self.zrle = zlib.decompressobj()
        self.tight = [zlib.decompressobj() for _ in range(4)]
        self.kinds: list[str] = []
        """What the rectangles and tiles were, for tests to look at."""

    # --- pixels ----------------------------------------------------------------------------------------------------

    def from_colours(self, red: int, green: int, blue: int) -> int:
        """The value of a colour in the viewer's format."""
        wanted, value = self.wanted, 0
        for level, most, shift in (
            (red, wanted.red_max, wanted.red_shift),
            (green, wanted.green_max, wanted.green_shift),
            (blue, wanted.blue_max, wanted.blue_shift),
        ):
            value |= (level * most + 127) // 255 << shift
        return value

    def to_colours(self, value: int) -> tuple[int, int, int]:
        """Red, green and blue, 0 to their maxima."""
        wanted = self.wanted
        return (
            value >> wanted.red_shift & wanted.red_max,
            value >> wanted.green_shift & wanted.green_max,
            value >> wanted.blue_shift & wanted.blue_max,
        )

    def parse_pixel(self, data: bytes) -> int:
        """PIXEL."""
        return int.from_bytes(data, "big" if self.wanted.big_endian else "little")

    def pixel(self, reader: Reader) -> int:
        """PIXEL."""
        return self.parse_pixel(reader.take(self.wanted.bits_per_pixel // 8))

    def cpixel(self, reader: Reader) -> int:
        """CPIXEL of ZRLE."""
        wanted = self.wanted
        used = wanted.red_max << wanted.red_shift | wanted.green_max << wanted.green_shift
        used |= wanted.blue_max << wanted.blue_shift
        if wanted.bits_per_pixel != 32 or wanted.depth > 24:
            return self.pixel(reader)
        low = used < 1 << 24
        if not low and used & 255:
            return self.pixel(reader)
        data = reader.take(3)
        value = int.from_bytes(data, "big" if wanted.big_endian else "little")
        return value if low else value << 8

    def tpixel(self, reader: Reader) -> int:
        """TPIXEL of Tight."""
        wanted = self.wanted
        if (
            wanted.bits_per_pixel == 32
            and wanted.depth == 24
            and (wanted.red_max, wanted.green_max, wanted.blue_max) == (255, 255, 255)
        ):
            red, green, blue = reader.take(3)
            return red << wanted.red_shift | green << wanted.green_shift | blue << wanted.blue_shift
        return self.pixel(reader)

    def put(self, rect: Rect, values: Any) -> None:
        """Fill a rectangle from an iterable of values."""
        values = list(values)
        assert len(values) == rect.width * rect.height
        for y in range(rect.height):
            row = values[y * rect.width : (y + 1) * rect.width]
            self.lines[rect.y + y][rect.x : rect.x + rect.width] = row

    # --- updates ---------------------------------------------------------------------------------------------------

    def update(self, count: int, data: bytes) -> list[Rect]:
        """All rectangles of an update, without its own header; nothing may be left over."""
        reader, found = Reader(data), []
        for _ in range(count):
            rect = Rect(*(reader.number(2) for _ in range(4)))
            assert rect.x + rect.width <= self.width
            assert rect.y + rect.height <= self.height
            assert rect.width
            assert rect.height
            self.rectangle(rect, reader.number(4, signed=True), reader)
            found.append(rect)
        assert reader.done
        return found

    def rectangle(self, rect: Rect, encoding: int, reader: Reader) -> None:
        """One rectangle behind its header."""
        if encoding == RAW:
            self.put(rect, [self.pixel(reader) for _ in range(rect.width * rect.height)])
        elif encoding == COPY_RECT:
            self.copy(rect, reader.number(2), reader.number(2))
        elif encoding == HEXTILE:
            self.hextile(rect, reader)
        elif encoding == ZRLE:
            data = reader.take(reader.number(4))
            inner = Reader(self.zrle.decompress(data))
            for tile in tiles(rect, 64):
                self.put(tile, self.zrle_tile(tile, inner))
            assert inner.done
        elif encoding in (TIGHT, TIGHT_PNG):
            self.tight_rect(rect, encoding, reader)
        else:
            raise AssertionError(f"encoding {encoding}")

    def copy(self, rect: Rect, x: int, y: int) -> None:
        """CopyRect."""
        self.kinds.append("copy")
        assert x + rect.width <= self.width
        assert y + rect.height <= self.height
        rows = [self.lines[y + row][x : x + rect.width] for row in range(rect.height)]
        self.put(rect, [value for row in rows for value in row])

    # --- Hextile ---------------------------------------------------------------------------------------------------

    def hextile(self, rect: Rect, reader: Reader) -> None:
        """RFC 6143, 7.7.4."""
        background: int | None = None
        foreground: int | None = None
        for tile in tiles(rect, 16):
            mask = reader.number(1)
            if mask & 1:
                self.kinds.append("raw")
                assert mask == 1
                self.put(tile, [self.pixel(reader) for _ in range(tile.width * tile.height)])
                background = foreground = None
                continue
            if mask & 2:
                background = self.pixel(reader)
            if mask & 4:
                assert not mask & 16
                foreground = self.pixel(reader)
            assert background is not None
            values = [background] * (tile.width * tile.height)
            for _ in range(reader.number(1) if mask & 8 else 0):
                colour = self.pixel(reader) if mask & 16 else foreground
                assert colour is not None
                place, size = reader.take(2)
                x, y, width, height = place >> 4, place & 15, (size >> 4) + 1, (size & 15) + 1
                assert x + width <= tile.width
                assert y + height <= tile.height
                for row in range(y, y + height):
                    values[row * tile.width + x : row * tile.width + x + width] = [colour] * width
            self.kinds.append("coloured" if mask & 16 else "subrects" if mask & 8 else "solid")
            if mask & 16:
                foreground = None
            self.put(tile, values)

    # --- ZRLE ------------------------------------------------------------------------------------------------------

    def zrle_tile(self, tile: Rect, reader: Reader) -> list[int]:
        """RFC 6143, 7.7.6."""
        count, kind = tile.width * tile.height, reader.number(1)
        self.kinds.append(f"zrle {kind}")
        if kind == 0:
            return [self.cpixel(reader) for _ in range(count)]
        if kind == 1:
            return [self.cpixel(reader)] * count
        values: list[int] = []
        if kind <= 16:
            palette = [self.cpixel(reader) for _ in range(kind)]
            bits = 1 if kind == 2 else 2 if kind <= 4 else 4
            for _ in range(tile.height):
                values += [palette[index] for index in unpacked(reader, tile.width, bits)]
            return values
        assert kind >= 128
        assert kind != 129
        palette = [self.cpixel(reader) for _ in range(kind - 128)]
        while len(values) < count:
            if kind == 128:
                value, long = self.cpixel(reader), True
            else:
                index = reader.number(1)
                value, long = palette[index & 127], index >= 128
            length = 1
            while long:
                byte = reader.number(1)
                length += byte
                long = byte == 255
            values += [value] * length
        assert len(values) == count
        return values

    # --- Tight -----------------------------------------------------------------------------------------------------

    def tight_rect(self, rect: Rect, encoding: int, reader: Reader) -> None:
        """rfbproto, "Tight Encoding" and "Tight PNG Encoding"."""
        assert rect.width <= 2048
        control = reader.number(1)
        for stream in range(4):
            if control >> stream & 1:
                self.tight[stream] = zlib.decompressobj()
        kind = control >> 4
        if kind == 8:
            self.kinds.append("fill")
            self.put(rect, [self.tpixel(reader)] * (rect.width * rect.height))
        elif kind == 9 or (kind == 10 and encoding == TIGHT_PNG):
            assert kind == 10 or self.wanted.bits_per_pixel in (16, 32)
            with Image.open(io.BytesIO(reader.take(reader.compact()))) as image:
                assert image.format == ("JPEG" if kind == 9 else "PNG")
                assert image.size == (rect.width, rect.height)
                data = image.convert("RGB").tobytes()
            self.put(rect, [self.from_colours(*data[at : at + 3]) for at in range(0, len(data), 3)])
            self.kinds.append("jpeg" if kind == 9 else "png")
            if kind == 9:
                self.lossy.append(rect)
        else:
            assert kind < 8
            assert encoding == TIGHT
            self.tight_basic(rect, control, reader)

    def tight_basic(self, rect: Rect, control: int, reader: Reader) -> None:
        """Copy and palette filters."""
        palette: list[int] = []
        name = 0
        if control & 0x40:
            name = reader.number(1)
            assert name in (0, 1, 2)
            if name == 1:
                palette = [self.tpixel(reader) for _ in range(reader.number(1) + 1)]
                assert len(palette) >= 2
        pixel_bytes = len(self.tpixel_bytes())
        size = rect.width * rect.height * pixel_bytes
        if palette:
            size = rect.height * (-(-rect.width // 8) if len(palette) == 2 else rect.width)
        if size < 12:
            data = reader.take(size)
        else:
            data = self.tight[control >> 4 & 3].decompress(reader.take(reader.compact()))
            assert len(data) == size
        self.kinds.append("mono" if len(palette) == 2 else "indexed" if palette else "pixels")
        inner = Reader(data)
        if name == 2:
            self.kinds[-1] = "gradient"
            assert self.wanted.bits_per_pixel in (16, 32)
            self.put(rect, self.gradient(rect, inner))
            return
        if not palette:
            self.put(rect, [self.tpixel(inner) for _ in range(rect.width * rect.height)])
            return
        bits = 1 if len(palette) == 2 else 8
        rows = [unpacked(inner, rect.width, bits) for _ in range(rect.height)]
        self.put(rect, [palette[index] for row in rows for index in row])

    def gradient(self, rect: Rect, reader: Reader) -> list[int]:
        """GradientFilter."""
        most = (self.wanted.red_max, self.wanted.green_max, self.wanted.blue_max)
        shifts = (self.wanted.red_shift, self.wanted.green_shift, self.wanted.blue_shift)
        colours: dict[tuple[int, int, int], int] = {}
        values = []
        for y in range(rect.height):
            for x in range(rect.width):
                differences, value = self.to_colours(self.tpixel(reader)), 0
                for part in range(3):
                    guess = colours.get((x - 1, y, part), 0) + colours.get((x, y - 1, part), 0)
                    guess -= colours.get((x - 1, y - 1, part), 0)
                    guess = min(max(guess, 0), most[part])
                    colours[x, y, part] = differences[part] + guess & most[part]
                    value |= colours[x, y, part] << shifts[part]
                values.append(value)
        return values

    def tpixel_bytes(self) -> bytes:
        """As many bytes as a TPIXEL has."""
        probe = Reader(bytes(4))
        self.tpixel(probe)
        return bytes(probe.at)


def tiles(rect: Rect, size: int) -> Iterator[Rect]:
    """From left to right and top to bottom."""
    for y in range(rect.y, rect.y + rect.height, size):
        for x in range(rect.x, rect.x + rect.width, size):
            yield Rect(x, y, min(size, rect.x + rect.width - x), min(size, rect.y + rect.height - y))


def unpacked(reader: Reader, count: int, bits: int) -> list[int]:
    """A row of indices of `bits` bits, padded to a whole byte."""
    data = reader.take(-(-count * bits // 8))
    per_byte = 8 // bits
    return [data[at // per_byte] >> 8 - bits * (at % per_byte + 1) & (1 << bits) - 1 for at in range(count)]
