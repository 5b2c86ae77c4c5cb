"""From what a viewer says about keys to keys of the guest (Linux evdev codes), and what it holds down.

A viewer that sends scancodes names the key, and what is printed on it is between guest and user. One that sends keysyms
alone names a character of the layout of its own. The key that gives it in the guest's layout may need Shift or AltGr
where the viewer holds none, or none where it holds some, so these are pressed or released around the key's press, as
QEMU does. What a key's release is of is what its press was of, whatever the viewer calls it by then.

The layout is passed in; `tvmm.wiring` gives that of `tvmm.devices.keys`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.vnc.events import Key

__all__ = ["HELD_MAX", "MODIFIERS", "Keyboard", "Press", "Stroke"]

HELD_MAX = 64
"""Keys that one viewer holds down; more are ignored, for nobody has so many fingers."""
CAPS_LOCK_LED = 4
NUM_LOCK_LED = 2
LEFT_SHIFT, RIGHT_SHIFT, NUM_LOCK, ALTGR = 42, 54, 69, 100
MODIFIERS = frozenset((29, LEFT_SHIFT, RIGHT_SHIFT, 56, 97, ALTGR, 125, 126))
"""Keys that are held for what others mean with them: Ctrl, Shift, Alt and Meta."""
LEFT_TAB, TAB = 0xFE20, 0xFF09
"""Some viewers call Shift and Tab by a name of its own."""
LEVEL3_SHIFTS = (0xFE03, 0xFF7E)
LETTERS = frozenset((*range(0x61, 0x7B), *range(0xE0, 0xF7), *range(0xF8, 0xFF)))
CAPITALS = frozenset(letter - 0x20 for letter in LETTERS)


class Stroke(Protocol):
    """How a keysym is typed (`tvmm.devices.keys.Keystroke`)."""

    @property
    def code(self) -> int:
        """The key."""
        ...

    @property
    def shift(self) -> bool:
        """Whether Shift is to be held."""
        ...

    @property
    def altgr(self) -> bool:
        """Whether AltGr is."""
        ...

    @property
    def num_lock(self) -> bool | None:
        """Whether that light has to be on; None: it does not matter."""
        ...


class Press(NamedTuple):
    """A key of the guest goes down or up."""

    code: int
    down: bool


class Keyboard:
    """One viewer's. `keystroke` is the guest's layout, `evdev_of_xt` knows scancodes; None: not known there."""

    def __init__(
        self, keystroke: Callable[[int], Stroke | None], evdev_of_xt: Callable[[int], int | None]
    ) -> None:
        self._keystroke = keystroke
        self._evdev_of_xt = evdev_of_xt
        self._held: dict[int, None] = {}
        """Codes, in the order of their presses."""
        self._by_keysym: dict[int, int] = {}
        """Which key a keysym's press was of."""

    @property
    def held(self) -> tuple[int, ...]:
        """Codes of keys that are down because of this viewer."""
        return tuple(self._held)

    def key(self, key: Key, leds: int = 0) -> list[Press]:
        """What happens in the guest; `leds` are the guest's: bit 1 num, 2 caps."""
        code = self._evdev_of_xt(key.xt_code) if key.xt_code else None
        if code is not None:
            return self._move(code, key.down)
        if not key.down:
            return self._release(key.keysym)
        keysym = TAB if key.keysym == LEFT_TAB else key.keysym
        stroke = self._keystroke(keysym)
        if stroke is None:
            return []
        presses = self._move(stroke.code, True)
        if presses and len(self._by_keysym) < HELD_MAX:
            self._by_keysym[key.keysym] = stroke.code
        if not presses or stroke.code in (LEFT_SHIFT, RIGHT_SHIFT, ALTGR):
            return presses
        before = self._modifiers(stroke, keysym, leds)
        if key.keysym == LEFT_TAB and not self._shifts():
            before.append(Press(LEFT_SHIFT, True))
        after = [Press(press.code, not press.down) for press in reversed(before)]
        return [*self._lock(stroke, leds), *before, *presses, *after]

    def _release(self, keysym: int) -> list[Press]:
        code = self._by_keysym.get(keysym)
        if code is None:
            # It went down under another name: as a capital, say, and Shift came up first.
            stroke = self._keystroke(keysym)
            if stroke is None:
                return []
            code = stroke.code
        for name in [name for name, held in self._by_keysym.items() if held == code]:
            del self._by_keysym[name]
        return self._move(code, False)

    def release_all(self) -> list[Press]:
        """The viewer is gone: what it held comes up, the last first."""
        presses = [Press(code, False) for code in reversed(self._held)]
        self._held.clear()
        self._by_keysym.clear()
        return presses

    def _move(self, code: int, down: bool) -> list[Press]:
        """A key that goes down again is one that repeats; one comes up only if it was down."""
        if down:
            if code not in self._held and len(self._held) >= HELD_MAX:
                return []
            self._held[code] = None
        elif code not in self._held:
            return []
        else:
            del self._held[code]
        return [Press(code, down)]

    def _shifts(self) -> list[int]:
        return [code for code in (LEFT_SHIFT, RIGHT_SHIFT) if code in self._held]

    def _modifiers(self, stroke: Stroke, keysym: int, leds: int) -> list[Press]:
        """What has to be pressed or released for the time of a press."""
        shift = stroke.shift
        if leds & CAPS_LOCK_LED and (keysym in LETTERS or keysym in CAPITALS):
            shift = not shift
        presses = []
        # A function key, a cursor key and the like mean themselves with whatever is held: Shift and Left selects.
        printable = 0x20 < keysym < 0xFE00 or keysym >= 0x1000000
        if shift and not self._shifts():
            presses.append(Press(LEFT_SHIFT, True))
        elif not shift and printable:
            presses += [Press(code, False) for code in self._shifts()]
        if stroke.altgr and ALTGR not in self._held:
            presses.append(Press(ALTGR, True))
        elif not stroke.altgr and printable and any(name in self._by_keysym for name in LEVEL3_SHIFTS):
            # Under these names it chooses characters; as Alt it is a part of shortcuts and stays.
            presses.append(Press(ALTGR, False))
        return presses

    def _lock(self, stroke: Stroke, leds: int) -> list[Press]:
        """Num Lock, if the keypad would do something else."""
        if stroke.num_lock is None or stroke.num_lock == bool(leds & NUM_LOCK_LED):
            return []
        return [Press(NUM_LOCK, True), Press(NUM_LOCK, False)]
