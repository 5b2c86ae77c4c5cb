"""Keys and pointers for a guest that is somewhere else: what `InputHub` is for a machine's own, over RFB.

Like there, a key that two viewers hold goes up with the second, and what a viewer holds when it leaves goes up then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.vnc.pointer import BUTTONS, POSITION_MAX, WHEEL
from tvmm.vnc.session import MOTION_ZERO

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from tvmm.vnc.client import Client

__all__ = ["RemoteInput"]

TURN_MAX = 16
"""Steps of the wheel at once: each is two messages."""
_BIT_OF_BUTTON = {code: bit for bit, code in BUTTONS.items()}
_BIT_OF_TURN = {turn: bit for bit, turn in WHEEL.items()}


class RemoteInput:
    """`InputLike`. `xt_of_evdev` knows scancodes; `news` is called when there is something to send."""

    def __init__(
        self, client: Client, xt_of_evdev: Callable[[int], int | None], news: Callable[[], None] = lambda: None
    ) -> None:
        self.on_leds: list[Callable[[int], None]] = []
        self._client = client
        self._xt_of_evdev = xt_of_evdev
        self._news = news
        self._holders: dict[int, set[Hashable]] = {}
        self._position = POSITION_MAX // 2, POSITION_MAX // 2
        self._motion = 0, 0
        self._moved = False
        self._mask = 0

    @property
    def leds(self) -> int:
        """See `InputLike`."""
        return self._client.leds

    @property
    def absolute(self) -> bool:
        """See `InputLike`."""
        return self._client.absolute

    def key(self, code: int, down: bool, source: Hashable) -> None:
        """See `InputLike`. A key without a scancode is ignored."""
        xt_code = self._xt_of_evdev(code)
        if xt_code is not None and self._changes(code, down, source):
            self._client.key(xt_code, down)
            self._news()

    def button(self, code: int, down: bool, source: Hashable) -> None:
        """See `InputLike`."""
        bit = _BIT_OF_BUTTON.get(code)
        if bit is None or not self._changes(code, down, source):
            return
        self._mask = self._mask | 1 << bit if down else self._mask & ~(1 << bit)
        self._point(self._mask)

    def _changes(self, code: int, down: bool, source: Hashable) -> bool:
        """Whether the guest has to hear of it; it does of a repeat."""
        holders = self._holders.get(code, set())
        holds = source in holders
        if down:
            news = holds or not holders
            self._holders.setdefault(code, holders).add(source)
            return news
        if not holds:
            return False
        holders.discard(source)
        if holders:
            return False
        del self._holders[code]
        return True

    def move_to(self, x: int, y: int) -> None:
        """See `InputLike`."""
        was = self._position
        self._position = _limited(x, 0, POSITION_MAX), _limited(y, 0, POSITION_MAX)
        if not self.absolute:
            # Its viewer has not heard yet that the guest takes to another pointer.
            canvas = self._client.canvas
            self._go(
                (self._position[0] - was[0]) * canvas.width // POSITION_MAX,
                (self._position[1] - was[1]) * canvas.height // POSITION_MAX,
            )
        self._moved = True

    def move_by(self, right: int, down: int) -> None:
        """See `InputLike`."""
        if self.absolute:
            canvas = self._client.canvas
            self._position = (
                _limited(self._position[0] + right * POSITION_MAX // canvas.width, 0, POSITION_MAX),
                _limited(self._position[1] + down * POSITION_MAX // canvas.height, 0, POSITION_MAX),
            )
        else:
            self._go(right, down)
        self._moved = True

    def _go(self, right: int, down: int) -> None:
        self._motion = (
            _limited(self._motion[0] + right, -MOTION_ZERO, MOTION_ZERO),
            _limited(self._motion[1] + down, -MOTION_ZERO, MOTION_ZERO),
        )

    def wheel(self, up: int, right: int = 0) -> None:
        """See `InputLike`."""
        for steps, turn in ((up, (1, 0)), (-up, (-1, 0)), (right, (0, 1)), (-right, (0, -1))):
            for _ in range(min(steps, TURN_MAX)):
                self._point(self._mask | 1 << _BIT_OF_TURN[turn])
                self._point(self._mask)

    def release_all(self, source: Hashable) -> None:
        """See `InputLike`."""
        for code in [code for code, holders in self._holders.items() if source in holders]:
            (self.button if code in _BIT_OF_BUTTON else self.key)(code, False, source)

    def sync(self) -> None:
        """See `InputLike`."""
        if self._moved:
            self._point(self._mask)

    def _point(self, mask: int) -> None:
        if self.absolute:
            canvas = self._client.canvas
            # Rounded up: the other end rounds down, and the pointer is not to creep.
            x = -(-self._position[0] * max(canvas.width - 1, 1) // POSITION_MAX)
            y = -(-self._position[1] * max(canvas.height - 1, 1) // POSITION_MAX)
        else:
            x, y = MOTION_ZERO + self._motion[0], MOTION_ZERO + self._motion[1]
        self._motion, self._moved = (0, 0), False
        self._client.pointer(x, y, mask)
        self._news()


def _limited(value: int, lowest: int, highest: int) -> int:
    return min(max(value, lowest), highest)
