"""Memory over the guest's own, and how fast spinning vCPUs pause and end.

    python -m bench.footprint [RUNS]
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import trio

from bench.common import RUNS, Figures, have_qemu, qemu_command, report, tvmm_command
from tvmm.config.machine import MachineConfig
from tvmm.machine import Machine

CPUS = 4
GUEST_BYTES = 256 << 20


def private_mib(pid: int) -> float:
    """Private memory of a process in MiB, without the mapping that is the guest's RAM."""
    total = inside = 0
    guest = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first = line.split(None, 1)[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            guest = "tvmm-pc.ram" in line or end - start == GUEST_BYTES
        elif first in ("Private_Dirty:", "Private_Clean:"):
            amount = int(line.split()[1])
            total += amount
            inside += amount if guest else 0
    return (total - inside) / 1024


def idle_footprint(command: list[str]) -> float:
    """Private MiB of a monitor whose guest waits at its prompt."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        text = b""
        while b"tvmm> " not in text:
            part = process.stdout.read1(4096)  # type: ignore[attr-defined]
            if not part:
                raise SystemExit(f"{command[0]} ended early")
            text += part
        time.sleep(1)
        found = private_mib(process.pid)
        process.kill()
    return found


async def pause_ms() -> float:
    """Milliseconds until 4 vCPUs that count in a loop are paused."""
    async with Machine(MachineConfig.parse(cpus=CPUS, append="run=smp,600")) as vm:
        await vm.resume()
        await trio.sleep(0.5)
        started = time.perf_counter()
        await vm.pause()
        return (time.perf_counter() - started) * 1e3


async def cancel_ms() -> float:
    """Milliseconds from cancelling the scope around such a machine to the end of its block."""
    with trio.CancelScope() as scope:
        async with Machine(MachineConfig.parse(cpus=CPUS, append="run=smp,600")) as vm:
            await vm.resume()
            await trio.sleep(0.5)
            started = time.perf_counter()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    ours = Figures((idle_footprint(tvmm_command("")),))
    theirs = Figures((idle_footprint(qemu_command("")),)) if have_qemu() else None
    report("private memory over the guest's own", "MiB", ours, theirs, "tvmm at most 40 MiB")
    pauses = Figures(tuple(trio.run(pause_ms) for _ in range(runs)))
    report(f"pausing {CPUS} spinning vCPUs", "ms", pauses, None, "under 2")
    cancels = Figures(tuple(trio.run(cancel_ms) for _ in range(runs)))
    report(f"cancelling the scope with {CPUS} of them spinning", "ms", cancels, None, "under 20")


if __name__ == "__main__":
    main()
