"""What limits cost a device that has none: its servers as they are, and built without asking for limits, in turns.

    python -m bench.limits [--runs N]

The servers' C runs in a small program that is the driver, too (limit_cost.c): reads of 4 KiB of a file in memory,
frames to /dev/null, frames from a socket; one at a time, and 64 at once. Instructions are counted by valgrind, in
user space alone, so a request is as cheap as it can be and the share as large; they are the same in each run. Times
are real, system calls included: the median of the ratios of pairs of runs. The goal is 1 % of the time of a request,
which on its way through a guest is some 4 us at the least.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

from bench.common import RUNS
from tvmm.kvm import build

KINDS = {"disk": "read of 4 KiB", "tx": "frame sent", "rx": "frame received"}
BATCHES = (1, 64)
TIMED, COUNTED = 200_000, (2_000, 4_000)
"""Requests of a run that is timed, and of two runs that are counted: their difference has no start and no end."""


def compile_servers(folder: Path) -> dict[str, Path]:
    """The two programs."""
    sources = [*(build.HERE / name for name in build.SOURCES), Path(__file__).with_name("limit_cost.c")]
    text = folder / "servers.c"
    text.write_text("".join(path.read_text() for path in sources))
    programs = {}
    for name, options in (("as it is", []), ("without", ["-DTVMM_NO_LIMITS"])):
        programs[name] = folder / name.replace(" ", "_")
        command = ["gcc", "-O2", "-g", "-pthread", *options, f"-I{build.HERE}", "-o", str(programs[name]), str(text)]
        subprocess.run(command, check=True)
    return programs


def run(program: Path, kind: str, batch: int, requests: int, image: Path) -> float:
    """Nanoseconds a request."""
    command = [str(program), kind, str(batch), str(requests // batch), str(image)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def instructions(program: Path, kind: str, batch: int, image: Path) -> float:
    """A request's, exactly."""
    found = []
    for requests in COUNTED:
        laps = requests // 64 * 64 // batch
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(program)]
        words = [kind, str(batch), str(laps), str(image)]
        text = subprocess.run([*command, *words], check=True, capture_output=True, text=True).stderr
        collected = re.search(r"Collected : (\d+)", text)
        if collected is None:
            raise SystemExit(f"valgrind printed:\n{text}")
        found.append((int(collected[1]), laps * batch))
    (few, some), (many, more) = found
    return (many - few) / (more - some)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.limits", description="what limits cost a device that has none")
    parser.add_argument("--runs", type=int, default=RUNS, help="pairs of runs that are timed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="tvmm-bench-") as scratch:
        programs = compile_servers(Path(scratch))
        image = Path(scratch, "image")
        image.write_bytes(bytes(4096))
        ours, bare = programs["as it is"], programs["without"]
        for kind, meaning in KINDS.items():
            for batch in BATCHES:
                print(f"{meaning}, {batch} at once")
                if shutil.which("valgrind"):
                    with_limits, without = (instructions(program, kind, batch, image) for program in (ours, bare))
                    more = with_limits - without
                    print(f"  instructions {with_limits:8.1f}, without {without:8.1f}: {more:+.1f}", end="")
                    print(f" ({100 * more / without:+.2f} % of user space)")
                ratios: list[float] = []
                best = dict.fromkeys((ours, bare), float("inf"))
                for number in range(options.runs):
                    order = (ours, bare) if number % 2 else (bare, ours)
                    took = {program: run(program, kind, batch, TIMED, image) for program in order}
                    ratios.append(100 * (took[ours] / took[bare] - 1))
                    best = {program: min(best[program], took[program]) for program in best}
                print(f"  ns, at best  {best[ours]:8.1f}, without {best[bare]:8.1f}", end="")
                spread = f"{min(ratios):+.1f} to {max(ratios):+.1f}, {options.runs} pairs"
                print(f"; {statistics.median(ratios):+.2f} % in the median ({spread})", flush=True)


if __name__ == "__main__":
    main()
