"""What machines do lately as people read it: tables of text, for `tvmm top`.

Without a terminal, a clock or a socket: rates in, text out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.cli.metrics_view import Table, count_text, migration_text, most_text, quantile_texts
from tvmm.cli.migration_view import amount
from tvmm.cli.output import format_age

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.metrics.rates import Rates

__all__ = ["MachineRow", "detail_tables", "machine_row", "machines_table"]


def _rate(number: float | None, *, of_bytes: bool = False) -> str:
    if number is None:
        return "-"
    return amount(number) if of_bytes else count_text(number)


class MachineRow(NamedTuple):
    """One machine in the list. Rates are per second, sizes in bytes; None where it is not known (yet)."""

    name: str
    state: str
    uptime_seconds: float | None = None
    cpu_percent: float | None = None
    exits: float | None = None
    disk_operations: float | None = None
    disk_bytes: float | None = None
    net_frames: float | None = None
    net_bytes: float | None = None
    resident_bytes: float | None = None
    memory_bytes: float | None = None
    viewers: int | None = None
    migration: str = ""


def machine_row(name: str, rates: Rates) -> MachineRow:
    """Of a machine that answers."""
    now = rates.new
    cpu = rates.per_second("tvmm_process_cpu_seconds_total")
    return MachineRow(
        name,
        now.word("tvmm_machine_state", "state") or "-",
        now.total("tvmm_machine_uptime_seconds"),
        None if cpu is None else 100 * cpu,
        rates.per_second("tvmm_vcpu_exits_total"),
        rates.per_second("tvmm_blk_requests_total"),
        rates.per_second("tvmm_blk_bytes_total"),
        rates.per_second("tvmm_net_frames_total"),
        rates.per_second("tvmm_net_bytes_total"),
        now.total("tvmm_memory_resident_bytes"),
        now.total("tvmm_memory_bytes"),
        int(now.total("tvmm_vnc_viewers")),
        migration_text(now),
    )


_LIST = (
    *("NAME", "STATE", "UPTIME", "CPU%", "EXITS/s", "IOPS", "DISK/s"),
    *("FRAMES/s", "NET/s", "RSS", "MEMORY", "VIEWERS"),
)


def machines_table(rows: Sequence[MachineRow]) -> Table:
    """A row for each machine; the column of migrations is there if one has something to tell."""
    moving = any(row.migration for row in rows)
    header = (*_LIST, "MIGRATION") if moving else _LIST
    return Table(header, [_cells(row)[: len(header)] for row in rows], " ".join(_LIST[2:]))


def _cells(row: MachineRow) -> tuple[str, ...]:
    return (
        row.name,
        row.state,
        "-" if row.uptime_seconds is None else format_age(row.uptime_seconds),
        "-" if row.cpu_percent is None else f"{row.cpu_percent:.1f}",
        _rate(row.exits),
        _rate(row.disk_operations),
        _rate(row.disk_bytes, of_bytes=True),
        _rate(row.net_frames),
        _rate(row.net_bytes, of_bytes=True),
        _rate(row.resident_bytes, of_bytes=True),
        _rate(row.memory_bytes, of_bytes=True),
        "-" if row.viewers is None else str(row.viewers),
        row.migration or "-",
    )


def detail_tables(name: str, rates: Rates) -> list[Table]:
    """One machine: its row, and what its processors and devices do."""
    tables = [
        machines_table([machine_row(name, rates)]),
        _cpu_rates(rates),
        _disk_rates(rates),
        _net_rates(rates),
        _queue_rates(rates),
    ]
    return [table for table in tables if table.rows]


def _cpu_rates(rates: Rates) -> Table:
    now = rates.new
    rows = []
    for cpu in now.values_of("tvmm_vcpu_exits_in_c_total", "cpu"):
        reasons = rates.by("tvmm_vcpu_exits_total", "reason", cpu=cpu)
        spent = rates.by("tvmm_vcpu_cpu_seconds_total", "mode", cpu=cpu)
        if reasons is None or spent is None:
            rows.append((cpu, "-", "-", "-", "-"))
            continue
        host = spent.get("user", 0.0) + spent.get("system", 0.0)
        exits = count_text(sum(reasons.values()))
        rows.append((cpu, f"{100 * spent.get('guest', 0.0):.1f}", f"{100 * host:.1f}", exits, most_text(reasons)))
    return Table(("CPU", "GUEST%", "HOST%", "EXITS/s", "BY REASON"), rows, "CPU GUEST% HOST% EXITS/s")


def _disk_rates(rates: Rates) -> Table:
    rows = []
    for device in rates.new.values_of("tvmm_blk_size_bytes", "device"):
        cells = [device]
        for operation in ("read", "write"):
            wanted = {"device": device, "operation": operation}
            cells += [
                _rate(rates.per_second("tvmm_blk_requests_total", **wanted)),
                _rate(rates.per_second("tvmm_blk_bytes_total", **wanted), of_bytes=True),
            ]
        times = rates.times("tvmm_blk_request_seconds", device=device) if rates.known else None
        cells += quantile_texts(times) if times is not None else ("-", "-")
        errors = f"{rates.new.total('tvmm_blk_errors_total', device=device):.0f}"
        stopped = "stopped" if rates.new.total("tvmm_blk_stopped", device=device) else ""
        rows.append((*cells, errors, stopped))
    header = ("DISK", "READS/s", "READ/s", "WRITES/s", "WRITTEN/s", "P50", "P99", "ERRORS", "STATE")
    return Table(header, rows, " ".join(header[1:-1]))


def _net_rates(rates: Rates) -> Table:
    rows = []
    for device in rates.new.values_of("tvmm_net_link_up", "device"):
        cells = [device]
        for direction in ("receive", "transmit"):
            wanted = {"device": device, "direction": direction}
            cells += [
                _rate(rates.per_second("tvmm_net_frames_total", **wanted)),
                _rate(rates.per_second("tvmm_net_bytes_total", **wanted), of_bytes=True),
            ]
        cells.append(_rate(rates.per_second("tvmm_net_dropped_frames_total", device=device)))
        rows.append((*cells, "up" if rates.new.total("tvmm_net_link_up", device=device) else "down"))
    header = ("NET", "RX-FRAMES/s", "RX/s", "TX-FRAMES/s", "TX/s", "DROPPED/s", "LINK")
    return Table(header, rows, " ".join(header[1:-1]))


def _queue_rates(rates: Rates) -> Table:
    """Devices without a table of their own, and what all have: a row for each that did something at all."""
    now = rates.new
    rows = []
    for device in now.values_of("tvmm_virtio_info", "device"):
        if not now.total("tvmm_virtio_queue_chains_total", device=device):
            continue
        [kind] = now.values_of("tvmm_virtio_info", "kind", device=device)[:1]
        words = ("chains", "kicks", "interrupts", "suppressed")
        cells = [_rate(rates.per_second(f"tvmm_virtio_queue_{word}_total", device=device)) for word in words]
        rows.append((device, kind, *cells))
    header = ("DEVICE", "KIND", "CHAINS/s", "KICKS/s", "INTERRUPTS/s", "SUPPRESSED/s")
    return Table(header, rows, " ".join(header[2:]))
