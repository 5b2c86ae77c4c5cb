"""What one exit to a Python device costs: as the guest sees it, and Python's own share.

    python -m bench.exits [RUNS]
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable

import trio

import tvmm.vcpu.thread as vcpu_thread
from bench.common import RUNS, Figures, have_qemu, in_turns, output_of, qemu_command, report, tvmm_command
from tvmm.bus import MmioBus, PortBus
from tvmm.devices.misc import PostPort
from tvmm.kvm.bus_lock import BusLock

PIO_COUNT = 20_000
LOOP_COUNT = 200_000


def guest_view(command: list[str], what: str) -> Callable[[], float]:
    """Microseconds of one access in the guest's `pio` command."""

    def measure() -> float:
        text = output_of(command)
        found = re.search(rf"{what}.*?average\s+(\d+)", text, re.IGNORECASE)
        if found is None:
            raise SystemExit(f"the guest's pio command printed no {what} line:\n{text}")
        return int(found[1]) / 1e3

    return measure


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
    append = f"run=pio,{PIO_COUNT} then=poweroff"
    for what in ("OUT", "IN", "write at", "read at"):
        measures = [guest_view(tvmm_command(append), what)]
        if have_qemu():
            measures.append(guest_view(qemu_command(append), what))
        figures = in_turns(runs, *measures)
        theirs = figures[1] if len(figures) > 1 else None
        report(f"one {what} as the guest sees it", "us", figures[0], theirs, "at most 1.1")
    report("Python's own share of an exit", "us", trio.run(share_in_worker_thread, runs), None, "at most 2")


if __name__ == "__main__":
    main()
