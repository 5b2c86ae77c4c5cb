"""The viewer's end: what it makes of a session's bytes, and of bytes that no server sends."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.rfb_pair import MS, encode_raw, paint
from tvmm.screen import Canvas
from tvmm.vnc import encodings
from tvmm.vnc.client import OUTPUT_BYTES, Client
from tvmm.vnc.encoder import Encoder, EncoderSettings
from tvmm.vnc.errors import RfbError
from tvmm.vnc.events import Event, Key, Motion, Pointer, WantsIn
from tvmm.vnc.pixel_format import DEFAULT, Rect
from tvmm.vnc.security_types import NoSecurity
from tvmm.vnc.server_messages import FENCE_REQUEST, bell, pack_fence, pseudo_rect, server_init, update_header
from tvmm.vnc.session import MOTION_ZERO, Session

HANDSHAKE = b"RFB 003.008\n\x01\x01\0\0\0\0" + server_init(64, 32, DEFAULT, "it")


class Both:
    """A session and a client, with nothing between them."""

    def __init__(self, *, compressed: bool, size: tuple[int, int] = (200, 70), pieces: int = 0) -> None:
        self.client = Client(compressed=compressed)
        self.session = Session((NoSecurity(),))
        self.canvas = Canvas(*size)
        self.events: list[Event] = []
        self._encoder = Encoder()
        self._compressed = compressed
        self._pieces = pieces
        self._now_ns = 1_000 * MS
        self.settle()

    def settle(self) -> None:
        """Until nothing is said any more."""
        while self._there() | self._back():
            pass

    def _there(self) -> bool:
        self._now_ns += MS
        plan = self.session.plan(self._now_ns)
        if plan is not None:
            wanted = plan.settings
            assert wanted.encoding == (encodings.TIGHT if self._compressed else encodings.RAW)
            settings = EncoderSettings(wanted.encoding, wanted.pixel_format, wanted.compress_level, wanted.quality)
            count, chunks = self._encoder.encode(self.canvas, plan.rects, settings)
            self.session.finish(count, chunks, self._now_ns)
        data = b"".join(self.session.take_output())
        size = self._pieces or max(len(data), 1)
        for at in range(0, len(data), size):
            self.client.receive(data[at : at + size])
        return bool(data)

    def _back(self) -> bool:
        data = self.client.take_output()
        if not data:
            return False
        self.session.receive(data, self._now_ns)
        while (event := self.session.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, WantsIn):
                self.session.admit(self.canvas.width, self.canvas.height, "it")
        return True

    def draw(self, rect: Rect, *colour: int) -> None:
        """The guest fills a rectangle."""
        self.session.damage(paint(self.canvas, rect, *colour))
        self.settle()

    def noise(self, rect: Rect, colours: int, seed: int = 1) -> None:
        """The guest fills a rectangle with so many colours; 0: a photograph's."""
        chance = random.Random(seed)
        palette = [chance.randbytes(3) + b"\0" for _ in range(colours)]
        for y in range(rect.y, rect.bottom):
            for x in range(rect.x, rect.right):
                pixel = chance.choice(palette) if palette else bytes((x * 3 & 255, y * 5 & 255, (x + y) & 255, 0))
                at = (y * self.canvas.width + x) * 4
                self.canvas.pixels[at : at + 4] = pixel
        tiles = self.canvas.new_damage()
        tiles[:] = b"\1" * len(tiles)
        self.session.damage(tiles)
        self.settle()

    def same(self) -> bool:
        """Whether the client shows what the session was given."""
        ours = self.client.canvas
        return (ours.width, ours.height, ours.pixels) == (self.canvas.width, self.canvas.height, self.canvas.pixels)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("pieces", [0, 1, 1000])
def test_a_picture(compressed: bool, pieces: int) -> None:
    """All of it first, then what changes; with every kind of contents, pixel by pixel, and without being asked."""
    both = Both(compressed=compressed, pieces=pieces)
    assert both.same()
    assert both.client.take_resized()
    assert not both.client.take_resized()
    both.client.take_damage()
    both.draw(Rect(70, 20, 50, 10), 1, 2, 3)
    assert both.same()
    tiles = both.client.take_damage()
    assert tiles[4 + 1] == 1
    assert not tiles[0]
    assert both.client.take_damage() == b""
    for colours in (2, 5, 200, 0):
        both.noise(Rect(0, 0, 200, 70), colours)
        assert both.same()


@pytest.mark.parametrize("compressed", [True, False])
def test_wide_pictures(compressed: bool) -> None:
    """Tight has a limit of its own."""
    both = Both(compressed=compressed, size=(2560, 40))
    both.noise(Rect(0, 0, 2560, 40), 9)
    assert both.same()


def test_another_size() -> None:
    """The canvas becomes it, and updates go on."""
    both = Both(compressed=True)
    both.client.take_resized()
    both.canvas.resize(300, 100)
    both.session.resize(300, 100)
    both.settle()
    assert both.client.take_resized()
    assert both.same()
    both.draw(Rect(250, 80, 50, 20), 9, 9, 9)
    assert both.same()


def test_keys_and_pointers() -> None:
    """As the server's viewer has them, also with nine buttons, and by ways when the guest wants them."""
    both = Both(compressed=True)
    both.events.clear()
    both.client.key(0x1E, True)
    both.client.pointer(7, 8, 0x181)
    both.settle()
    assert both.events == [Key(0, 0x1E, True), Pointer(7, 8, 0x181)]
    both.session.set_pointer(absolute=False)
    both.session.set_leds(5)
    both.settle()
    assert not both.client.absolute
    assert both.client.leds == 5
    both.events.clear()
    both.client.pointer(MOTION_ZERO - 3, MOTION_ZERO + 2, 0)
    both.settle()
    assert both.events == [Motion(-3, 2, 0)]


def test_copies() -> None:
    """Of what is there already, also where both places overlap."""
    client = Client()
    client.receive(HANDSHAKE)
    picture = Canvas(64, 32)
    picture.pixels[:] = random.Random(1).randbytes(64 * 32 * 4)
    client.receive(raw(picture))
    client.take_damage()
    client.receive(update_header(1) + pseudo_rect(encodings.COPY_RECT, Rect(3, 4, 60, 28)) + bytes(4))
    for y in range(28):
        at, start = ((y + 4) * 64 + 3) * 4, y * 64 * 4
        assert client.canvas.pixels[at : at + 240] == picture.pixels[start : start + 240]
    assert client.take_damage() == b"\1\1"


def test_keys_before_it_is_in() -> None:
    """They are kept, so many of them; where the pointer was is not."""
    client = Client()
    for _ in range(1000):
        client.key(0x1E, True)
    client.pointer(1, 1, 1)
    assert not client.take_output()
    client.receive(HANDSHAKE)
    assert client.take_output().endswith(b"\xff\0\0\1\0\0\0\0\0\0\0\x1e" * 256)


def test_buttons_before_they_are_known() -> None:
    """A bit that would mean something else to the other end is not sent."""
    client = Client()
    client.receive(HANDSHAKE)
    client.take_output()
    client.pointer(1, 2, 0x181)
    assert client.take_output() == struct.pack(">BBHH", 5, 1, 1, 2)


def raw(canvas: Canvas) -> bytes:
    """An update."""
    [chunk] = encode_raw(canvas, [Rect(0, 0, canvas.width, canvas.height)], DEFAULT)
    return update_header(1) + chunk


def test_servers_without_continuous_updates() -> None:
    """Each update is followed by a request."""
    client = Client()
    client.receive(HANDSHAKE)
    client.take_output()
    client.receive(raw(Canvas(64, 32)))
    assert client.take_output() == struct.pack(">BB4H", 3, 1, 0, 0, 64, 32)
    client.receive(b"\x96" + raw(Canvas(64, 32)))
    assert client.take_output().count(struct.pack(">BB4H", 150, 1, 0, 0, 64, 32)) == 1


def tight(data: bytes, rect: Rect = Rect(0, 0, 64, 32)) -> bytes:  # noqa: B008 - a NamedTuple
    """A rectangle."""
    return update_header(1) + pseudo_rect(encodings.TIGHT, rect) + data


def packed(size: int) -> bytes:
    """So many zeros in a stream, with their length."""
    data = zlib.compress(bytes(size))
    return bytes((len(data) & 127 | 128, len(data) >> 7 & 127 | 128, len(data) >> 14)) + data


WRONG = {
    "version": b"RFB 003.007\n",
    "nobody is let in": b"RFB 003.008\n\0\0\0\0\2no",
    "a long reason": b"RFB 003.008\n\0\x7f\xff\xff\xff",
    "a password": b"RFB 003.008\n\x01\x02",
    "refused": b"RFB 003.008\n\x01\x01\0\0\0\1\0\0\0\2no",
    "no pixels": HANDSHAKE[:18] + server_init(0, 32, DEFAULT, "it"),
    "too many pixels": HANDSHAKE[:18] + server_init(2561, 32, DEFAULT, "it"),
    "a long name": HANDSHAKE[:18] + server_init(64, 32, DEFAULT, "")[:-4] + b"\xff\xff\xff\xff",
    "an unknown message": HANDSHAKE + b"\x07",
    "a colour map": HANDSHAKE + b"\x01",
    "an unknown encoding": HANDSHAKE + update_header(1) + pseudo_rect(16),
    "Raw beyond the picture": HANDSHAKE + update_header(1) + pseudo_rect(0, Rect(1, 0, 64, 1)),
    "Tight beyond the picture": HANDSHAKE + tight(b"", Rect(0, 31, 1, 2)),
    "a copy from beyond the picture": HANDSHAKE
    + update_header(1)
    + pseudo_rect(encodings.COPY_RECT, Rect(0, 0, 2, 2))
    + b"\0\x3f\0\0",
    "Tight without pixels": HANDSHAKE + tight(b"", Rect(0, 0, 0, 2)),
    "JPEG": HANDSHAKE + tight(b"\x90"),
    "another filter": HANDSHAKE + tight(b"\x40\x03"),
    "a palette of one": HANDSHAKE + tight(b"\x40\x01\x00"),
    "too little": HANDSHAKE + tight(b"\x00" + packed(64 * 32 * 3 - 1)),
    "a bomb": HANDSHAKE + tight(b"\x00" + packed(1 << 24)),
    "no stream": HANDSHAKE + tight(b"\x00\x05hello"),
    "too large": HANDSHAKE + update_header(1) + pseudo_rect(encodings.DESKTOP_SIZE, Rect(0, 0, 64, 1601)),
    "no size": HANDSHAKE
    + update_header(1)
    + pseudo_rect(encodings.EXTENDED_DESKTOP_SIZE, Rect(0, 0, 0, 0))
    + bytes(4),
    "a long fence": HANDSHAKE + struct.pack(">BxxxIB", 248, FENCE_REQUEST, 65),
    "a long clipboard": HANDSHAKE + struct.pack(">Bxxxi", 3, 1 << 30),
}


def one_by_one(client: Client, data: bytes) -> None:
    """Bytes that come slowly."""
    for byte in data:
        client.receive(bytes((byte,)))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_servers(name: str) -> None:
    """Each is an error, with the bytes in one piece or one by one."""
    with pytest.raises(RfbError):
        Client().receive(WRONG[name])
    client = Client()
    with pytest.raises(RfbError):
        one_by_one(client, WRONG[name])
    assert client.kept_bytes < 1 << 16


def test_a_server_that_does_not_read() -> None:
    """Answers to its questions do not pile up."""
    client = Client()
    client.receive(HANDSHAKE)
    with pytest.raises(RfbError, match="does not read"):
        client.receive(pack_fence(FENCE_REQUEST, bytes(64)) * (OUTPUT_BYTES // 60))


def test_what_does_not_matter() -> None:
    """Bells, clipboards and empty rectangles."""
    client = Client()
    client.receive(HANDSHAKE)
    client.receive(bell() + struct.pack(">Bxxxi", 3, 200_000) + bytes(200_000))
    client.receive(update_header(1) + pseudo_rect(0, Rect(9, 9, 0, 5)))
    assert client.updates == 1
    assert client.kept_bytes == 0


@settings(max_examples=200)
@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(list(WRONG.values())).map(lambda d: d[36:]))))
def test_any_bytes(pieces: list[bytes]) -> None:
    """An error or none; never anything else, and no more is kept than a message has."""
    client = Client()
    client.receive(HANDSHAKE)
    try:
        for piece in pieces:
            client.receive(piece)
            client.take_output()
            assert client.kept_bytes <= 5 << 20
    except RfbError:
        pass
