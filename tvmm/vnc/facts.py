"""What a viewer is told beside pixels: name, lock keys, cursor, kind of pointer, and which extensions are spoken.

Each fact has a value and what the viewer was told last; it is due when the two differ and the viewer understands it.
So a slow viewer learns the newest value once, and nothing is queued.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.vnc import encodings
from tvmm.vnc.pixel_format import DEFAULT, Rect
from tvmm.vnc.server_messages import (
    Cursor,
    alpha_cursor_rect,
    cursor_rect,
    desktop_name_rect,
    led_state_rect,
    pseudo_rect,
    vmware_led_state_rect,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Facts"]

ACKNOWLEDGED = (encodings.EXTENDED_KEY, encodings.EXTENDED_MOUSE_BUTTONS)
"""Extensions that a viewer uses once it has seen an empty rectangle of theirs."""


class Facts:
    """One viewer's. `name` it knows from ServerInit."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.leds = 0
        """Bits: 0 scroll, 1 num, 2 caps."""
        self.cursor: Cursor | None = None
        """None: the guest draws its own, and the viewer goes on showing what it shows."""
        self.absolute = True
        """The guest's pointer takes positions; else ways."""
        self.pixel_format = DEFAULT
        self._told: dict[int, object] = {encodings.DESKTOP_NAME: name, encodings.POINTER_MOTION: True}

    def acknowledged(self, number: int) -> bool:
        """Whether the viewer has been told that this extension is spoken."""
        return number in self._told

    @property
    def told_absolute(self) -> bool:
        """What the viewer takes the pointer for."""
        return self._told[encodings.POINTER_MOTION] is True

    def due(self, extensions: frozenset[int], width: int, height: int) -> list[bytes]:
        """The rectangles that tell what is new; they count as told."""
        rects = []
        for number, value in list(self._new(extensions)):
            self._told[number] = value
            rects.append(self._rect(number, width, height))
        return rects

    def any_due(self, extensions: frozenset[int]) -> bool:
        """Whether there are any."""
        return any(True for _ in self._new(extensions))

    def _new(self, extensions: frozenset[int]) -> Iterator[tuple[int, object]]:
        for number, value in self._values(extensions):
            if number in extensions and self._told.get(number) != value:
                yield number, value

    def _values(self, extensions: frozenset[int]) -> Iterator[tuple[int, object]]:
        for number in ACKNOWLEDGED:
            yield number, True
        yield encodings.LED_STATE, self.leds
        if encodings.LED_STATE not in extensions:
            yield encodings.VMWARE_LED_STATE, self.leds
        yield encodings.DESKTOP_NAME, self.name
        yield encodings.POINTER_MOTION, self.absolute
        if self.cursor is not None:
            if encodings.CURSOR_WITH_ALPHA in extensions:
                yield encodings.CURSOR_WITH_ALPHA, self.cursor
            else:
                yield encodings.CURSOR, (self.cursor, self.pixel_format)

    def _rect(self, number: int, width: int, height: int) -> bytes:
        if number == encodings.LED_STATE:
            return led_state_rect(self.leds)
        if number == encodings.VMWARE_LED_STATE:
            return vmware_led_state_rect(self.leds)
        if number == encodings.DESKTOP_NAME:
            return desktop_name_rect(self.name)
        if number == encodings.POINTER_MOTION:
            return pseudo_rect(number, Rect(int(self.absolute), 0, width, height))
        if self.cursor is not None and number == encodings.CURSOR:
            return cursor_rect(self.cursor, self.pixel_format.as_true_colour())
        if self.cursor is not None and number == encodings.CURSOR_WITH_ALPHA:
            return alpha_cursor_rect(self.cursor)
        return pseudo_rect(number)
