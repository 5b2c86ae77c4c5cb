"""When disks are close enough to their copies for the guest to be stopped: a pure function of the rounds so far.

What was written during one round is what the next one has to send, as with RAM. A disk is ready when what is marked,
and the sync that makes it stable at the destination, would take no more than a part of the longest pause allowed: the
rest is RAM's. Rounds go on beside those of RAM until then. If one did not bring it closer (they may take minutes), the
guest's writes are limited to half of what the network was measured to take, and to half of that each time that another
one did not help. What a limit cannot bring about, `--timeout` ends.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DiskAdvice", "DiskPolicy", "DiskRound"]

SHARE = 0.5
"""Of the longest pause allowed, that disks may take."""
SHRINKS = 0.85
"""Less than this share of the best round's bytes left, and another round pays."""
MEASURING_BYTES = 1 << 20
"""A round of fewer measures latency and not speed."""
ASSUMED_SPEED = 0.125
"""Bytes a nanosecond before any round has measured it: that of gigabit Ethernet."""
SLOWEST = 256 << 10
"""Bytes a second that a guest may always write: slower, it would take its disk for broken."""


class DiskRound(NamedTuple):
    """One round: bytes on the wire, how long it took until all of it was stable at the destination, the part of that
    for its last sync, and what was marked afterwards.
    """

    bytes: int
    nanoseconds: int
    sync_ns: int
    dirty_after: int


class DiskAdvice(NamedTuple):
    """`ready`: the guest may be stopped. `expected_ns`: what disks would add to its pause then. `slow`: bytes a second
    that it may write meanwhile; 0: as it likes.
    """

    ready: bool
    expected_ns: int
    slow: int = 0


class DiskPolicy:
    """Of one migration."""

    def __init__(self, max_downtime_ns: int) -> None:
        self.max_downtime_ns = max_downtime_ns
        self.slow = 0
        self._best = -1
        self._speed = ASSUMED_SPEED
        self._measured = False
        self._sync_ns = 0.0

    @property
    def bytes_per_second(self) -> float:
        """Measured; 0 while there was nothing to measure."""
        return self._speed * 1e9 if self._measured else 0.0

    def expected_ns(self, dirty: int) -> int:
        """What disks would add to the pause with so many bytes marked."""
        return int(dirty / self._speed + self._sync_ns)

    def is_ready(self, dirty: int) -> bool:
        """Whether that is little enough."""
        return self.expected_ns(dirty) <= self.max_downtime_ns * SHARE

    def after(self, done: DiskRound) -> DiskAdvice:
        """What to do after a round."""
        self._measure(done)
        ready = self.is_ready(done.dirty_after)
        if self._best < 0 or done.dirty_after < SHRINKS * self._best:
            self._best = done.dirty_after
        elif not ready:
            self._best = done.dirty_after
            self.slow = max(SLOWEST, int((self.slow or self._speed * 1e9) / 2))
        return DiskAdvice(ready, self.expected_ns(done.dirty_after), self.slow)

    def _measure(self, done: DiskRound) -> None:
        # The first sync has all that the host had not written back of the first pass.
        if self._best >= 0:
            self._sync_ns = (self._sync_ns + done.sync_ns) / 2 if self._sync_ns else float(done.sync_ns)
        if done.bytes >= MEASURING_BYTES and done.nanoseconds > 0:
            speed = done.bytes / done.nanoseconds
            self._speed = (self._speed + speed) / 2 if self._measured else speed
            self._measured = True
