"""Disk requests: the built-in guest's `blkbench` on tvmm and on QEMU, in turns, on the same file.

    python -m bench.blk [--runs N] [--seconds N] [--on tmpfs|disk|both] [--transport pci|mmio]

QEMU has virtio-mmio (its microvm), one iothread, cache=none and io_uring, or threads where there is none. The same
guest sends the same requests, polling for what comes back, and counts IOPS and MiB/s; CPU seconds are those of
the whole process, per GiB moved.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from bench.common import Figures, have_qemu, qemu_command, tvmm_command

IMAGE_MIB = 512


class Case(NamedTuple):
    """One pattern of requests, in the words of `blkbench`."""

    name: str
    words: str

    def order(self, seconds: int) -> str:
        """For the kernel's command line."""
        return f"run=blkbench,0,{self.words},{seconds} then=poweroff quiet"


CASES = (
    Case("random read 4 KiB QD1", "randread,4096,1"),
    Case("random read 4 KiB QD32", "randread,4096,32"),
    Case("random write 4 KiB QD1", "randwrite,4096,1"),
    Case("random write 4 KiB QD32", "randwrite,4096,32"),
    Case("sequential read 1 MiB QD4", "read,1048576,4"),
    Case("sequential write 1 MiB QD4", "write,1048576,4"),
)


class Result(NamedTuple):
    """What the guest counted, and what the host paid."""

    iops: float
    mib: float
    cpu_per_gib: float


def run(command: list[str], seconds: int) -> Result:
    """One guest, to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60 + 4 * seconds)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = done.stdout.decode(errors="replace")
    found = re.search(r": (\d+) IOPS, ([\d.]+) MiB/s.*?(\d+) errors", text)
    if not found or found[3] != "0":
        raise SystemExit(f"{command[0]} printed:\n{text}\n{done.stderr.decode(errors='replace')}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    mib = float(found[2])
    return Result(float(found[1]), mib, cpu / (mib * seconds / 1024) if mib else 0.0)


def commands(case: Case, image: Path, seconds: int, transport: str) -> tuple[list[str], list[str]]:
    """tvmm's and QEMU's."""
    append = case.order(seconds)
    ours = [*tvmm_command(append), "--disk", f"{image},cache=none,transport={transport}"]
    theirs = [
        *qemu_command(append),
        *("-global", "virtio-mmio.force-legacy=false", "-object", "iothread,id=io0"),
        *("-drive", f"if=none,id=d0,file={image},format=raw,cache=none,aio={qemu_aio(image)}"),
        *("-device", "virtio-blk-device,drive=d0,iothread=io0"),
    ]
    return ours, theirs


def qemu_aio(image: Path) -> str:
    """The best that Debian's QEMU has for this file: native asynchronous I/O is none on tmpfs."""
    return "threads" if str(image).startswith("/dev/shm") else "native"


def measure(where: str, folder: str, options: argparse.Namespace, compare: bool) -> None:
    """All cases on one file system."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="tvmm-bench-") as scratch:
        image = Path(scratch, "disk.img")
        with image.open("wb") as file:
            for _ in range(IMAGE_MIB):
                file.write(os.urandom(1 << 20))
        for case in CASES:
            pair = commands(case, image, options.seconds, options.transport)
            rows = [
                [run(command, options.seconds) for command in pair[: 1 + compare]] for _ in range(options.runs)
            ]
            print(f"{where}: {case.name}")
            for name, column in zip(("tvmm", "QEMU"), zip(*rows, strict=True), strict=False):
                iops = Figures(tuple(result.iops for result in column))
                mib = Figures(tuple(result.mib for result in column))
                cpu = Figures(tuple(result.cpu_per_gib for result in column))
                print(f"  {name}: {iops.median:9.0f} IOPS  {mib.median:8.1f} MiB/s  {cpu.median:7.3f} CPU s/GiB")
            if compare:
                ours, theirs = (
                    (
                        Figures(tuple(result.iops for result in column)).median,
                        Figures(tuple(result.cpu_per_gib for result in column)).median,
                    )
                    for column in zip(*rows, strict=True)
                )
                print(f"  ratio: IOPS {ours[0] / theirs[0]:.2f} (goal: 1.0)  CPU {ours[1] / theirs[1]:.2f} (goal: 1.2)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.blk", description="disk requests on tvmm and QEMU")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each pattern")
    parser.add_argument("--on", choices=("tmpfs", "disk", "both"), default="both")
    parser.add_argument("--transport", choices=("pci", "mmio"), default="pci", help="of tvmm's disk")
    options = parser.parse_args()
    compare = have_qemu()
    if options.on != "disk":
        measure("tmpfs", "/dev/shm", options, compare)
    if options.on != "tmpfs":
        measure("disk", "/var/tmp", options, compare)


if __name__ == "__main__":
    main()
