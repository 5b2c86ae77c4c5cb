"""What a session says to a viewer beside pixels, and what it makes of what the viewer says."""

from __future__ import annotations

import struct
import zlib

import pytest

from tests.support.rfb_pair import MS, Pair
from tests.support.rfb_viewer import RfbViewer
from tvmm.vnc import clipboard, encodings
from tvmm.vnc.client_messages import (
    ClientCutText,
    ClientFence,
    EnableContinuousUpdates,
    ExtendedKeyEvent,
    FramebufferUpdateRequest,
    KeyEvent,
    PointerEvent,
    SetDesktopSize,
    SetPixelFormat,
)
from tvmm.vnc.errors import RfbError
from tvmm.vnc.events import CutText, Key, Motion, Pointer, WantsSize
from tvmm.vnc.pixel_format import DEFAULT, PixelFormat, Rect
from tvmm.vnc.server_messages import (
    BLOCK_AFTER,
    BLOCK_BEFORE,
    FENCE_REQUEST,
    SYNC_NEXT,
    Cursor,
    Screen,
)
from tvmm.vnc.session import OUTPUT_BYTES, SessionOptions
from tvmm.vnc.updates import SIZE_ANSWERS_MAX, SizeReason, SizeStatus

ALL_PSEUDO = tuple(
    encoding.first for encoding in encodings.PSEUDO_ENCODINGS if encoding.first == encoding.last
)
ONE_SCREEN = (Screen(0, 0, 0, 640, 480),)


def lines(pair: Pair) -> bytes:
    """The canvas as the viewer's default format has it."""
    return bytes(pair.canvas.pixels)


def test_first_picture() -> None:
    """A request that is not incremental gets all of the screen."""
    pair = Pair().running()
    pair.draw(Rect(3, 5, 100, 50))
    pair.viewer.request(incremental=False)
    assert pair.update() is not None
    assert pair.viewer.pixels == lines(pair)
    assert pair.viewer.colour(3, 5) == (3, 2, 1)
    assert pair.viewer.colour(2, 5) == (0, 0, 0)


@pytest.mark.parametrize(
    "pixel_format",
    [
        DEFAULT._replace(big_endian=True, red_shift=0, blue_shift=16),
        PixelFormat(16, 16, False, True, 31, 63, 31, 11, 5, 0),
        PixelFormat(16, 15, True, True, 31, 31, 31, 10, 5, 0),
        PixelFormat(8, 8, False, True, 7, 7, 3, 0, 3, 6),
        PixelFormat(8, 8, False, False, 0, 0, 0, 0, 0, 0),
        PixelFormat(16, 16, True, False, 0, 0, 0, 0, 0, 0),
    ],
)
def test_pixel_formats(pixel_format: PixelFormat) -> None:
    """Pixels come as they were asked for, with a map where that is what the viewer has."""
    pair = Pair().running()
    pair.viewer.set_pixel_format(pixel_format)
    pair.draw(Rect(0, 0, 10, 10), 255, 0, 255)
    pair.draw(Rect(10, 0, 10, 10), 255, 255, 255)
    pair.viewer.request(incremental=False)
    pair.update()
    assert pair.viewer.colour(0, 0) == (255, 0, 255)
    assert pair.viewer.colour(10, 9) == (255, 255, 255)
    assert pair.viewer.colour(20, 9) == (0, 0, 0)
    assert len(pair.viewer.colour_map) == (0 if pixel_format.true_colour else 256)


def test_the_map_is_sent_once_for_each_format() -> None:
    """Nineteen bytes of a viewer's are not worth 1.5 KiB each."""
    pair = Pair().running()
    mapped = DEFAULT._replace(bits_per_pixel=8, depth=8, true_colour=False)
    pair.viewer.set_pixel_format(mapped)
    for _ in range(1000):
        pair.viewer.send(SetPixelFormat(mapped).pack())
    pair.settle()
    assert not pair.viewer.colour_map
    pair.viewer.request(incremental=False)
    pair.update()
    assert len(pair.viewer.colour_map) == 256
    pair.viewer.colour_map.clear()
    pair.viewer.request(incremental=False)
    pair.update()
    assert not pair.viewer.colour_map


def test_a_format_that_changes_during_an_update() -> None:
    """What is being made is finished as it was begun, and the fence's answer comes behind it."""
    pair = Pair().running(encodings.FENCE)
    pair.viewer.request(incremental=False)
    pair.settle()
    pair.viewer.fences.clear()
    plan = pair.session.plan(pair.now_ns)
    assert plan is not None
    small = PixelFormat(8, 8, False, True, 7, 7, 3, 0, 3, 6)
    pair.viewer.send(ClientFence(FENCE_REQUEST | SYNC_NEXT, b"format").pack())
    pair.viewer.send(SetPixelFormat(small).pack())
    pair.settle()
    assert not pair.viewer.fences
    assert plan.settings.pixel_format == DEFAULT
    assert pair.session.plan(pair.now_ns) is None
    pair.session.finish(0, [], pair.now_ns)
    pair.settle()
    assert pair.viewer.fences[-1] == (SYNC_NEXT, b"format")
    assert pair.viewer.fences[0][0] & FENCE_REQUEST
    pair.viewer.request(incremental=False)
    pair.settle()
    second = pair.session.plan(pair.now_ns)
    assert second is not None
    assert second.settings.pixel_format == small


# Fences and continuous updates.


def test_fences_are_answered() -> None:
    """With the flags that are understood, and the payload; SyncNext after the next message."""
    pair = Pair().running(encodings.FENCE)
    pair.viewer.fences.clear()
    pair.viewer.send(ClientFence(0xFFFFFFFF & ~SYNC_NEXT, b"a").pack())
    pair.settle()
    assert pair.viewer.fences == [(BLOCK_BEFORE | BLOCK_AFTER, b"a")]
    pair.viewer.send(ClientFence(FENCE_REQUEST | SYNC_NEXT, b"b").pack())
    pair.settle()
    assert len(pair.viewer.fences) == 1
    pair.viewer.send(KeyEvent(True, 1).pack())
    pair.settle()
    assert pair.viewer.fences[1:] == [(SYNC_NEXT, b"b")]


def test_fence_and_continuous_updates_are_announced_once() -> None:
    """The first time that the viewer lists them."""
    pair = Pair().running(encodings.FENCE, encodings.CONTINUOUS_UPDATES)
    assert [flags for flags, _ in pair.viewer.fences] == [FENCE_REQUEST]
    assert pair.viewer.ends_of_continuous_updates == 1
    pair.viewer.set_encodings(encodings.FENCE, encodings.CONTINUOUS_UPDATES)
    pair.settle()
    assert len(pair.viewer.fences) == 1
    assert pair.viewer.ends_of_continuous_updates == 1


def test_answers_nobody_asked_for_change_nothing() -> None:
    """A viewer may claim to have seen what was not sent."""
    pair = Pair().running(encodings.FENCE)
    for _ in range(100):
        pair.viewer.send(ClientFence(0, b"").pack())
    pair.settle()
    pair.viewer.request(incremental=False)
    assert pair.update() is not None


def test_continuous_updates() -> None:
    """Come without requests, until they are switched off, which is confirmed each time."""
    pair = Pair().running(encodings.FENCE, encodings.CONTINUOUS_UPDATES)
    everything = Rect(0, 0, 200, 70)
    assert pair.update() is None
    pair.viewer.send(EnableContinuousUpdates(True, everything).pack())
    assert pair.update() is not None
    assert pair.update() is None
    pair.draw(Rect(0, 0, 1, 1))
    assert pair.update() is not None
    pair.viewer.request(incremental=True)
    assert pair.update() is None
    pair.viewer.request(incremental=False)
    assert pair.update() is not None
    assert pair.viewer.pixels == lines(pair)
    for count in (2, 3):
        pair.viewer.send(EnableContinuousUpdates(False, everything).pack())
        pair.settle()
        assert pair.viewer.ends_of_continuous_updates == count
    pair.draw(Rect(0, 0, 1, 1))
    assert pair.update() is None


# Extensions with rectangles of their own.


def test_extensions_are_told_in_the_first_update() -> None:
    """Each one that the viewer lists and that is true; none that it does not list."""
    pair = Pair().running(*ALL_PSEUDO)
    pair.session.set_leds(5)
    pair.session.set_pointer(absolute=False)
    pair.session.set_name("othér")
    pair.session.set_cursor(Cursor(1, 1, 0, 0, bytes((10, 20, 30, 255))))
    pair.viewer.request(incremental=False)
    pair.update()
    viewer = pair.viewer
    assert viewer.acknowledged == {encodings.EXTENDED_KEY, encodings.EXTENDED_MOUSE_BUTTONS}
    assert (viewer.leds, viewer.absolute, viewer.name) == (5, False, "othér")
    assert viewer.cursor == (Rect(0, 0, 1, 1), bytes((30, 20, 10, 255)), b"")
    assert viewer.sizes == [(SizeReason.SERVER, 0, 200, 70, (Screen(0, 0, 0, 200, 70),))]
    assert viewer.pixels == lines(pair)
    for update in viewer.updates:
        numbers = {number for _, number in update.rects}
        assert not {0, encodings.EXTENDED_DESKTOP_SIZE} <= numbers, "pixels beside a size"

    plain = Pair().running()
    plain.session.set_leds(5)
    plain.session.set_pointer(absolute=False)
    plain.session.set_cursor(Cursor(1, 1, 0, 0, bytes(4)))
    plain.viewer.request(incremental=False)
    plain.update()
    assert [number for _, number in plain.viewer.updates[0].rects] == [0]


def test_facts_are_told_once_and_again_when_they_change() -> None:
    """Of many changes the viewer hears of the last."""
    pair = Pair().running(encodings.LED_STATE)
    pair.viewer.request(incremental=False)
    pair.update()
    count = len(pair.viewer.updates)
    pair.viewer.request()
    assert pair.update() is None
    assert len(pair.viewer.updates) == count
    for leds in (1, 2, 7):
        pair.session.set_leds(leds)
    pair.update()
    assert pair.viewer.leds == 7
    assert len(pair.viewer.updates) == count + 1
    pair.session.set_leds(0)
    pair.update()
    assert pair.viewer.leds == 7, "that was the answer to its request; it has to ask again"
    pair.viewer.request()
    pair.update()
    assert pair.viewer.leds == 0


def test_vmware_leds_if_that_is_all_there_is() -> None:
    """And not both."""
    for numbers in ((encodings.VMWARE_LED_STATE,), (encodings.VMWARE_LED_STATE, encodings.LED_STATE)):
        pair = Pair().running(*numbers)
        pair.session.set_leds(3)
        pair.viewer.request(incremental=False)
        pair.update()
        assert pair.viewer.leds == 3
        assert [number for _, number in pair.viewer.updates[0].rects] == [numbers[-1], 0]


def test_plain_cursor() -> None:
    """In the viewer's pixels, with a mask of whole bytes a line; again in each new format."""
    pair = Pair().running(encodings.CURSOR)
    pixels = b"".join(bytes((0, 0, 255, alpha)) for alpha in (255, 0, 128) * 3)
    pair.session.set_cursor(Cursor(3, 3, 1, 2, pixels))
    pair.viewer.request(incremental=False)
    pair.update()
    assert pair.viewer.cursor == (Rect(1, 2, 3, 3), bytes((0, 0, 255, 0)) * 9, b"\xa0" * 3)
    pair.viewer.set_pixel_format(PixelFormat(8, 8, False, True, 7, 7, 3, 0, 3, 6))
    pair.viewer.request()
    pair.update()
    assert pair.viewer.cursor == (Rect(1, 2, 3, 3), b"\x07" * 9, b"\xa0" * 3)


# Input.


def test_input() -> None:
    """Keys, positions inside of the screen, clipboard."""
    pair = Pair().running()
    pair.viewer.send(KeyEvent(True, 0x41).pack() + KeyEvent(False, 0x41).pack())
    pair.viewer.send(ExtendedKeyEvent(True, 0x41, 0x1E).pack())
    pair.viewer.send(PointerEvent(0xFF, 199, 69).pack() + PointerEvent(0, 65535, 65535).pack())
    pair.viewer.send(ClientCutText("né".encode("latin-1")).pack())
    pair.settle()
    assert pair.events == [
        Key(0x41, 0, True),
        Key(0x41, 0, False),
        Key(0x41, 0x1E, True),
        Pointer(199, 69, 0xFF),
        Pointer(199, 69, 0),
        CutText("né"),
    ]


def test_relative_pointer() -> None:
    """Ways only from a viewer that has been told, and only once it has been told."""
    pair = Pair().running(encodings.POINTER_MOTION)
    pair.session.set_pointer(absolute=False)
    pair.viewer.send(PointerEvent(0, 10, 20).pack())
    pair.viewer.request(incremental=False)
    pair.update()
    pair.viewer.send(PointerEvent(1, 0x7FFF + 5, 0x7FFF - 6).pack())
    pair.settle()
    assert pair.events == [Pointer(10, 20, 0), Motion(5, -6, 1)]


def test_nine_buttons_once_acknowledged() -> None:
    """Before, the eighth bit is the eighth button."""
    pair = Pair().running(encodings.EXTENDED_MOUSE_BUTTONS)
    pair.viewer.send(PointerEvent(0x80, 1, 1).pack())
    pair.viewer.request(incremental=False)
    pair.update()
    pair.viewer.send(PointerEvent(0x181, 1, 1).pack(extended=True) + PointerEvent(1, 1, 1).pack(extended=True))
    pair.settle()
    assert pair.events == [Pointer(1, 1, 0x80), Pointer(1, 1, 0x181), Pointer(1, 1, 1)]


def test_view_only_touches_nothing() -> None:
    """Neither keys nor pointer nor clipboard nor size; it sees all the same."""
    options = SessionOptions(view_only=True, clipboard=True, resizable=True)
    pair = Pair(options=options).running(encodings.EXTENDED_CLIPBOARD, encodings.EXTENDED_DESKTOP_SIZE)
    pair.viewer.send(KeyEvent(True, 0x41).pack() + ExtendedKeyEvent(True, 0x41, 0x1E).pack())
    pair.viewer.send(PointerEvent(1, 1, 1).pack() + ClientCutText(b"x").pack())
    pair.viewer.send(SetDesktopSize(640, 480, ONE_SCREEN).pack())
    pair.viewer.clipboard_message(clipboard.NOTIFY | clipboard.TEXT)
    pair.viewer.clipboard_message(clipboard.PROVIDE | clipboard.TEXT, zlib.compress(b"\0\0\0\1x"))
    pair.viewer.request(incremental=False)
    pair.update()
    assert pair.events == []
    assert pair.viewer.sizes[0][:2] == (SizeReason.THIS_VIEWER, SizeStatus.PROHIBITED)
    assert [flags & clipboard.REQUEST for flags, _ in pair.viewer.clipboard] == [clipboard.REQUEST]
    assert pair.viewer.pixels == lines(pair)


def test_bell() -> None:
    """Rings."""
    pair = Pair().running()
    pair.session.bell()
    pair.settle()
    assert pair.viewer.bells == 1


# Clipboards.


def test_old_clipboard() -> None:
    """In Latin-1, what that has."""
    pair = Pair().running(encodings.EXTENDED_CLIPBOARD)
    pair.session.set_clipboard("né€")
    pair.settle()
    assert pair.viewer.cut_texts == [b"n\xe9?"]
    assert not pair.viewer.clipboard, "the guest has no agent"


def test_extended_clipboard_to_the_viewer() -> None:
    """Announced, asked for, provided; as often as it is asked between two sendings, once."""
    pair = Pair(options=SessionOptions(clipboard=True)).running(encodings.EXTENDED_CLIPBOARD)
    viewer = pair.viewer
    assert viewer.clipboard.pop() == (clipboard.ANNOUNCED_ACTIONS | clipboard.TEXT, bytes(4))
    pair.session.set_clipboard("€\n")
    pair.settle()
    assert viewer.clipboard.pop() == (clipboard.NOTIFY | clipboard.TEXT, b"")
    viewer.clipboard_message(clipboard.PEEK)
    pair.settle()
    assert viewer.clipboard.pop() == (clipboard.NOTIFY | clipboard.TEXT, b"")
    for _ in range(500):
        viewer.clipboard_message(clipboard.REQUEST | clipboard.TEXT)
    pair.settle()
    assert len(viewer.clipboard) == 1
    flags, content = viewer.clipboard.pop()
    assert flags == clipboard.PROVIDE | clipboard.TEXT
    assert zlib.decompress(content)[4:] == "€\r\n\0".encode()
    pair.session.set_clipboard("x" * clipboard.TEXT_BYTES)
    pair.settle()
    assert viewer.clipboard.pop() == (clipboard.NOTIFY, b"")
    assert not viewer.cut_texts


def test_extended_clipboard_of_the_viewer() -> None:
    """Asked for when it is announced."""
    pair = Pair(options=SessionOptions(clipboard=True)).running(encodings.EXTENDED_CLIPBOARD)
    pair.viewer.clipboard.clear()
    pair.viewer.clipboard_message(clipboard.CAPS | clipboard.TEXT, bytes(4))
    pair.viewer.clipboard_message(clipboard.NOTIFY | clipboard.TEXT)
    pair.settle()
    assert pair.viewer.clipboard == [(clipboard.REQUEST | clipboard.TEXT, b"")]
    text = "€\r\n\0".encode()
    pair.viewer.clipboard_message(
        clipboard.PROVIDE | clipboard.TEXT, zlib.compress(struct.pack(">I", len(text)) + text)
    )
    pair.settle()
    assert pair.events == [CutText("€\n")]


def test_extended_clipboard_that_was_not_offered() -> None:
    """Is not looked at."""
    pair = Pair().running()
    pair.viewer.clipboard_message(0x12345678, b"junk")
    pair.settle()
    assert not pair.events


# Sizes.


@pytest.mark.parametrize("number", [encodings.DESKTOP_SIZE, encodings.EXTENDED_DESKTOP_SIZE])
def test_another_size(number: int) -> None:
    """Goes first and alone; the picture follows when the viewer asks again."""
    pair = Pair().running(number)
    pair.viewer.request(incremental=False)
    pair.update()
    pair.viewer.request()
    pair.settle()
    pair.viewer.sizes.clear()
    pair.resize(300, 100)
    assert pair.update() is None
    extended = number == encodings.EXTENDED_DESKTOP_SIZE
    said = (0, 0, 300, 100, (Screen(0, 0, 0, 300, 100),)) if extended else (-1, -1, 300, 100, ())
    assert pair.viewer.sizes == [said]
    assert pair.update() is None
    pair.draw(Rect(250, 90, 50, 10))
    pair.viewer.request()
    assert pair.update() is not None
    assert pair.viewer.pixels == lines(pair)
    pair.viewer.request()
    assert pair.update() is None
    assert len(pair.viewer.sizes) == 1


@pytest.mark.parametrize("size", [(100, 200), (300, 30), (300, 300), (1, 1)])
def test_a_viewer_that_cannot_resize(size: tuple[int, int]) -> None:
    """Gets what its picture has room for."""
    pair = Pair().running()
    pair.viewer.request(incremental=False)
    pair.update()
    pair.resize(*size)
    pair.draw(Rect(0, 0, *size), 7, 8, 9)
    pair.viewer.request()
    assert pair.update() is not None
    assert pair.viewer.colour(min(size[0], 200) - 1, min(size[1], 70) - 1) == (9, 8, 7)
    assert pair.update() is None


def test_a_viewer_that_learns_to_resize_later() -> None:
    """Is told the size then."""
    pair = Pair().running()
    pair.resize(300, 100)
    pair.viewer.set_encodings(encodings.DESKTOP_SIZE)
    pair.viewer.request(incremental=False)
    pair.update()
    assert pair.viewer.sizes == [(-1, -1, 300, 100, ())]
    pair.viewer.request()
    pair.update()
    assert pair.viewer.pixels == lines(pair)


def test_the_layout_with_each_full_request() -> None:
    """The viewer learns that it may ask for another size."""
    pair = Pair().running(encodings.EXTENDED_DESKTOP_SIZE)
    for count in (1, 2):
        pair.viewer.request(incremental=False)
        assert pair.update() is not None
        assert len(pair.viewer.sizes) == count
        pair.viewer.request()
        pair.update()
        assert len(pair.viewer.sizes) == count


def test_wishing_for_a_size() -> None:
    """Refused in general, refused in particular, or the shell's affair; each wish has its answer at once."""
    pair = Pair().running(encodings.EXTENDED_DESKTOP_SIZE)
    pair.viewer.send(SetDesktopSize(640, 480, ONE_SCREEN).pack())
    pair.update()
    assert pair.viewer.sizes[-1][:4] == (1, SizeStatus.PROHIBITED, 200, 70)

    pair = Pair(options=SessionOptions(resizable=True)).running(encodings.EXTENDED_DESKTOP_SIZE)
    for wish, status in (
        (SetDesktopSize(0, 480, ONE_SCREEN), SizeStatus.INVALID),
        (SetDesktopSize(640, 480, ()), SizeStatus.INVALID),
        (SetDesktopSize(65535, 480, ONE_SCREEN), SizeStatus.NO_RESOURCES),
    ):
        pair.viewer.send(wish.pack())
        pair.update()
        assert pair.viewer.sizes[-1][:2] == (1, status)
    assert not pair.events
    pair.viewer.send(SetDesktopSize(640, 480, ONE_SCREEN).pack())
    pair.settle()
    assert pair.events == [WantsSize(640, 480)]
    pair.session.answer_size(SizeStatus.FORWARDED)
    pair.update()
    assert pair.viewer.sizes[-1][:2] == (1, SizeStatus.FORWARDED)
    assert pair.viewer.width == 200
    pair.viewer.request()
    pair.resize(640, 480, SizeReason.THIS_VIEWER)
    pair.update()
    assert pair.viewer.sizes[-1] == (1, 0, 640, 480, ONE_SCREEN)
    assert pair.viewer.width == 640


def test_wishing_for_many_sizes() -> None:
    """Answers do not pile up."""
    pair = Pair().running(encodings.EXTENDED_DESKTOP_SIZE)
    wish = SetDesktopSize(640, 480, ONE_SCREEN).pack()
    pair.viewer.send(wish * SIZE_ANSWERS_MAX)
    pair.settle()
    pair.viewer.send(wish)
    with pytest.raises(RfbError, match="another size"):
        pair.settle()


# Bounds.


def test_a_viewer_that_reads_nothing_is_not_read_from() -> None:
    """Fences answered by nobody's reading: at most one piece more than the bound."""
    pair = Pair().running(encodings.FENCE)
    flood = ClientFence(FENCE_REQUEST, bytes(64)).pack() * 900
    rounds = 0
    while pair.session.reading:
        pair.session.receive(flood, 0)
        pair.drain()
        rounds += 1
    assert rounds <= OUTPUT_BYTES // len(flood) + 1
    assert pair.session.output_bytes < OUTPUT_BYTES + len(flood) + 100
    pair.session.take_output()
    assert pair.session.reading
    pair.session.receive(FramebufferUpdateRequest(False, Rect(0, 0, 200, 70)).pack(), 0)
    pair.drain()
    assert pair.session.plan(pair.now_ns) is not None
    while pair.session.reading:
        pair.session.receive(flood, 0)
        pair.drain()
    assert pair.session.output_bytes == 0, "held back behind the update"
    pair.session.finish(0, [], pair.now_ns)
    assert pair.session.output_bytes < OUTPUT_BYTES + len(flood) + 100


def test_after_an_error_nothing_is_looked_at() -> None:
    """Events before it come; what follows does not."""
    pair = Pair().running()
    pair.session.receive(KeyEvent(True, 1).pack() + b"\x99" + KeyEvent(True, 2).pack(), 0)
    assert pair.session.next_event() == Key(1, 0, True)
    with pytest.raises(RfbError, match="unknown type 153"):
        pair.session.next_event()
    assert not pair.session.running
    assert pair.session.next_event() is None
    assert pair.session.plan(0) is None
    assert pair.session.wake_ns(0) is None
    pair.session.damage(pair.canvas.new_damage())


def test_a_screen_for_those_who_are_not_in_yet() -> None:
    """What happens meanwhile is no matter: they start with all of it."""
    pair = Pair(RfbViewer())
    pair.draw(Rect(0, 0, 1, 1))
    pair.session.resize(10, 10)
    pair.session.set_leds(1)
    pair.session.set_name("x")
    pair.session.set_pointer(absolute=False)
    pair.session.set_cursor(Cursor(0, 0, 0, 0, b""))
    pair.session.bell()
    pair.running()
    assert not pair.viewer.bells
    pair.viewer.request()
    assert pair.update() is not None
    assert pair.now_ns >= MS
