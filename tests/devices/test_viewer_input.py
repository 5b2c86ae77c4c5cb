"""What viewers send, as a guest with PS/2 devices sees it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.ps2_driver import KeyboardDriver, MouseDriver
from tvmm.devices.input_hub import InputHub
from tvmm.devices.ps2_sinks import Ps2Keys, Ps2Pointer
from tvmm.devices.viewer_input import ViewerInput

A, Q, TWO, SHIFT, RIGHT_SHIFT, ALTGR, KP7, NUM_LOCK, UP = 30, 16, 3, 42, 54, 100, 71, 69, 103
SHIFT_L, SHIFT_R, LEVEL3 = 0xFFE1, 0xFFE2, 0xFE03


class Desk:
    """A viewer, and a guest's keyboard driver."""

    def __init__(self, layout: str = "en-us") -> None:
        self.keyboard = KeyboardDriver()
        self.chip = self.keyboard.chip
        self.hub = InputHub(nullcontext(), [Ps2Keys(self.chip)], [Ps2Pointer(self.chip)])
        self.chip.on_leds = self.hub.leds_changed
        self.viewer = ViewerInput(self.hub, layout)
        self.chip.write(0, 1, 0xF4)
        self.keyboard.drain()

    def typed(self) -> list[tuple[int, bool]]:
        """What the guest has seen since the last call."""
        self.keyboard.log.clear()
        self.keyboard.poll()
        return self.keyboard.log

    def light(self, leds: int) -> None:
        """The guest sets lights."""
        for byte in (0xED, leds):
            self.chip.write(0, 1, byte)
            self.keyboard.drain()


def taps(*codes: int) -> list[tuple[int, bool]]:
    """Positive codes down, negative up."""
    return [(abs(code), code > 0) for code in codes]


@pytest.mark.parametrize(
    ("layout", "events", "seen"),
    [
        ("en-us", [(ord("a"), 1), (ord("a"), 0)], [A, -A]),
        ("en-us", [(ord("A"), 1), (ord("A"), 0)], [SHIFT, A, -SHIFT, -A]),
        ("en-us", [(SHIFT_L, 1), (ord("A"), 1), (ord("A"), 0), (SHIFT_L, 0)], [SHIFT, A, -A, -SHIFT]),
        ("en-us", [(SHIFT_R, 1), (ord("a"), 1), (ord("a"), 0)], [RIGHT_SHIFT, -RIGHT_SHIFT, A, RIGHT_SHIFT, -A]),
        ("en-us", [(LEVEL3, 1), (ord("@"), 1), (ord("@"), 0), (LEVEL3, 0)],
         [ALTGR, SHIFT, -ALTGR, TWO, ALTGR, -SHIFT, -TWO, -ALTGR]),
        ("de", [(SHIFT_L, 1), (ord("@"), 1), (ord("@"), 0), (SHIFT_L, 0)],
         [SHIFT, -SHIFT, ALTGR, Q, -ALTGR, SHIFT, -Q, -SHIFT]),
        ("en-us", [(SHIFT_L, 1), (0xFF52, 1), (0xFF52, 0)], [SHIFT, UP, -UP]),
        ("en-us", [(ord("a"), 1), (ord("A"), 1), (ord("A"), 0), (ord("a"), 0)], [A, SHIFT, A, -SHIFT, -A]),
        ("en-us", [(0x0100_3042, 1), (0x0100_3042, 0), (0, 1)], []),
        ("en-us", [(ord("b"), 0)], []),
    ],
)  # fmt: skip
def test_keysyms(layout: str, events: list[tuple[int, int]], seen: list[int]) -> None:
    """Characters come with the modifiers that the guest's layout wants, and leave what is held as it was."""
    desk = Desk(layout)
    for keysym, down in events:
        desk.viewer.key(keysym, bool(down))
    assert desk.typed() == taps(*seen)


def test_caps_lock_of_the_guest() -> None:
    """A letter that the viewer's Caps Lock made is one that the guest's makes; what is no letter stays."""
    desk = Desk()
    desk.light(4)
    for keysym in (ord("A"), ord("!")):
        desk.viewer.key(keysym, True)
        desk.viewer.key(keysym, False)
    assert desk.typed() == taps(A, -A, SHIFT, 2, -SHIFT, -2)


def test_num_lock_follows_the_keysym() -> None:
    """A digit of the keypad turns it on where lights work, and where it is not on."""
    desk = Desk()
    desk.viewer.key(0xFFB7, True)
    desk.viewer.key(0xFFB7, False)
    assert desk.typed() == taps(KP7, -KP7)
    desk.light(4)
    desk.viewer.key(0xFFB7, True)
    assert desk.typed() == taps(NUM_LOCK, -NUM_LOCK, KP7)
    desk.light(2)
    desk.viewer.key(0xFFB8, True)
    assert desk.typed() == taps(72)


def test_scancodes() -> None:
    """The number says which key; without a known one the keysym does."""
    desk = Desk("de")
    for down in (True, False):
        desk.viewer.extended_key(ord("y"), 0x2C, down)
        desk.viewer.extended_key(0xFF52, 0xC8, down)
        desk.viewer.extended_key(ord("a"), 0, down)
    assert desk.typed() == taps(44, UP, A, -44, -UP, -A)


def test_buttons_and_wheel() -> None:
    """Buttons by their bits, notches when a bit goes up, positions from edge to edge."""
    desk = Desk()
    mouse = MouseDriver(desk.chip)
    mouse.talk(bytes.fromhex("f3c8f3c8f350f4"))
    desk.hub.screen = 100, 100
    desk.viewer.pointer(0, 0, 100, 100, 0)
    desk.viewer.pointer(99, 99, 100, 100, 0)
    assert [sum(part) for part in zip(*mouse.packets(), strict=True)] == [50, -50, 0, 0]
    for mask in (1, 3, 2, 0, 8, 0, 16 + 8, 0, 0x80, 0x180, 0xFFFF_0000):
        desk.viewer.pointer(200, 200, 100, 100, mask)
    assert mouse.packets() == [
        (0, 0, 0, 1), (0, 0, 0, 5), (0, 0, 0, 4), (0, 0, -1, 0),
        (0, 0, 0, 8), (0, 0, 0, 24), (0, 0, 0, 16), (0, 0, 0, 0),
    ]  # fmt: skip


def test_a_viewer_leaves() -> None:
    """With keys and buttons down: they go up."""
    desk = Desk()
    desk.viewer.key(SHIFT_L, True)
    desk.viewer.extended_key(ord("a"), 0x1E, True)
    desk.viewer.buttons(1)
    desk.viewer.release()
    desk.keyboard.poll()
    assert desk.keyboard.down == set()
    assert desk.hub.held_by(desk.viewer) == frozenset()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.one_of(
                    st.integers(0, (1 << 32) - 1),
                    st.integers(0x20, 0x7E),
                    st.sampled_from((SHIFT_L, SHIFT_R, LEVEL3, 0xFFE5, 0xFF95, 0xFFB7)),
                ),
                st.booleans(),
            ),
            st.tuples(st.integers(-1, 0xFFFF), st.integers(-1, 0xFFFF), st.integers(0, 3000), st.integers(0, 0xFFFF)),
        ),
        max_size=80,
    )
)
def test_a_hostile_viewer(events: list[tuple[int, ...]]) -> None:
    """Any numbers in any order: what it holds is bounded, and gone when it leaves."""
    desk = Desk()
    for event in events:
        if len(event) == 2:
            desk.viewer.key(event[0], bool(event[1]))
        else:
            x, y, size, mask = event
            desk.viewer.pointer(x, y, size, size, mask)
        desk.keyboard.poll(7)
    desk.viewer.release()
    desk.keyboard.poll()
    assert desk.chip.keyboard.down == set()
