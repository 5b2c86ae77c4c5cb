"""A VM with nothing but RAM and the devices that a test gives it; runs a few bytes of real-mode code."""

from __future__ import annotations

import threading
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio
import trio.testing

from tvmm.bus import MmioBus, PortBus
from tvmm.config.memory import MemoryConfig
from tvmm.kvm.bus_lock import BusLock
from tvmm.kvm.system import Kvm, kernel_mode_is_emulated
from tvmm.memory.ram import GuestRam
from tvmm.vcpu.dispatch import ExitDispatcher
from tvmm.vcpu.registers import Registers, write_registers
from tvmm.vcpu.thread import Vcpu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tvmm.bus import Hold

CODE = 0x1000
STACK = 0x8000


class RecordingPort:
    """A device that keeps what was written, answers reads from a list, and tells who waits for either."""

    def __init__(self, answers: list[int] | None = None) -> None:
        self.written: list[tuple[int, int, int]] = []
        self.answers = list(answers or [])
        self.reads = 0
        self.touched = threading.Event()

    def read(self, offset: int, size: int) -> int:
        """The next answer, 0 when there is none left."""
        self.reads += 1
        self.touched.set()
        return self.answers.pop(0) if self.answers else 0

    def write(self, offset: int, size: int, value: int) -> Hold | None:
        """Keep it."""
        self.written.append((offset, size, value))
        self.touched.set()
        return None


class RawVm:
    """One VM; its vCPUs start paused at `CODE` in real mode."""

    def __init__(self, stack: ExitStack, code: bytes, cpus: int, *, irqchip: bool) -> None:
        with Kvm() as kvm:
            self.vm = kvm.create_vm()
        stack.callback(self.vm.close)
        if irqchip:
            self.vm.create_irqchip()
        self.ram = GuestRam(MemoryConfig(2 << 20))
        stack.callback(self.ram.close)
        stack.callback(self.vm.release_memory)
        for slot, region in enumerate(self.ram.regions):
            block = self.ram.blocks[region.block]
            self.vm.set_memory(slot, region.gpa, block.view[region.offset : region.offset + region.size])
        self.ram.write(CODE, code)
        self.crashes: list[str] = []
        self.crashed = threading.Event()
        self.board = ExitDispatcher(
            PortBus(), MmioBus(), BusLock(), self.ram, assist=kernel_mode_is_emulated()
        )
        self.board.on_crash = self._crashed
        self.vcpus: list[Vcpu] = []
        for index in range(cpus):
            kvm_vcpu = self.vm.create_vcpu(index)
            stack.callback(kvm_vcpu.close)
            sregs = kvm_vcpu.get_sregs()
            for name in ("cs", "ds", "es", "ss"):
                segment = getattr(sregs, name)
                segment.base = segment.selector = 0
            kvm_vcpu.set_sregs(sregs)
            write_registers(kvm_vcpu, Registers(rip=CODE, rsp=STACK))
            kvm_vcpu.set_mp_state(0)
            self.vcpus.append(Vcpu(kvm_vcpu, self.board))

    def _crashed(self, report: str) -> None:
        self.crashes.append(report)
        self.crashed.set()


@asynccontextmanager
async def raw_vm(code: bytes, cpus: int = 1, *, irqchip: bool = True) -> AsyncIterator[RawVm]:
    """A `RawVm` whose threads run, paused, within the block."""
    with ExitStack() as stack:
        vm = RawVm(stack, code, cpus, irqchip=irqchip)
        limiter = trio.CapacityLimiter(cpus)
        async with trio.open_nursery() as nursery:
            for vcpu in vm.vcpus:
                nursery.start_soon(vcpu.run, limiter)
            await trio.testing.wait_all_tasks_blocked()
            try:
                yield vm
            finally:
                nursery.cancel_scope.cancel()


async def wait_set(event: threading.Event) -> None:
    """Wait for an event that a vCPU thread sets."""
    while not event.is_set():
        await trio.to_thread.run_sync(event.wait, 0.5, abandon_on_cancel=True)
