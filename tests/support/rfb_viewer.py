"""A viewer without a connection: bytes in, bytes out, and a picture. The other end of `tvmm.vnc.session` in tests.

The protocol is one generator that yields how many bytes it wants next. Decoders and security types are generators too,
and plug in by number::

    def decode(viewer: RfbViewer, rect: Rect) -> Steps:
        length = int.from_bytes((yield 4), "big")
        data = yield length
        viewer.put(rect, pixels)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from typing import ClassVar, NamedTuple

from tvmm.vnc import encodings
from tvmm.vnc.client_messages import (
    ClientFence,
    ExtendedCutText,
    FramebufferUpdateRequest,
    SetEncodings,
    SetPixelFormat,
)
from tvmm.vnc.pixel_format import DEFAULT, PixelFormat, Rect
from tvmm.vnc.server_messages import FENCE_FLAGS, FENCE_REQUEST, MANY_RECTS, Screen, parse_screens

__all__ = ["BASIC_DECODERS", "Decoder", "Refused", "RfbViewer", "Steps", "Update"]

Steps = Generator[int, bytes, None]
Decoder = Callable[["RfbViewer", Rect], Steps]


class Refused(Exception):
    """The server said no, for this reason."""


class Update(NamedTuple):
    """One FramebufferUpdate: its rectangles with the numbers of their encodings, LastRect not among them."""

    rects: tuple[tuple[Rect, int], ...]

    @property
    def pixels(self) -> tuple[Rect, ...]:
        """Rectangles that are not pseudo ones."""
        return tuple(rect for rect, number in self.rects if number >= 0 or number == encodings.TIGHT_PNG)


def _no_security(viewer: RfbViewer) -> Steps:
    return
    yield


class RfbViewer:
    """`minor_version` 3, 7 or 8; `security` is the type it chooses, and `exchanges` know how each one goes."""

    def __init__(
        self,
        *,
        minor_version: int = 8,
        security: int = 1,
        shared: bool = True,
        exchanges: dict[int, Callable[[RfbViewer], Steps]] | None = None,
        decoders: dict[int, Decoder] | None = None,
        answers_fences: bool = True,
    ) -> None:
        self.minor_version = minor_version
        self.security = security
        self.shared = shared
        self.answers_fences = answers_fences
        self.width = self.height = 0
        self.name = ""
        self.pixel_format = DEFAULT
        self.pixels = bytearray()
        """Line by line, in `pixel_format`."""
        self.offered: tuple[int, ...] = ()
        self.running = False
        self.updates: list[Update] = []
        self.fences: list[tuple[int, bytes]] = []
        """What the server sent, questions and answers."""
        self.unanswered: list[tuple[int, bytes]] = []
        self.bells = 0
        self.cut_texts: list[bytes] = []
        self.clipboard: list[tuple[int, bytes]] = []
        """Flags and what follows them, of the extended clipboard."""
        self.colour_map: dict[int, tuple[int, int, int]] = {}
        self.ends_of_continuous_updates = 0
        self.sizes: list[tuple[int, int, int, int, tuple[Screen, ...]]] = []
        """Reason, status, width, height, screens; -1 twice for DesktopSize."""
        self.leds: int | None = None
        self.acknowledged: set[int] = set()
        self.absolute: bool | None = None
        self.cursor: tuple[Rect, bytes, bytes] | None = None
        """Hot spot and size, pixels, mask; no mask if there is alpha."""
        self._exchanges = {1: _no_security} | (exchanges or {})
        self._decoders = BASIC_DECODERS | (decoders or {})
        self._output = bytearray()
        self._inbox = bytearray()
        self._process = self._run()
        self._wanted = next(self._process)

    # Bytes.

    def receive(self, data: bytes) -> None:
        """Bytes of the server. Raises `Refused`, and `AssertionError` for what a server must not send."""
        self._inbox += data
        while len(self._inbox) >= self._wanted:
            taken = bytes(self._inbox[: self._wanted])
            del self._inbox[: self._wanted]
            try:
                self._wanted = self._process.send(taken)
            except StopIteration:
                raise AssertionError("the viewer's process ended") from None

    @property
    def waiting(self) -> int:
        """Bytes of a message that is not all there."""
        return len(self._inbox)

    def send(self, data: bytes) -> None:
        """To the server, by `take_output`."""
        self._output += data

    def take_output(self) -> bytes:
        """What is to be sent, and counts as sent."""
        output = bytes(self._output)
        self._output.clear()
        return output

    # What it says.

    def request(self, *, incremental: bool = True, rect: Rect | None = None) -> None:
        """An update, of all of the picture unless `rect` is given."""
        self.send(FramebufferUpdateRequest(incremental, rect or Rect(0, 0, self.width, self.height)).pack())

    def set_encodings(self, *numbers: int) -> None:
        """The favourites first."""
        self.send(SetEncodings(numbers).pack())

    def set_pixel_format(self, pixel_format: PixelFormat) -> None:
        """Takes effect at once: nothing may be on its way. The picture is black."""
        self.send(SetPixelFormat(pixel_format).pack())
        self.pixel_format = pixel_format
        self.pixels = bytearray(self.width * self.height * pixel_format.bytes_per_pixel)

    def answer_fences(self) -> None:
        """Those that were held back because of `answers_fences`."""
        for flags, payload in self.unanswered:
            self.send(ClientFence(flags & FENCE_FLAGS, payload).pack())
        self.unanswered.clear()

    def clipboard_message(self, flags: int, content: bytes = b"") -> None:
        """Of the extended clipboard."""
        self.send(ExtendedCutText(struct.pack(">I", flags) + content).pack())

    # The picture.

    def put(self, rect: Rect, data: bytes) -> None:
        """Pixels of a rectangle, line by line in the viewer's format."""
        size = self.pixel_format.bytes_per_pixel
        assert rect.right <= self.width, "a rectangle beyond the picture"
        assert rect.bottom <= self.height, "a rectangle beyond the picture"
        assert len(data) == rect.area * size, "a rectangle with more or fewer pixels"
        for line in range(rect.height):
            at = ((rect.y + line) * self.width + rect.x) * size
            self.pixels[at : at + rect.width * size] = data[line * rect.width * size : (line + 1) * rect.width * size]

    def get(self, rect: Rect) -> bytes:
        """The same, out of the picture."""
        size = self.pixel_format.bytes_per_pixel
        starts = (((rect.y + line) * self.width + rect.x) * size for line in range(rect.height))
        return b"".join(self.pixels[at : at + rect.width * size] for at in starts)

    def colour(self, x: int, y: int) -> tuple[int, int, int]:
        """Red, green and blue of a pixel, 0 to 255."""
        kind = self.pixel_format
        value = int.from_bytes(self.get(Rect(x, y, 1, 1)), "big" if kind.big_endian else "little")
        if not kind.true_colour:
            red, green, blue = self.colour_map[value]
            return red >> 8, green >> 8, blue >> 8
        parts = (
            (kind.red_max, kind.red_shift),
            (kind.green_max, kind.green_shift),
            (kind.blue_max, kind.blue_shift),
        )
        red, green, blue = ((value >> shift & maximum) * 255 // maximum for maximum, shift in parts)
        return red, green, blue

    # The protocol.

    def _run(self) -> Steps:
        version = yield 12
        assert version == b"RFB 003.008\n", version
        self.send(b"RFB 003.%03d\n" % self.minor_version)
        yield from self._secure()
        self.send(bytes((self.shared,)))
        self.width, self.height = struct.unpack(">HH", (yield 4))
        self.pixel_format = PixelFormat.parse((yield 16)).check()
        self.name = (yield int.from_bytes((yield 4), "big")).decode()
        self.pixels = bytearray(self.width * self.height * self.pixel_format.bytes_per_pixel)
        self.running = True
        while True:
            (kind,) = yield 1
            assert kind in self.READERS, f"a message of the type {kind}"
            yield from self.READERS[kind](self)

    def _reason(self) -> Steps:
        length = int.from_bytes((yield 4), "big")
        assert length <= 4096
        raise Refused((yield length).decode())

    def _secure(self) -> Steps:
        if self.minor_version == 3:
            self.offered = (int.from_bytes((yield 4), "big"),)
            self.security = self.offered[0]
            if not self.security:
                yield from self._reason()
        else:
            (count,) = yield 1
            if not count:
                yield from self._reason()
            self.offered = tuple((yield count))
            self.send(bytes((self.security,)))
        exchange = self._exchanges[self.security]
        yield from exchange(self)
        if self.security == 1 and self.minor_version < 8:
            return
        if (yield 4) != bytes(4):
            if self.minor_version < 8:
                raise Refused("")
            yield from self._reason()

    def _framebuffer_update(self) -> Steps:
        _, count = struct.unpack(">BH", (yield 3))
        rects: list[tuple[Rect, int]] = []
        while len(rects) < count or count == MANY_RECTS:
            *place, number = struct.unpack(">4Hi", (yield 12))
            rect = Rect(*place)
            if number == encodings.LAST_RECT:
                break
            assert number in self._decoders, f"an encoding {number}"
            rects.append((rect, number))
            yield from self._decoders[number](self, rect)
        self.updates.append(Update(tuple(rects)))

    def _set_colour_map(self) -> Steps:
        first, count = struct.unpack(">xHH", (yield 5))
        for index in range(first, first + count):
            red, green, blue = struct.unpack(">HHH", (yield 6))
            self.colour_map[index] = red, green, blue

    def _bell(self) -> Steps:
        self.bells += 1
        return
        yield

    def _cut_text(self) -> Steps:
        (length,) = struct.unpack(">xxxi", (yield 7))
        assert abs(length) <= 1 << 21
        if length >= 0:
            self.cut_texts.append((yield length))
        else:
            data = yield -length
            self.clipboard.append((int.from_bytes(data[:4], "big"), data[4:]))

    def _end_of_continuous_updates(self) -> Steps:
        self.ends_of_continuous_updates += 1
        return
        yield

    def _fence(self) -> Steps:
        flags, length = struct.unpack(">xxxIB", (yield 8))
        assert length <= 64
        payload = yield length
        self.fences.append((flags, payload))
        if flags & FENCE_REQUEST:
            self.unanswered.append((flags, payload))
            if self.answers_fences:
                self.answer_fences()

    READERS: ClassVar[dict[int, Callable[[RfbViewer], Steps]]] = {
        0: _framebuffer_update,
        1: _set_colour_map,
        2: _bell,
        3: _cut_text,
        150: _end_of_continuous_updates,
        248: _fence,
    }

    def resize(self, width: int, height: int) -> None:
        """The picture has another size, and is black."""
        self.width, self.height = width, height
        self.pixels = bytearray(width * height * self.pixel_format.bytes_per_pixel)


def decode_raw(viewer: RfbViewer, rect: Rect) -> Steps:
    """Pixels."""
    viewer.put(rect, (yield rect.area * viewer.pixel_format.bytes_per_pixel))


def decode_copy_rect(viewer: RfbViewer, rect: Rect) -> Steps:
    """From elsewhere in the picture."""
    x, y = struct.unpack(">HH", (yield 4))
    viewer.put(rect, viewer.get(Rect(x, y, rect.width, rect.height)))


def _desktop_size(viewer: RfbViewer, rect: Rect) -> Steps:
    viewer.sizes.append((-1, -1, rect.width, rect.height, ()))
    viewer.resize(rect.width, rect.height)
    return
    yield


def _extended_desktop_size(viewer: RfbViewer, rect: Rect) -> Steps:
    (count,) = struct.unpack(">Bxxx", (yield 4))
    screens = parse_screens((yield 16 * count), 0, count)
    viewer.sizes.append((rect.x, rect.y, rect.width, rect.height, screens))
    if not (rect.x == 1 and rect.y) and (rect.width, rect.height) != (viewer.width, viewer.height):
        viewer.resize(rect.width, rect.height)


def _cursor(viewer: RfbViewer, rect: Rect) -> Steps:
    pixels = yield rect.area * viewer.pixel_format.bytes_per_pixel
    viewer.cursor = rect, pixels, (yield (rect.width + 7) // 8 * rect.height)


def _alpha_cursor(viewer: RfbViewer, rect: Rect) -> Steps:
    assert (yield 4) == bytes(4), "only Raw is simple enough"
    viewer.cursor = rect, (yield rect.area * 4), b""


def _desktop_name(viewer: RfbViewer, rect: Rect) -> Steps:
    viewer.name = (yield int.from_bytes((yield 4), "big")).decode()


def _led_state(viewer: RfbViewer, rect: Rect) -> Steps:
    (viewer.leds,) = yield 1


def _vmware_led_state(viewer: RfbViewer, rect: Rect) -> Steps:
    viewer.leds = int.from_bytes((yield 4), "big")


def _acknowledge(number: int) -> Decoder:
    def decode(viewer: RfbViewer, rect: Rect) -> Steps:
        viewer.acknowledged.add(number)
        return
        yield

    return decode


def _pointer_motion(viewer: RfbViewer, rect: Rect) -> Steps:
    viewer.absolute = bool(rect.x)
    return
    yield


BASIC_DECODERS: dict[int, Decoder] = {
    encodings.RAW: decode_raw,
    encodings.COPY_RECT: decode_copy_rect,
    encodings.DESKTOP_SIZE: _desktop_size,
    encodings.EXTENDED_DESKTOP_SIZE: _extended_desktop_size,
    encodings.CURSOR: _cursor,
    encodings.CURSOR_WITH_ALPHA: _alpha_cursor,
    encodings.DESKTOP_NAME: _desktop_name,
    encodings.LED_STATE: _led_state,
    encodings.VMWARE_LED_STATE: _vmware_led_state,
    encodings.EXTENDED_KEY: _acknowledge(encodings.EXTENDED_KEY),
    encodings.EXTENDED_MOUSE_BUTTONS: _acknowledge(encodings.EXTENDED_MOUSE_BUTTONS),
    encodings.POINTER_MOTION: _pointer_motion,
}
"""Every pseudo-encoding with a rectangle, and the two encodings without compression."""
