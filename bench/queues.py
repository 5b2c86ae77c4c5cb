"""One, two and four queues, each driven by a processor of the guest's: disk and network, on tvmm and on QEMU, in turns.

    python -m bench.queues [--runs N] [--seconds N] [--only disk|net]

Guests have as many processors as queues. tvmm serves each queue (each pair of a network device's) by a thread of its
own; QEMU has one iothread for all queues of a disk, and its main loop for all of a network device. The guest
polls in both: `mqbench`, `mqtx` and `mqrx`. A last column has tvmm with interrupts, each queue's on its own processor.
Needs root: networks are in a namespace of their own, nothing leaves it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.common import Figures, have_qemu, qemu_command, tvmm_command
from bench.net import MAC, TAP, ip, wait_for_carrier

INSIDE = "TVMM_BENCH_QUEUES"
COUNTS = (1, 2, 4)
IMAGE_MIB = 256

DISK_CASES = (
    ("random read 4 KiB QD1", "randread,4096,1"),
    ("random read 4 KiB QD16", "randread,4096,16"),
    ("random write 4 KiB QD16", "randwrite,4096,16"),
)
NET_CASES = (("TX 64 B", "mqtx,0,64,{s}", 0), ("TX 1514 B", "mqtx,0,1514,{s}", 0), ("RX 64 B", "mqrx,0,{s}", 64))


def ask(command: list[str], pattern: str, flood: list[str] | None = None) -> float:
    """What the guest counted; with a flood of frames from the host once it listens."""
    sender: subprocess.Popen[bytes] | None = None
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if flood:
            wait_for_carrier()
            sender = subprocess.Popen(flood, stdout=subprocess.DEVNULL)
        text = process.stdout.read().decode(errors="replace")
        words = process.stderr.read().decode(errors="replace")
    if sender is not None:
        sender.terminate()
        sender.wait()
    found = re.search(pattern, text)
    if not found:
        raise SystemExit(f"{command[0]} printed:\n{text}\n{words}")
    return float(found[1])


def show(case: str, names: list[str], rows: list[tuple[int, list[Figures]]]) -> None:
    """A table of one case: medians by number of queues, and what more queues make of the first row."""
    print(case)
    first = [figures.median for figures in rows[0][1]]
    for count, columns in rows:
        parts = [
            f"{name} {figures.median:9.0f}/s ({figures.median / base:.2f} x one queue)"
            for name, figures, base in zip(names, columns, first, strict=False)
        ]
        ratio = f"  tvmm/QEMU {columns[0].median / columns[1].median:.2f}" if len(names) > 2 else ""
        print(f"  {count} queues: {'  '.join(parts)}{ratio}")


def disk(options: argparse.Namespace, with_qemu: bool) -> None:
    """All disk cases, on a file in memory: what counts is the way there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="tvmm-bench-") as scratch:
        image = Path(scratch, "disk.img")
        with image.open("wb") as file:
            for _ in range(IMAGE_MIB):
                file.write(os.urandom(1 << 20))
        for case, words in DISK_CASES:
            rows = []
            for count in COUNTS:
                append = f"mq run=mqbench,0,{words},{options.seconds} then=poweroff quiet"
                by_irq = append.replace(" then", ",irq then")
                drive = ["--disk", f"{image},queues={count}"]
                commands = [[*tvmm_command(append, cpus=count), *drive], [*tvmm_command(by_irq, cpus=count), *drive]]
                if with_qemu:
                    theirs = [
                        *qemu_command(append, cpus=count),
                        *("-global", "virtio-mmio.force-legacy=false", "-object", "iothread,id=io0"),
                        *("-drive", f"if=none,id=d0,file={image},format=raw,cache=writeback,aio=threads"),
                        *("-device", f"virtio-blk-device,drive=d0,iothread=io0,num-queues={count}"),
                    ]
                    commands.insert(1, theirs)
                runs = [[ask(command, r": (\d+) IOPS") for command in commands] for _ in range(options.runs)]
                rows.append((count, [Figures(tuple(column)) for column in zip(*runs, strict=True)]))
            show(f"disk, {case} on each queue", ["tvmm", *["QEMU"] * with_qemu, "tvmm by interrupt"], rows)


def net(options: argparse.Namespace, with_qemu: bool) -> None:
    """All network cases, on a TAP with as many queues."""
    with tempfile.TemporaryDirectory() as scratch:
        flood = Path(scratch, "flood")
        source = Path(__file__).with_name("flood.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-o", str(flood), str(source)], check=True)
        ip("link", "set", "lo", "up")
        for case, order, bytes_in in NET_CASES:
            rows = []
            for count in COUNTS:
                ip("tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr", *["multi_queue"] * (count > 1))
                ip("link", "set", TAP, "up")
                Path(f"/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6").write_text("1")
                append = f"mq run={order.format(s=options.seconds)} then=poweroff quiet"
                commands = [
                    [*tvmm_command(append, cpus=count), "--net", f"tap,ifname={TAP},mac={MAC},queues={count}"]
                ]
                if with_qemu:
                    theirs = [
                        *qemu_command(append, cpus=count),
                        *("-global", "virtio-mmio.force-legacy=false"),
                        "-netdev",
                        f"tap,id=n0,ifname={TAP},script=no,downscript=no,vhost=off" + f",queues={count}" * (count > 1),
                        *("-device", f"virtio-net-device,netdev=n0,mac={MAC}" + ",mq=on" * (count > 1)),
                    ]
                    commands.append(theirs)
                words = [str(flood), TAP, MAC, str(bytes_in), str(options.seconds + 3), "16"] if bytes_in else None
                runs = [[ask(command, r": (\d+) frames/s", words) for command in commands] for _ in range(options.runs)]
                rows.append((count, [Figures(tuple(column)) for column in zip(*runs, strict=True)]))
                ip("link", "delete", TAP)
            names = ["tvmm", *["QEMU"] * with_qemu]
            show(f"net, {case}", names, rows)
            if with_qemu:
                pairs = "  ".join(f"{count}: {cols[0].median / cols[1].median:.2f}" for count, cols in rows)
                print(f"  tvmm/QEMU {pairs}")


def main() -> None:
    """Measure and print, inside a namespace that ends with us."""
    parser = argparse.ArgumentParser(prog="bench.queues", description="one, two and four queues on tvmm and QEMU")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of each pattern")
    parser.add_argument("--only", choices=("disk", "net"))
    options = parser.parse_args()
    if os.environ.get(INSIDE) != "1":
        environment = {**os.environ, INSIDE: "1"}
        os.execvpe("unshare", ["unshare", "-n", sys.executable, "-m", "bench.queues", *sys.argv[1:]], environment)
    with_qemu = have_qemu()
    if options.only != "net":
        disk(options, with_qemu)
    if options.only != "disk":
        net(options, with_qemu)


if __name__ == "__main__":
    main()
