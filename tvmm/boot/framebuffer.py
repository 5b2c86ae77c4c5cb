"""The framebuffer that a kernel finds ready: ``struct screen_info`` (Linux include/uapi/linux/screen_info.h).

The kind is that of a VESA mode with a linear framebuffer (VIDEO_TYPE_VLFB, 0x23). Linux makes a ``simple-framebuffer``
of it for simpledrm and simplefb (drivers/firmware/sysfb.c), and a ``vesa-framebuffer`` for vesafb if it has none of
them. Rejected: VIDEO_TYPE_EFI (0x70), which the first two take as well, and else efifb; but it is not true, and kernels
have vesafb as often as that. Either keeps the kernel from looking for a VGA text screen.

The size is in units of 64 KiB with this kind. The top byte of a pixel is called reserved: kernels up to 6.2 compare it
with the alpha of their format a8r8g8b8, later ones count the bits of a pixel with it.
"""

from __future__ import annotations

from struct import pack
from typing import NamedTuple

__all__ = ["Framebuffer", "screen_info"]

TEXT_COLUMNS, TEXT_LINES, TEXT_POINTS = 80, 25, 16
"""What a kernel asks for before it has the framebuffer."""
VIDEO_TYPE_VLFB = 0x23
SIZE_UNIT = 1 << 16
SKIP_QUIRKS, BASE_64_BIT = 1, 2
VESA_ATTRIBUTES = 0x9B
"""Supported, colour, graphics, no VGA, linear framebuffer (VBE 3.0, mode attributes)."""


class Framebuffer(NamedTuple):
    """32 bits a pixel: bytes B, G, R and one that does not matter.

    `address` is guest-physical, `size` that of the whole video memory in bytes; lines are `stride` bytes apart.
    """

    address: int
    size: int
    width: int
    height: int
    stride: int


def screen_info(framebuffer: Framebuffer) -> bytes:
    """The 64 bytes of the structure."""
    address = framebuffer.address
    return b"".join(
        (
            bytes(7),
            bytes((TEXT_COLUMNS,)),
            bytes(6),
            bytes((TEXT_LINES, VIDEO_TYPE_VLFB)),
            pack("<HHHH", TEXT_POINTS, framebuffer.width, framebuffer.height, 32),
            pack("<II", address & 0xFFFF_FFFF, framebuffer.size // SIZE_UNIT),
            pack("<HHH", 0, 0, framebuffer.stride),
            bytes((8, 16, 8, 8, 8, 0, 8, 24)),
            pack("<HHHH", 0, 0, 0, VESA_ATTRIBUTES),
            pack("<II", SKIP_QUIRKS | (BASE_64_BIT if address >> 32 else 0), address >> 32),
            bytes(2),
        )
    )
