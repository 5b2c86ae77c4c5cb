"""What is counted, as data: a `Metric` says what a number means, a `Sample` is one of its numbers.

Everybody who shows numbers (QMP, Prometheus, `tvmm info`, `tvmm top`) gets the same samples. Names are those of
Prometheus: base units (seconds, bytes), ``_total`` behind what only grows. The table of all is `tvmm.metrics.catalog`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.metrics.histogram import Times

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Value = int | float | Times

__all__ = ["Metric", "Reading", "Sample", "grouped", "to_json"]


class Metric(NamedTuple):
    """One thing that is counted."""

    name: str
    kind: str
    """`counter`: only grows. `gauge`: goes up and down. `histogram`: `Times`."""
    help: str
    labels: tuple[str, ...] = ()
    """What tells its samples apart; the machine's name comes on top."""
    unit: str = ""
    """`seconds`, `bytes`, or '' for a number of things."""


class Sample(NamedTuple):
    """One number, with the values of the metric's labels in their order."""

    metric: Metric
    labels: tuple[str, ...]
    value: Value


class Reading(NamedTuple):
    """All samples of a machine at one moment. `at` is in seconds of a clock that only goes forward, from any start."""

    at: float
    samples: Sequence[Sample]


def grouped(samples: Iterable[Sample]) -> dict[Metric, list[Sample]]:
    """The samples of each metric together, in the order in which metrics came first."""
    groups: dict[Metric, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.metric, []).append(sample)
    return groups


def to_json(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """For the control socket. Histograms are ``{"buckets": [[bucket, count], ...], "count": n, "sum": s, "p50": s,
    "p99": s}`` in seconds, with the buckets of `tvmm.metrics.histogram`; empty ones are left out."""
    return [
        {
            "name": metric.name,
            "type": metric.kind,
            "unit": metric.unit,
            "help": metric.help,
            "samples": [
                {"labels": dict(zip(metric.labels, sample.labels, strict=True)), "value": _json_value(sample.value)}
                for sample in group
            ],
        }
        for metric, group in grouped(samples).items()
    ]


def _json_value(value: Value) -> Any:
    if isinstance(value, Times):
        return {
            "buckets": value.sparse(),
            "count": value.count,
            "sum": value.sum_ns / 1e9,
            "p50": _seconds(value.quantile_ns(0.5)),
            "p99": _seconds(value.quantile_ns(0.99)),
        }
    return value


def _seconds(ns: float | None) -> float | None:
    return None if ns is None else round(ns / 1e9, 9)
