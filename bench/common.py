"""What the benchmarks share: the two monitors' command lines, medians, and one way to print a comparison.

Every benchmark measures tvmm and QEMU in turns in the same run, on the same guest image, because absolute times on a
shared machine mean little. QEMU is Debian's package `qemu-system-x86`.
"""

from __future__ import annotations

import compileall
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import tvmm
from tvmm.kernel_files import builtin_guest_path

QEMU = "qemu-system-x86_64"
RUNS = 9


class Figures(NamedTuple):
    """Values of one quantity, one for each run."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{self.median:10.2f}  ({min(self.values):.2f} to {max(self.values):.2f}, {len(self.values)} runs)"


@cache
def compile_modules() -> None:
    """As pip does when it installs tvmm, and not for a working copy: else each start may compile all that it imports,
    which takes as long again, or longer where PYTHONDONTWRITEBYTECODE is set.
    """
    compileall.compile_dir(os.path.dirname(tvmm.__file__), quiet=2)


def tvmm_command(append: str, *, memory: str = "256M", serial: str = "stdio", cpus: int = 1) -> list[str]:
    """`tvmm run` with the built-in guest."""
    compile_modules()
    program = shutil.which("tvmm", path=os.path.dirname(sys.executable)) or "tvmm"
    options = ["--append", append] if append else []
    if memory != "256M":
        options += ["--memory", memory]
    if serial != "stdio":
        options += ["--serial", serial]
    if cpus != 1:
        options += ["--cpus", str(cpus)]
    return [program, "run", *options]


def qemu_command(append: str, *, memory: str = "256M", serial: str = "stdio", cpus: int = 1) -> list[str]:
    """QEMU's smallest machine with the same guest."""
    return [
        QEMU,
        *("-M", "microvm,acpi=off", "-accel", "kvm", "-cpu", "qemu64", "-m", memory, "-smp", str(cpus)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-serial", serial, "-no-reboot"),
        *("-device", "isa-debug-exit,iobase=0x501,iosize=2"),
        *("-kernel", builtin_guest_path(), "-append", append),
    ]


def have_qemu() -> bool:
    """Whether there is something to compare with; says so if not."""
    if shutil.which(QEMU):
        return True
    print(f"{QEMU} is not installed: 'apt-get install qemu-system-x86' to compare with it", file=sys.stderr)
    return False


def first_byte_ms(command: Sequence[str]) -> float:
    """Milliseconds from the start of a process to the first byte on its standard output; waits for its end."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = os.read(process.stdout.fileno(), 1)
        took = time.perf_counter() - started
        process.stdout.read()
        words = process.stderr.read().decode(errors="replace")
    if not first:
        raise SystemExit(f"{command[0]} printed nothing and ended with {process.returncode}: {words}")
    return took * 1e3


def output_of(command: Sequence[str]) -> str:
    """Standard output of a command that powers its guest off."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.stdout.decode(errors="replace")


def children_cpu_s() -> float:
    """CPU seconds of all processes that were waited for so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_turns(runs: int, *measures: Callable[[], float]) -> list[Figures]:
    """Each measure once for warming up and then `runs` times, in turns."""
    for measure in measures:
        measure()
    rows = [[measure() for measure in measures] for _ in range(runs)]
    return [Figures(tuple(column)) for column in zip(*rows, strict=True)]


def report(what: str, unit: str, ours: Figures, theirs: Figures | None, goal: str) -> None:
    """One comparison: both medians with their range, the ratio of medians, and the goal."""
    print(f"{what} [{unit}]")
    print(f"  tvmm {ours}")
    if theirs is not None:
        print(f"  QEMU {theirs}")
        print(f"  ratio of medians {ours.median / theirs.median:.2f}  (goal: {goal})")
    else:
        print(f"  (goal: {goal})")


def free_folder(name: str) -> Path:
    """A scratch folder of the benchmark's own, in memory where there is a /dev/shm."""
    base = Path("/dev/shm") if os.path.isdir("/dev/shm") else Path("/tmp")
    folder = base / f"tvmm-bench-{os.getpid()}-{name}"
    folder.mkdir()
    return folder
