"""Local hand-over: a guest of 1 GiB goes on in another process of tvmm, with its memory or with a copy, in turns.

    python -m bench.hand_over [--runs N] [--load RATE]

Both over a unix socket, all of the memory written before, while the guest writes `--load` pages a second. QEMU 7.2 has
nothing like it. For each way: milliseconds from the start of `tvmm migrate` to the moment at which the source has heard
that the guest runs there (the verb's own start included, and without it), and the pause as both sides tell it and as
the guest's clock tells it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.common import Figures, tvmm_command
from bench.migrate import mark, touch
from bench.peers import MEMORY, Tvmm

GOALS = {"from the command [ms]": 200.0, "told by the source [ms]": 200.0, "pause, told [ms]": 20.0}
WAYS = ("handed over", "copied")


class Result(NamedTuple):
    """Of one hand-over, in milliseconds."""

    command: float
    total: float
    downtime: float
    guest: float


class Local(Tvmm):
    """Two processes and a unix socket."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.shared = shared

    def command(self, folder: Path, side: str, serial: Path) -> Sequence[str]:
        memory = f"{MEMORY},shared=on" if self.shared else MEMORY
        words = [*tvmm_command("", memory=memory, serial=f"unix={serial}"), "--name", f"bench-{os.getpid()}-{side}"]
        self.uri = f"unix:{folder}/migration"
        return words if side == "source" else [*words, "--incoming", self.uri]


def run(way: str, load: str) -> Result:
    """Once."""
    local = Local(way == "handed over")
    with tempfile.TemporaryDirectory(prefix="tvmm-bench-") as folder, local.pair(Path(folder)) as (here, there):
        touch(here)
        here.send(f"dirty {load} 64M 600\n")
        mark(here)
        time.sleep(0.5)
        words = [tvmm_command("")[0], "migrate", f"bench-{os.getpid()}-source", "--to", local.uri, "--json"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            begun = time.perf_counter()
            assert process.stdout is not None
            line, report = b"", {}
            for line in process.stdout:
                report = json.loads(line)
                if report.get("status") == "completed":
                    break
            took = (time.perf_counter() - begun) * 1e3
        if report.get("status") != "completed":
            raise SystemExit(f"it failed: {line!r}")
        if bool(report["ram"]["x-handed-over"]) is not local.shared:
            raise SystemExit("the memory went another way than it should")
        times = report["x-times-ms"]
        pause = mark(there).pause_us / 1e3
        there.send("q")
        there.expect(r"dirtied \d+ pages .* 0 errors")
    return Result(took, times["total"], times["downtime"], pause)


def main() -> None:
    """Both ways in turns, and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--load", default="1000", help="page writes a second, over 64 MiB")
    options = parser.parse_args()
    results: dict[str, list[Result]] = {way: [] for way in WAYS}
    for _ in range(options.runs):
        for way in WAYS:
            results[way].append(run(way, options.load))
    for way in WAYS:
        print(f"{MEMORY} guest, {options.load} page writes/s, {way}")
        columns = zip(*results[way], strict=True)
        for title, values in zip([*GOALS, "pause, by the guest's clock [ms]"], columns, strict=True):
            goal = f"  (goal: at most {GOALS[title]:g})" if way == WAYS[0] and title in GOALS else ""
            print(f"  {title:<32} {Figures(values)}{goal}")


if __name__ == "__main__":
    main()
