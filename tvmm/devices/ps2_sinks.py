"""The keyboard and the mouse of the i8042 as sinks of an `InputHub`. Called under the bus lock.

A PS/2 keyboard holds few bytes, so keys wait here for a guest that is busy. If it stays away for longer than
they may, they are dropped, and when it is back it is told the difference: what has gone up meanwhile, and what
is down now. So no key stays down, however it goes on.

Nothing waits for a guest that has never talked to its keyboard: its driver is yet to come, and empties the
controller first. Linux takes one that fills again while it does so for broken. If it is a simple guest that
never will, it is told the difference with the next key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.devices.keys import BUTTONS

if TYPE_CHECKING:
    from collections.abc import Collection

    from tvmm.devices.i8042 import I8042

__all__ = ["WAITING_KEYS", "Ps2Keys", "Ps2Pointer"]

WAITING_KEYS = 64
"""Presses and releases that wait: a word typed ahead, not a page for a guest that hangs."""

_BUTTON_BITS = {BUTTONS[name]: 1 << bit for bit, name in enumerate(("left", "right", "middle", "side", "extra"))}


class Ps2Keys:
    """Keeps what is held, and gives it to the keyboard of `chip` as it has room."""

    name = "PS/2 keyboard"
    ready = True

    def __init__(self, chip: I8042) -> None:
        self._chip = chip
        self._held: set[int] = set()
        self._waiting: list[tuple[int, bool]] = []
        self._behind = False
        chip.on_room = self._room

    @property
    def leds(self) -> int:
        """As the guest has set them."""
        return self._chip.keyboard.leds

    def held(self) -> Collection[int]:
        """See `Sink`."""
        return self._held | self._chip.keyboard.down

    def press(self, code: int, down: bool) -> None:
        """See `Sink`. A repeat is typed again, as keyboards do, unless others wait."""
        repeat = down and code in self._held
        (self._held.add if down else self._held.discard)(code)
        self._go_on(empty=not self._chip.keyboard.has_output())
        if self._behind or (repeat and self._waiting):
            return
        if not self._waiting and self._chip.press(code, down):
            return
        if self._chip.keyboard.used and len(self._waiting) < WAITING_KEYS:
            self._waiting.append((code, down))
        else:
            self._fall_behind()

    def sync(self) -> None:
        """Keys go at once."""

    def _room(self) -> None:
        """The guest has taken a byte."""
        if self._waiting or self._behind:
            self._go_on(empty=False)

    def _go_on(self, *, empty: bool) -> None:
        """What waits goes on, as far as there is room. For a guest that has never talked to its keyboard: if it is
        `empty`, and not because the guest reads."""
        if not self._chip.keyboard.used and not empty:
            if self._waiting:
                self._fall_behind()
            return
        while self._waiting and self._chip.press(*self._waiting[0]):
            self._waiting.pop(0)
        if self._behind and not self._waiting:
            self._behind = not self._catch_up()

    def _fall_behind(self) -> None:
        self._waiting.clear()
        self._behind = True

    def _catch_up(self) -> bool:
        """Tell the difference; False if there is no room for all of it."""
        told = self._chip.keyboard.down
        up, down = sorted(told - self._held), sorted(self._held - told)
        return all(self._chip.press(code, False) for code in up) and all(self._chip.press(code, True) for code in down)


class Ps2Pointer:
    """Collects motion, and gives it to the mouse of `chip` at the end of a group or when a button changes."""

    name = "PS/2 mouse"
    absolute = False

    def __init__(self, chip: I8042) -> None:
        self._chip = chip
        self._right = self._down = self._up = 0

    @property
    def ready(self) -> bool:
        """Whether a driver has turned the mouse on."""
        return self._chip.mouse.listened_to

    def held(self) -> Collection[int]:
        """See `Sink`."""
        buttons = self._chip.mouse.buttons
        return {code for code, bit in _BUTTON_BITS.items() if buttons & bit}

    def press(self, code: int, down: bool) -> None:
        """See `Sink`. Motion before it comes before it."""
        bit = _BUTTON_BITS.get(code, 0)
        self.sync()
        buttons = self._chip.mouse.buttons
        self._chip.move(0, 0, 0, buttons | bit if down else buttons & ~bit)

    def move(self, x: int, y: int) -> None:
        """Pixels right and down."""
        self._right += x
        self._down += y

    def wheel(self, up: int, right: int) -> None:
        """Notches up. This mouse has no wheel that turns to the side."""
        self._up += up

    def sync(self) -> None:
        """See `Sink`."""
        if self._right or self._down or self._up:
            self._chip.move(self._right, -self._down, -self._up, self._chip.mouse.buttons)
            self._right = self._down = self._up = 0
