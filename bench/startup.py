"""From process start to the guest's first serial byte, cold; and a second machine in a running process.

    python -m bench.startup [RUNS]
"""

from __future__ import annotations

import sys
import time

import trio

from bench.common import RUNS, Figures, first_byte_ms, have_qemu, in_turns, qemu_command, report, tvmm_command
from tvmm.config.machine import MachineConfig
from tvmm.machine import Machine


async def warm(runs: int) -> Figures:
    """Milliseconds from `Machine(...)` to its first serial byte, in a process that has had one already."""
    took = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        async with Machine(MachineConfig.parse(append="then=poweroff")) as vm:
            await vm.resume()
            await vm.wait_serial("t")
            took.append((time.perf_counter() - started) * 1e3)
            await vm.wait()
    return Figures(tuple(took[1:]))


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    ours = tvmm_command("then=poweroff")
    if have_qemu():
        cold, theirs = in_turns(runs, lambda: first_byte_ms(ours), lambda: first_byte_ms(qemu_command("then=poweroff")))
        report("process start to first serial byte", "ms", cold, theirs, "at most 5.0")
    else:
        (cold,) = in_turns(runs, lambda: first_byte_ms(ours))
        theirs = None
        report("process start to first serial byte", "ms", cold, None, "at most 5.0 x QEMU")
    report("second machine in a running process", "ms", trio.run(warm, runs), theirs, "at most 0.5")


if __name__ == "__main__":
    main()
