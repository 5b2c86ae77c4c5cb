"""Samples in the text that Prometheus reads, by prometheus-client: its classic form, or OpenMetrics if asked for.

Imported by whoever serves that, and by nobody else.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from tvmm.metrics.histogram import Times
from tvmm.metrics.model import grouped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prometheus_client.core import Metric as Family

    from tvmm.metrics.model import Metric, Sample

__all__ = ["expose"]

MAX_ACCEPT = 1024
"""Characters of an Accept header that are looked at; Prometheus sends about 300."""


def expose(machine: str, samples: Iterable[Sample], accept: str = "") -> tuple[bytes, str]:
    """The text and its media type. `accept` is what the client wants, a header; '' for the classic form."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Samples(machine, samples))
    if "\n" in accept or len(accept) > MAX_ACCEPT:
        accept = ""
    try:
        encoder, media_type = choose_encoder(accept)
    except (ValueError, TypeError):
        # A version that is none, which the library trips over: whoever writes that gets what everybody understands.
        encoder, media_type = choose_encoder("")
    return encoder(registry), media_type


class _Samples(Collector):
    """What prometheus-client collects from."""

    def __init__(self, machine: str, samples: Iterable[Sample]) -> None:
        self._machine = machine
        self._groups = grouped(samples)

    def collect(self) -> Iterator[Family]:
        for metric, group in self._groups.items():
            # The text of a large machine takes tens of milliseconds to make, in a thread that has the interpreter then:
            # vCPUs whose exits need it go first.
            time.sleep(0)
            yield self._family(metric, group)

    def _family(self, metric: Metric, group: Sequence[Sample]) -> Family:
        labels = ["machine", *metric.labels]
        if metric.kind == "histogram":
            return self._histogram(metric, labels, group)
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(metric.name, metric.help, labels=labels, unit=metric.unit and _unit(metric))
        for sample in group:
            assert not isinstance(sample.value, Times)
            family.add_metric([self._machine, *sample.labels], sample.value)
        return family

    def _histogram(self, metric: Metric, labels: Sequence[str], group: Sequence[Sample]) -> Family:
        family = HistogramMetricFamily(metric.name, metric.help, labels=labels, unit=metric.unit)
        for sample in group:
            times = sample.value
            assert isinstance(times, Times)
            # Always the same bounds, whatever there is: queries need them. Half as many as are counted are enough.
            rows = [(repr(bound), float(count)) for bound, count in times.octaves()]
            family.add_metric(
                [self._machine, *sample.labels], [*rows, ("+Inf", float(times.count))], times.sum_ns / 1e9
            )
        return family


def _unit(metric: Metric) -> str:
    """The unit, if the name ends with it, as prometheus-client wants it."""
    return metric.unit if metric.name.removesuffix("_total").endswith(f"_{metric.unit}") else ""
