"""Readings for tests: a sample of every metric there is."""

from __future__ import annotations

from tvmm.metrics.catalog import METRICS
from tvmm.metrics.histogram import Histogram
from tvmm.metrics.model import Metric, Sample

__all__ = ["every_metric", "sample_of"]


def sample_of(metric: Metric, number: int = 3, prefix: str = "x") -> Sample:
    """One sample, with labels that begin with `prefix`."""
    labels = tuple(f"{prefix}{label}" for label in metric.labels)
    if metric.kind != "histogram":
        return Sample(metric, labels, number)
    histogram = Histogram()
    for power in range(number):
        histogram.add(1000 << power % 20)
    return Sample(metric, labels, histogram.read())


def every_metric() -> list[Sample]:
    """Two samples of each that has labels, one of each other."""
    found = []
    for number, metric in enumerate(METRICS.values(), 1):
        found.append(sample_of(metric, number))
        if metric.labels:
            found.append(sample_of(metric, number + 1, "y"))
    return found
