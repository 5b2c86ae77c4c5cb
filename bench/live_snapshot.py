"""A guest of 1 GiB that is saved while it writes: `tvmm save --live` and QEMU's background snapshot, in turns.

    python -m bench.live_snapshot [--runs 5] [--case idle|20k|flat]... [--by protection|log]... [--only tvmm|qemu]
                                  [--folder .]

`--by log` is tvmm without userfaultfd, which leaves it the dirty log; given twice, one after the other in each turn.
QEMU's is `migrate` to `exec:cat` with the capability `background-snapshot` and no bandwidth limit. For each load: the
longest pause as the guest's clock tells, from a mark before the save to one after it, the longest in the second before,
which is what the host does to a guest that nobody saves; and how long the save took by the monitor's word. The guest
checks its pages afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.common import Figures, have_qemu, qemu_command, tvmm_command
from bench.migrate import BASE_SECONDS, CASES, Case, mark, touch
from bench.peers import MEMORY, Line, Qmp
from bench.snapshots import start

LOADS = ("idle", "20k", "flat")
LIVE_BY = {"protection": "write-protection", "log": "dirty-log"}


class Result(NamedTuple):
    """One save, in milliseconds."""

    pause: float
    noise: float
    total: float


@contextmanager
def guest(command: list[str], serial: Path) -> Iterator[Line]:
    """A running one, with most of its memory written."""
    process, line = start(command, serial)
    try:
        line.prompt()
        touch(line)
        yield line
    finally:
        process.terminate()
        process.wait(30)
        line.socket.close()


def measured(line: Line, case: Case, save: Callable[[], float]) -> Result:
    """The load goes on before, during and after the save."""
    line.send(f"dirty {case.rate} {case.size}\n")
    mark(line)
    time.sleep(BASE_SECONDS)
    noise = mark(line).pause_us / 1e3
    total = save()
    pause = mark(line).pause_us / 1e3
    line.send("q")
    line.expect(r"dirtied \d+ pages .* 0 errors")
    return Result(pause, noise, total)


def tvmm(by: str, folder: Path, case: Case) -> Result:
    """One save."""
    name = f"bench-live-{os.getpid()}"
    words = [*tvmm_command("", memory=MEMORY, serial=f"unix={folder}/s"), "--name", name]
    machine = [sys.executable, "-m", "bench.by_log", *words[1:]] if by == "log" else words
    with guest(machine, folder / "s") as line:

        def save() -> float:
            command = [words[0], "save", name, f"{folder}/tvmm.snap", "--live", "--json"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            report = json.loads(done.stdout.splitlines()[-1])
            if report["live-by"] != LIVE_BY[by]:
                raise SystemExit(f"it was saved by {report['live-by']}")
            return float(report["total-time"])

        return measured(line, case, save)


def qemu(folder: Path, case: Case) -> Result:
    """The same."""
    words = qemu_command("", memory=MEMORY, serial=f"unix:{folder}/q,server=on,wait=off")
    with guest([*words, "-qmp", f"unix:{folder}/qmp,server=on,wait=off"], folder / "q") as line:
        qmp = Qmp(folder / "qmp")

        def save() -> float:
            capability = {"capability": "background-snapshot", "state": True}
            qmp.ask("migrate-set-capabilities", capabilities=[capability])
            qmp.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 50})
            qmp.ask("migrate", uri=f"exec:cat > {folder}/qemu.snap")
            while (report := qmp.ask("query-migrate")).get("status") not in ("completed", "failed"):
                time.sleep(0.005)
            if report["status"] == "failed":
                raise SystemExit(f"QEMU: {report}")
            return float(report["total-time"])

        try:
            return measured(line, case, save)
        finally:
            qmp.file.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.live_snapshot", description="saves of running guests")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--case", choices=LOADS, action="append", help="may be repeated (default: all)")
    parser.add_argument("--by", choices=LIVE_BY, action="append", help="may be repeated (default: protection)")
    parser.add_argument("--only", choices=("tvmm", "qemu"))
    parser.add_argument("--folder", default=".", help="where the files are written")
    options = parser.parse_args()
    ways: dict[str, Callable[[Path, Case], Result]] = {}
    if options.only != "qemu":
        ways = {f"tvmm by {by}": partial(tvmm, by) for by in options.by or ["protection"]}
    if options.only != "tvmm" and have_qemu():
        ways["QEMU"] = qemu
    print(f"load average {os.getloadavg()[0]:.1f}; what else runs here shows in all figures")
    for name in options.case or LOADS:
        rows: dict[str, list[Result]] = {way: [] for way in ways}
        for _ in range(options.runs):
            for way, run in ways.items():
                with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                    rows[way].append(run(Path(folder), CASES[name]))
        print(CASES[name].name)
        for field, what in (
            ("pause", "longest pause that the guest saw [ms]  (goal: under 20)"),
            ("noise", "longest pause in the second before [ms]"),
            ("total", "time of the save [ms]"),
        ):
            print(f"  {what}")
            for way, results in rows.items():
                print(f"    {way} {Figures(tuple(float(getattr(result, field)) for result in results))}", flush=True)


if __name__ == "__main__":
    main()
