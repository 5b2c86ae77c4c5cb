"""Live migration on tvmm by its own options: plain, with TLS, over two connections, compressed; in turns.

    python -m bench.variants [--runs N] [--variant WORD]... [--case WORD]

The guest of bench.migrate moves between two processes over loopback TCP. For each variant: total time, throughput (the
bytes of RAM over the time after setup, so that compressed ones compare), setup time, longest pause as the guest saw it,
and CPU seconds of all processes of the run. Both ends share this host's processors, and encryption costs both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench.common import Figures, children_cpu_s, tvmm_command
from bench.migrate import BASE_SECONDS, CASES, MIGRATE_SECONDS, TOUCH_MIB, Case, mark, touch
from bench.peers import Monitor, Tvmm

PLAIN = "plain"
VARIANTS: dict[str, tuple[list[str], list[str]]] = {
    PLAIN: ([], []),
    "tls": (["--tls"], ["--tls"]),
    "two": (["--connections", "2"], []),
    "tls-two": (["--tls", "--connections", "2"], ["--tls"]),
    "zstd": (["--compress", "zstd"], []),
}
"""Options of `tvmm migrate` and of the `tvmm run` that waits."""


class Result(NamedTuple):
    """One migration."""

    total_ms: float
    mib_s: float
    wire_mib: float
    setup_ms: float
    pause_ms: float
    cpu_s: float


TITLES = {
    "total_ms": "total time [ms]",
    "mib_s": "throughput after setup [MiB/s of RAM]",
    "wire_mib": "on the wire [MiB]",
    "setup_ms": "setup [ms]",
    "pause_ms": "longest pause that the guest saw [ms]",
    "cpu_s": "CPU time of both ends, from start to end [s]",
}


def run(monitor: Monitor, case: Case) -> Result:
    """One migration from start to end."""
    before = children_cpu_s()
    with tempfile.TemporaryDirectory(prefix="tvmm-bench-") as scratch, monitor.pair(Path(scratch)) as (source, target):
        touch(source)
        source.send(f"dirty {case.rate} {case.size}\n")
        mark(source)
        time.sleep(BASE_SECONDS)
        mark(source)
        report = monitor.migrate(MIGRATE_SECONDS)
        during = mark(target)
        target.send("q")
        target.expect(r"dirtied \d+ pages .* 0 errors")
    total_ms, setup_ms, wire = float(report["total-time"]), float(report["setup-time"]), report["ram"]["transferred"]
    ram = max(wire, TOUCH_MIB << 20)
    return Result(
        total_ms,
        ram / (1 << 20) / (total_ms - setup_ms) * 1e3,
        wire / (1 << 20),
        setup_ms,
        during.pause_us / 1e3,
        children_cpu_s() - before,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.variants", description="live migration by tvmm's own options")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--variant", choices=tuple(VARIANTS), action="append", help="may be repeated (default: all)")
    parser.add_argument("--case", choices=tuple(CASES), default="idle")
    options = parser.parse_args()
    names = options.variant or list(VARIANTS)
    rows: dict[str, list[Result]] = {name: [] for name in names}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tvmm-bench-") as scratch:
        keys = ["--keys", f"{scratch}/keys"]
        program = tvmm_command("")[0]
        subprocess.run([program, "keys", "init", "--san", "127.0.0.1", *keys], check=True, capture_output=True)
        for _ in range(options.runs):
            for name in names:
                migrate, waiting = ([*words, *keys] if "--tls" in words else words for words in VARIANTS[name])
                rows[name].append(run(Tvmm(migrate, waiting), CASES[options.case]))
    print(f"{CASES[options.case].name}; load average {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    for field, title in TITLES.items():
        print(f"  {title}")
        found = {name: Figures(tuple(getattr(result, field) for result in rows[name])) for name in names}
        for name, figures in found.items():
            beside = f"  {figures.median / found[PLAIN].median:.2f} x plain" if PLAIN in found else ""
            print(f"    {name:8}{figures}{beside}", flush=True)


if __name__ == "__main__":
    main()
