"""The numbers of a machine since it was started as people read them: tables of text, for `tvmm info --metrics`.

Without a terminal, a clock or a socket: a snapshot in, text out. What happens lately is in `tvmm.cli.top_view`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.cli.migration_view import amount
from tvmm.cli.output import format_age

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.metrics.histogram import Times
    from tvmm.metrics.snapshot import Snapshot

__all__ = ["Table", "count_text", "migration_text", "most_text", "quantile_texts", "span", "total_tables"]


class Table(NamedTuple):
    """`right` has the titles of columns that are aligned right."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: str = ""


def span(ns: float | None) -> str:
    """A time in three digits: ``7.25us``, ``1.5ms``; ``-`` for none."""
    if ns is None:
        return "-"
    for unit in ("ns", "us", "ms"):
        if ns < 999.5:
            return f"{ns:.3g}{unit}"
        ns /= 1000
    return f"{ns:.3g}s"


def count_text(number: float) -> str:
    """A number of things, in three digits and a decimal unit if it is large: ``812``, ``13.9k``."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5 or unit == "T":
            return f"{number:.3g}{unit}"
        number /= 1000
    raise AssertionError("the last unit takes all")


def quantile_texts(times: Times) -> tuple[str, str]:
    """Median, and what 99 of 100 do not exceed."""
    return span(times.quantile_ns(0.5)), span(times.quantile_ns(0.99))


def total_tables(now: Snapshot) -> list[Table]:
    """All of it: the machine, its processors, and its devices by kind."""
    tables = [_facts(now), _total_cpus(now), _total_disks(now), _total_nets(now), _total_queues(now)]
    return [table for table in tables if table.rows]


def _facts(now: Snapshot) -> Table:
    cpu = now.by("tvmm_process_cpu_seconds_total", "mode")
    rows = [
        ("state", now.word("tvmm_machine_state", "state") or "-"),
        ("uptime", format_age(now.total("tvmm_machine_uptime_seconds"))),
        ("memory", f"{_memory(now)}, the whole process {amount(now.total('tvmm_process_resident_bytes'))}"),
        ("CPU time", ", ".join(f"{mode} {seconds:.2f}s" for mode, seconds in cpu.items()) or "-"),
    ]
    migration = migration_text(now)
    return Table(("WHAT", "VALUE"), [*rows, ("migration", migration)] if migration else rows)


def _memory(now: Snapshot) -> str:
    resident, size = now.total("tvmm_memory_resident_bytes"), now.total("tvmm_memory_bytes")
    return f"{amount(resident)} of {amount(size)}"


def migration_text(now: Snapshot) -> str:
    """How the migration goes, in a word; empty if there was none."""
    state = now.word("tvmm_migration_state", "state")
    total = now.total("tvmm_migration_ram_bytes", part="total")
    if state == "active" and total:
        share = 1 - min(now.total("tvmm_migration_ram_bytes", part="remaining") / total, 1.0)
        return f"{share:.0%} {now.word('tvmm_migration_state', 'direction')}"
    return state


def _total_cpus(now: Snapshot) -> Table:
    rows = []
    for cpu in now.values_of("tvmm_vcpu_exits_in_c_total", "cpu"):
        reasons = now.by("tvmm_vcpu_exits_total", "reason", cpu=cpu)
        spent = now.by("tvmm_vcpu_cpu_seconds_total", "mode", cpu=cpu)
        rows.append(
            (
                cpu,
                f"{spent.get('guest', 0.0):.2f}s",
                f"{spent.get('user', 0.0) + spent.get('system', 0.0):.2f}s",
                f"{now.total('tvmm_vcpu_pauses_total', cpu=cpu):.0f}",
                f"{sum(reasons.values()):.0f}",
                most_text(reasons),
            )
        )
    header = ("CPU", "IN-GUEST", "IN-HOST", "PAUSES", "EXITS", "BY REASON")
    return Table(header, rows, "CPU IN-GUEST IN-HOST PAUSES EXITS")


def most_text(reasons: dict[str, float]) -> str:
    """Reasons with their numbers, those that come most often first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{reason} {count_text(number)}" for reason, number in ordered if number) or "-"


def _total_disks(now: Snapshot) -> Table:
    rows = []
    for device in now.values_of("tvmm_blk_size_bytes", "device"):
        for operation in now.values_of("tvmm_blk_requests_total", "operation", device=device):
            wanted = {"device": device, "operation": operation}
            done, failed = now.total("tvmm_blk_requests_total", **wanted), now.total("tvmm_blk_errors_total", **wanted)
            if done or failed:
                times = now.times("tvmm_blk_request_seconds", **wanted)
                moved = amount(now.total("tvmm_blk_bytes_total", **wanted))
                mean = span(times.mean_ns)
                rows.append((device, operation, f"{done:.0f}", f"{failed:.0f}", moved, mean, *quantile_texts(times)))
    header = ("DISK", "OPERATION", "REQUESTS", "ERRORS", "BYTES", "MEAN", "P50", "P99")
    return Table(header, rows, "REQUESTS ERRORS BYTES MEAN P50 P99")


def _total_nets(now: Snapshot) -> Table:
    rows = []
    for device in now.values_of("tvmm_net_link_up", "device"):
        for direction in ("receive", "transmit"):
            wanted = {"device": device, "direction": direction}
            times = now.times("tvmm_net_turn_seconds", **wanted)
            rows.append(
                (
                    device,
                    direction,
                    f"{now.total('tvmm_net_frames_total', **wanted):.0f}",
                    amount(now.total("tvmm_net_bytes_total", **wanted)),
                    f"{now.total('tvmm_net_dropped_frames_total', **wanted):.0f}",
                    f"{times.count}",
                    *quantile_texts(times),
                )
            )
    header = ("NET", "DIRECTION", "FRAMES", "BYTES", "DROPPED", "TURNS", "P50", "P99")
    return Table(header, rows, "FRAMES BYTES DROPPED TURNS P50 P99")


def _total_queues(now: Snapshot) -> Table:
    rows = []
    for labels, _ in now.matching("tvmm_virtio_queue_chains_total"):
        wanted = {"device": labels.get("device", ""), "queue": labels.get("queue", "")}
        counts = [
            now.total(f"tvmm_virtio_queue_{word}_total", **wanted)
            for word in ("chains", "kicks", "interrupts", "suppressed", "errors")
        ]
        if any(counts):
            times = now.times("tvmm_virtio_turn_seconds", **wanted)
            rows.append((*wanted.values(), *(f"{count:.0f}" for count in counts), *quantile_texts(times)))
    header = ("DEVICE", "QUEUE", "CHAINS", "KICKS", "INTERRUPTS", "SUPPRESSED", "ERRORS", "P50", "P99")
    return Table(header, rows, "QUEUE CHAINS KICKS INTERRUPTS SUPPRESSED ERRORS P50 P99")
