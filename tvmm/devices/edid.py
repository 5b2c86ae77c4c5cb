"""What a monitor says of itself: one block of EDID (VESA E-EDID Standard, release A, revision 2: EDID 1.4).

A guest's driver takes its first mode from it. The timings are those of a flat panel with reduced blanking (VESA CVT
1.1); nothing here scans out in time, so only their sizes matter.
"""

from __future__ import annotations

__all__ = ["EDID_LENGTH", "make_edid"]

EDID_LENGTH = 128

HEADER = bytes.fromhex("00ffffffffffff00")
VENDOR = "TVM"
PRODUCT, YEAR = 0x1111, 2026
DIGITAL_8_BITS = 0xA5
"""Digital, 8 bits a colour, DisplayPort."""
GAMMA_2_2 = 120
SRGB_AND_PREFERRED_IS_NATIVE = 0x06
SRGB = bytes.fromhex("ee91a3544c99260f5054")
"""Where the primaries of sRGB lie."""
ESTABLISHED = bytes((0x21, 0x08, 0x00))
"""640x480, 800x600 and 1024x768 at 60 Hz."""
STANDARD = (
    (1920, 1200, 0), (1920, 1080, 3), (1680, 1050, 0), (1600, 1200, 1),
    (1440, 900, 0), (1280, 1024, 2), (1280, 800, 0), (1280, 720, 3),
)  # fmt: skip
"""Width, height, and the number of the aspect ratio; all at 60 Hz."""
NO_STANDARD = b"\1\1"

DOTS_PER_INCH = 100
REFRESH_HZ = 60
H_BLANK, H_FRONT, H_SYNC = 160, 48, 32
V_FRONT, V_SYNC, V_BACK_MIN, V_BLANK_US = 3, 6, 6, 460
SYNC_DIGITAL_H_POSITIVE = 0x1A
NAME, RANGE_LIMITS, DUMMY = 0xFC, 0xFD, 0x10
LIMITS = bytes((50, 75, 5, 160, 30, 1)) + b"\n      "
"""Hz, kHz, tens of MHz; no formula for other timings."""


def make_edid(width: int, height: int, name: str = "tvmm", memory: int = 0) -> bytes:
    """128 bytes of a monitor called `name` (ASCII, up to 13 characters) that likes `width` x `height` best.

    Both are 64 to 4095 pixels. With `memory`, in bytes, only modes are listed that fit into it with 32 bits a pixel.
    Raises `ValueError` for what has no place in the block.
    """
    if not 64 <= width <= 4095 or not 64 <= height <= 4095:
        raise ValueError(f"a monitor of {width}x{height} pixels does not fit into an EDID block")
    if not name.isascii() or not name.isprintable() or not 0 < len(name) <= 13:
        raise ValueError(f"name {name!r} does not fit into an EDID block")
    standard = [
        bytes((wide // 8 - 31, aspect << 6))
        for wide, high, aspect in STANDARD
        if not memory or wide * high * 4 <= memory
    ]
    block = b"".join(
        (
            HEADER,
            _vendor(VENDOR),
            PRODUCT.to_bytes(2, "little") + bytes(4),
            bytes((0, YEAR - 1990, 1, 4)),
            bytes((DIGITAL_8_BITS, *(_millimetres(side) // 10 for side in (width, height)), GAMMA_2_2)),
            bytes((SRGB_AND_PREFERRED_IS_NATIVE,)),
            SRGB,
            ESTABLISHED,
            b"".join(standard).ljust(16, NO_STANDARD[:1]),
            _timing(width, height),
            _descriptor(RANGE_LIMITS, LIMITS),
            _descriptor(NAME, f"{name}\n".encode()[:13].ljust(13)),
            _descriptor(DUMMY, bytes(13)),
            b"\0",  # no more blocks
        )
    )
    return block + bytes((-sum(block) & 0xFF,))


def _vendor(letters: str) -> bytes:
    """Three letters in five bits each."""
    first, second, third = (ord(letter) - ord("A") + 1 for letter in letters)
    return (first << 10 | second << 5 | third).to_bytes(2, "big")


def _millimetres(pixels: int) -> int:
    return min(pixels * 254 // (DOTS_PER_INCH * 10), 2550)


def _timing(width: int, height: int) -> bytes:
    """The detailed timing descriptor."""
    line_us = (1_000_000 / REFRESH_HZ - V_BLANK_US) / height
    v_blank = max(int(V_BLANK_US / line_us) + 1, V_FRONT + V_SYNC + V_BACK_MIN)
    clock = (width + H_BLANK) * (height + v_blank) * REFRESH_HZ // 10_000
    wide, high = _millimetres(width), _millimetres(height)
    fields = (
        *clock.to_bytes(2, "little"),
        *(width & 0xFF, H_BLANK, width >> 8 << 4),
        *(height & 0xFF, v_blank & 0xFF, height >> 8 << 4 | v_blank >> 8),
        *(H_FRONT, H_SYNC, V_FRONT << 4 | V_SYNC, 0),
        *(wide & 0xFF, high & 0xFF, wide >> 8 << 4 | high >> 8),
        *(0, 0, SYNC_DIGITAL_H_POSITIVE),
    )
    return bytes(fields)


def _descriptor(kind: int, body: bytes) -> bytes:
    return bytes((0, 0, 0, kind, 0)) + body
