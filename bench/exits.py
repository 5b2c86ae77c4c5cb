"""What one exit to a Python device costs: as the guest sees it, and Python's own share.

    python -m bench.exits [RUNS]
"""

from __future__ import annotations

import re
import sys
import time

import trio

import tvmm.vcpu.thread as vcpu_thread
from bench.common import RUNS, Figures, have_qemu, output_of, qemu_command, report, tvmm_command
from tvmm.bus import MmioBus, PortBus
from tvmm.devices.misc import PostPort
from tvmm.kvm.bus_lock import BusLock

PIO_COUNT = 20_000
LOOP_COUNT = 200_000


KINDS = {"OUT": "OUT", "IN": "IN", "MMIO write": "write at", "MMIO read": "read at"}
"""What is measured, and how the line of the guest's `pio` command begins."""


def guest_view(command: list[str]) -> list[float]:
    """Microseconds of one access of each kind, by the guest's own clock."""
    text = output_of(command)
    found = [re.search(rf"^{words}.*?average\s+(\d+)", text, re.MULTILINE) for words in KINDS.values()]
    if not all(found):
        raise SystemExit(f"the guest's pio command printed:\n{text}")
    return [int(match[1]) / 1e3 for match in found if match]


class _Ended(Exception):
    """Gets out of the loop that has no end."""


class _Ending(PostPort):
    """Ends the loop after so many writes."""

    left = LOOP_COUNT

    def write(self, offset: int, size: int, value: int) -> None:
        super().write(offset, size, value)
        self.left -= 1
        if not self.left:
            raise _Ended


class _Stand:
    """A vCPU thread's surroundings without a VM: buses and their lock."""

    def __init__(self, device: PostPort) -> None:
        self.ports, self.mmio, self.bus_lock = PortBus(), MmioBus(), BusLock()
        self.ports.add(0x80, 1, device, "post")


def python_share() -> float:
    """Microseconds from the C step's return to its next call, for a one-byte OUT to a Python device.

    The thread's own loop runs with a dictionary's `get`, which is C and does nothing, in place of the C step.
    """
    code = 0x80 << 8 | 1

    class Raw:
        data = 0x42

    class Kvm:
        index, raw = 0, Raw()

        def set_bus(self, lock: BusLock) -> None:
            """The step that stands in takes no lock."""

    vcpu = vcpu_thread.Vcpu(Kvm(), _Stand(_Ending()))  # type: ignore[arg-type]
    names = vars(vcpu_thread)
    real = names["step"]
    names["step"] = {Kvm.raw: code}.get
    try:
        started = time.perf_counter()
        try:
            vcpu._loop()
        except _Ended:
            took = time.perf_counter() - started
    finally:
        names["step"] = real
    return took / LOOP_COUNT * 1e6


async def share_in_worker_thread(runs: int) -> Figures:
    """The same on a thread of Trio's, as vCPUs run."""
    return Figures(tuple([await trio.to_thread.run_sync(python_share) for _ in range(runs)]))


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    # The second before: start-up is another benchmark, and its imports would compete for the interpreter.
    append = f"run=spin,1;pio,{PIO_COUNT} then=poweroff"
    monitors = [tvmm_command(append), *([qemu_command(append)] if have_qemu() else [])]
    rows = [[guest_view(command) for command in monitors] for _ in range(runs)]
    for index, kind in enumerate(KINDS):
        figures = [Figures(tuple(row[who][index] for row in rows)) for who in range(len(monitors))]
        theirs = figures[1] if len(figures) > 1 else None
        report(f"one {kind} as the guest sees it", "us", figures[0], theirs, "at most 1.1")
    report("Python's own share of an exit", "us", trio.run(share_in_worker_thread, runs), None, "at most 2")


if __name__ == "__main__":
    main()
