"""Network frames: the built-in guest's `nettx`, `netrx` and `ping` on tvmm and on QEMU without vhost, in turns.

    python -m bench.net [--runs N] [--seconds N] [--transport pci|mmio]

Everything happens in a network namespace of its own (root is needed): each monitor gets a TAP there, nothing leaves.
Received frames come from a packet socket that sends as fast as the TAP takes them (`flood.c`). CPU seconds are those
of the monitor's process, less what its start takes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench.common import Figures, children_cpu_s, have_qemu, qemu_command, tvmm_command

TAP = "tapbench"
MAC = "52:54:00:00:00:15"
HOST, GUEST = "10.0.0.2", "10.0.0.15"
INSIDE = "TVMM_BENCH_NET"


class Case(NamedTuple):
    """One measurement: what the guest does, what it prints, and what the host sends meanwhile."""

    name: str
    order: str
    pattern: str
    flood: int = 0
    more_is_better: bool = True


CASES = (
    Case("TX 64 B", "nettx,0,64,{s}", r"nettx: (\d+) frames/s"),
    Case("TX 1514 B", "nettx,0,1514,{s}", r"nettx: (\d+) frames/s"),
    Case("TX 64 KiB GSO, Mbit/s", "nettx,0,65535,{s},gso", r"nettx: \d+ frames/s, ([\d.]+) Mbit/s"),
    Case("RX 64 B under a flood", "netrx,0,{s}", r"netrx: (\d+) frames/s", 64),
    Case("RX 1514 B under a flood", "netrx,0,{s}", r"netrx: (\d+) frames/s", 1514),
    Case("ping, minimum round trip us", "ping,0," + HOST + ",2000", r"rtt ([\d.]+)/", 0, False),
    Case("ping, average round trip us", "ping,0," + HOST + ",2000", r"rtt [\d.]+/([\d.]+)/", 0, False),
)


class Result(NamedTuple):
    """What the guest counted, and the whole of its line."""

    value: float
    line: str
    cpu: float


def ip(*words: str) -> None:
    """iproute2."""
    subprocess.run(["ip", *words], check=True)


def run(command: list[str], case: Case, seconds: int, flood: Path) -> Result:
    """One guest, to its end, with the host's flood once it says that it listens."""
    before = children_cpu_s()
    sender: subprocess.Popen[bytes] | None = None
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if case.flood:
            wait_for_carrier()
            sender = subprocess.Popen(
                [str(flood), TAP, MAC, str(case.flood), str(seconds + 2)], stdout=subprocess.DEVNULL
            )
        text = process.stdout.read()
        words = process.stderr.read()
    flood_cpu = 0.0
    if sender is not None:
        sender.terminate()
        middle = children_cpu_s()
        sender.wait()
        flood_cpu = children_cpu_s() - middle
    found = re.search(case.pattern, text)
    if not found:
        raise SystemExit(f"{command[0]} printed:\n{text}\n{words}")
    line = next(line for line in text.splitlines() if re.search(case.pattern, line))
    cpu = children_cpu_s() - before - flood_cpu
    return Result(float(found[1]), line, cpu)


def start_cpu(command: list[str]) -> float:
    """CPU seconds of a guest with the same device that only powers off: start and end, which move nothing."""
    idle = [re.sub(";\\S+ ", ";link,0 ", word) for word in command]
    before = children_cpu_s()
    subprocess.run(idle, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return children_cpu_s() - before


def link_state() -> str:
    """What iproute2 says of the TAP; /sys shows another namespace."""
    words = ["ip", "-br", "link", "show", TAP]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def wait_for_carrier() -> None:
    """Until the monitor has the TAP open: frames sent before are lost anyway."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if "LOWER_UP" in link_state():
            return
    raise SystemExit(f"{TAP} never came up")


def commands(case: Case, seconds: int, transport: str) -> tuple[list[str], list[str]]:
    """tvmm's and QEMU's."""
    append = f"run=ip,0,{GUEST}/24;{case.order.format(s=seconds)} then=poweroff quiet"
    ours = [*tvmm_command(append), "--net", f"tap,ifname={TAP},mac={MAC},transport={transport}"]
    theirs = [
        *qemu_command(append),
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-netdev", f"tap,id=n0,ifname={TAP},script=no,downscript=no,vhost=off"),
        *("-device", f"virtio-net-device,netdev=n0,mac={MAC}"),
    ]
    return ours, theirs


def compare(options: argparse.Namespace, flood: Path, with_qemu: bool) -> None:
    """All cases, in turns."""
    for case in CASES:
        # The host answers pings alone. For floods it has no address: what its stack does with them is not the point.
        ip("addr", "flush", "dev", TAP)
        if not case.more_is_better:
            ip("addr", "add", f"{HOST}/24", "dev", TAP)
        pair = commands(case, options.seconds, options.transport)[: 1 + with_qemu]
        rows = [[run(command, case, options.seconds, flood) for command in pair] for _ in range(options.runs)]
        medians = []
        print(case.name)
        for name, command, column in zip(("tvmm", "QEMU"), pair, zip(*rows, strict=True), strict=False):
            start = start_cpu(command)
            figures = Figures(tuple(result.value for result in column))
            cpu = Figures(tuple(result.cpu - start for result in column))
            medians.append((figures.median, cpu.median))
            print(f"  {name} {figures}  {cpu.median:.2f} CPU s   {column[-1].line.strip()}")
        if with_qemu:
            (ours, our_cpu), (theirs, their_cpu) = medians
            better = ours / theirs if case.more_is_better else theirs / ours
            per = our_cpu / their_cpu / (ours / theirs if case.more_is_better else 1)
            unit = "frame" if case.more_is_better else "ping"
            print(f"  ratio {better:.2f} (goal: 1.0)  CPU per {unit} {per:.2f} (goal: 1.2)")


def set_up() -> None:
    """Loopback and a TAP that both monitors attach to."""
    ip("link", "set", "lo", "up")
    ip("tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr")
    ip("link", "set", TAP, "up")
    # The kernel's own multicast chatter would be counted as received frames.
    Path(f"/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6").write_text("1")


def main() -> None:
    """Measure and print, inside a namespace that ends with us."""
    parser = argparse.ArgumentParser(prog="bench.net", description="network frames on tvmm and QEMU")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each flood")
    parser.add_argument("--transport", choices=("pci", "mmio"), default="pci", help="of tvmm's device")
    options = parser.parse_args()
    if os.environ.get(INSIDE) != "1":
        environment = {**os.environ, INSIDE: "1"}
        os.execvpe("unshare", ["unshare", "-n", sys.executable, "-m", "bench.net", *sys.argv[1:]], environment)
    with tempfile.TemporaryDirectory() as scratch:
        flood = Path(scratch, "flood")
        source = Path(__file__).with_name("flood.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-o", str(flood), str(source)], check=True)
        set_up()
        compare(options, flood, have_qemu())


if __name__ == "__main__":
    main()
