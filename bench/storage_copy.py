"""A disk goes along: the built-in guest moves, and its image is copied while it writes, in tvmm and QEMU, in turns.

    python -m bench.storage_copy [--runs N] [--size MIB] [--folder DIR] [--iops N] [--only tvmm|qemu] [--tls]

The image is full of random data. Over loopback TCP, without limits of bandwidth; the guest makes --iops random writes
of 4 KiB a second to it meanwhile (0: as many as it can). tvmm: `migrate --copy-storage`. QEMU: `drive-mirror` to an NBD
server of the destination, then `migrate` once the mirror is ready, as its manual has it. And `dd` with fdatasync of the
same image beside them, in turns too. Told are the time to the first complete copy, the whole time, and the pause as the
monitor tells it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from bench.common import Figures, free_folder, have_qemu, qemu_command, tvmm_command
from bench.peers import Line, Monitor, Qemu, Tvmm, free_port

MIGRATE_SECONDS = 300.0
POLL_SECONDS = 0.02
MEMORY = "128M"


class Result(NamedTuple):
    """Seconds to the first copy and in all, and the pause in milliseconds."""

    copied_s: float
    total_s: float
    pause_ms: float


class DiskTvmm(Tvmm):
    """With a disk at each side."""

    def __init__(self, folder: Path, iops: int, *, tls: bool) -> None:
        super().__init__(["--copy-storage", "--max-downtime", "300ms"])
        self.folder, self.iops = folder, iops
        self.code = ""
        self.tls = tls

    def command(self, folder: Path, side: str, serial: Path) -> Sequence[str]:
        """See `Monitor`."""
        words = tvmm_command("", memory=MEMORY, serial=f"unix={serial}")
        words += ["--name", f"bench-{os.getpid()}-{side}"]
        limit = f",iops_wr={self.iops}" if self.iops else ""
        if side == "source":
            return [*words, "--disk", f"{self.folder}/image{limit}"]
        incoming = ["--incoming", f"tcp:127.0.0.1:{self.port}", *(["--pair"] if self.tls else [])]
        return [*words, *incoming, "--disk", f"{self.folder}/tvmm.copy,copy=on{limit}"]

    def move(self, folder: Path) -> Result:
        """To its end."""
        options = list(self.migrate_options)
        if self.tls:
            words = self.words(folder)
            options += ["--pair", words.split("pairing code is ")[1].split()[0]]
        program = tvmm_command("")[0]
        source = f"bench-{os.getpid()}-source"
        command = [program, "migrate", source, "--to", f"127.0.0.1:{self.port}", "--json", *options]
        copied = 0.0
        info: dict[str, Any] = {}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                info = json.loads(line)
                if not copied and (info.get("disk", {}).get("dirty-sync-count", 0) > 1 or "ram" in info):
                    copied = info["x-times-ms"]["total"] / 1e3
        if process.returncode:
            raise SystemExit(f"tvmm migrate ended with {process.returncode}: {info}")
        return Result(copied, info["x-times-ms"]["total"] / 1e3, info["x-times-ms"]["downtime"])


class DiskQemu(Qemu):
    """With a disk at each side, and a mirror."""

    def __init__(self, folder: Path, iops: int) -> None:
        super().__init__(downtime_ms=300)
        self.folder, self.iops = folder, iops

    def command(self, folder: Path, side: str, serial: Path) -> Sequence[str]:
        """See `Monitor`."""
        words = qemu_command("", memory=MEMORY, serial=f"unix:{serial},server=on,wait=off")
        limit = f",throttling.iops-write={self.iops}" if self.iops else ""
        image = self.folder / ("image" if side == "source" else "qemu.copy")
        words += ["-drive", f"file={image},format=raw,if=none,id=d0,cache=writeback,aio=io_uring,discard=unmap{limit}"]
        words += ["-global", "virtio-mmio.force-legacy=false", "-device", "virtio-blk-device,drive=d0"]
        words += ["-qmp", f"unix:{folder / side}.qmp,server=on,wait=off"]
        return words if side == "source" else [*words, "-incoming", f"tcp:127.0.0.1:{self.port}"]

    def move(self, folder: Path) -> Result:
        """Mirror, and migrate when it is ready."""
        port = free_port()
        address = {"type": "inet", "data": {"host": "127.0.0.1", "port": str(port)}}
        self.target_qmp.ask("nbd-server-start", addr=address)
        self.target_qmp.ask("nbd-server-add", device="d0", writable=True)
        begun = time.perf_counter()
        self.qmp.ask(
            "drive-mirror",
            **{"device": "d0", "target": f"nbd:127.0.0.1:{port}:exportname=d0", "sync": "full", "format": "raw"},
            mode="existing",
        )
        while not (jobs := self.qmp.ask("query-block-jobs")) or not jobs[0]["ready"]:
            if not jobs:
                raise SystemExit("QEMU: the mirror has failed")
            time.sleep(POLL_SECONDS)
        copied = time.perf_counter() - begun
        self.qmp.ask(
            "migrate-set-capabilities", capabilities=[{"capability": "pause-before-switchover", "state": True}]
        )
        self.qmp.ask("migrate", uri=f"tcp:127.0.0.1:{self.port}")
        paused = 0.0
        while (info := self.qmp.ask("query-migrate"))["status"] not in ("completed", "failed"):
            if info["status"] == "pre-switchover" and not paused:
                paused = time.perf_counter()
                self.qmp.ask("block-job-cancel", device="d0")
                while self.qmp.ask("query-block-jobs"):
                    time.sleep(0.001)
                self.target_qmp.ask("nbd-server-stop")
                self.qmp.ask("migrate-continue", state="pre-switchover")
            time.sleep(0.001)
        if info["status"] == "failed":
            raise SystemExit(f"QEMU: the migration failed: {info}")
        total = time.perf_counter() - begun
        while not (info := self.qmp.ask("query-migrate")).get("downtime"):
            time.sleep(0.001)
        return Result(copied, total, float(info["downtime"]))


def measure(monitor: DiskTvmm | DiskQemu, folder: Path, size: int) -> Result:
    """One guest that writes and moves."""
    copy = folder / ("tvmm.copy" if isinstance(monitor, DiskTvmm) else "qemu.copy")
    with suppress(FileNotFoundError):
        copy.unlink()
    if isinstance(monitor, DiskQemu):
        copy.touch()
        os.truncate(copy, size)
    place = folder / monitor.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    lines: tuple[Line, Line]
    with Monitor.pair(monitor, place) as lines:
        lines[0].send("blkbench 0 randwrite 4096 8 600\n")
        time.sleep(1)
        result = monitor.move(place)
    copy.unlink()
    return result


def plain_copy(folder: Path) -> float:
    """Seconds that `dd` takes, to stable storage."""
    begun = time.perf_counter()
    words = ["dd", f"if={folder}/image", f"of={folder}/dd.copy", "bs=1M", "conv=fdatasync"]
    subprocess.run(words, check=True, capture_output=True)
    took = time.perf_counter() - begun
    (folder / "dd.copy").unlink()
    return took


def main() -> None:
    """All of it, in turns."""
    parser = argparse.ArgumentParser(prog="python -m bench.storage_copy", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the image")
    parser.add_argument("--iops", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the images are (default: in memory)")
    parser.add_argument("--only", choices=("tvmm", "qemu"))
    parser.add_argument("--tls", action="store_true", help="tvmm with a pairing code")
    options = parser.parse_args()
    made = None if options.folder else free_folder("disks")
    folder: Path = made if made is not None else options.folder
    size = options.size << 20
    monitors: list[DiskTvmm | DiskQemu] = []
    if options.only != "qemu":
        monitors.append(DiskTvmm(folder, options.iops, tls=options.tls))
    if options.only != "tvmm" and have_qemu():
        monitors.append(DiskQemu(folder, options.iops))
    results: dict[str, list[Result]] = {monitor.name: [] for monitor in monitors}
    copies: list[float] = []
    try:
        with (folder / "image").open("wb") as file:
            for _ in range(options.size):
                file.write(os.urandom(1 << 20))
        for _ in range(options.runs):
            copies.append(plain_copy(folder))
            for monitor in monitors:
                results[monitor.name].append(measure(monitor, folder, size))
                print(f"{monitor.name}: {results[monitor.name][-1]}", file=sys.stderr)
    finally:
        for name in ("image", "tvmm.copy", "qemu.copy", "dd.copy"):
            with suppress(FileNotFoundError):
                (folder / name).unlink()
        if made is not None:
            shutil.rmtree(made)
    print(f"{options.size} MiB, {options.iops or 'as many as go'} writes of 4 KiB a second, {options.runs} runs")
    print(f"  dd                 [s] {Figures(tuple(copies))}")
    for name, found in results.items():
        for what, unit in (("copied_s", "s"), ("total_s", "s"), ("pause_ms", "ms")):
            values = Figures(tuple(getattr(each, what) for each in found))
            print(f"  {name} {what.rpartition('_')[0]:12} [{unit}] {values}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
