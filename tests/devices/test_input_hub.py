"""The hub, with the PS/2 devices behind it and with a tablet of the tests."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.ps2_driver import KeyboardDriver, MouseDriver
from tvmm.devices.input_hub import POSITION_LIMIT, InputHub
from tvmm.devices.keys import BUTTONS
from tvmm.devices.ps2_sinks import WAITING_KEYS, Ps2Keys, Ps2Pointer

if TYPE_CHECKING:
    from collections.abc import Collection

A, B, SHIFT, PAUSE = 30, 48, 42, 119
LEFT, RIGHT = BUTTONS["left"], BUTTONS["right"]


class Tablet:
    """A pointer that notes what it is told."""

    name = "tablet"
    absolute = True

    def __init__(self) -> None:
        self.ready = False
        self.log: list[object] = []
        self.down: set[int] = set()

    def press(self, code: int, down: bool) -> None:
        """A button."""
        self.log.append((code, down))
        (self.down.add if down else self.down.discard)(code)

    def held(self) -> Collection[int]:
        """Buttons."""
        return self.down

    def move(self, x: int, y: int) -> None:
        """A position."""
        self.log.append((x, y))

    def wheel(self, up: int, right: int) -> None:
        """Notches."""
        self.log.append(("wheel", up, right))

    def sync(self) -> None:
        """The end of a group."""
        self.log.append("sync")


class Desk:
    """A hub and what a guest makes of it."""

    def __init__(self) -> None:
        self.keyboard = KeyboardDriver()
        self.chip = self.keyboard.chip
        self.tablet = Tablet()
        self.keys = Ps2Keys(self.chip)
        self.hub = InputHub(nullcontext(), [self.keys], [self.tablet, Ps2Pointer(self.chip)])
        self.chip.on_leds = self.hub.leds_changed

    def start_driver(self) -> None:
        """The guest's driver turns the keyboard on."""
        self.chip.write(0, 1, 0xF4)
        assert self.keyboard.drain() == b"\xfa"


@pytest.fixture
def desk() -> Desk:
    """With a keyboard driver that has started."""
    made = Desk()
    made.start_driver()
    return made


def test_keys_of_two_sources(desk: Desk) -> None:
    """Down with the first, up with the last; a repeat is typed again; a source's leaving lets its keys go."""
    desk.hub.key(A, True, "one")
    desk.hub.key(A, True, "two")
    desk.hub.key(A, True, "two")
    desk.hub.key(A, False, "one")
    desk.hub.key(A, False, "one")
    desk.hub.key(B, False, "one")
    desk.hub.key(SHIFT, True, "two")
    assert desk.hub.held_by("two") == {A, SHIFT}
    desk.hub.release_all("two")
    desk.hub.release_all("nobody")
    desk.keyboard.poll()
    assert desk.keyboard.log == [(A, True), (A, True), (SHIFT, True), (A, False), (SHIFT, False)]


def test_numbers_that_are_no_key(desk: Desk) -> None:
    """They are ignored, and leave nothing behind."""
    for code in (-1, 0, 0x100, 0x110, 1 << 40):
        desk.hub.key(code, True, "x")
        desk.hub.button(code if code != 0x110 else 0x115, True, "x")
    assert desk.hub.held_by("x") == frozenset()
    desk.hub.key(240, True, "x")
    desk.hub.key(240, False, "x")
    assert desk.keyboard.drain() == b""


def test_more_keys_than_the_keyboard_holds(desk: Desk) -> None:
    """A word that is typed while the guest is busy arrives whole, in order."""
    for _ in range(10):
        for code in (A, B):
            desk.hub.key(code, True, 1)
            desk.hub.key(code, False, 1)
    desk.keyboard.poll()
    assert desk.keyboard.log == [(code, down) for code in (A, B) for down in (True, False)] * 10


def test_a_guest_that_stays_away(desk: Desk) -> None:
    """What is too much is dropped; back again, it is told what is down now, and nothing else is."""
    desk.hub.key(SHIFT, True, 1)
    desk.keyboard.poll()
    for _ in range(WAITING_KEYS):
        desk.hub.key(A, True, 1)
        desk.hub.key(A, False, 1)
    desk.hub.key(SHIFT, False, 1)
    desk.hub.key(B, True, 1)
    desk.keyboard.poll()
    assert desk.keyboard.down == {B}
    desk.hub.key(B, False, 1)
    desk.keyboard.poll()
    assert desk.keyboard.down == set()


def test_nothing_fills_the_controller_again_before_there_is_a_driver() -> None:
    """Linux empties it at first, and must come to an end after 16 bytes; later it hears what is down."""
    desk = Desk()
    for _ in range(100):
        desk.hub.key(A, True, 1)
        desk.hub.key(A, False, 1)
    desk.hub.key(B, True, 1)
    assert len(desk.keyboard.drain()) <= 16
    desk.chip.write(0, 1, 0xF4)
    assert desk.keyboard.read() == 0xFA
    desk.keyboard.poll()
    assert desk.keyboard.down == {B}


def test_a_guest_that_never_talks_to_its_keyboard() -> None:
    """It reads keys and no more. What was too much is dropped; with the next key it hears how things are."""
    desk = Desk()
    desk.hub.key(SHIFT, True, 1)
    for _ in range(100):
        desk.hub.key(A, True, 1)
        desk.hub.key(A, False, 1)
    desk.hub.key(SHIFT, False, 1)
    desk.keyboard.poll()
    desk.hub.key(B, True, 1)
    desk.keyboard.poll()
    assert desk.keyboard.down == {B}
    desk.hub.key(B, False, 1)
    desk.keyboard.poll()
    assert desk.keyboard.down == set()


def test_lights(desk: Desk) -> None:
    """Who listens hears of each change once."""
    seen: list[int] = []
    desk.hub.on_leds.append(seen.append)
    for value in (4, 4, 6, 0):
        desk.chip.write(0, 1, 0xED)
        desk.chip.write(0, 1, value)
    assert seen == [4, 6, 0]
    assert desk.hub.leds == 0


def test_the_mouse_gets_motion(desk: Desk) -> None:
    """Positions become motion in pixels, a click comes where the pointer is, wheels turn the right way."""
    mouse = MouseDriver(desk.chip)
    mouse.talk(bytes.fromhex("f3c8f3c8f350f4"))
    desk.hub.screen = 800, 600
    desk.hub.move_to(0, 0)
    desk.hub.sync()
    assert [sum(part) for part in zip(*mouse.packets(), strict=True)] == [-399, 299, 0, 0]
    desk.hub.move_to(POSITION_LIMIT, 0)
    desk.hub.button(LEFT, True, 1)
    desk.hub.wheel(2, 5)
    desk.hub.sync()
    packets = mouse.packets()
    assert sum(right for right, _, _, _ in packets) == 799
    assert packets[-1][2:] == (-2, 1)
    assert [buttons for right, _, _, buttons in packets if right] == [0, 0, 0, 0]
    desk.hub.move_by(-3, 4)
    desk.hub.sync()
    assert mouse.packets() == [(-3, -4, 0, 1)]
    desk.hub.release_all(1)
    assert mouse.packets() == [(0, 0, 0, 0)]
    assert not desk.hub.absolute


def test_the_tablet_is_preferred(desk: Desk) -> None:
    """Once its driver is there; motion becomes positions; a button goes up where it went down."""
    mouse = MouseDriver(desk.chip)
    mouse.talk(b"\xf4")
    desk.hub.button(LEFT, True, 1)
    desk.tablet.ready = True
    assert desk.hub.absolute
    desk.hub.screen = 1024, 1024
    desk.hub.move_to(100, 40_000)
    desk.hub.move_by(2, -1)
    desk.hub.move_by(-10_000, 0)
    desk.hub.button(RIGHT, True, 1)
    desk.hub.wheel(0, -1)
    desk.hub.sync()
    desk.hub.release_all(1)
    assert desk.tablet.log == [
        (100, 32767), (164, 32735), (0, 32735), (RIGHT, True), ("wheel", 0, -1), "sync", (RIGHT, False), "sync"
    ]  # fmt: skip
    assert [buttons for _, _, _, buttons in mouse.packets()] == [1, 0]


def test_what_nobody_holds_after_a_move(desk: Desk) -> None:
    """A guest that comes with keys down is told that they are up, but for those that somebody here holds."""
    desk.hub.key(A, True, "viewer")
    desk.chip.press(SHIFT, True)
    desk.tablet.down.add(LEFT)
    desk.hub.settle()
    desk.keyboard.poll()
    assert desk.keyboard.down == {A}
    assert desk.tablet.log == [(LEFT, False), "sync"]


EVENTS = st.one_of(
    st.tuples(st.just("key"), st.sampled_from((A, B, SHIFT, 56, 99, PAUSE, 240)), st.booleans(), st.integers(0, 2)),
    st.tuples(st.just("poll"), st.integers(0, 20)),
    st.tuples(st.just("leave"), st.integers(0, 2)),
    st.tuples(st.just("command"), st.sampled_from((0xED, 0x00, 0xF2, 0xEE))),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=300))
def test_no_key_stays_down(events: list[tuple[object, ...]]) -> None:
    """Whatever is typed by whomever, and however the guest reads: when all have left, nothing is down in the guest."""
    desk = Desk()
    desk.start_driver()
    for what, *arguments in events:
        if what == "key":
            desk.hub.key(*arguments)  # type: ignore[arg-type]
        elif what == "poll":
            for _ in range(int(str(arguments[0]))):
                if desk.keyboard.pending():
                    feed(desk)
        elif what == "leave":
            desk.hub.release_all(arguments[0])
        else:
            desk.chip.write(0, 1, arguments[0])  # type: ignore[arg-type]
    for source in range(3):
        desk.hub.release_all(source)
    while desk.keyboard.pending():
        feed(desk)
    assert desk.chip.keyboard.down == set()
    assert desk.keyboard.down <= {PAUSE}


def feed(desk: Desk) -> None:
    """One byte; answers of the keyboard are left out. F7, which is like one, is not typed here."""
    if desk.chip.state().output & 0xFF in (0xFA, 0xEE, 0xFE, 0xAB, 0x83):
        desk.keyboard.read()
    else:
        desk.keyboard.poll(1)
