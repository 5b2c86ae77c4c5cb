"""What the guest shows: the surface that a display scans out, and the canvas that everybody else looks at.

The canvas is the guest's picture in one fixed pixel format. `tvmm.kvm.pixels.refresh` brings it up to date tile by tile
and says which tiles changed; viewers, screenshots and recordings read only the canvas. Pure: no IO and no C.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "BITS_PER_PIXEL",
    "HEIGHT_MAX",
    "PALETTE_BYTES",
    "TILE_HEIGHT",
    "TILE_WIDTH",
    "WIDTH_MAX",
    "Canvas",
    "Surface",
]

TILE_WIDTH = 64
"""Pixels."""
TILE_HEIGHT = 16
"""Pixels."""
WIDTH_MAX = 2560
"""Pixels of the widest mode. Bounds what a guest can have a canvas, and each viewer's buffers, take."""
HEIGHT_MAX = 1600
BITS_PER_PIXEL = (8, 15, 16, 24, 32)
PALETTE_BYTES = 1024
"""256 colours of 4 bytes B, G, R, 0."""
STRIDE_MAX = 1 << 20
"""Bytes of a line, beyond anything that a mode register can say."""
OFFSET_MAX = 1 << 40


class Surface(NamedTuple):
    """What the guest scans out of its video memory."""

    width: int
    """Pixels, 1 to `WIDTH_MAX`."""
    height: int
    """Pixels, 1 to `HEIGHT_MAX`."""
    stride: int
    """Bytes from one line to the next; at least those of a line."""
    bits_per_pixel: int
    """8 (indices of the palette), 15 (5:5:5), 16 (5:6:5), 24 or 32 (B, G, R, ignored); little-endian."""
    offset: int
    """Of the first pixel in the video memory, in bytes."""
    palette: bytes = b""
    """`PALETTE_BYTES` with 8 bits a pixel: B, G, R, 0 each. Elsewhere ignored."""

    @property
    def bytes_per_pixel(self) -> int:
        """1 to 4."""
        return (self.bits_per_pixel + 7) // 8

    @property
    def end(self) -> int:
        """First byte of the video memory behind the picture."""
        return self.offset + (self.height - 1) * self.stride + self.width * self.bytes_per_pixel

    def check(self, vram_bytes: int | None = None) -> None:
        """Raise `ValueError` for what no display can show, or what is not all in a video memory of `vram_bytes`."""
        if not (1 <= self.width <= WIDTH_MAX and 1 <= self.height <= HEIGHT_MAX):
            raise ValueError(f"no picture of {self.width}x{self.height} pixels, of at most {WIDTH_MAX}x{HEIGHT_MAX}")
        if self.bits_per_pixel not in BITS_PER_PIXEL:
            raise ValueError(f"no pixels of {self.bits_per_pixel} bits")
        if not self.width * self.bytes_per_pixel <= self.stride <= STRIDE_MAX:
            raise ValueError(f"no lines of {self.stride} bytes for {self.width} pixels of {self.bits_per_pixel} bits")
        if not 0 <= self.offset <= OFFSET_MAX:
            raise ValueError(f"no picture at {self.offset}")
        if self.bits_per_pixel == 8 and len(self.palette) != PALETTE_BYTES:
            raise ValueError(f"a palette of {len(self.palette)} bytes, of {PALETTE_BYTES}")
        if vram_bytes is not None and self.end > vram_bytes:
            raise ValueError(f"a picture up to byte {self.end} of a video memory of {vram_bytes}")


class Canvas:
    """The picture as everybody but the guest sees it.

    Belongs to the event loop: others use it only while the loop waits for them. `pixels` stays one object until the
    size changes.
    """

    def __init__(self, width: int = 1, height: int = 1) -> None:
        """A black picture."""
        self.generation = -1
        """Counts the changes of size, from 0."""
        self.width = self.height = self.columns = self.rows = 0
        self.pixels = bytearray()
        """`width` x `height` pixels of 4 bytes B, G, R, 0, line by line."""
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        """Become a black picture of another size, or of the same. Raises `ValueError` for one that cannot be."""
        if not (1 <= width <= WIDTH_MAX and 1 <= height <= HEIGHT_MAX):
            raise ValueError(f"no picture of {width}x{height} pixels, of at most {WIDTH_MAX}x{HEIGHT_MAX}")
        self.width, self.height = width, height
        self.columns = -(-width // TILE_WIDTH)
        """Tiles across; the last may be narrower."""
        self.rows = -(-height // TILE_HEIGHT)
        """Tiles down; the last may be lower."""
        self.pixels = bytearray(width * height * 4)
        self.generation += 1

    def new_damage(self) -> bytearray:
        """One byte a tile, row by row: 0, to be set to 1 where the picture changes."""
        return bytearray(self.columns * self.rows)
