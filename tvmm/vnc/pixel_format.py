"""How a viewer wants its pixels (RFC 6143, section 7.4), and the rectangle that everything here is made of."""

from __future__ import annotations

import struct
from typing import NamedTuple

from tvmm.vnc.errors import RfbError

__all__ = ["DEFAULT", "PIXEL_FORMAT_BYTES", "PixelFormat", "Rect", "colour_map"]

_LAYOUT = struct.Struct(">BBBBHHHBBB3x")
PIXEL_FORMAT_BYTES = _LAYOUT.size
MAP_COLOURS = 256
"""Colours in the map of a viewer that wants one, whatever the width of its pixels."""


class Rect(NamedTuple):
    """A rectangle of pixels; `x`, `y` is its top left corner."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column that is not in it."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """The first line that is not in it."""
        return self.y + self.height

    @property
    def area(self) -> int:
        """Pixels in it."""
        return self.width * self.height

    def clip(self, width: int, height: int) -> Rect:
        """What of it lies on a screen of that size. Empty ones have no width and no height."""
        return self.intersect(Rect(0, 0, width, height))

    def intersect(self, other: Rect) -> Rect:
        """What both have. Empty ones have no width and no height."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        width, height = min(self.right, other.right) - x, min(self.bottom, other.bottom) - y
        return Rect(x, y, width, height) if width > 0 and height > 0 else Rect(0, 0, 0, 0)

    def bounding(self, other: Rect) -> Rect:
        """The smallest one that has both. An empty one counts for nothing."""
        if not self.area or not other.area:
            return self if self.area else other
        x, y = min(self.x, other.x), min(self.y, other.y)
        return Rect(x, y, max(self.right, other.right) - x, max(self.bottom, other.bottom) - y)


class PixelFormat(NamedTuple):
    """A pixel is `bits_per_pixel` wide; each colour is `max` (2**n - 1) at `shift` in it."""

    bits_per_pixel: int
    depth: int
    big_endian: bool
    true_colour: bool
    red_max: int
    green_max: int
    blue_max: int
    red_shift: int
    green_shift: int
    blue_shift: int

    @property
    def bytes_per_pixel(self) -> int:
        """1, 2 or 4."""
        return self.bits_per_pixel // 8

    def check(self) -> PixelFormat:
        """Itself, if it is one that pixels can be converted to. Raises `RfbError` otherwise."""
        if self.bits_per_pixel not in (8, 16, 32):
            raise RfbError(f"pixels of {self.bits_per_pixel} bits")
        if not 1 <= self.depth <= self.bits_per_pixel:
            raise RfbError(f"a depth of {self.depth} in {self.bits_per_pixel} bits")
        if self.true_colour:
            used = 0
            for maximum, shift in self._colours():
                if maximum < 1 or maximum & (maximum + 1):
                    raise RfbError(f"a colour's maximum is {maximum}, which is not all ones")
                # The shift first: it is up to 255, and the mask would be as long.
                if shift >= self.bits_per_pixel or (maximum << shift) >> self.bits_per_pixel:
                    raise RfbError(f"a colour lies outside of the pixel: {maximum} shifted by {shift}")
                if used & (maximum << shift):
                    raise RfbError("colours overlap in the pixel")
                used |= maximum << shift
        return self

    def _colours(self) -> tuple[tuple[int, int], ...]:
        return (
            (self.red_max, self.red_shift),
            (self.green_max, self.green_shift),
            (self.blue_max, self.blue_shift),
        )

    def as_true_colour(self) -> PixelFormat:
        """What to convert to: for a viewer with a colour map, indices that are made as if they were colours.

        The map then says what they mean (`colour_map`): red in the lowest three bits, green in the next, blue in two.
        """
        if self.true_colour:
            return self
        return self._replace(
            true_colour=True, red_max=7, green_max=7, blue_max=3, red_shift=0, green_shift=3, blue_shift=6
        )

    def pixel(self, red: int, green: int, blue: int) -> bytes:
        """One pixel, of colours from 0 to 255."""
        value = 0
        for colour, (maximum, shift) in zip((red, green, blue), self._colours(), strict=True):
            value |= (colour * maximum + 127) // 255 << shift
        return value.to_bytes(self.bytes_per_pixel, "big" if self.big_endian else "little")

    def pack(self) -> bytes:
        """As 16 bytes on the wire."""
        return _LAYOUT.pack(*self)

    @staticmethod
    def parse(data: bytes | bytearray, offset: int = 0) -> PixelFormat:
        """From 16 bytes on the wire; not checked."""
        fields = _LAYOUT.unpack_from(data, offset)
        return PixelFormat(fields[0], fields[1], bool(fields[2]), bool(fields[3]), *fields[4:])


def colour_map() -> list[tuple[int, int, int]]:
    """Red, green and blue, from 0 to 65535, of each index that `PixelFormat.as_true_colour` makes."""
    return [
        ((index & 7) * 65535 // 7, (index >> 3 & 7) * 65535 // 7, (index >> 6) * 65535 // 3)
        for index in range(MAP_COLOURS)
    ]


DEFAULT = PixelFormat(32, 24, False, True, 255, 255, 255, 16, 8, 0)
"""What a viewer gets that asks for nothing: bytes blue, green, red, 0, as they are on a canvas."""
