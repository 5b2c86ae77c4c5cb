"""Sessions with viewers that send anything: messages that make sense, damaged ones, floods and noise.

One run is one seed. What may come out of a session is events and `RfbError`; what it keeps is bounded by named
constants and by what its shell gave it.
"""

from __future__ import annotations

import random
import struct
import zlib
from typing import TYPE_CHECKING

from tvmm.screen import Canvas
from tvmm.vnc import clipboard, encodings
from tvmm.vnc.client_messages import (
    MESSAGE_BYTES,
    ClientCutText,
    ClientFence,
    EnableContinuousUpdates,
    ExtendedCutText,
    ExtendedKeyEvent,
    FramebufferUpdateRequest,
    KeyEvent,
    PointerEvent,
    SetDesktopSize,
    SetEncodings,
    SetPixelFormat,
)
from tvmm.vnc.congestion import MARKS_MAX
from tvmm.vnc.damage import RECTS_MAX
from tvmm.vnc.errors import RfbError
from tvmm.vnc.events import Key, Motion, Pointer, WantsIn, WantsSize
from tvmm.vnc.handshake import HANDSHAKE_BYTES
from tvmm.vnc.keys import HELD_MAX, Keyboard
from tvmm.vnc.pixel_format import PixelFormat, Rect
from tvmm.vnc.pointer import PointerTracker
from tvmm.vnc.security_types import NoSecurity
from tvmm.vnc.server_messages import Cursor, Screen
from tvmm.vnc.session import OUTPUT_BYTES, Session, SessionOptions
from tvmm.vnc.updates import SIZE_ANSWERS_MAX, SizeStatus

if TYPE_CHECKING:
    from tvmm.vnc.events import Event

__all__ = ["PIECE_BYTES", "hostile_run"]

PIECE_BYTES = 64 << 10
"""That a shell reads at once."""
STEPS = 60
NUMBERS = tuple(
    number
    for encoding in (*encodings.ENCODINGS, *encodings.PSEUDO_ENCODINGS)
    for number in (encoding.first, encoding.last)
)
HELLO = b"RFB 003.008\n\x01\x01"
MOST = OUTPUT_BYTES + 3 * clipboard.TEXT_BYTES + 2 * PIECE_BYTES * 73 // 9


def _number(chance: random.Random, bits: int) -> int:
    return chance.choice((0, 1, (1 << bits) - 1, 1 << bits - 1, chance.getrandbits(bits), chance.randrange(256)))


def _rect(chance: random.Random) -> Rect:
    return Rect(*(_number(chance, 16) for _ in range(4)))


def _format(chance: random.Random) -> PixelFormat:
    good = chance.choice(
        (
            PixelFormat(32, 24, False, True, 255, 255, 255, 16, 8, 0),
            PixelFormat(16, 16, True, True, 31, 63, 31, 11, 5, 0),
            PixelFormat(8, 8, False, False, 0, 0, 0, 0, 0, 0),
        )
    )
    return good if chance.random() < 0.99 else good._replace(red_shift=_number(chance, 8), depth=_number(chance, 8))


def _clipboard(chance: random.Random) -> bytes:
    action = chance.choice((clipboard.CAPS, clipboard.REQUEST, clipboard.PEEK, clipboard.NOTIFY, clipboard.PROVIDE))
    content = b""
    if action == clipboard.CAPS:
        content = bytes(4 * chance.randrange(4))
    elif action == clipboard.PROVIDE:
        text = bytes(chance.choice((0, 10, 100_000, 3 << 20)))
        content = zlib.compress(struct.pack(">I", len(text) if chance.random() < 0.95 else _number(chance, 32)) + text)
    return ExtendedCutText(struct.pack(">I", action | chance.choice((0, 1, 1, 1, 0x1F))) + content).pack()


def _message(chance: random.Random) -> bytes:
    """One that makes sense, in most of its fields."""
    kind = chance.randrange(11)
    if kind == 0:
        return SetPixelFormat(_format(chance)).pack()
    if kind == 1:
        return SetEncodings(tuple(chance.choices(NUMBERS, k=chance.randrange(30)))).pack()
    if kind in (2, 3):
        return FramebufferUpdateRequest(chance.random() < 0.5, _rect(chance)).pack()
    if kind == 4:
        return KeyEvent(chance.random() < 0.7, chance.choice((_number(chance, 32), 0x61))).pack()
    if kind == 5:
        return PointerEvent(_number(chance, 8) & 0x7F, _number(chance, 16), _number(chance, 16)).pack()
    if kind == 6:
        return ClientCutText(bytes(chance.choice((0, 5, 1000)))).pack()
    if kind == 7:
        return EnableContinuousUpdates(chance.random() < 0.7, _rect(chance)).pack()
    if kind == 8:
        return ClientFence(_number(chance, 32), bytes(chance.choice((0, 8, 64)))).pack()
    if kind == 9:
        screens = tuple(Screen(0, 0, 0, 9, 9) for _ in range(chance.choice((0, 1, 2, 255))))
        return SetDesktopSize(_number(chance, 16), _number(chance, 16), screens).pack()
    return _clipboard(chance) if chance.random() < 0.6 else ExtendedKeyEvent(True, 1, _number(chance, 32)).pack()


def _damaged(chance: random.Random, data: bytes) -> bytes:
    """Bits turned, bytes lost, doubled or made up."""
    mangled = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(mangled) + 1)
        way = chance.randrange(4)
        if way == 0 and at < len(mangled):
            mangled[at] ^= 1 << chance.randrange(8)
        elif way == 1:
            del mangled[at : at + chance.randrange(5)]
        elif way == 2:
            mangled[at:at] = chance.randbytes(chance.randrange(5))
        else:
            mangled[at:at] = mangled[at : at + 20]
    return bytes(mangled)


def _stream(chance: random.Random) -> bytes:
    """What a viewer sends in one go; mostly sense, or it would be out before anything else is tried."""
    way = chance.random()
    if way < 0.003:
        return chance.randbytes(chance.randrange(200))
    if way < 0.03:
        flood = _message(chance)
        return flood * max(PIECE_BYTES // len(flood), 1)
    data = b"".join(_message(chance) for _ in range(chance.randrange(1, 10)))
    return _damaged(chance, data) if way < 0.05 else data


class _Shell:
    """A server of one viewer, that does what a shell may do, at any moment."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        options = SessionOptions(
            view_only=chance.random() < 0.1, clipboard=chance.random() < 0.7, resizable=chance.random() < 0.7
        )
        self.session = Session([NoSecurity()], options)
        self.canvas = Canvas(200, 100)
        self.now_ns = 0
        self.planned = False
        self.keyboard = Keyboard(lambda keysym: None, lambda number: number & 0x7F)
        self.pointer = PointerTracker()

    def event(self, event: Event) -> None:
        if isinstance(event, WantsIn):
            self.session.admit(self.canvas.width, self.canvas.height, "name")
        elif isinstance(event, WantsSize):
            self.session.answer_size(SizeStatus.FORWARDED)
        elif isinstance(event, Key):
            self.keyboard.key(event)
        elif isinstance(event, Pointer | Motion):
            self.pointer.pointer(event, 200, 100)

    def act(self) -> None:
        """Something else than reading."""
        chance, session = self.chance, self.session
        self.now_ns += chance.choice((0, 1_000_000, 400_000_000, 30_000_000_000))
        way = chance.randrange(8)
        if way == 0 and session.running:
            self.canvas.resize(chance.randrange(1, 300), chance.randrange(1, 300))
            session.resize(self.canvas.width, self.canvas.height, chance.randrange(3))
        elif way == 1 and session.running:
            session.damage(bytes(chance.getrandbits(1) for _ in self.canvas.new_damage()))
        elif way == 2:
            session.set_leds(chance.getrandbits(8))
            session.set_pointer(absolute=chance.random() < 0.5)
            session.set_cursor(Cursor(2, 1, 0, 0, chance.randbytes(8)))
            session.bell()
        elif way == 3:
            session.set_clipboard(chance.choice((None, "x", "\n" * 100_000)))
        elif self.planned:
            session.finish(1, [bytes(chance.randrange(5000))], self.now_ns)
            self.planned = False
        else:
            plan = session.plan(self.now_ns, chance.choice((0, 0, 1 << 20)))
            self.planned = plan is not None
            if plan is not None:
                view = Rect(0, 0, *session.updates.seen)
                assert 0 < len(plan.rects) <= RECTS_MAX
                assert all(rect.area and rect.intersect(view) == rect for rect in plan.rects)
                plan.settings.pixel_format.check()
                assert plan.settings.pixel_format.true_colour
        session.wake_ns(self.now_ns)

    def check(self) -> None:
        """What is kept is bounded."""
        session = self.session
        kept = len(session._link.inbox)
        assert kept <= (MESSAGE_BYTES if session.running else HANDSHAKE_BYTES) + PIECE_BYTES
        assert session.output_bytes + session._held_bytes <= MOST
        assert len(session._events) <= 1
        assert len(self.keyboard.held) <= HELD_MAX
        if session._updates is not None:
            updates = session._updates
            assert len(updates.congestion._marks) <= MARKS_MAX
            assert len(updates._size_answers) <= SIZE_ANSWERS_MAX
            assert len(updates.damage.tiles) == self.canvas.columns * self.canvas.rows


def hostile_run(seed: int) -> str:
    """One viewer until it is thrown out or has no more to say: how it ended."""
    chance = random.Random(seed)
    shell = _Shell(chance)
    session = shell.session
    hello = HELLO if chance.random() < 0.9 else _damaged(chance, HELLO)
    waiting = bytearray(hello)
    try:
        for _ in range(STEPS):
            waiting += _stream(chance)
            while waiting and session.reading:
                piece = chance.choice((1, 7, 100, PIECE_BYTES, PIECE_BYTES, PIECE_BYTES))
                session.receive(bytes(waiting[:piece]), shell.now_ns)
                del waiting[:piece]
                while (event := session.next_event()) is not None:
                    shell.event(event)
                    shell.check()
                shell.check()
                if chance.random() < 0.3:
                    shell.act()
            shell.act()
            if chance.random() < 0.7:
                session.take_output()
            shell.check()
    except RfbError as error:
        assert session.state.value == "closed"
        assert session.next_event() is None
        return " ".join(str(error).split()[:4])
    return session.state.value
