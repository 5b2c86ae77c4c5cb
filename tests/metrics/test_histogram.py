"""Histograms: the one in Python and the one in C agree, and quantiles are where they should be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.kvm.histogram import CHistogram
from tvmm.metrics.histogram import BOUNDS_NS, BUCKETS, NO_TIMES, Histogram, Times, bucket_of

times_ns = st.one_of(st.integers(0, 1 << 38), st.integers(0, 5000))


def test_bounds_ascend_and_a_bucket_ends_at_its_own() -> None:
    """A value at a bound is in the bucket that ends there, one above it in the next."""
    assert len(BOUNDS_NS) == BUCKETS - 1
    assert list(BOUNDS_NS) == sorted(set(BOUNDS_NS))
    for index, bound in enumerate(BOUNDS_NS):
        assert bucket_of(bound) == index
        assert bucket_of(bound + 1) == index + 1
    assert bucket_of(0) == 0
    assert bucket_of((1 << 64) - 1) == BUCKETS - 1


@given(st.lists(times_ns, max_size=40))
def test_c_counts_as_python_does(values: list[int]) -> None:
    """Same buckets, same sum."""
    ours, theirs = Histogram(), CHistogram()
    for value in values:
        ours.add(value)
        theirs.add(value)
    assert ours.read() == theirs.read()
    assert ours.read().count == len(values)
    assert ours.read().sum_ns == sum(values)


@pytest.mark.parametrize("bound", BOUNDS_NS)
def test_c_agrees_around_each_bound(bound: int) -> None:
    """Just below, at, and just above it."""
    for value in (bound - 1, bound, bound + 1):
        theirs = CHistogram()
        theirs.add(value)
        assert theirs.read().counts[bucket_of(value)] == 1


@given(st.lists(st.integers(600, 1 << 34), min_size=1, max_size=60), st.floats(0.0, 1.0))
def test_quantile_is_in_the_bucket_of_the_value(values: list[int], share: float) -> None:
    """The value of that rank and the quantile are in the same bucket, so at most half of it apart."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    rank = max(int(-(-share * len(values) // 1)), 1)
    exact = sorted(values)[rank - 1]
    found = histogram.read().quantile_ns(share)
    assert found is not None
    index = bucket_of(exact)
    assert (BOUNDS_NS[index - 1] if index else 0) <= found <= BOUNDS_NS[index]


def test_nothing_has_no_quantiles() -> None:
    """And no mean."""
    assert NO_TIMES.quantile_ns(0.5) is None
    assert NO_TIMES.mean_ns is None
    assert NO_TIMES.count == 0


def test_what_is_longer_than_the_last_bound_is_told_as_that() -> None:
    """There is no end to interpolate to."""
    histogram = Histogram()
    histogram.add(10**12)
    assert histogram.read().quantile_ns(0.99) == BOUNDS_NS[-1]


@given(st.lists(times_ns, max_size=30), st.lists(times_ns, max_size=30))
def test_differences_and_sums(first: list[int], then: list[int]) -> None:
    """What came since a look is what was added since; both together are all."""
    histogram, other = Histogram(), Histogram()
    for value in first:
        histogram.add(value)
    before = histogram.read()
    for value in then:
        histogram.add(value)
        other.add(value)
    assert histogram.read().since(before) == other.read()
    assert before + other.read() == histogram.read()


@given(st.lists(times_ns, max_size=30))
def test_octaves_are_cumulative(values: list[int]) -> None:
    """Each row counts what is not above its bound, as Prometheus wants it."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    rows = histogram.read().octaves()
    for bound, count in rows:
        assert count == sum(value <= round(bound * 1e9) for value in values)


@given(st.lists(times_ns, max_size=30))
def test_json_form_comes_back(values: list[int]) -> None:
    """`from_sparse` undoes `sparse`."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    found = histogram.read()
    assert Times.from_sparse(found.sparse(), found.sum_ns) == found


@pytest.mark.parametrize("rows", [[[BUCKETS, 1]], [[-1, 1]], [[0, -1]], [[1]], [[1, 2, 3]]])
def test_bad_json_form_is_refused(rows: list[list[int]]) -> None:
    """A machine of another version may say what this one does not know."""
    with pytest.raises(ValueError, match=r"bucket|unpack"):
        Times.from_sparse(rows, 0)
