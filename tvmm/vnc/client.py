"""The viewer's end of RFB 3.8 without a connection: bytes in, a canvas and bytes out.

What a machine whose guest has moved uses to go on showing it (`tvmm.vnc.relay`). Its peer is a server of tvmm's or one
like it, over a connection that is secured by other means: security type None, pixels of 32 bits, Raw or Tight without
loss. Nothing that a server says is believed: sizes are those of a canvas, and no message makes this end keep more than
`tvmm.vnc.tight_decoder` needs for one rectangle, or has it answer more than `OUTPUT_BYTES`.

The protocol is one generator that says how many bytes it wants next.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tvmm.screen import Canvas
from tvmm.vnc import encodings
from tvmm.vnc.client_messages import (
    ClientFence,
    EnableContinuousUpdates,
    ExtendedKeyEvent,
    FramebufferUpdateRequest,
    PointerEvent,
    SetEncodings,
    SetPixelFormat,
)
from tvmm.vnc.damage import Damage
from tvmm.vnc.errors import RfbError
from tvmm.vnc.pixel_format import DEFAULT, PIXEL_FORMAT_BYTES, Rect
from tvmm.vnc.server_messages import (
    FENCE_FLAGS,
    FENCE_PAYLOAD_BYTES,
    FENCE_REQUEST,
    MANY_RECTS,
    NAME_BYTES,
    REASON_BYTES,
    SCREEN_BYTES,
)
from tvmm.vnc.tight_decoder import TightDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import ClassVar

    Steps = Generator[int, bytes, None]

__all__ = ["OUTPUT_BYTES", "Client"]

VERSION = b"RFB 003.008\n"
NO_SECURITY = 1
OUTPUT_BYTES = 1 << 20
"""That wait to be sent. A server could ask for answers, and not read them."""
EARLY_KEYS = 256
"""That are typed before the connection is made; what comes then is lost."""
PIECE_BYTES = 64 << 10
"""Of Raw pixels that are looked at together."""
CUT_TEXT_BYTES = 16 << 20
"""Of a clipboard, which is skipped."""
COMPRESS_LEVEL = 1
"""Of Tight: the guest's host has other things to do."""

WANTED = (
    encodings.COPY_RECT,
    encodings.DESKTOP_SIZE,
    encodings.EXTENDED_DESKTOP_SIZE,
    encodings.LAST_RECT,
    encodings.POINTER_MOTION,
    encodings.EXTENDED_KEY,
    encodings.EXTENDED_MOUSE_BUTTONS,
    encodings.LED_STATE,
    encodings.FENCE,
    encodings.CONTINUOUS_UPDATES,
    encodings.COMPRESSION_0 + COMPRESS_LEVEL,
)


class Client:
    """One connection. `compressed`: with Tight, else Raw."""

    def __init__(self, *, compressed: bool = True) -> None:
        self.canvas = Canvas()
        """As the server shows it; another size, and black, when it says so."""
        self.running = False
        """Whether the server has let this viewer in."""
        self.updates = 0
        """Whole ones that came."""
        self.leds = 0
        """Bits: 0 scroll, 1 num, 2 caps lock."""
        self.absolute = True
        """Whether the guest's pointer takes positions."""
        self._extended_buttons = False
        self._tight = TightDecoder()
        self._early: list[bytes] = []
        """What was typed before the server has let this viewer in."""
        self._encoding = encodings.TIGHT if compressed else encodings.RAW
        self._damage = Damage(1, 1)
        self._resized = False
        self._continuous = False
        self._output: list[bytes] = []
        self._output_bytes = 0
        self._inbox = bytearray()
        self._process = self._run()
        self._wanted = next(self._process)

    # --- bytes ---

    def receive(self, data: bytes) -> None:
        """Bytes of the server. Raises `RfbError`; nothing may be received after that."""
        self._inbox += data
        at = 0
        try:
            while len(self._inbox) - at >= self._wanted:
                taken = bytes(memoryview(self._inbox)[at : at + self._wanted])
                at += self._wanted
                self._wanted = self._process.send(taken)
        finally:
            del self._inbox[:at]

    @property
    def kept_bytes(self) -> int:
        """Of a message that is not all there."""
        return len(self._inbox)

    def take_output(self) -> bytes:
        """What is to be sent, and counts as sent."""
        data = b"".join(self._output)
        self._output.clear()
        self._output_bytes = 0
        return data

    def take_resized(self) -> bool:
        """Whether the canvas has become another one since the last call."""
        resized, self._resized = self._resized, False
        return resized

    def take_damage(self) -> bytes:
        """Tiles that have changed since the last call, b'' for none."""
        if not self._damage:
            return b""
        tiles = bytes(self._damage.tiles)
        self._damage.clear()
        return tiles

    def _send(self, data: bytes) -> None:
        self._output.append(data)
        self._output_bytes += len(data)
        if self._output_bytes > OUTPUT_BYTES:
            raise RfbError(f"the server does not read: {self._output_bytes} bytes wait for it")

    # --- what the viewer does ---

    def key(self, xt_code: int, down: bool) -> None:
        """A key by its XT scancode; one that comes before `running` is kept.

        Raises `RfbError` if the server has not read for long, as `pointer` does.
        """
        message = ExtendedKeyEvent(down, 0, xt_code).pack()
        if self.running:
            self._send(message)
        elif len(self._early) < EARLY_KEYS:
            self._early.append(message)

    def pointer(self, x: int, y: int, buttons: int) -> None:
        """The pointer is there (or has gone that far, around `MOTION_ZERO`), with these buttons of RFB's down.

        Forgotten before `running`.
        """
        if not self.running:
            return
        # The eighth bit means two things; it is sent once both ends know which.
        known = buttons if self._extended_buttons else buttons & 0x7F
        self._send(PointerEvent(known, x, y).pack(extended=self._extended_buttons))

    # --- the handshake ---

    def _run(self) -> Steps:
        version = yield len(VERSION)
        if version != VERSION:
            raise RfbError("the server does not speak RFB 3.8")
        self._send(VERSION)
        (count,) = yield 1
        if not count:
            yield from self._refused()
        types = yield count
        if NO_SECURITY not in types:
            raise RfbError("the server wants a password")
        self._send(bytes((NO_SECURITY,)))
        if any((yield 4)):
            yield from self._refused()
        # Shared: nobody there has to leave for it.
        self._send(b"\x01")
        width, height = struct.unpack(">HH", (yield 4))
        yield PIXEL_FORMAT_BYTES
        length = int.from_bytes((yield 4), "big")
        if length > NAME_BYTES:
            raise RfbError(f"a name of {length} bytes, of at most {NAME_BYTES}")
        yield length
        self._resize(width, height)
        self.running = True
        self._send(SetPixelFormat(DEFAULT).pack() + SetEncodings((self._encoding, encodings.RAW, *WANTED)).pack())
        self._request(incremental=False)
        for message in self._early:
            self._send(message)
        self._early.clear()
        while True:
            (kind,) = yield 1
            reader = self._READERS.get(kind)
            if reader is None:
                raise RfbError(f"a message of the unknown type {kind}")
            yield from reader(self)

    def _refused(self) -> Steps:
        length = int.from_bytes((yield 4), "big")
        if length > REASON_BYTES:
            raise RfbError(f"a reason of {length} bytes, of at most {REASON_BYTES}")
        reason = (yield length).decode("utf-8", "replace")
        raise RfbError("the server refuses: " + "".join(letter if letter.isprintable() else "?" for letter in reason))

    def _request(self, *, incremental: bool) -> None:
        whole = Rect(0, 0, self.canvas.width, self.canvas.height)
        self._send(FramebufferUpdateRequest(incremental, whole).pack())
        if self._continuous:
            self._send(EnableContinuousUpdates(True, whole).pack())

    # --- messages ---

    def _update(self) -> Steps:
        (count,) = struct.unpack(">xH", (yield 3))
        generation = self.canvas.generation
        done = 0
        while done < count or count == MANY_RECTS:
            *place, number = struct.unpack(">4Hi", (yield 12))
            if number == encodings.LAST_RECT:
                break
            decoder = self._DECODERS.get(number)
            if decoder is None:
                raise RfbError(f"a rectangle in an encoding {number}, which nobody has asked for")
            yield from decoder(self, Rect(*place))
            done += 1
        self.updates += 1
        if self.canvas.generation != generation or not self._continuous:
            self._request(incremental=True)

    def _bell(self) -> Steps:
        return
        yield

    def _cut_text(self) -> Steps:
        (length,) = struct.unpack(">xxxi", (yield 7))
        left = abs(length)
        if left > CUT_TEXT_BYTES:
            raise RfbError(f"a clipboard of {left} bytes")
        while left:
            left -= len((yield min(left, PIECE_BYTES)))

    def _continuous_updates(self) -> Steps:
        """Said once when they are spoken, and then when they end."""
        if not self._continuous:
            self._continuous = True
            self._request(incremental=True)
        return
        yield

    def _fence(self) -> Steps:
        flags, length = struct.unpack(">xxxIB", (yield 8))
        if length > FENCE_PAYLOAD_BYTES:
            raise RfbError(f"a fence with {length} bytes, of at most {FENCE_PAYLOAD_BYTES}")
        payload = yield length
        if flags & FENCE_REQUEST:
            self._send(ClientFence(flags & FENCE_FLAGS, payload).pack())

    _READERS: ClassVar[dict[int, Callable[[Client], Steps]]] = {
        0: _update,
        2: _bell,
        3: _cut_text,
        150: _continuous_updates,
        248: _fence,
    }

    # --- rectangles ---

    def _resize(self, width: int, height: int) -> None:
        try:
            self.canvas.resize(width, height)
        except ValueError as error:
            raise RfbError(str(error)) from error
        self._damage = Damage(width, height)
        self._resized = True

    def _put(self, rect: Rect, pixels: bytes) -> None:
        canvas, line = self.canvas, 4 * rect.width
        for row in range(rect.height):
            at = ((rect.y + row) * canvas.width + rect.x) * 4
            canvas.pixels[at : at + line] = pixels[row * line : (row + 1) * line]
        self._damage.add_rect(rect)

    def _check(self, rect: Rect) -> None:
        if rect.right > self.canvas.width or rect.bottom > self.canvas.height:
            raise RfbError("a rectangle beyond the picture")

    def _raw(self, rect: Rect) -> Steps:
        self._check(rect)
        if not rect.area:
            return
        lines = max(1, PIECE_BYTES // (4 * rect.width))
        for y in range(rect.y, rect.bottom, lines):
            piece = Rect(rect.x, y, rect.width, min(lines, rect.bottom - y))
            self._put(piece, (yield 4 * piece.area))

    def _copy(self, rect: Rect) -> Steps:
        self._check(rect)
        x, y = struct.unpack(">HH", (yield 4))
        self._check(Rect(x, y, rect.width, rect.height))
        canvas, line = self.canvas, 4 * rect.width
        starts = (((y + row) * canvas.width + x) * 4 for row in range(rect.height))
        self._put(rect, b"".join(canvas.pixels[at : at + line] for at in starts))

    def _tight_rect(self, rect: Rect) -> Steps:
        self._check(rect)
        if not rect.area:
            raise RfbError("a rectangle of Tight without pixels")
        self._put(rect, (yield from self._tight.decode(rect.width, rect.height)))

    def _desktop_size(self, rect: Rect) -> Steps:
        self._resize(rect.width, rect.height)
        return
        yield

    def _extended_desktop_size(self, rect: Rect) -> Steps:
        (count,) = struct.unpack(">Bxxx", (yield 4))
        yield SCREEN_BYTES * count
        refused = rect.x == 1 and rect.y
        if not refused and (rect.width, rect.height) != (self.canvas.width, self.canvas.height):
            self._resize(rect.width, rect.height)

    def _led_state(self, rect: Rect) -> Steps:
        (leds,) = yield 1
        self.leds = leds & 7

    def _pointer_motion(self, rect: Rect) -> Steps:
        self.absolute = bool(rect.x)
        return
        yield

    def _extended_key(self, rect: Rect) -> Steps:
        return
        yield

    def _buttons(self, rect: Rect) -> Steps:
        self._extended_buttons = True
        return
        yield

    _DECODERS: ClassVar[dict[int, Callable[[Client, Rect], Steps]]] = {
        encodings.RAW: _raw,
        encodings.COPY_RECT: _copy,
        encodings.TIGHT: _tight_rect,
        encodings.DESKTOP_SIZE: _desktop_size,
        encodings.EXTENDED_DESKTOP_SIZE: _extended_desktop_size,
        encodings.LED_STATE: _led_state,
        encodings.POINTER_MOTION: _pointer_motion,
        encodings.EXTENDED_KEY: _extended_key,
        encodings.EXTENDED_MOUSE_BUTTONS: _buttons,
    }
