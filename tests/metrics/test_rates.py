"""Snapshots out of JSON, and rates between two of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.metrics.fakes import every_metric
from tvmm.metrics.catalog import metric
from tvmm.metrics.histogram import NO_TIMES, Histogram, Times
from tvmm.metrics.model import Sample, grouped, to_json
from tvmm.metrics.rates import Rates
from tvmm.metrics.snapshot import Snapshot

REQUESTS, TIMES = metric("tvmm_blk_requests_total"), metric("tvmm_blk_request_seconds")


def snapshot(at: float, *samples: Sample) -> Snapshot:
    """As it comes over the control socket."""
    return Snapshot.from_json(json.loads(json.dumps({"machine": "web", "at": at, "metrics": to_json(samples)})))


def requests(count: int, device: str = "disk0", operation: str = "read", queue: str = "0") -> Sample:
    """A counter."""
    return Sample(REQUESTS, (device, queue, operation), count)


def times(*values_ns: int) -> Sample:
    """A histogram."""
    histogram = Histogram()
    for value in values_ns:
        histogram.add(value)
    return Sample(TIMES, ("disk0", "0", "read"), histogram.read())


def test_everything_comes_through() -> None:
    """Each sample of each metric, by name and labels."""
    samples = every_metric()
    found = snapshot(1.0, *samples)
    for entry, group in grouped(samples).items():
        for sample in group:
            labels = dict(zip(entry.labels, sample.labels, strict=True))
            if isinstance(sample.value, Times):
                assert found.times(entry.name, **labels) == sample.value
            else:
                assert found.total(entry.name, **labels) == sample.value


def test_sums_over_labels_that_are_not_asked_for() -> None:
    """Queues of one disk, operations of all disks."""
    found = snapshot(1.0, requests(1), requests(2, queue="1"), requests(4, "disk1"), requests(8, operation="write"))
    name = REQUESTS.name
    assert found.total(name) == 15
    assert found.total(name, device="disk0", operation="read") == 3
    assert found.by(name, "operation") == {"read": 7, "write": 8}
    assert found.values_of(name, "device") == ["disk0", "disk1"]
    assert found.total("tvmm_never_heard_of") == 0
    assert found.times("tvmm_never_heard_of") == NO_TIMES


def test_rates() -> None:
    """What came, for each second, by label or in all."""
    old = snapshot(10.0, requests(100), requests(7, "disk1"))
    new = snapshot(14.0, requests(500), requests(7, "disk1"), requests(8, "disk2"))
    rates = Rates(old, new)
    assert rates.seconds == 4
    assert rates.per_second(REQUESTS.name) == 102
    # One that was not there before began at nothing.
    assert rates.by(REQUESTS.name, "device") == {"disk0": 100, "disk1": 0, "disk2": 2}
    assert rates.per_second(REQUESTS.name, device="disk9") == 0


def test_nothing_is_known_from_one_look() -> None:
    """And from two at the same moment, or in the wrong order."""
    now = snapshot(10.0, requests(5))
    for rates in (Rates(None, now), Rates(now, now), Rates(snapshot(11.0), now)):
        assert not rates.known
        assert rates.per_second(REQUESTS.name) is None
        assert rates.by(REQUESTS.name, "device") is None


def test_counters_that_began_anew() -> None:
    """What they have is all from after that; no rate is ever below zero."""
    rates = Rates(snapshot(10.0, requests(1000), times(1000, 2000, 3000)), snapshot(12.0, requests(6), times(5000)))
    assert rates.per_second(REQUESTS.name) == 3
    assert rates.times(TIMES.name).count == 1


def test_times_of_the_interval() -> None:
    """Quantiles are those of what came between."""
    old = snapshot(10.0, times(*[1000] * 100))
    new = snapshot(11.0, times(*[1000] * 100, *[1_000_000] * 3))
    found = Rates(old, new).times(TIMES.name)
    assert found.count == 3
    median = found.quantile_ns(0.5)
    assert median is not None
    assert 700_000 < median < 1_100_000


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 1000), st.integers(0, 1000)), max_size=6))
def test_parts_add_up(rows: list[tuple[str, int, int]]) -> None:
    """The rates by label are together the rate of all."""
    old = snapshot(0.0, *[requests(before, str(index), name) for index, (name, before, _) in enumerate(rows)])
    new = snapshot(2.0, *[requests(after, str(index), name) for index, (name, _, after) in enumerate(rows)])
    rates = Rates(old, new)
    total, parts = rates.per_second(REQUESTS.name), rates.by(REQUESTS.name, "operation")
    assert total is not None
    assert parts is not None
    assert total == pytest.approx(sum(parts.values()))
    assert all(part >= 0 for part in parts.values())


GOOD: dict[str, Any] = {"at": 1.0, "metrics": [{"name": "a", "samples": [{"labels": {"b": "c"}, "value": 1}]}]}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {**GOOD, "at": "soon"},
        {**GOOD, "at": float("nan")},
        {**GOOD, "metrics": 7},
        {**GOOD, "metrics": [{"name": "a"}]},
        {**GOOD, "metrics": [{"name": "a", "samples": [{"labels": {}, "value": "x"}]}]},
        {**GOOD, "metrics": [{"name": "a", "samples": [{"labels": {}, "value": True}]}]},
        {**GOOD, "metrics": [{"name": "a", "samples": [{"labels": [], "value": 1}]}]},
        {**GOOD, "metrics": [{"name": "a", "samples": [{"labels": {}, "value": {"buckets": [[999, 1]], "sum": 1}}]}]},
        {**GOOD, "metrics": [{"name": "a", "samples": [{"labels": {}, "value": {"buckets": [], "sum": -1}}]}]},
        {**GOOD, "metrics": [{"name": "a", "samples": [{"labels": {}, "value": {"sum": 1}}]}]},
    ],
)
def test_what_is_no_answer_is_refused(answer: Any) -> None:
    """By `ValueError`, whatever is wrong."""
    with pytest.raises(ValueError, match=r"."):
        Snapshot.from_json(answer)


@given(json_values, json_values, json_values)
def test_nothing_else_is_raised(first: Any, second: Any, third: Any) -> None:
    """Wherever a machine says something strange."""
    for answer in (
        first,
        {"at": 1, "metrics": first},
        {"at": 1, "metrics": [{"name": first, "samples": second}]},
        {"at": 1, "metrics": [{"name": "a", "samples": [{"labels": first, "value": second}]}]},
        {"at": 1, "metrics": [{"name": "a", "samples": [{"labels": {}, "value": {"buckets": first, "sum": third}}]}]},
    ):
        try:
            found = Snapshot.from_json(answer)
        except ValueError:
            continue
        found.total("a")
        found.times("a")
