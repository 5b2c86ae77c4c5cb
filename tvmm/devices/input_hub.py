"""Where keys and pointers of viewers, clients and scripts come together, and go on to the devices that the guest uses.

Whoever types is a source, any object. The same key can be held by two of them: the guest sees it go down with
the first and up with the last, and what a source holds when it leaves goes up then. Keys and buttons are evdev
codes (linux/input-event-codes.h), positions 0 to 0x7fff across and down the screen, wheels notches up and to
the right.

Devices are sinks, in the order in which they are wanted: the first that is ready gets what is pressed; what was
pressed on one goes up on the same. There is one pointer at a time, so that a guest does not see two that fight:
with an absolute one, motion is turned into positions, with a relative one positions into motion.

Every method takes the machine's bus lock for a moment. Listeners of lights are called with the lock held, from
any thread: they pass it on and return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tvmm.devices.keys import BUTTONS, KEY_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable
    from contextlib import AbstractContextManager

__all__ = ["POSITION_LIMIT", "InputHub", "KeySink", "PointerSink"]

POSITION_LIMIT = 0x7FFF
MOTION_LIMIT = 0x7FFF
"""Of one motion or turn of the wheel, either way: what a viewer says may be any number."""
BUTTON_CODES = frozenset(BUTTONS.values())
DEFAULT_SCREEN = (1024, 768)


class Sink(Protocol):
    """A device on which something can be pressed. Called under the bus lock."""

    @property
    def name(self) -> str:
        """For people to read."""

    @property
    def ready(self) -> bool:
        """Whether the guest uses it."""

    def press(self, code: int, down: bool) -> None:
        """A key or button goes down or up; down once more is a repeat."""

    def held(self) -> Collection[int]:
        """What the guest has been told, or will be, is down."""

    def sync(self) -> None:
        """The group ends: what came since the last one happened at once."""


class KeySink(Sink, Protocol):
    """A keyboard."""

    @property
    def leds(self) -> int:
        """Its lights: bit 0 scroll, 1 num, 2 caps lock."""


class PointerSink(Sink, Protocol):
    """A mouse or tablet."""

    @property
    def absolute(self) -> bool:
        """Whether `move` takes a position; otherwise it takes motion, in pixels right and down."""

    def move(self, x: int, y: int) -> None:
        """See `absolute`."""

    def wheel(self, up: int, right: int) -> None:
        """Notches."""


class InputHub:
    """The input of one machine. `keyboards` and `pointers` are sinks, the one that is always there last.

    `screen` is the size of the picture in pixels, for pointers that know motion alone.
    """

    def __init__(
        self, lock: AbstractContextManager[None], keyboards: list[KeySink], pointers: list[PointerSink]
    ) -> None:
        self._lock = lock
        self._keyboards = keyboards
        self._pointers = pointers
        self._holders: dict[int, set[Hashable]] = {}
        self._sink_of: dict[int, Sink] = {}
        self._touched: list[Sink] = []
        self._position = POSITION_LIMIT // 2, POSITION_LIMIT // 2
        self._told_leds = 0
        self.lights_work = False
        """Whether the guest has ever set a light: from one that does not, nothing is known of its locks."""
        self.screen = DEFAULT_SCREEN
        self.on_leds: list[Callable[[int], None]] = []
        """Called with the lights when they change. Bus lock held, any thread."""

    # -- keys and buttons ----------------------------------------------------------------------------------

    def key(self, code: int, down: bool, source: Hashable) -> None:
        """A key goes down or up, or down once more. Numbers that are no key are ignored."""
        if 0 < code < KEY_LIMIT:
            with self._lock:
                self._press(code, down, source)

    def button(self, code: int, down: bool, source: Hashable) -> None:
        """A button of the mouse goes down or up. Other numbers are ignored."""
        if code in BUTTON_CODES:
            with self._lock:
                self._press(code, down, source)

    def release_all(self, source: Hashable) -> None:
        """The source has left, or lost the keyboard: what it alone holds goes up."""
        with self._lock:
            for code in [code for code, holders in self._holders.items() if source in holders]:
                self._press(code, False, source)
            self._sync()

    def held_by(self, source: Hashable) -> frozenset[int]:
        """What the source holds down."""
        with self._lock:
            return frozenset(code for code, holders in self._holders.items() if source in holders)

    def settle(self) -> None:
        """What the guest takes for down and nobody holds goes up: after a guest has come from elsewhere."""
        with self._lock:
            sinks: list[Sink] = [*self._keyboards, *self._pointers]
            for sink in sinks:
                for code in sorted(sink.held()):
                    if self._sink_of.get(code) is not sink:
                        sink.press(code, False)
                        self._touch(sink)
            self._sync()
            self._leds_changed()

    def _press(self, code: int, down: bool, source: Hashable) -> None:
        holders = self._holders.get(code)
        if not down:
            if holders is None or source not in holders:
                return
            holders.discard(source)
            if not holders:
                del self._holders[code]
                self._send(self._sink_of.pop(code), code, False)
        elif holders is None:
            self._holders[code] = {source}
            self._sink_of[code] = sink = self._keyboard() if code < KEY_LIMIT else self._pointer()
            self._send(sink, code, True)
        elif source not in holders:
            holders.add(source)
        elif code < KEY_LIMIT:
            self._send(self._sink_of[code], code, True)

    def _send(self, sink: Sink, code: int, down: bool) -> None:
        sink.press(code, down)
        self._touch(sink)

    # -- pointer -------------------------------------------------------------------------------------------

    @property
    def position(self) -> tuple[int, int]:
        """Where `move_to` and `move_by` have brought the pointer, each 0 to 0x7fff."""
        return self._position

    @property
    def absolute(self) -> bool:
        """Whether the guest has a pointer that goes where it is told."""
        with self._lock:
            return self._pointer().absolute

    def move_to(self, x: int, y: int) -> None:
        """The pointer goes to a position, each 0 to 0x7fff; beyond is the edge."""
        with self._lock:
            self._go(_within(x, 0, POSITION_LIMIT), _within(y, 0, POSITION_LIMIT))

    def move_by(self, right: int, down: int) -> None:
        """The pointer moves, in pixels."""
        right, down = (_within(step, -MOTION_LIMIT, MOTION_LIMIT) for step in (right, down))
        with self._lock:
            sink = self._pointer()
            if not sink.absolute:
                sink.move(right, down)
                self._touch(sink)
                return
            width, height = self.screen
            x, y = self._position
            steps = right * (POSITION_LIMIT + 1) // max(width, 1), down * (POSITION_LIMIT + 1) // max(height, 1)
            self._go(_within(x + steps[0], 0, POSITION_LIMIT), _within(y + steps[1], 0, POSITION_LIMIT))

    def wheel(self, up: int, right: int = 0) -> None:
        """The wheel turns, in notches."""
        with self._lock:
            sink = self._pointer()
            sink.wheel(_within(up, -MOTION_LIMIT, MOTION_LIMIT), _within(right, -MOTION_LIMIT, MOTION_LIMIT))
            self._touch(sink)

    def _go(self, x: int, y: int) -> None:
        sink = self._pointer()
        was, self._position = self._position, (x, y)
        if sink.absolute:
            sink.move(x, y)
        else:
            before, after = self._pixel(*was), self._pixel(x, y)
            sink.move(after[0] - before[0], after[1] - before[1])
        self._touch(sink)

    def _pixel(self, x: int, y: int) -> tuple[int, int]:
        width, height = self.screen
        return x * width // (POSITION_LIMIT + 1), y * height // (POSITION_LIMIT + 1)

    # -- groups, lights ------------------------------------------------------------------------------------

    def sync(self) -> None:
        """A group ends: what came since the last one happened at once. The guest sees it now."""
        with self._lock:
            self._sync()

    @property
    def leds(self) -> int:
        """The lights of the keyboard that the guest uses: bit 0 scroll, 1 num, 2 caps lock."""
        return self._told_leds

    @property
    def devices(self) -> tuple[tuple[KeySink, ...], tuple[PointerSink, ...]]:
        """Keyboards and pointers, the wanted ones first."""
        return tuple(self._keyboards), tuple(self._pointers)

    def current_pointer(self) -> PointerSink:
        """The pointer that gets what comes now."""
        with self._lock:
            return self._pointer()

    def leds_changed(self) -> None:
        """A device's lights may be others. Called by devices, under the bus lock."""
        self._leds_changed()

    def _leds_changed(self) -> None:
        leds = self._keyboard().leds
        if leds != self._told_leds:
            self._told_leds, self.lights_work = leds, True
            for listener in list(self.on_leds):
                listener(leds)

    # -- inside --------------------------------------------------------------------------------------------

    def _keyboard(self) -> KeySink:
        return next((sink for sink in self._keyboards if sink.ready), self._keyboards[-1])

    def _pointer(self) -> PointerSink:
        return next((sink for sink in self._pointers if sink.ready), self._pointers[-1])

    def _touch(self, sink: Sink) -> None:
        if sink not in self._touched:
            self._touched.append(sink)

    def _sync(self) -> None:
        touched, self._touched = self._touched, []
        for sink in touched:
            sink.sync()


def _within(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))
