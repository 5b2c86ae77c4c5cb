"""What a viewer's keys and buttons are in the guest, and that nothing stays down."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.vnc.events import Key, Motion, Pointer
from tvmm.vnc.keys import HELD_MAX, Keyboard, Press
from tvmm.vnc.pointer import POSITION_MAX, PointerTracker, Steps

SHIFT, CONTROL, ALTGR, NUM = 42, 29, 100, 69
SHIFT_L, CONTROL_L, ALT_R, LEVEL3, LEFT_TAB, LEFT = 0xFFE1, 0xFFE3, 0xFFEA, 0xFE03, 0xFE20, 0xFF51
A, SEVEN, MINUS, TAB_CODE, LEFT_CODE, KP_4, Q = 30, 8, 12, 15, 105, 75, 16
CAPS_LED, NUM_LED = 4, 2


class Stroke(NamedTuple):
    """As `tvmm.devices.keys.Keystroke`."""

    code: int
    shift: bool = False
    altgr: bool = False
    num_lock: bool | None = None


LAYOUT = {
    ord("a"): Stroke(A),
    ord("A"): Stroke(A, True),
    ord("7"): Stroke(SEVEN),
    ord("/"): Stroke(SEVEN, True),
    ord("-"): Stroke(MINUS),
    ord("@"): Stroke(Q, False, True),
    0xFF09: Stroke(TAB_CODE),
    LEFT: Stroke(LEFT_CODE),
    SHIFT_L: Stroke(SHIFT),
    CONTROL_L: Stroke(CONTROL),
    ALT_R: Stroke(ALTGR),
    LEVEL3: Stroke(ALTGR),
    0xFFB4: Stroke(KP_4, False, False, True),
    0xFF96: Stroke(KP_4, False, False, False),
}
"""A German guest's, a little of it."""


def keyboard() -> Keyboard:
    """With scancodes that are evdev's."""
    return Keyboard(LAYOUT.get, lambda number: number if number < 0x80 else None)


def typed(board: Keyboard, *keys: tuple[int, bool], leds: int = 0) -> list[int]:
    """Codes, negative for those that go up."""
    presses = [press for keysym, down in keys for press in board.key(Key(keysym, 0, down), leds)]
    return [code if down else -code for code, down in presses]


def down(keysym: int) -> tuple[int, bool]:
    """A press."""
    return keysym, True


def up(keysym: int) -> tuple[int, bool]:
    """A release."""
    return keysym, False


def test_scancodes_go_through() -> None:
    """Whatever the keysym is; repeats too; a release only of what is down."""
    board = keyboard()
    presses = [board.key(Key(0x41, A, pressed)) for pressed in (True, True, False, False)]
    assert presses == [[Press(A, True)], [Press(A, True)], [Press(A, False)], []]
    assert board.key(Key(ord("a"), 0x99, True)) == [Press(A, True)], "an unknown one: the keysym is tried"
    assert board.key(Key(0x123456, 0x99, True)) == []


@pytest.mark.parametrize(
    ("keys", "leds", "expected"),
    [
        ((down(ord("a")), up(ord("a"))), 0, [A, -A]),
        ((down(ord("A")), up(ord("A"))), 0, [SHIFT, A, -SHIFT, -A]),
        ((down(SHIFT_L), down(ord("A"))), 0, [SHIFT, A]),
        ((down(SHIFT_L), down(ord("a"))), 0, [SHIFT, -SHIFT, A, SHIFT]),
        ((down(SHIFT_L), down(ord("-"))), 0, [SHIFT, -SHIFT, MINUS, SHIFT]),
        ((down(ord("/")),), 0, [SHIFT, SEVEN, -SHIFT]),
        ((down(ord("@")), up(ord("@"))), 0, [ALTGR, Q, -ALTGR, -Q]),
        ((down(LEVEL3), down(ord("@"))), 0, [ALTGR, Q]),
        ((down(LEVEL3), down(ord("a"))), 0, [ALTGR, -ALTGR, A, ALTGR]),
        ((down(ALT_R), down(ord("a"))), 0, [ALTGR, A]),
        ((down(SHIFT_L), down(LEFT)), 0, [SHIFT, LEFT_CODE]),
        ((down(CONTROL_L), down(ord("a"))), 0, [CONTROL, A]),
        ((down(LEFT_TAB),), 0, [SHIFT, TAB_CODE, -SHIFT]),
        ((down(SHIFT_L), down(LEFT_TAB)), 0, [SHIFT, TAB_CODE]),
        ((down(ord("A")),), CAPS_LED, [A]),
        ((down(ord("a")),), CAPS_LED, [SHIFT, A, -SHIFT]),
        ((down(ord("/")),), CAPS_LED, [SHIFT, SEVEN, -SHIFT]),
        ((down(0xFFB4),), NUM_LED, [KP_4]),
        ((down(0xFFB4),), 0, [NUM, -NUM, KP_4]),
        ((down(0xFF96),), NUM_LED, [NUM, -NUM, KP_4]),
        ((down(0x123456),), 0, []),
    ],
)
def test_keysyms(keys: tuple[tuple[int, bool], ...], leds: int, expected: list[int]) -> None:
    """The key of the guest's layout, with the modifiers that it needs there for as long as the press takes."""
    assert typed(keyboard(), *keys, leds=leds) == expected


def test_a_release_is_of_the_key_that_was_pressed() -> None:
    """Also when Shift came up in between and the keysym is another one."""
    board = keyboard()
    typed(board, down(SHIFT_L), down(ord("A")), up(SHIFT_L))
    assert typed(board, up(ord("a"))) == [-A]
    assert board.held == ()
    assert typed(board, up(ord("A"))) == []


def test_leaving_releases_everything() -> None:
    """The last one first."""
    board = keyboard()
    typed(board, down(CONTROL_L), down(SHIFT_L), down(ord("A")))
    assert board.release_all() == [Press(A, False), Press(SHIFT, False), Press(CONTROL, False)]
    assert board.release_all() == []


def test_held_keys_are_bounded() -> None:
    """A viewer may press all that there are."""
    board = keyboard()
    for number in range(1, 0x80):
        board.key(Key(0, number, True))
    assert len(board.held) == HELD_MAX


@given(
    st.lists(
        st.tuples(st.sampled_from([*LAYOUT, LEFT_TAB, 0x123456]), st.sampled_from([0, 0, 0, 30, 42]), st.booleans())
    ),
    st.integers(0, 7),
)
def test_the_guest_and_this_agree_on_what_is_down(keys: list[tuple[int, int, bool]], leds: int) -> None:
    """After any keys, what is down in the guest is what is held, and nothing after the viewer left."""
    board = keyboard()
    guest: set[int] = set()
    for keysym, xt_code, pressed in keys:
        for code, is_down in board.key(Key(keysym, xt_code, pressed), leds):
            (guest.add if is_down else guest.discard)(code)
        assert guest == set(board.held)
    for code, is_down in board.release_all():
        assert not is_down
        guest.discard(code)
    assert not guest


# Pointers.


def test_positions() -> None:
    """Corners are corners; what has not changed is not said again."""
    tracker = PointerTracker()
    assert tracker.pointer(Pointer(0, 0, 0), 640, 480) == Steps((0, 0))
    assert tracker.pointer(Pointer(639, 479, 0), 640, 480) == Steps((POSITION_MAX, POSITION_MAX))
    assert tracker.pointer(Pointer(639, 479, 0), 640, 480) == Steps()
    assert tracker.pointer(Pointer(0, 0, 0), 1, 1) == Steps((0, 0))
    assert tracker.pointer(Pointer(999, 999, 0), 10, 10) == Steps((POSITION_MAX, POSITION_MAX))


def test_buttons_and_wheel() -> None:
    """Edges of the mask; a wheel's release is nothing."""
    tracker = PointerTracker()
    assert tracker.pointer(Motion(0, 0, 0b111)).buttons == ((0x110, True), (0x112, True), (0x111, True))
    assert tracker.pointer(Motion(1, -2, 0b101)) == Steps(motion=(1, -2), buttons=((0x112, False),))
    assert tracker.pointer(Motion(0, 0, 0b1101)).wheel == (1, 0)
    assert tracker.pointer(Motion(0, 0, 0b101)) == Steps()
    assert tracker.pointer(Motion(0, 0, 0b1110101)).wheel == (-1, 0)
    assert tracker.pointer(Motion(0, 0, 0b1000101)).wheel == (0, 0)
    assert tracker.pointer(Motion(0, 0, 0b0100101)).wheel == (0, -1)
    assert tracker.pointer(Motion(0, 0, 0b110000101)).buttons == ((0x113, True), (0x114, True))
    codes = {code for code, is_down in tracker.release_all().buttons if not is_down}
    assert codes == {0x110, 0x111, 0x113, 0x114}
    assert tracker.release_all() == Steps()
