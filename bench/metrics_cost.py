"""What timing costs: the disk and net benches with the histograms on and off, in turns, on the same file and TAP.

    python -m bench.metrics_cost [--runs N] [--seconds N] [--only disk|net|clock]

Counters are always on; they were before there were histograms. What histograms add is a look at the clock for each
batch and some instructions for each request, and C has a switch for all of it (`set_timing`), which this throws. Each
pair of runs is compared by itself, the two in changing order, and what is told is the median of the ratios with its
spread: on a machine that does other things a single percent is not to be seen in less than many runs. Therefore also
`clock`: what a look and a value cost by themselves, to be held against the time of a request. The goal is 1 %.

Net benches need root, for a network namespace.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import blk, net
from bench.common import tvmm_command
from tvmm.kvm import histogram

INSIDE = "TVMM_BENCH_METRICS"
ON = "import sys; from tvmm.cli import main; sys.exit(main())"
OFF = f"from tvmm.kvm.histogram import set_timing; set_timing(False); {ON}"
IMAGE_MIB = 256


def command(code: str, options: Sequence[str]) -> list[str]:
    """`tvmm run` in a process that begins with `code`."""
    return [sys.executable, "-c", code, *options]


def compare(name: str, run: Callable[[list[str]], float], options: Sequence[str], runs: int, *, more: bool) -> None:
    """One case: how much slower it is with histograms than without, as the median over pairs of runs."""
    costs = []
    for number in range(runs):
        order = (ON, OFF) if number % 2 else (OFF, ON)
        found = {code: run(command(code, options)) for code in order}
        ratio = found[OFF] / found[ON] if more else found[ON] / found[OFF]
        costs.append(100 * (ratio - 1))
    quarter = statistics.quantiles(costs, n=4) if len(costs) > 1 else [costs[0]] * 3
    spread = f"quarters {quarter[0]:+.2f} to {quarter[2]:+.2f}, {runs} pairs"
    print(f"{name:32} {statistics.median(costs):+6.2f} %  ({spread})", flush=True)


def disks(runs: int, seconds: int) -> None:
    """All cases of bench.blk on a file in memory, where requests are shortest."""
    print("disk: what histograms cost, goal 1 %")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="tvmm-bench-") as scratch:
        image = Path(scratch, "disk.img")
        with image.open("wb") as file:
            for _ in range(IMAGE_MIB):
                file.write(os.urandom(1 << 20))
        for case in blk.CASES:
            options = [*tvmm_command(case.order(seconds))[1:], "--disk", f"{image},cache=none"]
            compare(case.name, lambda words: blk.run(words, seconds).iops, options, runs, more=True)


def nets(runs: int, seconds: int) -> None:
    """All cases of bench.net."""
    print("net: what histograms cost, goal 1 %")
    with tempfile.TemporaryDirectory() as scratch:
        flood = Path(scratch, "flood")
        source = Path(net.__file__).with_name("flood.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-o", str(flood), str(source)], check=True)
        net.set_up()
        for case in net.CASES:
            net.ip("addr", "flush", "dev", net.TAP)
            if not case.more_is_better:
                net.ip("addr", "add", f"{net.HOST}/24", "dev", net.TAP)
            options = net.commands(case, seconds, "pci")[0][1:]

            def measure(words: list[str], case: net.Case = case) -> float:
                return net.run(words, case, seconds, flood).value

            compare(case.name, measure, options, runs, more=case.more_is_better)


def clock() -> None:
    """What timing costs by itself, in nanoseconds for each request of a batch."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch, "latency_cost")
        source = Path(__file__).with_name("latency_cost.c")
        include = Path(histogram.__file__).parent
        subprocess.run(["gcc", "-O2", f"-I{include}", "-o", str(program), str(source)], check=True)
        lines = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    print("what timing adds to a request, the look at the clock included; 1 % of 4 us is 40 ns")
    for batch, cost in (line.split() for line in lines):
        print(f"  batch of {batch:>2}: {cost} ns")


def main() -> None:
    """Measure and print, inside a namespace that ends with us."""
    parser = argparse.ArgumentParser(prog="bench.metrics_cost", description="what timing costs")
    parser.add_argument("--runs", type=int, default=9, help="pairs for each case")
    parser.add_argument("--seconds", type=int, default=2, help="of each run")
    parser.add_argument("--only", choices=("disk", "net", "clock"))
    options = parser.parse_args()
    if options.only in (None, "clock"):
        clock()
    if options.only in (None, "disk"):
        disks(options.runs, options.seconds)
    if options.only in (None, "net"):
        if os.environ.get(INSIDE) != "1":
            words = ["-m", "bench.metrics_cost", "--only", "net"]
            words += [f"--runs={options.runs}", f"--seconds={options.seconds}"]
            sys.stdout.flush()
            os.execvpe("unshare", ["unshare", "-n", sys.executable, *words], {**os.environ, INSIDE: "1"})
        nets(options.runs, options.seconds)


if __name__ == "__main__":
    main()
