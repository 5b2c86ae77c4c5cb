"""The twin of tvmm/kvm/limit.c in plain Python: buckets, lines and turns, in exact numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = ["BILLION", "GRACE_NS", "TURN_NS", "PlainLimit"]

BILLION = 10**9
TURN_NS, GRACE_NS, WAIT_NS = 10_000_000, 2_000_000, 1_000_000_000


class Bucket:
    """`level` in billionths of tokens."""

    def __init__(self, rate: int, size: int, now: int) -> None:
        self.rate, self.size, self.level, self.at = rate, size, size, now

    def fill(self, now: int) -> None:
        """Up to its size, with what came in since the last time."""
        if now > self.at:
            self.level = min(self.size, self.level + self.rate * (now - self.at))
            self.at = now

    def wait(self, now: int) -> int:
        """Until the debt is paid."""
        if not self.rate:
            return 0
        self.fill(now)
        return min(WAIT_NS, -(self.level // self.rate)) if self.level < 0 else 0


class Lane:
    """Buckets (bytes and operations, each with that of a burst), and who stands in line for them."""

    def __init__(self) -> None:
        self.buckets = [Bucket(0, 0, 0) for _ in range(4)]
        self.begin_anew()

    def begin_anew(self) -> None:
        """Nobody stands in line."""
        self.line: list[object] = []
        self.owner: object = None
        self.ends = self.yielded = 0

    def turn(self, member: object, now: int) -> int:
        """How long to let others go first."""
        if self.owner is not None and now >= self.ends:
            self.owner = None
        if self.owner is member:
            return 0
        if self.owner is not None and self.owner in self.line:
            return min(GRACE_NS, self.ends - now)
        while self.line and self.line[0] is not member:
            self.yielded = self.yielded or now
            waited = max(0, now - self.yielded)
            if waited < GRACE_NS:
                return GRACE_NS - waited
            self.line.pop(0)
            self.yielded = 0
        return 0


class PlainLimit:
    """As `Limiter`; lanes are both directions, in, out."""

    def __init__(self) -> None:
        self.lanes = [Lane() for _ in range(3)]
        self.size = 0
        self.waits = [0, 0, 0]

    def set(self, rates: Sequence[tuple[int, int, int]], size: int, now: int) -> None:
        """Buckets whose numbers change are full."""
        self.size = size
        for number, lane in enumerate(self.lanes):
            lane.begin_anew()
            for unit, (rate, burst, seconds) in enumerate(rates[2 * number : 2 * number + 2]):
                room = burst * seconds * BILLION if burst else rate * (BILLION // 10)
                is_long = rate and burst and seconds > 1
                wanted = [(rate, room if rate else 0), (burst, burst * (BILLION // 10)) if is_long else (0, 0)]
                for place, numbers in enumerate(wanted, 2 * unit):
                    bucket = lane.buckets[place]
                    if (bucket.rate, bucket.size) != numbers:
                        lane.buckets[place] = Bucket(*numbers, now)

    def _ask(self, member: object, number: int, now: int) -> int:
        lane = self.lanes[number]
        if not any(bucket.rate for bucket in lane.buckets):
            return 0
        wait = max([bucket.wait(now) for bucket in lane.buckets]) or lane.turn(member, now)
        if wait and member not in lane.line:
            lane.line.append(member)
            self.waits[number] += 1
        if not wait:
            if member in lane.line:
                lane.line.remove(member)
            lane.yielded = 0
            if lane.owner is not member:
                lane.owner, lane.ends = member, now + TURN_NS
        return wait

    def ask(self, member: object, direction: int, now: int) -> int:
        """Both lanes of a direction."""
        return self._ask(member, 0, now) or self._ask(member, direction, now)

    def charge(self, direction: int, operations: int, size: int, now: int) -> None:
        """Into debt if need be."""
        costs = [size * BILLION, operations * BILLION]
        if self.size and size > self.size:
            costs[1] = size * BILLION // self.size
        for number in (0, direction):
            for place, bucket in enumerate(self.lanes[number].buckets):
                if bucket.rate:
                    bucket.fill(now)
                    bucket.level -= costs[place // 2]

    def forget(self, member: object) -> None:
        """Out of all lines."""
        for lane in self.lanes:
            if member in lane.line:
                lane.line.remove(member)
            if lane.owner is member:
                lane.owner = None

    def levels(self, now: int) -> tuple[int, ...]:
        """Of all buckets."""
        buckets = [bucket for lane in self.lanes for bucket in lane.buckets]
        for bucket in buckets:
            bucket.fill(now)
        return tuple(bucket.level for bucket in buckets)
