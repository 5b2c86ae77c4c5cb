"""The names of metrics: they are kept, follow Prometheus' rules, and are all in the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tvmm.metrics.catalog import METRICS
from tvmm.metrics.model import Metric

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"

each_metric = pytest.mark.parametrize("entry", METRICS.values(), ids=METRICS)


def documented() -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Kind, labels and text of each name in the page's table."""
    found = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `tvmm_"):
            name, kind, labels, text = (cell.strip() for cell in line.strip("|").split("|"))
            found[name.strip("`")] = kind, () if labels == "-" else tuple(labels.split(", ")), text
    return found


def test_the_page_has_them_all() -> None:
    """Dashboards are built on these names: one that changes or goes has to be told of."""
    assert documented() == {name: (entry.kind, entry.labels, entry.help) for name, entry in METRICS.items()}
    assert list(documented()) == list(METRICS)


@each_metric
def test_names_follow_the_rules(entry: Metric) -> None:
    """Base units, what it is about in front, `_total` behind what only grows (prometheus.io/docs/practices/naming)."""
    assert re.fullmatch(r"tvmm(_[a-z0-9]+)+", entry.name)
    assert entry.kind in ("counter", "gauge", "histogram")
    assert entry.name.endswith("_total") == (entry.kind == "counter")
    assert entry.unit in ("", "seconds", "bytes")
    assert entry.name.removesuffix("_total").endswith(f"_{entry.unit}" if entry.unit else "")
    assert not re.search(r"_(ms|us|ns|kib|mib|percent)(_|$)", entry.name)
    assert not entry.name.endswith(("_bucket", "_sum", "_count", "_created"))
    assert entry.unit == "seconds" or entry.kind != "histogram"


@each_metric
def test_labels_are_no_names_of_others(entry: Metric) -> None:
    """`machine` and `le` are given by whoever exposes them."""
    assert len(set(entry.labels)) == len(entry.labels)
    assert not {"machine", "le", "job", "instance"} & set(entry.labels)
    assert all(re.fullmatch(r"[a-z][a-z_]*", label) for label in entry.labels)


@each_metric
def test_texts_are_sentences(entry: Metric) -> None:
    """With a full stop, and without what a table of the page would stumble over."""
    assert entry.help.endswith(".")
    assert "|" not in entry.help
    assert "\n" not in entry.help
