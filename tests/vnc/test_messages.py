"""Messages as bytes: what goes in comes out, cut anywhere, and every length has its bound."""

from __future__ import annotations

import contextlib
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rfb_pair import Pair
from tests.support.rfb_viewer import RfbViewer
from tvmm.vnc import clipboard
from tvmm.vnc.client_messages import (
    CLIENT_MESSAGES,
    CUT_TEXT_BYTES,
    ENCODINGS_MAX,
    ClientCutText,
    ClientFence,
    ClientMessage,
    EnableContinuousUpdates,
    ExtendedCutText,
    ExtendedKeyEvent,
    FramebufferUpdateRequest,
    KeyEvent,
    PointerEvent,
    SetDesktopSize,
    SetEncodings,
    SetPixelFormat,
    frame,
    parse,
)
from tvmm.vnc.errors import RfbError
from tvmm.vnc.events import CutText, Key, Pointer
from tvmm.vnc.pixel_format import DEFAULT, PixelFormat, Rect, colour_map
from tvmm.vnc.server_messages import (
    CURSOR_SIDE,
    NAME_BYTES,
    REASON_BYTES,
    Cursor,
    Screen,
    pack_fence,
    pack_reason,
    server_init,
)

U8, U16, U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
RECTS = st.builds(Rect, U16, U16, U16, U16)
FORMATS = st.builds(PixelFormat, U8, U8, st.booleans(), st.booleans(), U16, U16, U16, U8, U8, U8)
SCREENS = st.builds(Screen, U32, U16, U16, U16, U16, U32)
MESSAGES: st.SearchStrategy[ClientMessage] = st.one_of(
    st.builds(SetPixelFormat, FORMATS),
    st.builds(SetEncodings, st.lists(st.integers(-(1 << 31), (1 << 31) - 1)).map(tuple)),
    st.builds(FramebufferUpdateRequest, st.booleans(), RECTS),
    st.builds(KeyEvent, st.booleans(), U32),
    st.builds(PointerEvent, st.integers(0, 0x7F), U16, U16),
    st.builds(ClientCutText, st.binary(max_size=300)),
    st.builds(ExtendedCutText, st.binary(min_size=1, max_size=300)),
    st.builds(EnableContinuousUpdates, st.booleans(), RECTS),
    st.builds(ClientFence, U32, st.binary(max_size=64)),
    st.builds(SetDesktopSize, U16, U16, st.lists(SCREENS, max_size=255).map(tuple)),
    st.builds(ExtendedKeyEvent, st.booleans(), U32, U32),
)


@given(MESSAGES)
def test_round_trip(message: ClientMessage) -> None:
    """A record is the same after pack, frame and parse; its length is known from a part of it."""
    data = message.pack()
    found = frame(bytearray(data))
    assert found is not None
    assert found == (len(data), False)
    assert parse(data) == message
    for cut in range(min(len(data), 20)):
        early = frame(bytearray(data[:cut]))
        assert early is None or early == found


@given(st.integers(0, 0x1FF), U16, U16)
def test_nine_buttons(buttons: int, x: int, y: int) -> None:
    """With the extension the mask has a second byte when it needs one."""
    message = PointerEvent(buttons, x, y)
    data = message.pack(extended=True)
    assert frame(bytearray(data), extended_buttons=True) == (len(data), False)
    assert parse(data) == message


def test_every_message_is_here() -> None:
    """The table of types has those of the union, each with a reader."""
    assert {kind for kinds in CLIENT_MESSAGES.values() for kind in kinds} == set(ClientMessage.__args__)


@pytest.mark.parametrize("kind", sorted(set(range(256)) - set(CLIENT_MESSAGES)))
def test_unknown_types(kind: int) -> None:
    """One that is not spoken has a length that nobody knows: there is no going on."""
    with pytest.raises(RfbError, match="unknown type"):
        frame(bytearray((kind,)))


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">BxH", 2, ENCODINGS_MAX + 1),
        struct.pack(">BxxxIB", 248, 0, 65),
        struct.pack(">BBH", 255, 1, 0),
    ],
    ids=["encodings", "fence", "audio"],
)
def test_too_long_or_not_offered(data: bytes) -> None:
    """Is told from the first bytes, before anything of it is kept."""
    with pytest.raises(RfbError):
        frame(bytearray(data))


@pytest.mark.parametrize("length", [CUT_TEXT_BYTES + 1, 1 << 31, 0xFFFFFFFF - CUT_TEXT_BYTES])
def test_a_long_clipboard_is_skipped(length: int) -> None:
    """Whatever it claims, none of it is kept."""
    found = frame(bytearray(struct.pack(">BxxxI", 6, length)))
    assert found is not None
    assert found.skip
    assert found.length == 8 + abs(struct.unpack(">i", struct.pack(">I", length))[0])


def test_the_session_goes_on_after_a_long_clipboard() -> None:
    """In pieces, without keeping them."""
    pair = Pair().running()
    pair.session.receive(struct.pack(">BxxxI", 6, CUT_TEXT_BYTES + 1), 0)
    left = CUT_TEXT_BYTES + 1
    while left:
        piece = min(left, 60_000)
        pair.session.receive(bytes(piece), 0)
        pair.drain()
        assert not pair.session._link.inbox
        left -= piece
    pair.viewer.send(KeyEvent(True, 0x61).pack())
    pair.settle()
    assert pair.events == [Key(0x61, 0, True)]


def test_longest_clipboard_arrives() -> None:
    """One byte less than what is skipped."""
    pair = Pair().running()
    pair.viewer.send(ClientCutText(b"\xe9" * CUT_TEXT_BYTES).pack())
    pair.settle()
    assert pair.events == [CutText("é" * CUT_TEXT_BYTES)]


def example(kind: type) -> ClientMessage:
    """One of each that makes sense."""
    examples: tuple[ClientMessage, ...] = (
        SetPixelFormat(DEFAULT),
        SetEncodings((16, 7, 5, 0, -224)),
        FramebufferUpdateRequest(True, Rect(0, 0, 10, 10)),
        KeyEvent(True, 0xFF0D),
        PointerEvent(1, 5, 6),
        ClientCutText(b"text"),
        ExtendedCutText(struct.pack(">I", clipboard.PEEK)),
        EnableContinuousUpdates(False, Rect(0, 0, 10, 10)),
        ClientFence(1 << 31, b"abc"),
        SetDesktopSize(640, 480, (Screen(0, 0, 0, 640, 480),)),
        ExtendedKeyEvent(True, 0x61, 0x1E),
    )
    return next(message for message in examples if isinstance(message, kind))


@pytest.mark.parametrize("minor_version", [3, 7, 8])
@pytest.mark.parametrize("kind", ClientMessage.__args__, ids=lambda kind: str(kind.__name__))
def test_every_message_in_every_version_cut_everywhere(kind: type, minor_version: int) -> None:
    """The session does the same whole or in two pieces, and a pointer event behind it is understood."""
    data = example(kind).pack() + PointerEvent(0, 3, 4).pack()
    outcomes = set()
    for cut in range(len(data) + 1):
        pair = Pair(RfbViewer(minor_version=minor_version)).running()
        for piece in (data[:cut], data[cut:]):
            pair.session.receive(piece, 0)
            pair.drain()
        pair.settle()
        assert pair.events[-1] == Pointer(3, 4, 0)
        outcomes.add((tuple(pair.events), bytes(pair.sent)))
    assert len(outcomes) == 1


def test_extended_keys_have_small_codes() -> None:
    """A number that is no scancode is none; the keysym is there still."""
    pair = Pair().running()
    pair.viewer.send(ExtendedKeyEvent(True, 0x61, 0x12345678).pack() + ExtendedKeyEvent(False, 0, 0xCD).pack())
    pair.settle()
    assert pair.events == [Key(0x61, 0, True), Key(0, 0xCD, False)]


# Pixel formats.

GOOD = [
    DEFAULT,
    DEFAULT._replace(big_endian=True),
    PixelFormat(32, 24, False, True, 255, 255, 255, 0, 8, 16),
    PixelFormat(32, 30, False, True, 1023, 1023, 1023, 20, 10, 0),
    PixelFormat(32, 32, False, True, 255, 255, 255, 24, 16, 8),
    PixelFormat(16, 16, False, True, 31, 63, 31, 11, 5, 0),
    PixelFormat(16, 15, True, True, 31, 31, 31, 10, 5, 0),
    PixelFormat(16, 12, False, True, 15, 15, 15, 8, 4, 0),
    PixelFormat(8, 8, False, True, 7, 7, 3, 0, 3, 6),
    PixelFormat(8, 6, False, True, 3, 3, 3, 4, 2, 0),
    PixelFormat(8, 3, False, True, 1, 1, 1, 2, 1, 0),
    PixelFormat(8, 8, False, False, 0, 0, 0, 0, 0, 0),
]
BAD = [
    DEFAULT._replace(bits_per_pixel=24),
    DEFAULT._replace(bits_per_pixel=0),
    DEFAULT._replace(depth=0),
    DEFAULT._replace(depth=33),
    DEFAULT._replace(red_max=0),
    DEFAULT._replace(red_max=254),
    DEFAULT._replace(red_shift=25),
    DEFAULT._replace(red_shift=255),
    DEFAULT._replace(red_shift=8),
    PixelFormat(8, 8, False, True, 65535, 7, 3, 0, 3, 6),
]


@pytest.mark.parametrize("pixel_format", GOOD)
def test_good_formats(pixel_format: PixelFormat) -> None:
    """All depths and byte orders; white and black are what they should be."""
    assert pixel_format.check() is pixel_format
    assert PixelFormat.parse(pixel_format.pack()) == pixel_format
    made = pixel_format.as_true_colour().check()
    assert made.pixel(0, 0, 0) == bytes(made.bytes_per_pixel)
    white = sum(maximum << shift for maximum, shift in made._colours())
    assert made.pixel(255, 255, 255) == white.to_bytes(
        made.bytes_per_pixel, "big" if made.big_endian else "little"
    )


@pytest.mark.parametrize("pixel_format", BAD)
def test_bad_formats(pixel_format: PixelFormat) -> None:
    """Are errors of the viewer, in a session too."""
    with pytest.raises(RfbError):
        pixel_format.check()
    pair = Pair().running()
    pair.session.receive(SetPixelFormat(pixel_format).pack(), 0)
    with pytest.raises(RfbError):
        pair.drain()


@given(FORMATS)
def test_any_format_is_good_or_an_error(pixel_format: PixelFormat) -> None:
    """And good ones make pixels."""
    try:
        made = pixel_format.check().as_true_colour()
    except RfbError:
        return
    assert len(made.pixel(1, 2, 3)) == pixel_format.bytes_per_pixel


def test_colour_map_is_of_the_pixels_that_are_made() -> None:
    """Index and colour belong together."""
    made = GOOD[-1].as_true_colour()
    colours = colour_map()
    for red, green, blue in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert colours[made.pixel(red, green, blue)[0]] == (red * 257, green * 257, blue * 257)


@given(RECTS, RECTS)
def test_rectangles(one: Rect, other: Rect) -> None:
    """Common part and bounding box."""
    common, box = one.intersect(other), one.bounding(other)
    assert common == other.intersect(one)
    assert common.area <= min(one.area, other.area)
    assert box.area >= max(one.area, other.area)
    if one.area and other.area:
        assert box.intersect(one) == one
    assert one.clip(100, 100).right <= 100


# What the server says.


def test_names_and_reasons_are_cut_between_characters() -> None:
    """To what viewers have room for."""
    assert len(pack_reason("ä" * 5000)) == 4 + REASON_BYTES
    assert server_init(1, 1, DEFAULT, "a" + "ä" * 500)[24:].decode() == "a" + "ä" * ((NAME_BYTES - 1) // 2)
    with pytest.raises(RfbError):
        pack_fence(0, bytes(65))


@pytest.mark.parametrize(
    "cursor",
    [
        Cursor(CURSOR_SIDE + 1, 1, 0, 0, bytes((CURSOR_SIDE + 1) * 4)),
        Cursor(2, 2, 0, 0, bytes(15)),
        Cursor(2, 2, 2, 0, bytes(16)),
        Cursor(-1, -1, 0, 0, bytes(4)),
    ],
)
def test_cursors_that_cannot_be(cursor: Cursor) -> None:
    """The guest's are not believed either."""
    with pytest.raises(ValueError, match="of"):
        cursor.check()


# The extended clipboard.


def provided(data: bytes, length: int | None = None) -> bytes:
    """A provide message's payload."""
    content = struct.pack(">I", len(data) if length is None else length) + data
    return struct.pack(">I", clipboard.PROVIDE | clipboard.TEXT) + zlib.compress(content, 9)


def test_clipboard_round_trip() -> None:
    """Lines end differently on the wire."""
    message = clipboard.provide("ä\nb\r\nc")
    assert zlib.decompress(message[12:])[4:] == "ä\r\nb\r\nc\0".encode()
    said = clipboard.parse_clipboard(message[8:])
    assert said == (clipboard.PROVIDE, clipboard.TEXT, "ä\nb\nc")


def test_clipboard_caps_and_sizes() -> None:
    """Capabilities need a size for each format."""
    for formats in (0, 1, 0x1F, 0xFFFF):
        payload = struct.pack(">I", clipboard.CAPS | formats) + bytes(4 * formats.bit_count())
        assert clipboard.parse_clipboard(payload) == (clipboard.CAPS, formats, None)
        if formats:
            with pytest.raises(RfbError):
                clipboard.parse_clipboard(payload[:-1])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\0",
        bytes(4),
        struct.pack(">I", clipboard.NOTIFY | clipboard.PEEK),
        struct.pack(">I", 1 << 31),
        struct.pack(">I", clipboard.PROVIDE | 1),
        struct.pack(">I", clipboard.PROVIDE | 1) + b"no zlib",
        provided(b"short", 6),
        struct.pack(">I", clipboard.PROVIDE | 1) + zlib.compress(b"abc"),
    ],
)
def test_clipboards_that_are_none(payload: bytes) -> None:
    """Are the viewer's errors."""
    with pytest.raises(RfbError):
        clipboard.parse_clipboard(payload)


def test_a_clipboard_that_inflates() -> None:
    """A long text counts as none, and is inflated no further than that is clear."""
    bomb = provided(bytes(64 << 20))
    assert len(bomb) < 1 << 17
    assert clipboard.parse_clipboard(bomb).text is None
    assert clipboard.parse_clipboard(provided(bytes(64 << 20), 5)).text == "\0" * 4
    with pytest.raises(ValueError, match="at most"):
        clipboard.provide("x" * clipboard.TEXT_BYTES)


@given(st.binary(max_size=200))
def test_any_clipboard_is_one_or_an_error(payload: bytes) -> None:
    """Nothing else comes out."""
    with contextlib.suppress(RfbError):
        clipboard.parse_clipboard(payload)
