"""What a source has measured, as the status that is shown of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tvmm.migration.status import DowntimeParts, MigrationStatus, RamProgress

if TYPE_CHECKING:
    from tvmm.migration.messages import Ready, Running
    from tvmm.migration.policy import Advice, Round
    from tvmm.migration.senders import SenderLanes

__all__ = ["PauseClock", "Progress"]


_PHASES = {
    "postcopy-active": "post-copy",
    "postcopy-paused": "connection lost",
    "postcopy-recover-setup": "connecting again",
    "postcopy-recover": "recovering",
}


class PauseClock:
    """When what happened in the pause, in the source's clock."""

    def __init__(self) -> None:
        self._begun = self._stopped = self._pages = self._saved = self._ready = self._resumed = 0.0
        self._restore_ms = 0.0

    def begin(self) -> None:
        """The guest is being stopped."""
        self._begun = time.perf_counter()

    def stopped(self) -> None:
        """It has stopped."""
        self._stopped = time.perf_counter()

    def pages_sent(self) -> None:
        """The last page went out."""
        self._pages = time.perf_counter()

    def saved(self) -> None:
        """The state is a record."""
        self._saved = time.perf_counter()

    def ready(self, ready: Ready) -> None:
        """The destination has everything."""
        self._ready = time.perf_counter()
        self._restore_ms = ready.restore_ns / 1e6

    def resumed(self, running: Running) -> None:
        """It runs there."""
        self._resumed = time.perf_counter()

    def ensure_resumed(self) -> None:
        """It runs there, and its word was lost: not later than now."""
        self._resumed = self._resumed or time.perf_counter()

    def parts(self) -> DowntimeParts:
        """One after the other. Their sum is `total_ms`: what the destination says of itself is no more than the time in
        which it could have done it.
        """
        there = (self._ready - self._pages) * 1e3
        restore = min(max(self._restore_ms, 0.0), there)
        return DowntimeParts(
            stop_ms=(self._stopped - self._begun) * 1e3,
            last_pages_ms=(self._pages - self._saved) * 1e3,
            state_ms=(self._saved - self._stopped) * 1e3,
            transfer_ms=there - restore,
            restore_ms=restore,
            resume_ms=(self._resumed - self._ready) * 1e3,
        )

    @property
    def total_ms(self) -> float:
        """From the word to stop to the word that it runs."""
        return (self._resumed - self._begun) * 1e3


class Progress:
    """Of one migration out of a machine."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.state = "none"
        self.phase = "connecting"
        self.error = self.error_hint = ""
        self.guest = "source"
        self.advice = ""
        self.connections = 0
        self.pause = PauseClock()
        self._begun = time.perf_counter()
        self._ended: float | None = None
        self._setup_ms: float | None = None
        self._expected_ms: float | None = None
        self._throttle = 0
        self._rounds = 0
        self._dirty_rate = self._pages_rate = 0.0
        self._speed = 0.0
        self._sent_before_pause: int | None = None
        self._lanes: SenderLanes | None = None
        self._ram = RamProgress()

    def enter(self, state: str) -> None:
        """A word of `status.STATES`."""
        self.state = state
        if state == "device":
            self.phase = "switchover"
            if self._lanes is not None:
                self._sent_before_pause = self._lanes.bytes_moved
        self.phase = _PHASES.get(state, self.phase)
        if state in ("completed", "failed", "cancelled"):
            self._ended = time.perf_counter()
            self.phase = "done" if state == "completed" else ""
            if state == "completed":
                self.guest = "destination"

    def begin_copying(self, lanes: SenderLanes) -> None:
        """Setup is over."""
        self._setup_ms = (time.perf_counter() - self._begun) * 1e3
        self._lanes = lanes

    def pass_memory(self, size: int) -> None:
        """Setup is over, and the destination has all of the memory, as it is."""
        self._setup_ms = (time.perf_counter() - self._begun) * 1e3
        self.phase = "memory handed over"
        self._ram = RamProgress(total=size, handed_over=size)

    def begin_round(self, number: int) -> None:
        """Round 0 is the first pass."""
        self._rounds = number + 1
        self.phase = f"round {number + 1}" if number else "first pass"

    def end_round(self, done: Round, advice: Advice, speed: float) -> None:
        """What it measured."""
        self._expected_ms = advice.expected_ns / 1e6
        self._throttle = advice.throttle
        self._dirty_rate = done.dirty_after / max(done.nanoseconds, 1) * 1e9
        self._speed = speed
        self._pages_rate = done.pages / max(done.nanoseconds, 1) * 1e9

    def leave(self, throttle: int) -> None:
        """The guest goes before its memory, in place of being slowed down more than by `throttle` percent."""
        self._throttle = throttle

    def freeze(self) -> None:
        """The lanes are about to go: keep what they have counted."""
        self._ram = self._measure()
        self._lanes = None

    def _measure(self) -> RamProgress:
        lanes = self._lanes
        if lanes is None:
            return self._ram
        counted = [lane.counters for lane in lanes.lanes]
        total = [lanes.dropped, *counted]
        sent = sum(each.bytes for each in total)
        elapsed = time.perf_counter() - self._begun - (self._setup_ms or 0) / 1e3
        return RamProgress(
            total=lanes.pages.total * lanes.page_size,
            transferred=sent,
            remaining=lanes.bitmap.count() * lanes.page_size,
            normal=sum(each.normal for each in total),
            zero=sum(each.zero for each in total),
            unchanged=sum(each.unchanged for each in total),
            spared=lanes.spared,
            rounds=self._rounds,
            dirty_pages_rate=self._dirty_rate,
            pages_rate=self._pages_rate,
            throughput=self._speed or (sent / elapsed if elapsed > 0 else 0.0),
            page_size=lanes.page_size,
            per_connection=tuple(each.bytes for each in counted),
            downtime_bytes=0 if self._sent_before_pause is None else sent - self._sent_before_pause,
        )

    def status(self) -> MigrationStatus:
        """As it is now."""
        ram = self._measure()
        done = self.state == "completed"
        end = self._ended if self._ended is not None else time.perf_counter()
        return MigrationStatus(
            state=self.state,
            peer=self.peer,
            phase=self.phase,
            error=self.error,
            error_hint=self.error_hint,
            guest=self.guest,
            total_ms=(end - self._begun) * 1e3,
            setup_ms=self._setup_ms,
            downtime_ms=self.pause.total_ms if done else None,
            expected_downtime_ms=self._expected_ms,
            seconds_left=self._seconds_left(ram),
            ram=ram,
            downtime_parts=self.pause.parts() if done else None,
            throttle_percent=self._throttle,
            connections=self.connections,
            advice=self.advice if done else "",
        )

    def _seconds_left(self, ram: RamProgress) -> float | None:
        """What is left now, and what is dirtied meanwhile, and so on: a geometric series, if it has a sum."""
        if self.state != "active" or not ram.throughput:
            return None
        share = self._dirty_rate * ram.page_size / ram.throughput
        if share >= 0.95:
            return None
        return ram.remaining / ram.throughput / (1 - share)
