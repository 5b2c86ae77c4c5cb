"""Which JPEG quality an update gets: less than wanted on a slow line; what was lost is sent again in a quiet moment.

Pure policy. It is told how long updates took beyond the line's own delay, and says a level from 0 to 9.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["REFINE_NS", "REFINE_TILES", "Quality", "QualityPolicy"]

_MS = 1_000_000
SLOW_NS = 150 * _MS
"""An update that takes longer makes the next one worse."""
FAST_NS = 50 * _MS
"""One that takes less is a step towards making them better."""
FAST_UPDATES = 4
"""So many in a row make it one level better: getting worse is quick and getting better slow, or it would swing."""
REFINE_NS = 300 * _MS
"""A part of the screen that has been still for so long is sent again."""
REFINE_TILES = 160
"""At once: a quarter of a million pixels or less, so that whatever happens next waits no longer than that takes."""


class QualityPolicy(NamedTuple):
    """`adaptive`: get worse on slow lines, down to `lowest`. `lossless`: in quiet moments send again without loss; else
    only what was sent worse than wanted."""

    adaptive: bool = True
    lossless: bool = True
    lowest: int = 1


class Quality:
    """One viewer's level. `wanted` is what it asks for, None: nothing may be lost, and nothing ever is."""

    def __init__(self, policy: QualityPolicy | None = None) -> None:
        self.policy = policy or QualityPolicy()
        self.wanted: int | None = None
        self._level = 9
        self._fast = 0
        self._delay_ns: int | None = None

    @property
    def level(self) -> int | None:
        """For the next update."""
        if self.wanted is None:
            return None
        return min(self.wanted, self._level)

    @property
    def refined(self) -> int | None:
        """For a still part of the screen."""
        return None if self.policy.lossless else self.wanted

    def want(self, level: int | None) -> None:
        """The viewer asks for this one. What was learnt about the line stays."""
        self.wanted = level

    def observe(self, taken_ns: int) -> None:
        """An update was drawn `taken_ns` after it was sent; the shortest time there has been is the line's delay."""
        if self._delay_ns is None or taken_ns < self._delay_ns:
            self._delay_ns = taken_ns
        if not self.policy.adaptive or self.wanted is None:
            return
        extra_ns = taken_ns - self._delay_ns
        lowest = min(self.policy.lowest, self.wanted)
        if extra_ns > SLOW_NS:
            step = 2 if extra_ns > 3 * SLOW_NS else 1
            self._level = max(lowest, min(self._level, self.wanted) - step)
            self._fast = 0
        elif extra_ns < FAST_NS and self._level < self.wanted:
            self._fast += 1
            if self._fast >= FAST_UPDATES:
                self._level, self._fast = self._level + 1, 0
        else:
            self._fast = 0
