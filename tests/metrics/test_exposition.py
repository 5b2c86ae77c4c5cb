"""The text for Prometheus, read back by its own parsers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from tests.metrics.fakes import every_metric
from tvmm.metrics.catalog import metric
from tvmm.metrics.exposition import expose
from tvmm.metrics.histogram import BOUNDS_NS, Times
from tvmm.metrics.model import Sample, grouped

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
"""What a Prometheus of today sends."""

FORMS = {"classic": "", "openmetrics": "application/openmetrics-text; version=1.0.0"}


def families(samples: list[Sample], form: str) -> dict[str, Family]:
    """By name, as the parser of that form has them."""
    body, media_type = expose("web", samples, FORMS[form])
    text = body.decode()
    if form == "classic":
        assert media_type.startswith("text/plain; version=0.0.4")
        return {family.name: family for family in parse_classic(text)}
    assert media_type.startswith("application/openmetrics-text; version=1.0.0")
    found: list[Family] = list(parse_openmetrics(text))  # type: ignore[no-untyped-call]  # it has no types
    return {family.name: family for family in found}


@pytest.mark.parametrize("form", FORMS)
def test_every_metric_is_read_back(form: str) -> None:
    """Names, kinds, labels and values arrive, in both forms."""
    samples = every_metric()
    found = families(samples, form)
    for entry, group in grouped(samples).items():
        family = found[entry.name.removesuffix("_total")]
        assert family.type == entry.kind
        assert family.documentation == entry.help
        for sample in group:
            labels = {"machine": "web", **dict(zip(entry.labels, sample.labels, strict=True))}
            values = {
                (each.name, each.labels.get("le")): each.value
                for each in family.samples
                if {key: value for key, value in each.labels.items() if key != "le"} == labels
            }
            check(sample, values)


def check(sample: Sample, values: dict[tuple[str, str | None], float]) -> None:
    """What the parser has of one sample."""
    name, times = sample.metric.name, sample.value
    if not isinstance(times, Times):
        assert values == {(name, None): times}
        return
    assert values[f"{name}_count", None] == values[f"{name}_bucket", "+Inf"] == times.count
    assert values[f"{name}_sum", None] == pytest.approx(times.sum_ns / 1e9)
    bounds = [float(bound) for series, bound in values if series == f"{name}_bucket" and bound]
    assert len(bounds) == len(BOUNDS_NS) // 2 + 2
    counts = [count for (series, _), count in sorted(values.items(), key=by_bound) if series == f"{name}_bucket"]
    assert counts == sorted(counts)


def by_bound(item: tuple[tuple[str, str | None], float]) -> float:
    """A bucket's bound."""
    return float(item[0][1] or 0)


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_label_survives(machine: str, label: str) -> None:
    """Quotes, line breaks, whatever a name or a file is called."""
    try:
        (machine + label).encode()
    except UnicodeEncodeError:
        return
    sample = Sample(metric("tvmm_machine_info"), ("1", label, "k"), 1)
    body, _ = expose(machine, [sample])
    [family] = parse_classic(body.decode())
    assert family.samples[0].labels == {"machine": machine, "version": "1", "cpu_model": label, "kernel": "k"}


@given(st.one_of(st.text(max_size=60), st.text("application/openmetrics-text;version=.,10q x", max_size=60)))
def test_any_accept_header_gets_something(accept: str) -> None:
    """Nothing that a client says is an error of ours."""
    body, media_type = expose("web", every_metric()[:3], accept)
    assert body
    assert "\n" not in media_type


@pytest.mark.parametrize("version", ["x", "", "1", "1.0.0.0", "-1", "99999999999999999999.0.0"])
def test_versions_that_are_none(version: str) -> None:
    """They get the classic form, or the newest."""
    body, _ = expose("web", every_metric(), f"application/openmetrics-text; version={version}")
    assert body


def test_prometheus_gets_openmetrics() -> None:
    """It asks for that first."""
    body, media_type = expose("web", every_metric(), PROMETHEUS)
    assert media_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
