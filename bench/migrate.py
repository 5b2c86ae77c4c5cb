"""Live migration: the built-in guest, writing pages, moves between two processes of tvmm and of QEMU, in turns.

    python -m bench.migrate [--runs N] [--case WORD]... [--only tvmm|qemu] [--connections N] [--spin]

1 GiB, all of it written before; over loopback TCP. tvmm has its defaults, QEMU no bandwidth limit and a downtime limit
of 30 ms. For each case: total time and downtime as the monitor tells, the longest pause as the guest's clock tells,
bytes over total time, and the guest's page writes a second while it was being migrated. The guest sleeps between page
writes and so may miss up to a millisecond of a pause; with --spin it never sleeps, and takes a core for itself.

The guest prints its writes and its longest pause between two marks, one before and one after the migration. What lies
between the marks and is not migration is taken off at the rate that it had before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.common import Figures, have_qemu
from bench.peers import Line, Monitor, Qemu, Report, Tvmm, free_port

TOUCH_MIB = 900
"""Of the guest's 1 GiB: the rest is what it keeps for itself."""
BASE_SECONDS = 1.0
MIGRATE_SECONDS = 60.0
MARK = r"mark (\d+): (\d+) page writes in (\d+) us, longest pause (\d+) us"


class Case(NamedTuple):
    """A load, in the words of `dirty`."""

    name: str
    rate: str
    size: str

    @property
    def flat_out(self) -> bool:
        """Whether the guest's own rate says something."""
        return self.rate == "0"


CASES = {
    "idle": Case("no page writes", "none", "64M"),
    "1k": Case("1,000 page writes/s over 64 MiB", "1000", "64M"),
    "20k": Case("20,000 page writes/s over 64 MiB", "20000", "64M"),
    "100k": Case("100,000 page writes/s over 64 MiB", "100000", "64M"),
    "flat": Case("flat out over 256 MiB", "0", "256M"),
}


class Result(NamedTuple):
    """One migration. `rate` is page writes a second while it lasted, `before` those of the second before it.

    `noise_ms` is the longest pause of that second: what the host does to a guest that nobody migrates.
    """

    total_ms: float
    downtime_ms: float
    pause_ms: float
    mib_s: float
    rate: float
    before: float
    noise_ms: float
    rounds: int

    @property
    def lost(self) -> float:
        """Page writes that the guest would have made in that time if nobody had migrated it."""
        return (self.before - self.rate) * self.total_ms / 1e3


class Mark(NamedTuple):
    """What the guest did since the mark before."""

    writes: int
    us: int
    pause_us: int


def mark(line: Line) -> Mark:
    """Set one. Nothing else is to print marks at the time."""
    line.send("m")
    found = line.expect(MARK)
    return Mark(int(found[2]), int(found[3]), int(found[4]))


def touch(line: Line) -> None:
    """Have the guest write most of its memory at least once."""
    pages = TOUCH_MIB << 8
    line.send(f"dirty 0 {TOUCH_MIB}M\n")
    written = 0
    while written < pages:
        written += mark(line).writes
        time.sleep(0.1)
    line.send("q")
    line.expect(r"dirtied \d+ pages .* 0 errors")
    line.expect("tvmm> ")


def result_of(report: Report, base: Mark, during: Mark) -> Result:
    """Both sides' figures put together."""
    total_ms = float(report["total-time"])
    before = base.writes / base.us * 1e6
    outside_us = max(during.us - total_ms * 1e3, 0)
    rate = (during.writes - before * outside_us / 1e6) / (total_ms / 1e3)
    ram = report["ram"]
    mib_s = ram["transferred"] / (1 << 20) / (total_ms / 1e3)
    return Result(
        total_ms,
        float(report["downtime"]),
        during.pause_us / 1e3,
        mib_s,
        rate,
        before,
        base.pause_us / 1e3,
        int(ram.get("dirty-sync-count", 0)),
    )


def run(monitor: Monitor, case: Case, spin: bool) -> Result | None:
    """One migration from start to end; None if it did not finish in `MIGRATE_SECONDS`."""
    found = moved(monitor, case, spin)
    return None if found is None else result_of(*found)


def moved(monitor: Monitor, case: Case, spin: bool) -> tuple[Report, Mark, Mark] | None:
    """The same: what the monitor told, and what the guest did in the second before and while it was migrated."""
    with tempfile.TemporaryDirectory(prefix="tvmm-bench-") as scratch:
        try:
            return moved_in(monitor, case, spin, Path(scratch))
        except SystemExit:
            print(monitor.words(Path(scratch)), file=sys.stderr)
            raise


def moved_in(monitor: Monitor, case: Case, spin: bool, folder: Path) -> tuple[Report, Mark, Mark] | None:
    """The same with a place for sockets."""
    with monitor.pair(folder) as (source, target):
        touch(source)
        source.send(f"dirty {case.rate} {case.size}{' spin' if spin else ''}\n")
        mark(source)
        time.sleep(BASE_SECONDS)
        base = mark(source)
        report = monitor.migrate(MIGRATE_SECONDS)
        if report["status"] != "completed":
            return None
        during = mark(target)
        target.send("q")
        target.expect(r"dirtied \d+ pages .* 0 errors")
        target.expect("tvmm> ")
        target.send("check\n")
        target.expect(r"checked \d+ pages: 0 errors")
        return report, base, during


def print_case(case: Case, names: Sequence[str], rows: Sequence[Sequence[Result | None]]) -> None:
    """Medians with their ranges, and ratios of medians where there are two."""
    print(case.name)
    quantities = [
        ("total time", "ms", "total_ms"),
        ("downtime by its own word", "ms", "downtime_ms"),
        ("longest pause that the guest saw", "ms", "pause_ms"),
        ("longest pause in the second before", "ms", "noise_ms"),
        ("throughput", "MiB/s", "mib_s"),
        ("rounds", "", "rounds"),
    ]
    if case.flat_out:
        quantities += [
            ("page writes/s while migrated", "", "rate"),
            ("page writes/s before", "", "before"),
            ("page writes that being migrated cost", "", "lost"),
        ]
    goals = {"total_ms": "at most 1.0", "pause_ms": "10 ms", "rate": "at least 1.0"}
    for what, unit, field in quantities:
        print(f"  {what}{f' [{unit}]' if unit else ''}")
        medians = []
        for name, column in zip(names, rows, strict=True):
            done = [result for result in column if result is not None]
            missing = f", {len(column) - len(done)} did not finish" if len(done) < len(column) else ""
            if not done:
                print(f"    {name}  none finished")
                continue
            figures = Figures(tuple(float(getattr(result, field)) for result in done))
            medians.append(figures.median)
            print(f"    {name} {figures}{missing}")
        if len(medians) > 1 and medians[1]:
            goal = f"  (goal: {goals[field]})" if field in goals else ""
            print(f"    ratio of medians {medians[0] / medians[1]:.2f}{goal}")


def loopback_mib_s(streams: int, seconds: float = 1.0) -> float:
    """What TCP over loopback carries, by iperf3 if there is one, else by sockets of our own."""
    port = free_port()
    if shutil.which("iperf3") is None:
        return own_loopback_mib_s(port, streams, seconds)
    listen = ["iperf3", "-s", "-1", "--forceflush", "-p", str(port)]
    with subprocess.Popen(listen, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        while "listening" not in server.stdout.readline():
            pass
        words = ["iperf3", "-c", "127.0.0.1", "-p", str(port), "-P", str(streams), "-t", str(int(seconds)), "-J"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    rate: float = json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]
    return rate / 8 / (1 << 20)


def own_loopback_mib_s(port: int, streams: int, seconds: float) -> float:
    """The same by threads, which spend their time in the kernel and not in Python."""
    received = [0] * streams
    block = bytes(1 << 20)

    def receive(index: int, end: socket.socket) -> None:
        room = bytearray(1 << 20)
        while count := end.recv_into(room):
            received[index] += count

    def send(end: socket.socket, deadline: float) -> None:
        while time.monotonic() < deadline:
            end.sendall(block)
        end.close()

    with socket.create_server(("127.0.0.1", port)) as server:
        started = time.monotonic()
        threads = []
        for index in range(streams):
            near = socket.create_connection(("127.0.0.1", port))
            far, _ = server.accept()
            threads.append(threading.Thread(target=receive, args=(index, far)))
            threads.append(threading.Thread(target=send, args=(near, started + seconds)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - started
    return sum(received) / (1 << 20) / took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.migrate", description="live migration on tvmm and QEMU")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--case", choices=tuple(CASES), action="append", help="may be repeated (default: all)")
    parser.add_argument("--only", choices=("tvmm", "qemu"))
    parser.add_argument("--connections", type=int, default=0, metavar="N", help="for tvmm (default: its own)")
    parser.add_argument("--spin", action="store_true", help="a guest that never sleeps")
    options = parser.parse_args()
    several = ["--connections", str(options.connections)] if options.connections else []
    monitors: list[Monitor] = []
    if options.only != "qemu":
        monitors.append(Tvmm(several))
    if options.only == "qemu" or (options.only is None and have_qemu()):
        monitors.append(Qemu())
    streams = max(options.connections, 1)
    print(f"load average {os.getloadavg()[0]:.1f}; what else runs here shows in all figures")
    for name in options.case or CASES:
        turns, loopback = [], []
        for _ in range(options.runs):
            turns.append([run(monitor, CASES[name], options.spin) for monitor in monitors])
            loopback.append(loopback_mib_s(streams))
        print_case(CASES[name], [monitor.name for monitor in monitors], list(zip(*turns, strict=True)))
        print(f"  loopback TCP with as many streams as tvmm has by option, {streams} [MiB/s]")
        print(f"         {Figures(tuple(loopback))}  (goal: tvmm's throughput at least 0.8 of it)", flush=True)


if __name__ == "__main__":
    main()
