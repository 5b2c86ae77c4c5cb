"""From a viewer's pointer to the guest's (Linux evdev codes): what is new in each of its messages.

A step of the wheel is a press and release of a button of its own: what counts is the press.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.vnc.events import Pointer

if TYPE_CHECKING:
    from tvmm.vnc.events import Motion

__all__ = ["BUTTONS", "POSITION_MAX", "PointerTracker", "Steps"]

POSITION_MAX = 0x7FFF
"""Right and bottom edge of the guest's tablet."""
BUTTONS = {0: 0x110, 1: 0x112, 2: 0x111, 7: 0x113, 8: 0x114}
"""Bits of the mask and the codes of left, middle, right, side and extra."""
WHEEL = {3: (1, 0), 4: (-1, 0), 5: (0, -1), 6: (0, 1)}
"""Bits of the mask and the wheel's steps: up, and to the right."""


class Steps(NamedTuple):
    """What the guest gets, in this order."""

    position: tuple[int, int] | None = None
    """0 to `POSITION_MAX` each."""
    motion: tuple[int, int] | None = None
    """Pixels."""
    wheel: tuple[int, int] = (0, 0)
    """Steps up, and to the right."""
    buttons: tuple[tuple[int, bool], ...] = ()
    """Codes, and whether they go down."""


class PointerTracker:
    """One viewer's."""

    def __init__(self) -> None:
        self._mask = 0
        self._at: tuple[int, int] | None = None

    def pointer(self, event: Pointer | Motion, width: int = 1, height: int = 1) -> Steps:
        """What has changed since the last event, on a screen of that size."""
        position = motion = None
        if isinstance(event, Pointer):
            # The last pixel is the tablet's edge, so that corners can be reached.
            here = event.x * POSITION_MAX // max(width - 1, 1), event.y * POSITION_MAX // max(height - 1, 1)
            here = min(here[0], POSITION_MAX), min(here[1], POSITION_MAX)
            if here != self._at:
                position = self._at = here
        elif event.dx or event.dy:
            motion = event.dx, event.dy
        pressed = event.buttons & ~self._mask
        changed = event.buttons ^ self._mask
        self._mask = event.buttons
        up = sum(step[0] for bit, step in WHEEL.items() if pressed >> bit & 1)
        right = sum(step[1] for bit, step in WHEEL.items() if pressed >> bit & 1)
        buttons = tuple((code, bool(pressed >> bit & 1)) for bit, code in BUTTONS.items() if changed >> bit & 1)
        return Steps(position, motion, (up, right), buttons)

    def release_all(self) -> Steps:
        """The viewer is gone: what it held comes up."""
        mask, self._mask = self._mask, 0
        return Steps(buttons=tuple((code, False) for bit, code in BUTTONS.items() if mask >> bit & 1))
