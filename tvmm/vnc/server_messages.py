"""What is sent to a viewer (RFC 6143, section 7.6, and the community's extensions).

Messages as bytes, and the rectangles without pixels that go into an update.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tvmm.vnc import encodings
from tvmm.vnc.errors import RfbError
from tvmm.vnc.pixel_format import PixelFormat, Rect, colour_map

__all__ = [
    "BLOCK_AFTER",
    "BLOCK_BEFORE",
    "CURSOR_SIDE",
    "FENCE_FLAGS",
    "FENCE_PAYLOAD_BYTES",
    "FENCE_REQUEST",
    "LAST_RECT",
    "MANY_RECTS",
    "NAME_BYTES",
    "REASON_BYTES",
    "SCREEN_BYTES",
    "SYNC_NEXT",
    "Cursor",
    "Screen",
    "alpha_cursor_rect",
    "bell",
    "cursor_rect",
    "desktop_name_rect",
    "desktop_size_rect",
    "end_of_continuous_updates",
    "extended_desktop_size_rect",
    "led_state_rect",
    "pack_fence",
    "pack_reason",
    "parse_screens",
    "pseudo_rect",
    "server_cut_text",
    "server_init",
    "set_colour_map",
    "update_header",
    "vmware_led_state_rect",
]

REASON_BYTES = 1024
"""Of the reason for a failure, in UTF-8."""
NAME_BYTES = 256
"""Of a machine's name, in UTF-8; some viewers have no room for more."""
FENCE_PAYLOAD_BYTES = 64
"""The specification's own limit."""
CURSOR_SIDE = 64
"""Pixels; a guest could make it large, and it is converted pixel by pixel."""
MANY_RECTS = 0xFFFF
"""As a count: there is no telling, LastRect ends them."""

BLOCK_BEFORE, BLOCK_AFTER, SYNC_NEXT, FENCE_REQUEST = 1, 2, 4, 1 << 31
FENCE_FLAGS = BLOCK_BEFORE | BLOCK_AFTER | SYNC_NEXT
"""What is understood, and so comes back in an answer."""

_RECT = struct.Struct(">4Hi")
_NO_RECT = Rect(0, 0, 0, 0)
_SCREEN = struct.Struct(">I4HI")
SCREEN_BYTES = _SCREEN.size


class Screen(NamedTuple):
    """One monitor in the framebuffer."""

    identity: int
    x: int
    y: int
    width: int
    height: int
    flags: int = 0

    def pack(self) -> bytes:
        """As on the wire."""
        return _SCREEN.pack(*self)


def parse_screens(data: bytes, offset: int, count: int) -> tuple[Screen, ...]:
    """`count` of them from `offset` on."""
    return tuple(Screen(*_SCREEN.unpack_from(data, offset + number * _SCREEN.size)) for number in range(count))


class Cursor(NamedTuple):
    """The pointer's picture: `pixels` are bytes blue, green, red, alpha, line by line; colours are not multiplied."""

    width: int
    height: int
    hot_x: int
    hot_y: int
    pixels: bytes

    def check(self) -> Cursor:
        """Itself. Raises `ValueError` for one that cannot be sent."""
        if not (0 <= self.width <= CURSOR_SIDE and 0 <= self.height <= CURSOR_SIDE):
            raise ValueError(f"a cursor of {self.width}x{self.height} pixels, of at most {CURSOR_SIDE}x{CURSOR_SIDE}")
        if len(self.pixels) != self.width * self.height * 4:
            raise ValueError(f"a cursor of {len(self.pixels)} bytes, of {self.width}x{self.height} pixels")
        if not (0 <= self.hot_x < max(self.width, 1) and 0 <= self.hot_y < max(self.height, 1)):
            raise ValueError(f"a hot spot at {self.hot_x}, {self.hot_y} of {self.width}x{self.height} pixels")
        return self


def capped(text: str, limit: int) -> bytes:
    """In UTF-8, cut between characters."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore").encode()


def pack_reason(reason: str) -> bytes:
    """A reason with its length."""
    data = capped(reason, REASON_BYTES)
    return struct.pack(">I", len(data)) + data


def server_init(width: int, height: int, pixel_format: PixelFormat, name: str) -> bytes:
    """ServerInit (7.3.2)."""
    data = capped(name, NAME_BYTES)
    return struct.pack(">HH", width, height) + pixel_format.pack() + struct.pack(">I", len(data)) + data


def set_colour_map() -> bytes:
    """SetColourMapEntries (7.6.2) with the one map that there is."""
    colours = colour_map()
    head = struct.pack(">BxHH", 1, 0, len(colours))
    return head + b"".join(struct.pack(">HHH", *colour) for colour in colours)


def bell() -> bytes:
    """Bell (7.6.3)."""
    return b"\x02"


def server_cut_text(text: bytes) -> bytes:
    """ServerCutText (7.6.4), in Latin-1."""
    return struct.pack(">BxxxI", 3, len(text)) + text


def end_of_continuous_updates() -> bytes:
    """EndOfContinuousUpdates."""
    return b"\x96"


def pack_fence(flags: int, payload: bytes) -> bytes:
    """A fence; the same from both sides."""
    if len(payload) > FENCE_PAYLOAD_BYTES:
        raise RfbError(f"a fence with {len(payload)} bytes, of at most {FENCE_PAYLOAD_BYTES}")
    return struct.pack(">BxxxIB", 248, flags, len(payload)) + payload


def update_header(count: int) -> bytes:
    """The beginning of FramebufferUpdate (7.6.1)."""
    return struct.pack(">BxH", 0, count)


def pseudo_rect(number: int, rect: Rect = _NO_RECT) -> bytes:
    """A rectangle's header; all of it, for those without data."""
    return _RECT.pack(*rect, number)


LAST_RECT = pseudo_rect(encodings.LAST_RECT)


def desktop_size_rect(width: int, height: int) -> bytes:
    """The screen has this size now."""
    return pseudo_rect(encodings.DESKTOP_SIZE, Rect(0, 0, width, height))


def extended_desktop_size_rect(width: int, height: int, reason: int, status: int) -> bytes:
    """The same with its cause, and with the one screen that there is."""
    head = pseudo_rect(encodings.EXTENDED_DESKTOP_SIZE, Rect(reason, status, width, height))
    return head + b"\x01\0\0\0" + Screen(0, 0, 0, width, height).pack()


def desktop_name_rect(name: str) -> bytes:
    """The machine's name."""
    data = capped(name, NAME_BYTES)
    return pseudo_rect(encodings.DESKTOP_NAME) + struct.pack(">I", len(data)) + data


def led_state_rect(leds: int) -> bytes:
    """Bits: 0 scroll, 1 num, 2 caps."""
    return pseudo_rect(encodings.LED_STATE) + bytes((leds,))


def vmware_led_state_rect(leds: int) -> bytes:
    """The same bits."""
    return pseudo_rect(encodings.VMWARE_LED_STATE) + struct.pack(">I", leds)


def cursor_rect(cursor: Cursor, pixel_format: PixelFormat) -> bytes:
    """The picture in the viewer's pixels, then one bit a pixel: whether it is drawn (at half opaque and above)."""
    pixels, mask = bytearray(), bytearray()
    for line in range(cursor.height):
        bits = 0
        for column in range(cursor.width):
            at = (line * cursor.width + column) * 4
            blue, green, red, alpha = cursor.pixels[at : at + 4]
            pixels += pixel_format.pixel(red, green, blue)
            bits = bits << 1 | alpha >> 7
        padding = -cursor.width % 8
        mask += (bits << padding).to_bytes((cursor.width + padding) // 8, "big")
    return _cursor_header(encodings.CURSOR, cursor) + pixels + mask


def alpha_cursor_rect(cursor: Cursor) -> bytes:
    """Raw pixels red, green, blue, alpha; colours are multiplied by alpha."""
    pixels = bytearray()
    for at in range(0, len(cursor.pixels), 4):
        blue, green, red, alpha = cursor.pixels[at : at + 4]
        pixels += bytes((red * alpha // 255, green * alpha // 255, blue * alpha // 255, alpha))
    return _cursor_header(encodings.CURSOR_WITH_ALPHA, cursor) + struct.pack(">i", encodings.RAW) + pixels


def _cursor_header(number: int, cursor: Cursor) -> bytes:
    return pseudo_rect(number, Rect(cursor.hot_x, cursor.hot_y, cursor.width, cursor.height))
