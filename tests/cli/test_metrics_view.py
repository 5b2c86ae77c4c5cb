"""`tvmm info --metrics`, and the tables of `tvmm top`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.fakes import running
from tests.control.fakes import FakeMachine
from tests.metrics.fakes import every_metric
from tvmm.cli import main
from tvmm.cli.metrics_view import count_text, span, total_tables
from tvmm.cli.top_view import MachineRow, detail_tables, machine_row, machines_table
from tvmm.metrics.catalog import metric
from tvmm.metrics.histogram import Histogram
from tvmm.metrics.model import Sample, to_json
from tvmm.metrics.rates import Rates
from tvmm.metrics.snapshot import Snapshot

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("ns", "text"),
    [(None, "-"), (0, "0ns"), (999, "999ns"), (1000, "1us"), (7250, "7.25us"), (1.5e6, "1.5ms"), (3.4e10, "34s")],
)
def test_spans(ns: float | None, text: str) -> None:
    """Three digits, and the unit that fits."""
    assert span(ns) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (12.345, "12.3"), (999, "999"), (1000, "1k"), (13_900, "13.9k"), (2.5e12, "2.5T")]
)
def test_counts(number: float, text: str) -> None:
    """Three digits, and a decimal unit."""
    assert count_text(number) == text


def samples(scale: int = 1) -> list[Sample]:
    """A machine with a disk, a network, a source of entropy; `scale` times as busy."""
    histogram = Histogram()
    for _ in range(100 * scale):
        histogram.add(6000)
    return [
        Sample(metric("tvmm_machine_state"), ("running",), 1),
        Sample(metric("tvmm_machine_uptime_seconds"), (), 65.0),
        Sample(metric("tvmm_memory_bytes"), (), 256 << 20),
        Sample(metric("tvmm_memory_resident_bytes"), (), 64 << 20),
        Sample(metric("tvmm_process_cpu_seconds_total"), ("guest",), 0.5 * scale),
        Sample(metric("tvmm_vcpu_exits_total"), ("0", "io"), 1000 * scale),
        Sample(metric("tvmm_vcpu_exits_total"), ("0", "mmio"), 2000 * scale),
        Sample(metric("tvmm_vcpu_exits_in_c_total"), ("0",), 10),
        Sample(metric("tvmm_vcpu_cpu_seconds_total"), ("0", "guest"), 0.5 * scale),
        Sample(metric("tvmm_virtio_info"), ("disk0", "blk", "pci", "00:01.0"), 1),
        Sample(metric("tvmm_virtio_queue_chains_total"), ("disk0", "0"), 100 * scale),
        Sample(metric("tvmm_blk_size_bytes"), ("disk0",), 1 << 30),
        Sample(metric("tvmm_blk_requests_total"), ("disk0", "0", "read"), 100 * scale),
        Sample(metric("tvmm_blk_requests_total"), ("disk0", "0", "write"), 0),
        Sample(metric("tvmm_blk_bytes_total"), ("disk0", "0", "read"), 409600 * scale),
        Sample(metric("tvmm_blk_request_seconds"), ("disk0", "0", "read"), histogram.read()),
        Sample(metric("tvmm_net_link_up"), ("net0",), 1),
        Sample(metric("tvmm_net_frames_total"), ("net0", "0", "receive"), 30 * scale),
        Sample(metric("tvmm_net_bytes_total"), ("net0", "0", "receive"), 3000 * scale),
        Sample(metric("tvmm_vnc_viewers"), (), 2),
    ]


def look(at: float, scale: int = 1) -> Snapshot:
    """One look at it."""
    return Snapshot.from_json({"at": at, "metrics": to_json(samples(scale))})


def test_totals() -> None:
    """What the machine did, by part."""
    facts, cpus, disks, nets, queues = total_tables(look(1.0))
    [memory] = [text for title, text in facts.rows if title == "memory"]
    assert memory.startswith("64M of 256M")
    assert cpus.rows[0][-2:] == ("3000", "mmio 2k, io 1k")
    # What was never asked for has no row.
    [row] = disks.rows
    assert row[:5] == ("disk0", "read", "100", "0", "400k")
    assert row[5] == "6us"
    assert [row[:4] for row in nets.rows] == [("net0", "receive", "30", "2.93k"), ("net0", "transmit", "0", "0")]
    assert queues.rows[0][:3] == ("disk0", "0", "100")


def test_rows_and_details() -> None:
    """Rates between two looks a second apart."""
    rates = Rates(look(1.0), look(2.0, 3))
    row = machine_row("web", rates)
    memory = (64 << 20, 256 << 20)
    assert row == MachineRow("web", "running", 65.0, 100.0, 6000.0, 200.0, 819200.0, 60.0, 6000.0, *memory, 2)
    head, cpus, disks, nets, queues = detail_tables("web", rates)
    assert head.rows[0][:5] == ("web", "running", "1m5s", "100.0", "6k")
    assert cpus.rows == [("0", "100.0", "0.0", "6k", "mmio 4k, io 2k")]
    assert disks.rows[0][:5] == ("disk0", "200", "800k", "0", "0")
    assert disks.rows[0][5].endswith("us")
    assert nets.rows[0] == ("net0", "60", "5.86k", "0", "0", "0", "up")
    assert queues.rows == [("disk0", "blk", "200", "0", "0", "0")]


def test_first_look_has_no_rates() -> None:
    """Dashes in place of numbers that nobody knows yet."""
    rates = Rates(None, look(1.0))
    tables = detail_tables("web", rates)
    assert tables[0].rows[0][3:9] == ("-",) * 6
    assert tables[1].rows == [("0", "-", "-", "-", "-")]
    assert tables[2].rows[0][1:7] == ("-",) * 6


def test_column_of_migrations() -> None:
    """Only while there is one to tell of."""
    still = MachineRow("db", "running")
    moving = MachineRow("web", "running", migration="42% out")
    assert "MIGRATION" not in machines_table([still]).header
    table = machines_table([still, moving])
    assert [row[-1] for row in table.rows] == ["-", "42% out"]
    active = [
        Sample(metric("tvmm_migration_state"), ("active", "out"), 1),
        Sample(metric("tvmm_migration_ram_bytes"), ("total",), 1000),
        Sample(metric("tvmm_migration_ram_bytes"), ("remaining",), 250),
    ]
    snapshot = Snapshot.from_json({"at": 1.0, "metrics": to_json(active)})
    assert machine_row("web", Rates(None, snapshot)).migration == "75% out"


def test_tables_are_even() -> None:
    """Each row has a cell for each column, whatever there is, and each title that is aligned right exists."""
    everything = Snapshot.from_json({"at": 1.0, "metrics": to_json(every_metric())})
    nothing = Snapshot.from_json({"at": 2.0, "metrics": []})
    for old, new in ((None, everything), (everything, nothing), (nothing, everything), (nothing, nothing)):
        for table in (*total_tables(new), *detail_tables("web", Rates(old, new))):
            assert set(table.right.split()) <= set(table.header), table.header
            assert all(len(row) == len(table.header) for row in table.rows), table.header


def test_info_metrics(registry: Path, capsys: Capture) -> None:
    """For people and for programs."""
    with running(registry, FakeMachine("web")):
        assert main(["info", "web", "--metrics"]) == 0
        text = capsys.readouterr().out
        assert main(["info", "web", "--metrics", "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
    assert text.startswith("WHAT")
    assert answer["machine"] == "web"
    assert [family["name"] for family in answer["metrics"]] == ["tvmm_vcpu_exits_total", "tvmm_tasks", "fake_seconds"]
