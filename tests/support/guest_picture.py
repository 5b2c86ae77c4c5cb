"""The built-in guest's test picture (`screen picture`), pixel by pixel, as tvmm/guest/README.md defines it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import tvmm.guest

__all__ = ["fnv1a", "picture", "shown"]

FONT = Path(tvmm.guest.__file__).with_name("font.c")
FIRST, GLYPHS, ABOVE, CELL_WIDTH, CELL_HEIGHT = 32, 95, 2, 8, 16
PALETTE = (0x000000, 0xFF0000, 0x00FF00, 0xFFFF00, 0x0000FF, 0xFF00FF, 0x00FFFF, 0xFFFFFF)
WHITE = 0xFFFFFF
BANDS = 6
MASK = 0xFFFF_FFFF


@cache
def glyphs() -> tuple[tuple[int, ...], ...]:
    """16 rows of 8 bits for each printable character, the highest bit leftmost."""
    rows = re.findall(r"^ +\{((?:0x\w\w,? ?)+)\}", FONT.read_text(), re.MULTILINE)
    assert len(rows) == GLYPHS
    cells = []
    for row in rows:
        stored = [int(number, 16) for number in row.split(",")]
        cells.append((*(0,) * ABOVE, *stored, *(0,) * (CELL_HEIGHT - ABOVE - len(stored))))
    return tuple(cells)


@cache
def _flat_row(which: int, width: int, y: int, seed: int) -> tuple[int, ...]:
    """A row of a band in which few rows differ: bars, grid, tiles."""
    columns, half = range(width), width // 2
    if which == 0:
        return tuple(PALETTE[7 - x * 8 // width] for x in columns)
    if which == 2:
        return tuple(WHITE * ((x ^ y) & 1 if x < half else x % 8 == 0 or y % 8 == 0) for x in columns)
    return tuple(PALETTE[(x // 16 ^ y ^ seed) % 8] for x in columns)


def _text_row(width: int, y: int, seed: int) -> list[int]:
    line, inside = divmod(y, CELL_HEIGHT)
    row = []
    for x in range(width):
        column, bit = divmod(x, CELL_WIDTH)
        ink = glyphs()[(column + line * 7 + seed & MASK) % GLYPHS][inside] & 0x80 >> bit
        row.append(PALETTE[1 + (column + line) % 7] if ink else 0)
    return row


def _row(which: int, width: int, y: int, height: int, seed: int) -> list[int]:
    """Row `y` of a band; noise is left to the caller."""
    if which == 1:
        green = y * 256 // height << 8
        return [(x * 256 // width) << 16 | green | 255 - x * 256 // width for x in range(width)]
    if which == 3:
        return _text_row(width, y, seed)
    return list(_flat_row(which, width, {0: 0, 2: y % 8, 5: y // 16}[which], seed))


def picture(width: int, height: int, seed: int = 1) -> list[list[int]]:
    """The picture's rows of 0xRRGGBB, `seed` from 0 to 2**32 - 1, before a mode cuts colours off."""
    band = max(height // BANDS, 1)
    state = seed
    rows = []
    for y in range(height):
        which = min(y // band, BANDS - 1)
        if which == 4:
            row = []
            for _ in range(width):
                state = (state * 1664525 + 1013904223) & MASK
                row.append(state >> 8)
        else:
            row = _row(which, width, y - which * band, band, seed)
        row[0] = row[-1] = WHITE
        if y in (0, height - 1):
            row = [WHITE] * width
            row[0] = 0x0000FF if y else 0xFF0000
            row[-1] = 0xFFFF00 if y else 0x00FF00
        rows.append(row)
    return rows


def _spread(value: int, bits: int) -> int:
    """A colour's component of fewer bits as one of 8: its bits over and over."""
    wide = value << (8 - bits)
    return wide | wide >> bits


def shown(colour: int, bits_per_pixel: int) -> int:
    """What a display shows for `colour` in a mode of 8, 15, 16, 24 or 32 bits: cut off, and spread to 8 bits again.

    With 8 bits the guest's palette has three bits of red and green, two of blue, in even steps.
    """
    red, green, blue = colour >> 16, colour >> 8 & 0xFF, colour & 0xFF
    if bits_per_pixel >= 24:
        return colour
    if bits_per_pixel == 8:
        return (red >> 5) * 255 // 7 << 16 | (green >> 5) * 255 // 7 << 8 | (blue >> 6) * 255 // 3
    green_bits = 6 if bits_per_pixel == 16 else 5
    return _spread(red >> 3, 5) << 16 | _spread(green >> 8 - green_bits, green_bits) << 8 | _spread(blue >> 3, 5)


def fnv1a(rows: list[list[int]]) -> int:
    """The sum that the guest prints: FNV-1a, 32 bits, over the pixels as bytes B, G, R, 0."""
    value = 0x811C9DC5
    for row in rows:
        for colour in row:
            for byte in (colour & 0xFF, colour >> 8 & 0xFF, colour >> 16, 0):
                value = (value ^ byte) * 0x01000193 & MASK
    return value
