"""The numbers of a machine as its control socket tells them, to be asked by name and label.

What a machine says is from another process, maybe of another version: what is malformed raises, what is not known is
kept, and what is not there reads as nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvmm.metrics.histogram import NO_TIMES, Times

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tvmm.metrics.model import Value

    Labels = tuple[tuple[str, str], ...]

__all__ = ["Snapshot"]


class Snapshot:
    """One moment. `at` is in seconds of a clock of the machine's host that only goes forward."""

    def __init__(self, at: float, series: Mapping[str, Mapping[Labels, Value]]) -> None:
        self.at = at
        self.series = series

    @classmethod
    def from_json(cls, answer: Any) -> Snapshot:
        """From what `x-query-metrics` returns. Raises `ValueError` if it is nothing of the kind."""
        try:
            at = float(answer["at"])
            series: dict[str, dict[Labels, Value]] = {}
            for family in answer["metrics"]:
                values = series.setdefault(str(family["name"]), {})
                for sample in family["samples"]:
                    labels = tuple(sorted((str(key), str(text)) for key, text in sample["labels"].items()))
                    values[labels] = _value(sample["value"])
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"no metrics: {error!r}") from None
        if not math.isfinite(at):
            raise ValueError("no metrics: at no time")
        return cls(at, series)

    def matching(self, name: str, **wanted: str) -> Iterator[tuple[dict[str, str], Value]]:
        """Labels and value of each sample of a metric that has the labels in `wanted`."""
        for labels, value in self.series.get(name, {}).items():
            found = dict(labels)
            if all(found.get(key) == text for key, text in wanted.items()):
                yield found, value

    def total(self, name: str, **wanted: str) -> float:
        """The sum over all samples that match; 0.0 without any."""
        return sum((value for _, value in self.matching(name, **wanted) if not isinstance(value, Times)), 0.0)

    def by(self, name: str, label: str, **wanted: str) -> dict[str, float]:
        """That sum for each value of a label."""
        sums: dict[str, float] = {}
        for labels, value in self.matching(name, **wanted):
            if not isinstance(value, Times):
                key = labels.get(label, "")
                sums[key] = sums.get(key, 0.0) + value
        return sums

    def times(self, name: str, **wanted: str) -> Times:
        """The histograms that match, as one."""
        found = NO_TIMES
        for _, value in self.matching(name, **wanted):
            if isinstance(value, Times):
                found += value
        return found

    def values_of(self, name: str, label: str, **wanted: str) -> list[str]:
        """The values that a label has, in the order of the machine."""
        return list(dict.fromkeys(labels.get(label, "") for labels, _ in self.matching(name, **wanted)))

    def word(self, name: str, label: str) -> str:
        """The label of the only sample that there is, as of ``tvmm_machine_state``; '' without one."""
        return next(iter(self.values_of(name, label)), "")


def _value(value: Any) -> Value:
    if isinstance(value, dict):
        total = float(value["sum"])
        if not 0 <= total < math.inf:
            raise ValueError("a sum of times that is none")
        return Times.from_sparse(value["buckets"], round(total * 1e9))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return value
