"""What a key is called: evdev codes, which are the currency here, and what viewers, clients and wires use instead.

==================  ==============================================================================================
evdev code          linux/input-event-codes.h: a key by its place on the keyboard, whatever is printed on it
XT number           RFB's QEMU Extended Key Event: scancode of set 1, with bit 7 for the prefix 0xe0
QKeyCode            QEMU's names, in ``send-key`` and ``input-send-event``
keysym              RFB's KeyEvent: what the viewer's layout says the key means; a layout says where the guest has it
set 2               what the wire of a PS/2 keyboard carries
==================  ==============================================================================================

The tables are in `key_tables` and are read when they are first asked for.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from tvmm.devices.ps2_keyboard import BREAK_PREFIX, SET2_TO_SET1

__all__ = [
    "BUTTONS",
    "KEY_LIMIT",
    "Keystroke",
    "evdev_of_qcode",
    "evdev_of_xt",
    "keystroke",
    "layout_names",
    "qcode_of_evdev",
    "qcodes",
    "set2_codes",
    "xt_of_evdev",
]

KEY_LIMIT = 0x100
"""Codes of keyboards are below it; those of buttons from there on."""

BUTTONS = {"left": 0x110, "right": 0x111, "middle": 0x112, "side": 0x113, "extra": 0x114}
"""Buttons of a mouse by QEMU's names (BTN_LEFT and so on)."""

AMERICAN = "en-us"
SYSRQ, PAUSE = 99, 119
ALT_SYSRQ_XT = 0x54
LATIN1_LIMIT = 0x100
UNICODE = 0x0100_0000
"""Keysyms from here on are Unicode characters; those of Latin-1 have keysyms of their own."""

_DEAD = {0x60: 0xFE50, 0xB4: 0xFE51, 0x5E: 0xFE52, 0x7E: 0xFE53, 0xA8: 0xFE57, 0xB0: 0xFE58}
"""Keysyms of accents as characters, and those of the dead keys with which layouts type them."""


class Keystroke(NamedTuple):
    """How a keysym is typed: the key, and what has to be held besides.

    `num_lock` is None where that light does not matter.
    """

    code: int
    shift: bool = False
    altgr: bool = False
    num_lock: bool | None = None


_STROKES = {
    "n": (False, False, None),
    "s": (True, False, None),
    "g": (False, True, None),
    "b": (True, True, None),
    "k": (False, False, True),
    "o": (False, False, False),
}


@cache
def _numbers() -> bytes:
    from tvmm.devices.key_tables import XT

    return bytes.fromhex(XT)


@cache
def _by_number() -> dict[int, int]:
    return {ALT_SYSRQ_XT: SYSRQ} | {number: code for code, number in enumerate(_numbers()) if number}


@cache
def qcodes() -> dict[str, int]:
    """evdev codes by QKeyCode, for hints and completion too. Not to be changed."""
    from tvmm.devices.key_tables import QCODES

    words = QCODES.split()
    return {name: int(code, 16) for name, code in zip(words[::2], words[1::2], strict=True)}


@cache
def _layout(name: str) -> dict[int, Keystroke]:
    from tvmm.devices.key_tables import COMMON, LAYOUTS

    found = {}
    for word in f"{COMMON} {LAYOUTS[name]}".split():
        keysym, _, key = word.partition(":")
        found[int(keysym, 16)] = Keystroke(int(key[:-1], 16), *_STROKES[key[-1]])
    return found


@cache
def layout_names() -> tuple[str, ...]:
    """The layouts that `keystroke` knows, by QEMU's names."""
    from tvmm.devices.key_tables import LAYOUTS

    return tuple(LAYOUTS)


def xt_of_evdev(code: int) -> int | None:
    """The XT number of a key; None if it has none."""
    return (_numbers()[code] or None) if 0 <= code < KEY_LIMIT else None


def evdev_of_xt(number: int) -> int | None:
    """The key with this XT number, which a viewer sent: any number."""
    if number & ~0x7F == 0xE000:  # some clients spell the prefix out
        number = number & 0x7F | 0x80
    return _by_number().get(number)


def evdev_of_qcode(name: str) -> int | None:
    """The key that QEMU calls `name`."""
    return qcodes().get(name)


@cache
def _by_code() -> dict[int, str]:
    # Two names of one key: the first is as good as the other.
    return {code: name for name, code in reversed(qcodes().items())}


def qcode_of_evdev(code: int) -> str | None:
    """What QEMU calls a key."""
    return _by_code().get(code)


def keystroke(keysym: int, layout: str = AMERICAN) -> Keystroke | None:
    """Where a guest with `layout`, one of `layout_names`, has `keysym`, which a viewer sent: any number.

    A character that is a dead key there is typed with that; the guest waits for a space then. What the layout has
    nowhere is where an American keyboard has it: a guest with Cyrillic letters switches to Latin ones by itself. None
    if that has it neither. Raises `KeyError` for another layout.
    """
    if UNICODE <= keysym < UNICODE + LATIN1_LIMIT:
        keysym -= UNICODE
    keys = _layout(layout)
    return keys.get(keysym) or keys.get(_DEAD.get(keysym, 0)) or _layout(AMERICAN).get(keysym)


# -- set 2 ---------------------------------------------------------------------------------------------------


@cache
def _set1_to_set2() -> dict[int, int]:
    return {set1: set2 for set2, set1 in enumerate(SET2_TO_SET1) if set1 < 0x80} | {0x54: 0x84, 0x41: 0x83}


def set2_codes(code: int, down: bool, *, alt: bool = False, control: bool = False) -> bytes:
    """What a PS/2 keyboard sends when a key goes down or up; nothing for a key that such keyboards have not.

    `alt` and `control`: one of these is down, which matters to Print Screen and Pause. Pause sends all of it when it
    goes down, and nothing when it goes up.
    """
    if code == SYSRQ:
        if alt:
            return b"\x84" if down else b"\xf0\x84"
        return b"\xe0\x12\xe0\x7c" if down else b"\xe0\xf0\x7c\xe0\xf0\x12"
    if code == PAUSE:
        if not down:
            return b""
        return b"\xe0\x7e\xe0\xf0\x7e" if control else b"\xe1\x14\x77\xe1\xf0\x14\xf0\x77"
    number = xt_of_evdev(code)
    if number is None:
        return b""
    set2 = _set1_to_set2().get(number & 0x7F)
    if set2 is None:
        return b""
    prefix = b"\xe0" if number & 0x80 else b""
    return prefix + bytes([set2]) if down else prefix + bytes([BREAK_PREFIX, set2])
