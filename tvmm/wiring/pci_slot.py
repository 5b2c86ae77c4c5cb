"""A virtio device as a PCI function: its BARs, MSI-X vectors as eventfds, the pin for drivers without MSI-X.

The eventfd of a vector may be written whatever the guest makes of the vector: while it is masked the writes stay in
the eventfd, where the pending bit and the moment of unmasking find them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.devices.pci_bars import MEMORY32, MEMORY64, Bar
from tvmm.devices.pci_config import PciIdentity
from tvmm.devices.pci_function import PciFunction
from tvmm.devices.pci_msix import Msix
from tvmm.kvm.irq import MsiVector
from tvmm.kvm.serve import CALL_NONE, CALL_PYTHON
from tvmm.virtio.pci import BAR, BAR_SIZE, MSIX_BAR, WINDOW_LENGTH, WINDOW_OFFSET, VirtioPci
from tvmm.virtio.queues import NO_VECTOR
from tvmm.wiring.slot import Slot, SlotHost, event_error

if TYPE_CHECKING:
    from tvmm.devices.pci_function import PciFunctionState
    from tvmm.virtio.device import VirtioDevice
    from tvmm.virtio.runner.base import Runner
    from tvmm.wiring.pci_bus import PciBus

__all__ = ["PciSlot"]

INTA = 1


class _Function(PciFunction):
    """Tells the slot after each access to the configuration space, which may have turned MSI-X on or off."""

    slot: PciSlot

    def write(self, offset: int, size: int, value: int) -> None:
        super().write(offset, size, value)
        self.slot.settle()

    def reset(self) -> None:
        super().reset()
        self.slot.settle()


class PciSlot(Slot):
    """The device in the next free slot of `bus`. Raises `ConfigError` if there is none."""

    transport_name = "pci"
    virtio: VirtioPci

    def __init__(self, name: str, device: VirtioDevice, host: SlotHost, bus: PciBus) -> None:
        super().__init__(name, device, host)
        vectors = len(device.queue_sizes) + 1
        host.vm.routes.reserve(vectors)
        self._vectors: list[MsiVector] = []
        for _ in range(vectors):
            try:
                vector = MsiVector(host.vm)
            except OSError as error:
                raise event_error(name, error) from error
            host.stack.callback(vector.close)
            self._vectors.append(vector)
        self.msix = Msix(vectors, self._vector_changed, self._send, self._take_pending)
        self._msix_was = False
        self._master = False
        self.virtio = VirtioPci(device, self, vectors, lambda: self.msix.enabled)
        self.transport = self.virtio.transport
        self.where = bus.host.place()
        self.place = str(self.where)
        self.function = _Function(
            self.where,
            PciIdentity(*self.virtio.identity),
            interrupt_pin=INTA,
            bars=(
                Bar(MSIX_BAR, self.msix.length, MEMORY32, self.msix, f"{name} msix"),
                Bar(BAR, BAR_SIZE, MEMORY64, self.virtio, name),
            ),
            msix=self.msix,
            on_command=self._command_changed,
        )
        self.function.slot = self
        for capability in self.virtio.capabilities():
            offset = self.function.config.add_vendor_capability(capability.body, capability.writable)
        # The last one is the window into the BAR.
        self.function.config.delegate(offset + WINDOW_OFFSET, WINDOW_LENGTH, self.virtio.window)
        self.function.config.add_express_capability()
        bus.host.plug(self.where, self.function)
        bus.add(self)
        bus.watch(self.virtio, self._moved)

    # -- interrupts ---------------------------------------------------------------------------------------

    def interrupt(self, vector: int | None, isr: int) -> None:
        """A message, or the pin."""
        if vector is not None:
            self._send(vector)
        else:
            self.function.set_intx(isr != 0)

    def call_of(self, index: int) -> int:
        """The eventfd of the queue's vector; without MSI-X the interrupt status and the pin."""
        if not self.msix.enabled:
            return CALL_PYTHON
        vector = self.transport.queues[index].vector
        return CALL_NONE if vector == NO_VECTOR else self._vectors[vector].fd

    def _send(self, vector: int) -> None:
        self._vectors[vector].send()

    def _take_pending(self, vector: int) -> bool:
        return self._vectors[vector].take_pending()

    def _vector_changed(self, index: int, address: int, data: int, masked: bool) -> None:
        self._vectors[index].set(address, data, masked)

    def settle(self) -> None:
        """MSI-X may have been turned on or off: queues interrupt another way then."""
        if self.msix.enabled == self._msix_was:
            return
        self._msix_was = self.msix.enabled
        if not self.msix.enabled:
            for vector in self._vectors:
                vector.take_pending()
        self.virtio.msix_changed()
        for index in range(len(self.exits)):
            self.on_vector(index)

    def connect(self, runner: Runner) -> None:
        """See `Slot`. The runner rests until the guest makes the function a bus master."""
        super().connect(runner)
        runner.suspend()

    def _command_changed(self, command: int) -> None:
        if self.function.bus_master == self._master:
            return
        self._master = self.function.bus_master
        if self._master:
            self.runner.release()
        else:
            self.runner.suspend()

    # -- addresses ----------------------------------------------------------------------------------------

    def _moved(self, old: int | None, new: int | None) -> None:
        """The BAR with the doorbells is mapped somewhere else."""
        if old is not None:
            self.listen(old, self.virtio.kicks(), assign=False)
        if new is not None:
            self.listen(new, self.virtio.kicks())

    def reset(self) -> None:
        """See `Slot`; the function is reset with its bus."""
        self.virtio.reset()

    # -- saving ---------------------------------------------------------------------------------------------

    def restore_function(self, state: PciFunctionState) -> None:
        """Configuration space, BARs with the doorbells in them, vectors in KVM. Under the bus lock.

        Raises `ValueError` with the name of a bad field, or `OSError` if KVM refuses what follows from the record.
        """
        self.function.restore(state)
        for vector in self.msix.vectors():
            self._vector_changed(*vector)
        self._msix_was = self.msix.enabled
        self._command_changed(self.function.config.command)

    def redeliver(self) -> None:
        """See `Slot`. Vectors that are masked have their pending bits, and the pin has its level."""
        transport = self.transport
        if transport.live and self.msix.enabled:
            wanted = {queue.vector for queue in transport.queues if queue.setup().ready}
            if transport.device.unseen_change:
                wanted.add(transport.config_vector)
            for number in sorted(wanted - {NO_VECTOR}):
                if not self.msix.vector(number).masked:
                    self._send(number)
        self.runner.arrived()
