"""How long things took, in buckets: the histogram of `tvmm/kvm/histogram.h` in Python, and what is read off one.

Two buckets for each power of two, from 512 ns to 34 s. A bucket holds what is above the bound before it and up to its
own. The histograms of fast devices are filled in C; those of slow ones, a value for each turn, by `Histogram`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BOUNDS_NS", "BUCKETS", "NO_TIMES", "Histogram", "Times", "bucket_of"]

FIRST, LAST = 9, 35
"""Bucket 0 ends at 2^FIRST ns, the last but one at 2^LAST ns; the last one has no end."""

BUCKETS = 2 * (LAST - FIRST) + 2

BOUNDS_NS = (
    1 << FIRST,
    *(bound for power in range(FIRST, LAST) for bound in (3 << power - 1, 1 << power + 1)),
)
"""Upper bounds of all buckets but the last one, in nanoseconds."""


def bucket_of(ns: int) -> int:
    """The bucket of a time of `ns` nanoseconds, which are not negative."""
    below = max(ns - 1, 0)
    exponent = below.bit_length() - 1
    if exponent < FIRST:
        return 0
    if exponent >= LAST:
        return BUCKETS - 1
    return 1 + 2 * (exponent - FIRST) + (below >> exponent - 1 & 1)


@dataclass(frozen=True, slots=True)
class Times:
    """A histogram at one moment: how many values each bucket has, and the sum of all in nanoseconds."""

    counts: tuple[int, ...] = (0,) * BUCKETS
    sum_ns: int = 0

    @property
    def count(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    def __add__(self, other: Times) -> Times:
        """Both together."""
        return Times(
            tuple(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)),
            self.sum_ns + other.sum_ns,
        )

    def since(self, older: Times) -> Times:
        """What has come since `older`, an earlier look at the same histogram."""
        return Times(
            tuple(max(new - old, 0) for new, old in zip(self.counts, older.counts, strict=True)),
            max(self.sum_ns - older.sum_ns, 0),
        )

    def quantile_ns(self, share: float) -> float | None:
        """The time that `share` (0 to 1) of the values do not exceed, None without values.

        Between the bounds of a bucket values count as spread evenly; of the last one its beginning is told.
        """
        count = self.count
        if not count:
            return None
        wanted = max(share * count, 1.0)
        seen = 0
        for index, within in enumerate(self.counts):
            if within and seen + within >= wanted:
                if index == BUCKETS - 1:
                    break
                low = BOUNDS_NS[index - 1] if index else 0
                return low + (BOUNDS_NS[index] - low) * (wanted - seen) / within
            seen += within
        return float(BOUNDS_NS[-1])

    @property
    def mean_ns(self) -> float | None:
        """The average, None without values."""
        count = self.count
        return self.sum_ns / count if count else None

    def octaves(self) -> list[tuple[float, int]]:
        """(upper bound in seconds, how many values are not above it), a row for each power of two, without the last."""
        rows = []
        seen = 0
        for index, within in enumerate(self.counts[:-1]):
            seen += within
            if index % 2 == 0:
                rows.append((BOUNDS_NS[index] / 1e9, seen))
        return rows

    def sparse(self) -> list[list[int]]:
        """[bucket, count] of those that are not empty, for JSON."""
        return [[index, count] for index, count in enumerate(self.counts) if count]

    @classmethod
    def from_sparse(cls, rows: Iterable[Iterable[int]], sum_ns: int) -> Times:
        """From what `sparse` gave. Raises `ValueError` if it is nothing of the kind."""
        counts = [0] * BUCKETS
        for index, count in rows:
            if not 0 <= index < BUCKETS or count < 0:
                raise ValueError(f"there is no bucket {index} with {count} values")
            counts[index] = count
        return cls(tuple(counts), sum_ns)


NO_TIMES = Times()


class Histogram:
    """One that is filled, by one thread."""

    __slots__ = ("_counts", "_sum_ns")

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self._sum_ns = 0

    def add(self, ns: int) -> None:
        """One more value, in nanoseconds."""
        self._sum_ns += ns
        self._counts[bucket_of(ns)] += 1

    def read(self) -> Times:
        """As it is now; from any thread."""
        return Times(tuple(self._counts), self._sum_ns)
