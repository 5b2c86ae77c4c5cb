"""What a viewer sends once it is in (RFC 6143, section 7.5, and the community's extensions), as records.

`frame` says how long the message at the front of a buffer is, and `parse` makes the record of one that is all there.
A clipboard that is too long is skipped without being kept, whatever it claims: its owner has copied more than the
guest should get, which is no reason to lose the screen. Every other length is bounded by its own field or is an error.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from tvmm.vnc.errors import RfbError
from tvmm.vnc.pixel_format import PIXEL_FORMAT_BYTES, PixelFormat, Rect
from tvmm.vnc.server_messages import FENCE_PAYLOAD_BYTES, SCREEN_BYTES, Screen, pack_fence, parse_screens

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CLIENT_MESSAGES",
    "CUT_TEXT_BYTES",
    "ENCODINGS_MAX",
    "ClientCutText",
    "ClientFence",
    "ClientMessage",
    "EnableContinuousUpdates",
    "ExtendedCutText",
    "ExtendedKeyEvent",
    "Frame",
    "FramebufferUpdateRequest",
    "KeyEvent",
    "PointerEvent",
    "SetDesktopSize",
    "SetEncodings",
    "SetPixelFormat",
    "frame",
    "parse",
]

ENCODINGS_MAX = 1024
"""Numbers in a viewer's list. Real ones have thirty; 65535 could be sent, for each of them to be looked at."""
CUT_TEXT_BYTES = 1 << 20
"""Of a viewer's clipboard, on the wire. It could claim 4 GiB and have all of it kept until the last byte comes."""
MESSAGE_BYTES = CUT_TEXT_BYTES + 8
"""The longest message that is kept."""
BUTTON_MARK = 0x80
"""In a button mask, of a viewer with more than eight buttons: another byte of them follows."""


class SetPixelFormat(NamedTuple):
    """What pixels are to be made of from now on; not checked here."""

    pixel_format: PixelFormat

    def pack(self) -> bytes:
        """As on the wire."""
        return b"\0\0\0\0" + self.pixel_format.pack()


class SetEncodings(NamedTuple):
    """What the viewer can take, its favourites first."""

    encodings: tuple[int, ...]

    def pack(self) -> bytes:
        """As on the wire."""
        return struct.pack(f">BxH{len(self.encodings)}i", 2, len(self.encodings), *self.encodings)


class FramebufferUpdateRequest(NamedTuple):
    """The next update is wanted; with `incremental` of what has changed, else of all of `rect`."""

    incremental: bool
    rect: Rect

    def pack(self) -> bytes:
        """As on the wire."""
        return struct.pack(">BB4H", 3, self.incremental, *self.rect)


class KeyEvent(NamedTuple):
    """A key with this X11 keysym went down or up."""

    down: bool
    keysym: int

    def pack(self) -> bytes:
        """As on the wire."""
        return struct.pack(">BBxxI", 4, self.down, self.keysym)


class PointerEvent(NamedTuple):
    """The pointer is at `x`, `y` with `buttons` down.

    Bits: 0 left, 1 middle, 2 right, 3 to 6 wheel (up, down, left, right), 7 and 8 two more.
    """

    buttons: int
    x: int
    y: int

    def pack(self, *, extended: bool = False) -> bytes:
        """As on the wire; `extended`: both sides know of nine buttons."""
        if extended and self.buttons & ~0x7F:
            return struct.pack(">BBHHB", 5, self.buttons & 0x7F | BUTTON_MARK, self.x, self.y, self.buttons >> 7)
        return struct.pack(">BBHH", 5, self.buttons & 0xFF, self.x, self.y)


class ClientCutText(NamedTuple):
    """The viewer's clipboard, in Latin-1."""

    text: bytes

    def pack(self) -> bytes:
        """As on the wire."""
        return struct.pack(">BxxxI", 6, len(self.text)) + self.text


class ExtendedCutText(NamedTuple):
    """A message of the extended clipboard; its parts are in `tvmm.vnc.clipboard`."""

    payload: bytes

    def pack(self) -> bytes:
        """As on the wire."""
        return struct.pack(">Bxxxi", 6, -len(self.payload)) + self.payload


class EnableContinuousUpdates(NamedTuple):
    """Updates of `rect` are to come without requests from now on, or no longer."""

    enable: bool
    rect: Rect

    def pack(self) -> bytes:
        """As on the wire."""
        return struct.pack(">BB4H", 150, self.enable, *self.rect)


class ClientFence(NamedTuple):
    """A fence that is to be answered, or the answer to one. Flags are in `tvmm.vnc.server_messages`."""

    flags: int
    payload: bytes

    def pack(self) -> bytes:
        """As on the wire."""
        return pack_fence(self.flags, self.payload)


class SetDesktopSize(NamedTuple):
    """The viewer would like the screen to have this size."""

    width: int
    height: int
    screens: tuple[Screen, ...]

    def pack(self) -> bytes:
        """As on the wire."""
        head = struct.pack(">BxHHBx", 251, self.width, self.height, len(self.screens))
        return head + b"".join(screen.pack() for screen in self.screens)


class ExtendedKeyEvent(NamedTuple):
    """The same with its XT scancode; 0x80 is set in those that begin with 0xe0."""

    down: bool
    keysym: int
    xt_code: int

    def pack(self) -> bytes:
        """As on the wire."""
        return struct.pack(">BBHII", 255, 0, self.down, self.keysym, self.xt_code)


ClientMessage = (
    SetPixelFormat
    | SetEncodings
    | FramebufferUpdateRequest
    | KeyEvent
    | PointerEvent
    | ClientCutText
    | ExtendedCutText
    | EnableContinuousUpdates
    | ClientFence
    | SetDesktopSize
    | ExtendedKeyEvent
)


class Frame(NamedTuple):
    """What is at the front of a buffer: a message of `length` bytes, kept or, with `skip`, not looked at."""

    length: int
    skip: bool = False


def frame(buffer: bytearray, *, extended_buttons: bool = False) -> Frame | None:
    """How long the next message is, or None if too little of it is there to tell. Raises `RfbError`."""
    if not buffer:
        return None
    kind = buffer[0]
    if kind == 5:
        return _pointer_frame(buffer, extended_buttons)
    known = _KINDS.get(kind)
    if known is None:
        raise RfbError(f"a message of the unknown type {kind}")
    if len(buffer) < known.head:
        return None
    return known.measure(buffer)


def parse(message: bytes) -> ClientMessage:
    """The record of a message that is all there, as `frame` measured it."""
    return _PARSERS[message[0]](message)


def _pointer_frame(buffer: bytearray, extended_buttons: bool) -> Frame | None:
    if not extended_buttons:
        return Frame(6)
    if len(buffer) < 2:
        return None
    return Frame(7 if buffer[1] & BUTTON_MARK else 6)


def _fixed(length: int) -> Callable[[bytearray], Frame]:
    return lambda buffer: Frame(length)


def _encodings_frame(buffer: bytearray) -> Frame:
    count = int.from_bytes(buffer[2:4], "big")
    if count > ENCODINGS_MAX:
        raise RfbError(f"a list of {count} encodings, of at most {ENCODINGS_MAX}")
    return Frame(4 + 4 * count)


def _cut_text_frame(buffer: bytearray) -> Frame:
    length = abs(int.from_bytes(buffer[4:8], "big", signed=True))
    return Frame(8 + length, skip=length > CUT_TEXT_BYTES)


def _fence_frame(buffer: bytearray) -> Frame:
    length = buffer[8]
    if length > FENCE_PAYLOAD_BYTES:
        raise RfbError(f"a fence with {length} bytes, of at most {FENCE_PAYLOAD_BYTES}")
    return Frame(9 + length)


def _desktop_size_frame(buffer: bytearray) -> Frame:
    return Frame(8 + SCREEN_BYTES * buffer[6])


def _qemu_frame(buffer: bytearray) -> Frame:
    if buffer[1]:
        raise RfbError(f"a QEMU message of the kind {buffer[1]}, which was not offered")
    return Frame(12)


def _parse_pixel_format(message: bytes) -> SetPixelFormat:
    return SetPixelFormat(PixelFormat.parse(message, 4))


def _parse_encodings(message: bytes) -> SetEncodings:
    return SetEncodings(struct.unpack_from(f">{(len(message) - 4) // 4}i", message, 4))


def _parse_request(message: bytes) -> FramebufferUpdateRequest:
    return FramebufferUpdateRequest(bool(message[1]), Rect(*struct.unpack_from(">4H", message, 2)))


def _parse_key(message: bytes) -> KeyEvent:
    return KeyEvent(bool(message[1]), int.from_bytes(message[4:8], "big"))


def _parse_pointer(message: bytes) -> PointerEvent:
    buttons, x, y = struct.unpack_from(">BHH", message, 1)
    if len(message) == 7:
        buttons = buttons & 0x7F | (message[6] & 3) << 7
    return PointerEvent(buttons, x, y)


def _parse_cut_text(message: bytes) -> ClientCutText | ExtendedCutText:
    kind = ExtendedCutText if message[4] & 0x80 else ClientCutText
    return kind(message[8:])


def _parse_continuous(message: bytes) -> EnableContinuousUpdates:
    return EnableContinuousUpdates(bool(message[1]), Rect(*struct.unpack_from(">4H", message, 2)))


def _parse_fence(message: bytes) -> ClientFence:
    return ClientFence(int.from_bytes(message[4:8], "big"), message[9:])


def _parse_desktop_size(message: bytes) -> SetDesktopSize:
    width, height = struct.unpack_from(">HH", message, 2)
    return SetDesktopSize(width, height, parse_screens(message, 8, message[6]))


def _parse_extended_key(message: bytes) -> ExtendedKeyEvent:
    down, keysym, xt_code = struct.unpack_from(">HII", message, 2)
    return ExtendedKeyEvent(bool(down), keysym, xt_code)


class _Kind(NamedTuple):
    head: int
    """Bytes that tell the length."""
    measure: Callable[[bytearray], Frame]


_KINDS: dict[int, _Kind] = {
    0: _Kind(1, _fixed(4 + PIXEL_FORMAT_BYTES)),
    2: _Kind(4, _encodings_frame),
    3: _Kind(1, _fixed(10)),
    4: _Kind(1, _fixed(8)),
    6: _Kind(8, _cut_text_frame),
    150: _Kind(1, _fixed(10)),
    248: _Kind(9, _fence_frame),
    251: _Kind(8, _desktop_size_frame),
    255: _Kind(2, _qemu_frame),
}

_PARSERS: dict[int, Callable[[bytes], ClientMessage]] = {
    0: _parse_pixel_format,
    2: _parse_encodings,
    3: _parse_request,
    4: _parse_key,
    5: _parse_pointer,
    6: _parse_cut_text,
    150: _parse_continuous,
    248: _parse_fence,
    251: _parse_desktop_size,
    255: _parse_extended_key,
}

CLIENT_MESSAGES: dict[int, tuple[type[NamedTuple], ...]] = {
    0: (SetPixelFormat,),
    2: (SetEncodings,),
    3: (FramebufferUpdateRequest,),
    4: (KeyEvent,),
    5: (PointerEvent,),
    6: (ClientCutText, ExtendedCutText),
    150: (EnableContinuousUpdates,),
    248: (ClientFence,),
    251: (SetDesktopSize,),
    255: (ExtendedKeyEvent,),
}
"""By the type that is the first byte."""
