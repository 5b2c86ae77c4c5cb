"""When to stop the guest: a pure function of what the rounds so far have measured.

A round sends what was dirty when it began; while it flows, the guest dirties other pages. As long as the next round
has clearly fewer pages than the last one, another round makes the pause shorter, and what it costs is bounded by what
is dirty. So rounds go on until the pause that is left is not worth it, or rounds stop helping. `max_downtime` is a
limit and no target: above it the guest is never stopped. If rounds do not get below it, the vCPUs that write are
slowed down step by step; if that does not help either, the migration ends and the guest stays where it is.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tvmm.migration.status import MigrationParameters

__all__ = ["Advice", "Decision", "Policy", "Round", "longest_pause"]

WORTH_NS = 500_000
"""A pause that is shorter than this by sending pages first is what nobody feels."""
SHRINKS = 0.85
"""Fewer pages than this share of the last round's, and another round pays."""
STALE_ROUNDS = 2
"""Rounds in a row that did not shrink, before the guest is stopped or slowed: one may be chance."""
MAX_ROUNDS = 200
"""Below the limit, no more rounds than this for a shorter pause: 200 rounds of few pages cost well under a second."""
ASSUMED_SPEED = 0.125
"""Bytes a nanosecond before any round has measured it: that of gigabit Ethernet."""
MEASURING_BYTES = 1 << 20
"""A round of fewer measures latency and not speed."""
BRAKE_WORTH_NS = 1_000_000
BRAKES = (50, 75)
"""Before a guest is stopped whose rounds do not shrink any more, it is slowed for a few of them, by these percentages:
some milliseconds at half speed are shorter than each millisecond of a pause. Not for pauses below `BRAKE_WORTH_NS`."""
FIXED_NS = 3_000_000
"""What the pause has beside its pages, before any was measured: stopping, state, starting."""
THROTTLE_FIRST, THROTTLE_STEP = 20, 15
"""Percent of the time that writing vCPUs are held, at first and more with each step, as QEMU has it."""
OVERRUN = 1.2
"""Times the longest pause allowed, after which the guest is taken back."""
LEAST_PAUSE_SECONDS = 0.05
"""A limit below this still gives the last step that long, or no migration would ever succeed."""
VERIFY_BYTES_PER_SECOND = 100e6
"""Slower than any host hashes RAM. Both sides do it in the pause, one after the other, for whoever asks for it."""


class Round(NamedTuple):
    """One round: `pages` and `bytes` that it sent, how long it took to arrive, and the pages dirty after it."""

    pages: int
    bytes: int
    nanoseconds: int
    dirty_after: int


class Decision(Enum):
    """What comes next."""

    AGAIN = "again"
    SWITCH = "switch"
    THROTTLE = "throttle"


class Advice(NamedTuple):
    """`expected_ns` is the pause to be expected now, `throttle` the percentage to hold vCPUs for from now on."""

    decision: Decision
    expected_ns: int
    throttle: int = 0


class Policy:
    """Of one migration. `page_size` bytes go over the wire for a dirty page."""

    def __init__(
        self, max_downtime_ns: int, *, max_throttle: int = 99, page_size: int = 4096, speed: float = 0.0
    ) -> None:
        """`speed`: bytes a nanosecond in the pause, where it is another one than in rounds; 0: as rounds measure it."""
        self.max_downtime_ns = max_downtime_ns
        self.throttle = 0
        self.extra_ns = 0
        """What the pause has beside pages and what it always has: blocks of disks."""
        self._max_throttle = max_throttle
        self._page_size = page_size
        self._rounds = 0
        self._stale = 0
        self._best = -1
        self._braked = 0
        self._speed = speed or ASSUMED_SPEED
        self._fixed_speed = bool(speed)
        self._measured = False
        self.hopeless = False
        """Rounds do not shrink any more, and what is left is more than the pause allowed."""

    @property
    def bytes_per_second(self) -> float:
        """Measured from transfer times alone; 0 while there was nothing to measure."""
        return self._speed * 1e9 if self._measured else 0.0

    def expected_ns(self, dirty_pages: int) -> int:
        """The pause if the guest were stopped with that many pages dirty."""
        return FIXED_NS + self.extra_ns + int(dirty_pages * self._page_size / self._speed)

    def after(self, done: Round) -> Advice:
        """What to do after a round."""
        self._rounds += 1
        self._measure(done)
        left_ns = int(done.dirty_after * self._page_size / self._speed)
        expected = self.expected_ns(done.dirty_after)
        allowed = expected <= self.max_downtime_ns
        if self._best < 0 or done.dirty_after < SHRINKS * self._best:
            self._best, self._stale = done.dirty_after, 0
        else:
            self._stale += 1
        self.hopeless = not allowed and self._stale >= STALE_ROUNDS
        if allowed and self._may_brake(left_ns):
            return self._slow_down(BRAKES[self._braked - 1], expected)
        if allowed and (left_ns <= WORTH_NS or self._stale >= STALE_ROUNDS or self._rounds >= MAX_ROUNDS):
            return Advice(Decision.SWITCH, expected, self.throttle)
        if not allowed and self._stale >= STALE_ROUNDS and self.throttle < self._max_throttle:
            self._best = done.dirty_after
            return self._slow_down(self.throttle + (THROTTLE_STEP if self.throttle else THROTTLE_FIRST), expected)
        return Advice(Decision.AGAIN, expected, self.throttle)

    def _slow_down(self, percent: int, expected: int) -> Advice:
        self._stale = 0
        self.throttle = min(self._max_throttle, max(self.throttle, percent))
        return Advice(Decision.THROTTLE, expected, self.throttle)

    def _may_brake(self, left_ns: int) -> bool:
        """Whether it is time for the next step of the brake, which is then taken."""
        if left_ns <= BRAKE_WORTH_NS or not self._stale or self._braked == len(BRAKES):
            return False
        if self._max_throttle < BRAKES[self._braked]:
            return False
        self._braked += 1
        return True

    def _measure(self, done: Round) -> None:
        if self._fixed_speed:
            return
        # Nor does a round that was mostly zero pages: they take time to look at, and no bytes.
        if done.nanoseconds <= 0 or done.bytes < max(MEASURING_BYTES, done.pages * self._page_size // 2):
            return
        speed = done.bytes / done.nanoseconds
        self._speed = (self._speed + speed) / 2 if self._measured else speed
        self._measured = True


def longest_pause(parameters: MigrationParameters, hashed_bytes: int) -> float:
    """Seconds after which a guest that was stopped is taken back. `hashed_bytes`: of RAM and disks that are copied."""
    limit = max(parameters.max_downtime_ms / 1000 * OVERRUN, LEAST_PAUSE_SECONDS)
    return limit + (2 * hashed_bytes / VERIFY_BYTES_PER_SECOND if parameters.verify else 0)
