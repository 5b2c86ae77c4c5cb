"""The viewer's half of Tight without loss: bytes of a rectangle in, pixels of a canvas out.

Only what a viewer gets that has asked for 32 bits a pixel and named no quality: fills, and the copy, palette and
gradient filters. All of it but the gradient is done by operations on whole rows of bytes.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from tvmm.vnc.errors import RfbError

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["WIDTH_MAX", "TightDecoder"]

WIDTH_MAX = 2048
"""Pixels of a rectangle's width; the encoding's own limit."""
STREAMS = 4
FILL = 8
FILTER = 4
COPY, PALETTE, GRADIENT = range(3)
PLAIN_BYTES = 12
"""Less than that is not compressed."""

_BITS = tuple(bytes(value >> 7 - bit & 1 for bit in range(8)) for value in range(256))
"""The eight indices of a byte."""


class TightDecoder:
    """One connection's four streams."""

    def __init__(self) -> None:
        self._streams = [zlib.decompressobj() for _ in range(STREAMS)]

    def decode(self, width: int, height: int) -> Generator[int, bytes, bytes]:
        """Asks for bytes by their number; returns pixels of 4 bytes B, G, R, 0, line by line. Raises `RfbError`."""
        if width > WIDTH_MAX:
            raise RfbError(f"a rectangle of Tight that is {width} pixels wide, of at most {WIDTH_MAX}")
        (control,) = yield 1
        for stream in range(STREAMS):
            if control >> stream & 1:
                self._streams[stream] = zlib.decompressobj()
        kind = control >> 4
        if kind == FILL:
            red, green, blue = yield 3
            return bytes((blue, green, red, 0)) * (width * height)
        if kind > FILL:
            raise RfbError(f"a rectangle of Tight of the kind {kind}, which nobody has asked for")
        return (yield from self._basic(control, width, height))

    def _basic(self, control: int, width: int, height: int) -> Generator[int, bytes, bytes]:
        name, colours = COPY, b""
        if control >> 4 & FILTER:
            (name,) = yield 1
        if name == PALETTE:
            (last,) = yield 1
            if not last:
                raise RfbError("a palette of one colour")
            colours = yield 3 * (last + 1)
        elif name not in (COPY, GRADIENT):
            raise RfbError(f"a filter {name}")
        line = 3 * width
        if colours:
            line = -(-width // 8) if len(colours) == 6 else width
        data = yield from self._data(control >> 4 & 3, line * height)
        if len(colours) == 6:
            # Lines begin with whole bytes.
            bits = b"".join(map(_BITS.__getitem__, data))
            data = b"".join(bits[at : at + width] for at in range(0, 8 * len(data), 8 * line))
        if colours:
            return _coloured(data, colours)
        return _pixels(_ungradient(data, width) if name == GRADIENT else data)

    def _data(self, stream: int, size: int) -> Generator[int, bytes, bytes]:
        if size < PLAIN_BYTES:
            return (yield size)
        length = 0
        for shift in (0, 7, 14):
            (byte,) = yield 1
            length |= (byte if shift == 14 else byte & 0x7F) << shift
            if shift == 14 or not byte & 0x80:
                break
        packed = yield length
        try:
            # One more than wanted: the end of a block has bytes too, and a bomb is found out.
            data = self._streams[stream].decompress(packed, size + 1)
        except zlib.error as error:
            raise RfbError(f"a rectangle of Tight cannot be unpacked: {error}") from error
        if len(data) != size:
            raise RfbError(f"a rectangle of Tight has not the {size} bytes that it must have")
        return data


def _pixels(data: bytes) -> bytes:
    """From red, green, blue."""
    out = bytearray(len(data) // 3 * 4)
    out[0::4], out[1::4], out[2::4] = data[2::3], data[1::3], data[0::3]
    return bytes(out)


def _coloured(indices: bytes, colours: bytes) -> bytes:
    out = bytearray(4 * len(indices))
    for place, part in enumerate((2, 1, 0)):
        # An index beyond the palette is black.
        out[place::4] = indices.translate(colours[part::3].ljust(256, b"\0"))
    return bytes(out)


def _ungradient(data: bytes, width: int) -> bytes:
    """Each byte is how far it is from what the pixels above, to the left and above that to the left let expect."""
    line = 3 * width
    above = bytearray(line + 3)
    rows = []
    for at in range(0, len(data), line):
        row = bytearray(line + 3)
        for place, byte in enumerate(data[at : at + line], 3):
            guess = row[place - 3] + above[place] - above[place - 3]
            row[place] = byte + (0 if guess < 0 else 255 if guess > 255 else guess) & 255
        rows.append(row[3:])
        above = row
    return b"".join(rows)
