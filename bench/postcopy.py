"""Post-copy: the built-in guest goes before its memory, in tvmm and in QEMU, in turns.

    python -m bench.postcopy [--runs N] [--case WORD]... [--only tvmm|qemu] [--start both|ended|begun] [--spin]
    python -m bench.postcopy --loads

The guest of bench.migrate, 1 GiB, all of it written before, over loopback TCP. tvmm: `migrate --postcopy=now`, which
lets the guest go after the first pass. QEMU, without a bandwidth limit: `migrate-start-postcopy` after its first pass
(which is the same), and as soon as that pass has begun (which leaves all memory behind, and is not what tvmm does). A
guest that rests may have moved before anything is left for post-copy: how often pages were left is told too.

For each: total time and downtime as the monitor tells, the longest pause as the guest's clock tells (it includes waits
for single pages), the median time of a fault where it is told, pages asked for and MiB sent after the guest had gone.
For a guest that writes flat out also its page writes a second, before and meanwhile. --loads lists the cases.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from bench.common import Figures, have_qemu
from bench.migrate import CASES, Case, Mark, moved, result_of
from bench.peers import Monitor, Qemu, Report, Tvmm

LOADS = ("idle", "20k", "flat")
STARTS = {"ended": ("QEMU", 2), "begun": ("QEMU at once", 1)}
"""What QEMU is called here, and the pass in which it is told to let the guest go."""
NAME_WIDTH = 12


class Result(NamedTuple):
    """One migration. What a monitor does not tell is None."""

    total_ms: float
    downtime_ms: float
    pause_ms: float
    noise_ms: float
    """Longest pause of the second before."""
    fault_ms: float | None
    requests: float
    sent_mib: float
    """Since the guest has gone."""
    rate: float
    """Page writes a second while it lasted, `before` those of the second before it."""
    before: float
    transfer_ms: float | None
    restore_ms: float | None
    resume_ms: float | None


QUANTITIES = (
    ("total time", "ms", "total_ms"),
    ("downtime by its own word", "ms", "downtime_ms"),
    ("  of it: until the destination had all", "ms", "transfer_ms"),
    ("  of it: loading the state", "ms", "restore_ms"),
    ("  of it: from there until it ran", "ms", "resume_ms"),
    ("longest pause that the guest saw", "ms", "pause_ms"),
    ("longest pause in the second before", "ms", "noise_ms"),
    ("median time of a fault", "ms", "fault_ms"),
    ("pages asked for", "", "requests"),
    ("sent after the guest had gone", "MiB", "sent_mib"),
)
FLAT_OUT = (
    ("page writes/s while migrated", "", "rate"),
    ("page writes/s before", "", "before"),
)


def post_copied(report: Report, base: Mark, during: Mark) -> Result:
    """Both sides' figures put together."""
    whole = result_of(report, base, during)
    own, parts = report.get("x-postcopy"), report.get("x-downtime-parts-ms", {})
    exact = report.get("x-times-ms", {})
    median = own["median-fault-ms"] if own is not None and own["faults"] else None
    return Result(
        whole.total_ms,
        float(exact.get("downtime") or whole.downtime_ms),
        whole.pause_ms,
        whole.noise_ms,
        median,
        report["ram"]["postcopy-requests"],
        report["ram"].get("postcopy-bytes", 0) / (1 << 20),
        whole.rate,
        whole.before,
        parts.get("transfer"),
        parts.get("restore"),
        parts.get("resume"),
    )


def run(monitor: Monitor, case: Case, spin: bool) -> Result | None:
    """One migration from start to end; None if it took too long."""
    found = moved(monitor, case, spin)
    return None if found is None else post_copied(*found)


def print_case(case: Case, names: Sequence[str], rows: Sequence[Sequence[Result | None]]) -> None:
    """Medians with their ranges; behind QEMU's, tvmm's median over it."""
    print(case.name)
    for name, column in zip(names, rows, strict=True):
        done = [result for result in column if result is not None]
        left = sum(bool(result.sent_mib) for result in done)
        print(f"  {name:{NAME_WIDTH}} {len(done)} of {len(column)} finished, {left} left pages behind")
    for what, unit, field in (*QUANTITIES, *(FLAT_OUT if case.flat_out else ())):
        print(f"  {what}{f' [{unit}]' if unit else ''}")
        ours = None
        for name, column in zip(names, rows, strict=True):
            values = [getattr(result, field) for result in column if result is not None]
            told = tuple(float(value) for value in values if value is not None)
            if not told:
                continue
            figures = Figures(told)
            beside = ""
            if name == Tvmm.name:
                ours = figures.median
            elif ours is not None and figures.median:
                beside = f"  tvmm / it: {ours / figures.median:.2f}"
            print(f"    {name:{NAME_WIDTH}} {figures}{beside}")
    sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.postcopy", description="post-copy migration on tvmm and QEMU")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--case", choices=tuple(CASES), action="append", help="may be repeated (see --loads)")
    parser.add_argument("--only", choices=("tvmm", "qemu"))
    parser.add_argument("--start", choices=("both", *STARTS), default="both", help="QEMU's first pass has")
    parser.add_argument("--spin", action="store_true", help="a guest that never sleeps")
    parser.add_argument("--loads", action="store_true", help="list the cases, and do nothing else")
    options = parser.parse_args()
    if options.loads:
        for name, case in CASES.items():
            print(f"{name:6} {case.name}{'' if name in LOADS else '  (only if asked for)'}")
        return
    monitors: dict[str, Monitor] = {}
    if options.only != "qemu":
        monitors[Tvmm.name] = Tvmm(["--postcopy=now"])
    if options.only == "qemu" or (options.only is None and have_qemu()):
        for start, (name, number) in STARTS.items():
            if options.start in ("both", start):
                monitors[name] = Qemu(postcopy=number)
    print(f"load average {os.getloadavg()[0]:.1f}; what else runs here shows in all figures")
    for word in options.case or LOADS:
        turns = [
            [run(monitor, CASES[word], options.spin) for monitor in monitors.values()] for _ in range(options.runs)
        ]
        print_case(CASES[word], list(monitors), list(zip(*turns, strict=True)))


if __name__ == "__main__":
    main()
