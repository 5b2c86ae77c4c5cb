"""A PCI bus and a memory bus on a real VM without vCPUs, and a runner that notes what it is told."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tests.support.pci_driver import FoundFunction, Mechanism1, enumerate_bus
from tvmm.bus import MmioBus, OffsetDevice, PortBus
from tvmm.config.memory import MemoryConfig
from tvmm.devices.misc import SystemControl
from tvmm.kvm.bus_lock import BusLock
from tvmm.kvm.irq import new_event
from tvmm.kvm.memory_map import MemoryMap
from tvmm.kvm.system import Kvm
from tvmm.kvm.vm import Vm
from tvmm.kvm.vring import Vring
from tvmm.memory.ram import GuestRam
from tvmm.virtio.device import Activation, QueueSetup
from tvmm.wiring.pci_bus import PciBus
from tvmm.wiring.slot import SlotHost

RAM = 4 << 20


class RecordingRunner:
    """Serves nothing."""

    def __init__(self, memory: MemoryMap, queues: int) -> None:
        self.rings: Sequence[Vring] = [Vring(memory) for _ in range(queues)]
        self.log: list[object] = []
        self.calls: dict[int, int] = {}
        self.suspended = 0

    def activate(self, activation: Activation) -> None:
        """Noted."""
        self.log.append("activate")

    def reset(self, done: Callable[[], None]) -> None:
        """Done at once."""
        self.log.append("reset")
        done()

    def start_queue(self, setup: QueueSetup) -> None:
        """Noted."""
        self.log.append(("start", setup.queue))

    def stop_queue(self, index: int, done: Callable[[], None]) -> None:
        """Done at once."""
        self.log.append(("stop", index))
        done()

    def notify(self, index: int) -> None:
        """Noted."""
        self.log.append(("notify", index))

    def set_call(self, index: int, fd: int) -> None:
        """Kept."""
        self.calls[index] = fd

    def save(self) -> tuple[()]:
        """Nothing."""
        return ()

    async def restore(self, activation: Activation, state: object) -> None:
        """Noted."""
        self.log.append(("restore", activation.features))

    def arrived(self) -> None:
        """Noted."""
        self.log.append("arrived")

    async def run(self) -> None:
        """Nothing to do."""

    def suspend(self) -> None:
        """Counted."""
        self.suspended += 1

    async def hold(self) -> None:
        """Nothing runs."""

    def release(self) -> None:
        """Counted."""
        self.suspended -= 1

    def close(self) -> None:
        """Nothing is open."""


class Stand:
    """Everything a slot is plugged into."""

    def __init__(self, stack: ExitStack) -> None:
        with Kvm() as kvm:
            self.vm: Vm = kvm.create_vm()
        stack.callback(self.vm.close)
        self.vm.create_irqchip()
        ram = GuestRam(MemoryConfig(size=RAM))
        stack.callback(ram.close)
        self.memory = MemoryMap(ram)
        stack.callback(self.memory.close)
        self.ports, self.mmio, self.lock = PortBus(), MmioBus(), BusLock()
        self.resets: list[str] = []
        control = OffsetDevice(SystemControl(lambda: self.resets.append("reset")), 1)
        self.host = SlotHost(self.vm, self.memory, self.lock, stack)
        self.bus = PciBus(self.vm, self.ports, self.mmio, self.lock, RAM, control, stack)
        self.access = Mechanism1(self.ports)

    def functions(self) -> list[FoundFunction]:
        """What a guest finds behind the host bridge."""
        return enumerate_bus(self.access)[1:]

    def doorbell_is_taken(self, address: int) -> bool:
        """Whether KVM listens at `address` for writes of any width."""
        fd = new_event()
        try:
            self.vm.set_ioeventfd(fd, address, 0)
            self.vm.set_ioeventfd(fd, address, 0, assign=False)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            return True
        finally:
            os.close(fd)
        return False


@contextmanager
def make_stand() -> Iterator[Stand]:
    """For a `with` block."""
    with ExitStack() as stack:
        yield Stand(stack)
