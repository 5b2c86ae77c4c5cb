"""How late a task is beside a machine at work: the event loop while disk and network are flat out.

    python -m bench.lateness [SECONDS]

One process runs a machine whose guest first does random disk requests at QD32, then floods its network, and a task that
wakes every 10 ms. Printed are the percentiles of how late it was, for an idle guest and for each load. The TAP is in a
network namespace of its own (root is needed for that part; it is left out without).
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path

import trio

from tvmm import Machine, MachineConfig
from tvmm.board import Board

PERIOD = 0.010
CLONE_NEWNET = 0x4000_0000
PROMPT = "tvmm> "


async def lateness(seconds: float) -> list[float]:
    """Milliseconds of delay of each wake-up."""
    late = []
    due = trio.current_time() + PERIOD
    for _ in range(int(seconds / PERIOD)):
        await trio.sleep_until(due)
        now = trio.current_time()
        late.append((now - due) * 1e3)
        due = max(due + PERIOD, now)
    return sorted(late)


def show(what: str, late: list[float]) -> None:
    """One line."""
    at = [late[min(int(len(late) * share), len(late) - 1)] for share in (0.5, 0.9, 0.99, 1.0)]
    print(f"{what:28} median {at[0]:6.3f}  90% {at[1]:6.3f}  99% {at[2]:6.3f}  most {at[3]:6.3f} ms late", flush=True)


async def measure(seconds: int, image: Path, with_net: bool) -> None:
    """All loads, one after the other."""
    config = MachineConfig.parse(disk=[f"{image},cache=none"], net=["tap,ip=10.0.0.2/24"] if with_net else [])
    async with Machine(config, board=Board(config)) as vm:
        await vm.resume()
        await vm.wait_serial(PROMPT)
        show("idle guest", await lateness(seconds))
        orders = [("random reads, QD32", f"blkbench 0 randread 4096 32 {seconds + 1}")]
        orders.append(("1 MiB writes", f"blkbench 0 write 1048576 4 {seconds + 1}"))
        if with_net:
            await vm.send_serial("ip 0 10.0.0.15/24\n")
            await vm.wait_serial(PROMPT)
            orders.append(("frames of 64 bytes", f"nettx 0 64 {seconds + 1}"))
            orders.append(("frames of 64 KiB", f"nettx 0 65535 {seconds + 1} gso"))
        for what, order in orders:
            await vm.send_serial(order + "\n")
            await trio.sleep(0.5)
            late = await lateness(seconds)
            words = (await vm.wait_serial(PROMPT)).decode(errors="replace").splitlines()
            show(what, late)
            print(f"{'':28} {words[-2] if len(words) > 1 else ''}")


def main() -> None:
    """Measure and print."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    libc = ctypes.CDLL(None, use_errno=True)
    with_net = os.geteuid() == 0 and libc.unshare(CLONE_NEWNET) == 0
    folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        image = Path(scratch, "disk.img")
        image.write_bytes(os.urandom(1 << 20) * 256)
        trio.run(measure, seconds, image, with_net)


if __name__ == "__main__":
    main()
