"""What a viewer sends as keysyms, numbers of keys and button masks (RFB 7.5.4, 7.5.5), as events of an `InputHub`.

A viewer that sends scancodes (QEMU Extended Key Event) says which key it is, and nothing has to be known of
layouts. One that sends keysyms says what the key means on its own layout. The guest has a layout too, and its
keys for the same meaning may want Shift or AltGr where the viewer's do not: these are put right around such a
key, and back. What a keysym went down as is what it goes up as, whatever its modifiers are then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.devices.keys import BUTTONS, evdev_of_xt, keystroke

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tvmm.devices.input_hub import InputHub
    from tvmm.devices.keys import Keystroke

__all__ = ["ViewerInput"]

HELD_KEYSYMS = 64
"""That are down at once by a viewer's account: more than fingers; it may say that of any number of keysyms."""

LEFT_SHIFT, SHIFTS = 42, (42, 54)
ALTGR = 100
CAPS_LOCK_LED = 0x04
NUM_LOCK, NUM_LOCK_LED = 69, 0x02
FIRST_FUNCTION_KEYSYM = 0xFE00
"""Keysyms from here up to Unicode's type no character: modifiers, arrows, F1. They take Shift as it is."""
UNICODE = 0x0100_0000

_BUTTON_OF_BIT = (BUTTONS["left"], BUTTONS["middle"], BUTTONS["right"], 0, 0, 0, 0, BUTTONS["side"], BUTTONS["extra"])
_WHEEL_OF_BIT = {3: (1, 0), 4: (-1, 0), 5: (0, -1), 6: (0, 1)}
"""Bits of RFB's button mask; a notch is a bit that goes up and down again."""


class ViewerInput:
    """One viewer, which is a source of `hub`. `layout` is the guest's, one of `keys.layout_names`."""

    def __init__(self, hub: InputHub, layout: str = "en-us") -> None:
        self._hub = hub
        self._layout = layout
        self._codes: dict[int, int] = {}
        self._mask = 0

    def key(self, keysym: int, down: bool) -> None:
        """RFB's KeyEvent. Keysyms that no key stands for are ignored."""
        if not down:
            code = self._codes.pop(keysym, 0)
            # Another keysym of the same key may have gone down meanwhile, as a and A do.
            if code and code not in self._codes.values():
                self._send((code, False))
            return
        if keysym in self._codes:
            self._send((self._codes[keysym], True))
            return
        stroke = keystroke(keysym, self._layout)
        if stroke is None or len(self._codes) >= HELD_KEYSYMS:
            return
        self._codes[keysym] = stroke.code
        if FIRST_FUNCTION_KEYSYM <= keysym < UNICODE or keysym >= 0x1000_0000:
            self._send(*self._num_lock(stroke), (stroke.code, True))
        else:
            self._type(keysym, stroke)

    def extended_key(self, keysym: int, number: int, down: bool) -> None:
        """QEMU's Extended Key Event: the XT number says which key it is; without one that is known the keysym does."""
        code = evdev_of_xt(number)
        if code is None:
            self.key(keysym, down)
        else:
            self._send((code, down))

    def pointer(self, x: int, y: int, width: int, height: int, mask: int) -> None:
        """RFB's PointerEvent on a screen of `width` x `height` pixels; bits from 9 on are ignored."""
        hub = self._hub
        hub.move_to(_position(x, width), _position(y, height))
        self.buttons(mask)

    def buttons(self, mask: int) -> None:
        """Buttons alone, where the pointer is."""
        changed, self._mask = mask ^ self._mask, mask
        for bit, code in enumerate(_BUTTON_OF_BIT):
            if not changed >> bit & 1:
                continue
            down = bool(mask >> bit & 1)
            if code:
                self._hub.button(code, down, self)
            elif down:
                self._hub.wheel(*_WHEEL_OF_BIT[bit])
        self._hub.sync()

    def release(self) -> None:
        """The viewer has left or lost the keyboard: nothing of it stays down."""
        self._codes.clear()
        self._mask = 0
        self._hub.release_all(self)

    # -- inside --------------------------------------------------------------------------------------------

    def _type(self, keysym: int, stroke: Keystroke) -> None:
        """A character, with the modifiers that it has on the guest's layout."""
        held = self._hub.held_by(self)
        shift = stroke.shift
        if self._hub.leds & CAPS_LOCK_LED and _is_letter(keysym):
            shift = not shift
        before: list[tuple[int, bool]] = []
        shifts = [code for code in SHIFTS if code in held]
        if shift and not shifts:
            before.append((LEFT_SHIFT, True))
        elif not shift:
            before += [(code, False) for code in shifts]
        if stroke.altgr != (ALTGR in held):
            before.append((ALTGR, stroke.altgr))
        after = [(code, not down) for code, down in reversed(before)]
        self._send(*before, (stroke.code, True), *after)

    def _num_lock(self, stroke: Keystroke) -> list[tuple[int, bool]]:
        """What turns Num Lock to where the keysym has it, if the guest tells of its lights."""
        is_on = bool(self._hub.leds & NUM_LOCK_LED)
        if stroke.num_lock in (None, is_on) or not self._hub.lights_work:
            return []
        return [(NUM_LOCK, True), (NUM_LOCK, False)]

    def _send(self, *keys: tuple[int, bool]) -> None:
        _press_all(self._hub, keys, self)


def _press_all(hub: InputHub, keys: Iterable[tuple[int, bool]], source: object) -> None:
    for code, down in keys:
        hub.key(code, down, source)
        hub.sync()


def _position(at: int, size: int) -> int:
    """A pixel's place from 0 to 0x7fff: the first and the last pixel are at the edges."""
    return max(0, min(at, size - 1)) * 0x7FFF // max(size - 1, 1)


def _is_letter(keysym: int) -> bool:
    character = keysym - UNICODE if keysym >= UNICODE else keysym
    return character < 0x100 and character not in (0xD7, 0xF7) and chr(character).isalpha()
