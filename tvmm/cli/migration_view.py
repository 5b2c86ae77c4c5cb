"""How a migration is told to people: text out of a `MigrationStatus`, without a terminal, a clock or a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.cli.output import printable
from tvmm.config.units import format_duration
from tvmm.migration.status import POSTCOPY

if TYPE_CHECKING:
    from tvmm.migration.status import DiskProgress, DowntimeParts, MigrationStatus, RamProgress

__all__ = [
    "amount",
    "arrived_share",
    "listening_text",
    "lost_text",
    "paused_text",
    "plain_line",
    "progress_rows",
    "still_here_text",
    "summary_lines",
]

_UNITS = "kMGTPE"
_PARTS = (
    ("stop", "stop_ms"),
    ("last pages", "last_pages_ms"),
    ("state", "state_ms"),
    ("transfer", "transfer_ms"),
    ("restore", "restore_ms"),
    ("resume", "resume_ms"),
)


def amount(count: float) -> str:
    """About `count`, in three digits and a binary unit: ``1.25G``, ``78.1M``, ``512``."""
    for unit in ("", *_UNITS):
        if count < 999.5 or unit == _UNITS[-1]:
            return f"{count:.3g}{unit}"
        count /= 1024
    raise AssertionError("the last unit takes all")


def arrived_share(status: MigrationStatus) -> float:
    """The part of guest RAM, and of disks that are copied, that is at the destination as it is now, 0 to 1."""
    ram, disks = status.ram, status.disks
    total = ram.total + disks.total
    left = min(max(ram.remaining, 0), ram.total) + min(max(disks.remaining, 0), disks.total)
    return 1 - left / total if total else 0.0


def progress_rows(status: MigrationStatus) -> list[tuple[str, str]]:
    """What is known so far, as titles and texts."""
    ram = status.ram
    rows = [("phase", _phase(status))]
    if status.disks.total:
        rows.append(("disks", _disks(status.disks)))
    if ram.handed_over:
        rows.append(("RAM", f"{amount(ram.handed_over)} handed over, 0 pages sent"))
    if ram.rounds:
        rows += [
            ("RAM", f"{amount(ram.total)}, {amount(ram.remaining)} left"),
            ("sent", f"{amount(ram.transferred)} at {amount(ram.throughput)}/s{_over(status.connections)}"),
            ("pages", f"{_pages(ram)}; rounds {ram.rounds}"),
            ("dirtied", f"{amount(ram.dirty_pages_rate * ram.page_size)}/s, {ram.dirty_pages_rate:.0f} pages/s"),
        ]
    if status.throttle_percent:
        rows.append(("slowed", f"guest by {status.throttle_percent} %"))
    rows += _postcopy_rows(status)
    if status.under_way and ram.rounds and status.postcopy is None:
        rows += [
            ("pause", f"{_ms(status.expected_downtime_ms)} if it were now"),
            ("time left", "unknown" if status.seconds_left is None else f"about {_seconds(status.seconds_left)}"),
        ]
    return [(title, printable(text)) for title, text in rows]


def plain_line(status: MigrationStatus) -> str:
    """The same in one line, for a log."""
    ram = status.ram
    parts = []
    if status.disks.total and not ram.rounds:
        parts.append(f"disks {_disks(status.disks)}")
    elif status.disks.remaining:
        parts.append(f"{amount(status.disks.remaining)} of disks left")
    if ram.rounds:
        parts += [
            f"{amount(ram.transferred)} sent at {amount(ram.throughput)}/s",
            f"{amount(ram.remaining)} of {amount(ram.total)} left",
            f"{amount(ram.dirty_pages_rate * ram.page_size)}/s dirtied",
        ]
    if status.throttle_percent:
        parts.append(f"guest slowed by {status.throttle_percent} %")
    parts += [text for _, text in _postcopy_rows(status)]
    if status.under_way and status.expected_downtime_ms is not None and status.postcopy is None:
        parts.append(f"pause {_ms(status.expected_downtime_ms)} if it were now")
    if status.under_way and status.seconds_left is not None:
        parts.append(f"about {_seconds(status.seconds_left)} to go")
    return printable(": ".join(filter(None, [_phase(status), ", ".join(parts)])))


def summary_lines(name: str, status: MigrationStatus) -> list[str]:
    """What to tell about a guest that has moved."""
    ram = status.ram
    seconds = (status.total_ms or 0.0) / 1000
    lines = [f"{name} has moved to {status.peer} in {_ms(status.total_ms)}; the guest was paused for"
             f" {_ms(status.downtime_ms)}"]  # fmt: skip
    if status.downtime_parts is not None:
        lines.append(f"  pause:  {_parts(status.downtime_parts)}")
    if ram.handed_over:
        lines.append(f"  memory: {amount(ram.handed_over)} handed over, 0 pages sent")
    if ram.rounds:
        average = f", {amount(ram.transferred / seconds)}/s" if seconds else ""
        lines += [
            f"  sent:   {amount(ram.transferred)} for {amount(ram.total)} of RAM in {_rounds(ram.rounds)}"
            f"{average}{_over(status.connections)}",
            f"  pages:  {_pages(ram)}",
        ]
    lines += [f"  faults: {text}" for title, text in _postcopy_rows(status) if title == "faults"]
    disks = status.disks
    if disks.total:
        lines.append(
            f"  disks:  {amount(disks.transferred)} for {amount(disks.total)} in {_rounds(disks.rounds)}; the source's "
            "images are as they were in the pause"
        )
    if status.advice:
        lines.append(f"  advice: {status.advice}")
    if status.throttle_percent:
        lines.append(f"  guest:  slowed by up to {status.throttle_percent} % to get it done")
    return [printable(line) for line in lines]


def paused_text(name: str, status: MigrationStatus) -> str:
    """What to tell about a post-copy whose connection is lost for good."""
    why = f": {status.error}" if status.error else ""
    where = "may run" if status.guest == "unknown" else "runs"
    return (
        f"the connection is broken{why}; the guest of {name} {where} at {_peer(status)} and waits for memory that is"
        f" here: 'tvmm migrate {name} --recover' once the network works; keep both processes alive"
    )


def listening_text(name: str, status: MigrationStatus) -> str:
    """What to tell where a post-copy is to go on, which has its guest and not its memory."""
    source = printable(status.peer) or "NAME"
    return f"{name} lets its source in: 'tvmm migrate {source} --recover' there, or it comes by itself"


def still_here_text(name: str, status: MigrationStatus) -> str:
    """What to tell about a guest that has not moved, or perhaps has."""
    if status.guest == "unknown":
        why = status.reason or "the destination does not answer"
        return (
            f"it is not known whether {name} has moved: {why}; it is paused here: look at {_peer(status)}, and only if"
            f" it does not run there, 'tvmm resume {name}'"
        )
    if status.state == "cancelled":
        return f"cancelled: the guest of {name} goes on at the source"
    return f"{name} has not moved: {status.reason or 'no reason given'}; its guest goes on at the source"


def lost_text(name: str, status: MigrationStatus) -> str:
    """What to tell when the source's process ended and did not say how the migration went."""
    where = status.phase or status.state
    if status.state == "device":
        return (
            f"the process of {name} ended in the middle of the switchover; its guest may run at"
            f" {_peer(status)}: look there before you start it anew"
        )
    if status.state in POSTCOPY:
        return (
            f"the process of {name} ended with memory that its guest at {_peer(status)} has not got yet: the"
            " guest cannot go on; 'tvmm stop --force' there ends its machine"
        )
    return (
        f"the process of {name} ended while it migrated ({where}), and its guest with it; what had arrived is discarded"
    )


def _postcopy_rows(status: MigrationStatus) -> list[tuple[str, str]]:
    """Of a guest that has gone before its memory."""
    postcopy = status.postcopy
    if postcopy is None:
        return []
    median = f", half of them under {_ms(postcopy.median_fault_ms)}" if postcopy.median_fault_ms else ""
    rows = [("faults", f"{postcopy.faults} waits for a page{median}")] if postcopy.faults else []
    if postcopy.requests and not postcopy.faults:
        rows = [("requests", f"{postcopy.requests} pages asked for")]
    if postcopy.cuts:
        rows.append(("cuts", "1 broken connection" if postcopy.cuts == 1 else f"{postcopy.cuts} broken connections"))
    return rows


def _disks(disks: DiskProgress) -> str:
    """How far their copies are."""
    slowed = f", slowed to {amount(disks.slowed_to)}/s" if disks.slowed_to else ""
    return (
        f"{amount(disks.total)}, {amount(disks.remaining)} left; {amount(disks.transferred)} sent at "
        f"{amount(disks.throughput)}/s, {amount(disks.dirty_rate)}/s written{slowed}"
    )


def _phase(status: MigrationStatus) -> str:
    """What it is at; who has pressed Ctrl-C wants to see that it was heard."""
    return "cancelling" if status.state == "cancelling" else status.phase or status.state


def _peer(status: MigrationStatus) -> str:
    return status.peer or "the other end"


def _parts(parts: DowntimeParts) -> str:
    return ", ".join(f"{title} {_ms(getattr(parts, field))}" for title, field in _PARTS)


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


def _over(connections: int) -> str:
    return f" over {connections} connections" if connections > 1 else ""


def _ms(milliseconds: float | None) -> str:
    return "unknown" if milliseconds is None else _seconds(milliseconds / 1000)


def _seconds(seconds: float) -> str:
    """A span of time in three digits; long ones in minutes and seconds."""
    if seconds < 600:
        return format_duration(seconds)
    return f"{int(seconds) // 60}m{int(seconds) % 60}s"


def _pages(ram: RamProgress) -> str:
    """By what became of them; free ones only where a guest has said which these are."""
    free = f", {ram.spared} free" if ram.spared else ""
    return f"{ram.normal} whole, {ram.zero} zero, {ram.unchanged} unchanged{free}"
