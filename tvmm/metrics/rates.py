"""What happened between two looks at a machine, for each second of the time between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.metrics.histogram import Times

if TYPE_CHECKING:
    from tvmm.metrics.snapshot import Snapshot

__all__ = ["Rates"]


class Rates:
    """Between `old` and `new` of one machine. `old` None, or no time between them: nothing is known, which is None.

    A counter that is smaller than it was is one that began anew (the machine was started again, the guest came here by
    a migration): all that it has is from after that. One that was not there began at 0.
    """

    def __init__(self, old: Snapshot | None, new: Snapshot) -> None:
        self.new = new
        self._old = old
        self.seconds = new.at - old.at if old is not None else 0.0
        self.known = self.seconds > 0

    def per_second(self, name: str, **wanted: str) -> float | None:
        """Of all samples of a counter that match."""
        by_nothing = self.by(name, "", **wanted)
        return None if by_nothing is None else by_nothing.get("", 0.0)

    def by(self, name: str, label: str, **wanted: str) -> dict[str, float] | None:
        """That for each value of a label."""
        if self._old is None or not self.known:
            return None
        before = self._old.series.get(name, {})
        sums: dict[str, float] = {}
        for labels, value in self.new.series.get(name, {}).items():
            found = dict(labels)
            if isinstance(value, Times) or any(found.get(key) != text for key, text in wanted.items()):
                continue
            old = before.get(labels, 0)
            grown = value - old if not isinstance(old, Times) and value >= old else value
            key = found.get(label, "")
            sums[key] = sums.get(key, 0.0) + grown / self.seconds
        return sums

    def times(self, name: str, **wanted: str) -> Times:
        """The values that histograms got; all that they have, if it is not known what they had."""
        new = self.new.times(name, **wanted)
        if self._old is None:
            return new
        old = self._old.times(name, **wanted)
        return new.since(old) if new.count >= old.count else new
