"""How much may be on its way to a viewer: a window, measured by fences.

TCP takes megabytes before it says that the line is full, and all that lies in its buffers is late when it arrives. So
each update is followed by a fence, whose answer says when all before it had been drawn. The window is changed as TCP
Vegas does: the shortest round trip is the line's own, and what is added to it is what waits in buffers. A little is
wanted, for a window that is just right cannot be told from one that is too small. The idea is TigerVNC's.

All times are nanoseconds of any one clock.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

__all__ = ["MARKS_MAX", "WINDOW_BYTES", "WINDOW_MAX_BYTES", "WINDOW_MIN_BYTES", "Congestion"]

WINDOW_BYTES = 64 << 10
"""At the beginning, and again after a pause."""
WINDOW_MIN_BYTES = 4 << 10
WINDOW_MAX_BYTES = 4 << 20
STEP_BYTES = 8 << 10

MARKS_MAX = 64
"""Fences that are waited for. A viewer that answers none would have one kept for each update."""
GONE_NS = 10_000_000_000
"""Without an answer for so long a viewer gets one update a time again, without waiting for it."""

_MS = 1_000_000
IDLE_NS = 1_000 * _MS
SPIKE_NS = 100 * _MS
MUCH_NS = 50 * _MS
SOME_NS = 25 * _MS
LITTLE_NS = 5 * _MS


class _Mark(NamedTuple):
    position: int
    sent_ns: int
    limited: bool
    """The window was full: only then its answer tells whether more would have gone."""


class Congestion:
    """One viewer's window. `position` counts the bytes that were sent to it."""

    def __init__(self) -> None:
        self.position = 0
        self.window = WINDOW_BYTES
        self.shortest_ns: int | None = None
        """The quickest round trip since the last pause."""
        self._acknowledged = 0
        self._marks: deque[_Mark] = deque()
        self._starting = True
        """Still doubling, as TCP does at its beginning."""
        self._adjusted_ns = 0
        self._sent_ns = 0
        self._rate = 0

    @property
    def in_flight(self) -> int:
        """Bytes that were sent and have not been answered for."""
        return self.position - self._acknowledged

    @property
    def waiting(self) -> bool:
        """Whether there is a fence to wait for."""
        return bool(self._marks)

    @property
    def gives_up_ns(self) -> int | None:
        """When the oldest fence is not waited for any longer."""
        return self._marks[0].sent_ns + GONE_NS + 1 if self._marks else None

    @property
    def bytes_per_second(self) -> int:
        """What went through lately; 0 if that is not known."""
        return self._rate

    def sent(self, count: int, now_ns: int) -> None:
        """`count` bytes go out."""
        if now_ns - self._sent_ns > IDLE_NS and not self._marks:
            # What was measured before the pause says nothing about the line as it is now.
            self.window = min(self.window, WINDOW_BYTES)
            self.shortest_ns, self._starting = None, True
            self._acknowledged = self.position
        self.position += count
        self._sent_ns = now_ns

    def mark(self, now_ns: int) -> bool:
        """Whether a fence may follow what was sent; it is waited for then."""
        if len(self._marks) >= MARKS_MAX:
            return False
        self._marks.append(_Mark(self.position, now_ns, self.in_flight >= self.window))
        return True

    def answered(self, now_ns: int) -> int | None:
        """The oldest fence is answered; nanoseconds that it took. None if none is waited for."""
        if not self._marks:
            return None
        mark = self._marks.popleft()
        taken_ns = max(now_ns - mark.sent_ns, 1)
        self._rate = (mark.position - self._acknowledged) * 1_000_000_000 // taken_ns
        self._acknowledged = mark.position
        if self.shortest_ns is None or taken_ns < self.shortest_ns:
            self.shortest_ns = taken_ns
        # What was sent before the last change measures the window from before.
        if mark.sent_ns >= self._adjusted_ns:
            before = self.window
            self._adjust(taken_ns, self.shortest_ns, limited=mark.limited)
            if self.window != before:
                self._adjusted_ns = now_ns
        return taken_ns

    def full(self, now_ns: int) -> bool:
        """Whether nothing more should go out before the next answer."""
        if self.in_flight < self.window or not self._marks:
            return False
        if now_ns - self._marks[0].sent_ns > GONE_NS:
            self._marks.clear()
            self._acknowledged = self.position
            return False
        return True

    def _adjust(self, taken_ns: int, shortest_ns: int, *, limited: bool) -> None:
        added_ns = taken_ns - shortest_ns
        if (added_ns > SPIKE_NS and 2 * added_ns > shortest_ns) or (self._starting and added_ns > SOME_NS):
            self.window = self.window * shortest_ns // taken_ns
            self._starting = False
        elif added_ns > MUCH_NS:
            self.window -= STEP_BYTES // 2
        elif limited and self._starting:
            self.window *= 2
        elif limited and added_ns < SOME_NS:
            self.window += STEP_BYTES if added_ns < LITTLE_NS else STEP_BYTES // 2
        self.window = min(max(self.window, WINDOW_MIN_BYTES), WINDOW_MAX_BYTES)
