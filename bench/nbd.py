"""Disk requests over NBD: the built-in guest's `blkbench` on tvmm's client and on QEMU's, in turns, on the same server.

    python -m bench.nbd [--runs N] [--seconds N] [--on tmpfs|disk|both] [--case WORD]

One `qemu-nbd` has a raw image in /dev/shm, or in /var/tmp past the page cache, behind a unix socket. Both guests come
and go on it, one after the other. QEMU has virtio-mmio (its microvm) and one iothread, its best. Everything runs on the
same processors as the server, as it does for users.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.blk import CASES, IMAGE_MIB, Case, run
from bench.common import Figures, have_qemu, qemu_command, tvmm_command

if TYPE_CHECKING:
    from collections.abc import Iterator

SEQUENTIAL = (Case("sequential read 64 KiB QD4", "read,65536,4"), Case("sequential write 64 KiB QD4", "write,65536,4"))
EXPORT = "disk"
START_S = 10


@contextmanager
def server(image: Path, cache: tuple[str, ...]) -> Iterator[Path]:
    """`qemu-nbd` on an image: its socket."""
    socket = image.with_suffix(".sock")
    command = ["qemu-nbd", "--format=raw", "--persistent", "--shared=16", f"--export-name={EXPORT}", *cache]
    with subprocess.Popen([*command, f"--socket={socket}", str(image)]) as process:
        try:
            end = time.monotonic() + START_S
            while not socket.exists() and process.poll() is None and time.monotonic() < end:
                time.sleep(0.01)
            yield socket
        finally:
            process.terminate()


def commands(case: Case, socket: Path, options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """tvmm's and QEMU's."""
    append = case.order(options.seconds)
    ours = [*tvmm_command(append), "--disk", f"nbd+unix:///{EXPORT}?socket={socket}{options.extra}"]
    drive = f"if=none,id=d0,driver=nbd,server.type=unix,server.path={socket},export={EXPORT}"
    theirs = [
        *qemu_command(append),
        *("-global", "virtio-mmio.force-legacy=false", "-object", "iothread,id=io0"),
        *("-drive", drive, "-device", "virtio-blk-device,drive=d0,iothread=io0"),
    ]
    return ours, theirs


def measure(where: str, folder: str, cache: tuple[str, ...], options: argparse.Namespace, compare: bool) -> None:
    """All cases on one file system."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="tvmm-bench-") as scratch:
        image = Path(scratch, "disk.img")
        with image.open("wb") as file:
            for _ in range(IMAGE_MIB):
                file.write(os.urandom(1 << 20))
        with server(image, cache) as socket:
            for case in (*CASES, *SEQUENTIAL):
                if options.case not in case.name:
                    continue
                pair = commands(case, socket, options)[: 1 + compare]
                rows = [[run(command, options.seconds) for command in pair] for _ in range(options.runs)]
                print(f"{where}: {case.name}")
                medians = []
                for name, column in zip(("tvmm", "QEMU"), zip(*rows, strict=True), strict=False):
                    figures = Figures(tuple(result.iops for result in column))
                    mib, cpu = (Figures(tuple(part)).median for part in list(zip(*column, strict=True))[1:])
                    medians.append(figures.median)
                    print(f"  {name}: {figures} IOPS  {mib:8.1f} MiB/s  {cpu:6.2f} CPU s", flush=True)
                if compare:
                    print(f"  ratio: {medians[0] / medians[1]:.2f} (goal: 1.0)", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.nbd", description="disk requests over NBD on tvmm and QEMU")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each pattern")
    parser.add_argument("--on", choices=("tmpfs", "disk", "both"), default="both")
    parser.add_argument("--case", default="", help="only patterns with this in their names")
    parser.add_argument("--extra", default="", help="more options of tvmm's disk, as ',connections=4'")
    options = parser.parse_args()
    compare = have_qemu()
    if options.on != "disk":
        measure("tmpfs", "/dev/shm", (), options, compare)
    if options.on != "tmpfs":
        measure("disk", "/var/tmp", ("--cache=none", "--aio=native"), options, compare)


if __name__ == "__main__":
    main()
