"""The limits of one device, shared by the servers of its queues. Tokens and lines are C's (limit.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BUCKETS", "IN", "OUT", "RATES", "TOTAL", "Limiter", "Member"]

TOTAL, IN, OUT = int(lib.TVMM_LIMIT_TOTAL), int(lib.TVMM_LIMIT_IN), int(lib.TVMM_LIMIT_OUT)
"""Lanes; without the first, directions: into the guest (read, received), and out of it."""

RATES, BUCKETS = int(lib.TVMM_LIMIT_RATES), int(lib.TVMM_LIMIT_BUCKETS)


class Member:
    """A place in the lines of a `Limiter`, for who asks by hand."""

    def __init__(self) -> None:
        self.raw = ffi.new("struct tvmm_limit_member *")


class Limiter:
    """For any thread. It must outlive the servers that it was given to. Times are of CLOCK_MONOTONIC, in ns."""

    def __init__(self) -> None:
        raw = lib.tvmm_limit_new()
        if not raw:
            raise HostError("the host has no memory for the limits of a device", "free some and start again")
        self.raw = ffi.gc(raw, lib.tvmm_limit_free)

    def set(self, rates: Sequence[tuple[int, int, int]], operation_size: int = 0, now_ns: int | None = None) -> bool:
        """From now on these `RATES`, which have been checked: bytes and operations, of both directions, in, out.

        Each is tokens a second, 0 for no limit; tokens a second of a burst, or 0 for what 100 ms have; and its seconds.
        Operations of more than `operation_size` bytes count as so many times one; 0: all are one. What has not
        changed goes on with the tokens it has, everything else begins with all that it can have.
        Returns whether anything is limited.
        """
        raw = ffi.new("struct tvmm_limit_rate[]", RATES)
        for place, rate in zip(raw, rates, strict=True):
            place.rate, place.burst, place.seconds = rate
        lib.tvmm_limit_set(self.raw, raw, operation_size, self._now(now_ns))
        return any(rate for rate, _, _ in rates)

    @property
    def waits(self) -> tuple[int, int, int]:
        """How often somebody had to wait for both directions' tokens, for those to come in, for those to go out."""
        total, into, out = self.raw.waits
        return int(total), int(into), int(out)

    def ask(self, member: Member, direction: int, now_ns: int | None = None) -> int:
        """For how many ns at most nothing may begin in this direction; 0: something may."""
        return int(lib.tvmm_limit_ask_both(self.raw, member.raw, direction, self._now(now_ns)))

    def charge(self, direction: int, operations: int, size: int, now_ns: int | None = None) -> None:
        """So many operations of `size` bytes all in all have begun."""
        lib.tvmm_limit_charge(self.raw, direction, operations, size, self._now(now_ns))

    def forget(self, member: Member) -> None:
        """It wants nothing for now."""
        lib.tvmm_limit_forget(self.raw, member.raw)

    def levels(self, now_ns: int | None = None) -> tuple[int, ...]:
        """Billionths of tokens in each bucket: of each rate in its turn, and behind it of the one within a burst."""
        now, found = self._now(now_ns), []
        tokens, billionths = ffi.new("int64_t *"), ffi.new("uint32_t *")
        for bucket in range(BUCKETS):
            lib.tvmm_limit_level(self.raw, bucket, now, tokens, billionths)
            found.append(int(tokens[0]) * 1_000_000_000 + int(billionths[0]))
        return tuple(found)

    @staticmethod
    def _now(now_ns: int | None) -> int:
        return int(lib.tvmm_now_ns()) if now_ns is None else now_ns
