"""A server that is away: when to try again, when its requests fail, and the few lines that the user reads of it.

No IO: times come as seconds of any clock. One line when it is lost, one when it is back, one if its requests begin to
fail in between. A server that takes connections and drops them again at once is one outage and not many: it is over
when connections have held for `STEADY_S`, and until then the time that requests may wait goes on. (A request that
kills its server is replayed to the next one; that must have an end.)
"""

from __future__ import annotations

__all__ = ["DELAYS_S", "STEADY_S", "Outage"]

DELAYS_S = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
"""Before each attempt; the last holds from then on. A server that is started again is found within a second."""
STEADY_S = 5.0


class Outage:
    """One disk's, over all of its connections, which have numbers. `what` begins each line."""

    def __init__(self, what: str, patience_s: float) -> None:
        self._what = what
        self._patience_s = patience_s
        self._down: set[int] = set()
        self._attempts: dict[int, int] = {}
        self._since = self._back_at = 0.0
        self._trouble = False
        self._told = False
        self._failing = False

    @property
    def deadline(self) -> float:
        """When requests are not to wait any longer, while something is down."""
        return self._since + self._patience_s

    @property
    def is_down(self) -> bool:
        """Whether a connection is."""
        return bool(self._down)

    def lost(self, number: int, reason: str, now: float) -> str:
        """A connection is gone. Returns a line to show, or ''."""
        fresh = not self._down and (not self._trouble or now - self._back_at >= STEADY_S)
        self._down.add(number)
        if not fresh:
            return ""
        self._trouble, self._failing, self._since = True, False, now
        self._attempts.clear()
        self._told = True
        waits = f"requests wait for up to {self._patience_s:g} s" if self._patience_s else "requests fail"
        return f"{self._what}: the connection is lost ({reason}); {waits} while it is tried again"

    def next_delay(self, number: int) -> float:
        """Seconds to wait before the next attempt with a connection."""
        attempt = self._attempts.get(number, 0)
        self._attempts[number] = attempt + 1
        return DELAYS_S[min(attempt, len(DELAYS_S) - 1)]

    def overdue(self, reason: str, now: float) -> str:
        """Requests fail from now on: the deadline is over. Returns a line to show, or ''."""
        if self._failing or not self._patience_s:
            return ""
        self._failing = self._told = True
        return (
            f"{self._what}: no connection has held for {now - self._since:.3g} s"
            f"{f' ({reason})' if reason else ''}; requests fail from now on, and it is tried again"
        )

    def back(self, number: int, now: float) -> str:
        """A connection is there again. Returns a line to show, or ''."""
        self._down.discard(number)
        if self._down:
            return ""
        self._back_at = now
        if not self._told:
            return ""
        self._told = False
        return f"{self._what}: connected again after {now - self._since:.3g} s"
