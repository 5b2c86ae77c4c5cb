"""Disk requests: the built-in guest's `blkbench` on tvmm and on QEMU, in turns, on the same file.

    python -m bench.blk [--runs N] [--seconds N] [--on tmpfs|disk|both] [--transport pci|mmio]

QEMU has virtio-mmio (its microvm), one iothread, cache=none and aio=native, its best on either. The same
guest sends the same requests, polling for what comes back, and counts IOPS and MiB/s; CPU seconds are those of
the whole process, per GiB moved.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from bench.common import Figures, children_cpu_s, have_qemu, qemu_command, tvmm_command

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
    """What the guest counted, and the host's CPU seconds."""

    iops: float
    mib: float
    cpu: float


def run(command: list[str], seconds: int) -> Result:
    """One guest, to its end."""
    before = children_cpu_s()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60 + 4 * seconds)
    cpu = children_cpu_s() - before
    text = done.stdout.decode(errors="replace")
    found = re.search(r": (\d+) IOPS, ([\d.]+) MiB/s.*?(\d+) errors", text)
    if not found or found[3] != "0":
        raise SystemExit(f"{command[0]} printed:\n{text}\n{done.stderr.decode(errors='replace')}")
    return Result(float(found[1]), float(found[2]), cpu)


def start_cpu(command: list[str]) -> float:
    """CPU seconds of a guest with the same devices that only powers off: start and end, which move nothing."""
    idle = [re.sub("run=\\S+ ", "run=blk,0 ", word) for word in command]
    before = children_cpu_s()
    subprocess.run(idle, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return children_cpu_s() - before


def commands(case: Case, image: Path, seconds: int, transport: str) -> tuple[list[str], list[str]]:
    """tvmm's and QEMU's."""
    append = case.order(seconds)
    ours = [*tvmm_command(append), "--disk", f"{image},cache=none,transport={transport}"]
    theirs = [
        *qemu_command(append),
        *("-global", "virtio-mmio.force-legacy=false", "-object", "iothread,id=io0"),
        *("-drive", f"if=none,id=d0,file={image},format=raw,cache=none,aio=native"),
        *("-device", "virtio-blk-device,drive=d0,iothread=io0"),
    ]
    return ours, theirs


def measure(where: str, folder: str, options: argparse.Namespace, compare: bool) -> None:
    """All cases on one file system."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="tvmm-bench-") as scratch:
        image = Path(scratch, "disk.img")
        with image.open("wb") as file:
            for _ in range(IMAGE_MIB):
                file.write(os.urandom(1 << 20))
        for case in CASES:
            pair = commands(case, image, options.seconds, options.transport)[: 1 + compare]
            rows = [[run(command, options.seconds) for command in pair] for _ in range(options.runs)]
            print(f"{where}: {case.name}")
            seen = []
            for name, command, column in zip(("tvmm", "QEMU"), pair, zip(*rows, strict=True), strict=False):
                start = start_cpu(command)
                iops = Figures(tuple(result.iops for result in column)).median
                mib = Figures(tuple(result.mib for result in column)).median
                # Per GiB that was moved in the seconds that the guest was asked for.
                spent = [(result.cpu - start) / (result.mib * options.seconds / 1024) for result in column]
                cpu = Figures(tuple(spent)).median
                seen.append((iops, cpu))
                print(f"  {name}: {iops:9.0f} IOPS  {mib:8.1f} MiB/s  {cpu:7.3f} CPU s/GiB")
            if compare:
                (ours, our_cpu), (theirs, their_cpu) = seen
                print(f"  ratio: IOPS {ours / theirs:.2f} (goal: 1.0)  CPU {our_cpu / their_cpu:.2f} (goal: 1.2)")


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
