"""A virtio device in memory: a page of registers, an edge-triggered line, doorbells by the value written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.boot.dsdt_buses import VirtioMmio as Described
from tvmm.errors import ConfigError
from tvmm.kvm.irq import IrqLine
from tvmm.kvm.serve import CALL_PYTHON
from tvmm.memory.layout import VIRTIO_MMIO, Range
from tvmm.virtio.mmio import LENGTH, VirtioMmio
from tvmm.wiring.slot import Slot, SlotHost, event_error

if TYPE_CHECKING:
    from tvmm.bus import MmioBus
    from tvmm.virtio.device import VirtioDevice

__all__ = ["MMIO_GSIS", "MmioSlot"]

MMIO_GSIS = (5, 6, 7, 10, 11, 14, 15, 3, 20, 21, 22, 23)
"""Pins that nothing else on the board has, those of the ISA bus first: kernels without ACPI know them best."""


class MmioSlot(Slot):
    """The device number `number` of those in memory. Raises `ConfigError` if there are no more pins."""

    transport_name = "mmio"
    virtio: VirtioMmio

    def __init__(self, name: str, device: VirtioDevice, host: SlotHost, mmio: MmioBus, number: int) -> None:
        super().__init__(name, device, host)
        if number >= len(MMIO_GSIS):
            raise ConfigError(
                f"{name}: there are interrupts for {len(MMIO_GSIS)} devices with transport=mmio", "use transport=pci"
            )
        base = VIRTIO_MMIO.start + number * LENGTH
        self.described = Described(Range(base, LENGTH), MMIO_GSIS[number])
        self.place = f"{base:#x}"
        try:
            self.line = IrqLine(host.vm, self.described.gsi)
        except OSError as error:
            raise event_error(name, error) from error
        host.stack.callback(self.line.close)
        self.virtio = VirtioMmio(device, self)
        self.transport = self.virtio.transport
        mmio.add(base, LENGTH, self.virtio, name)
        self.listen(base, self.virtio.kicks())

    def interrupt(self, vector: int | None, isr: int) -> None:
        """A pulse for each event, and for what is left after an acknowledgement."""
        if isr:
            self.line()

    def call_of(self, index: int) -> int:
        """The interrupt status has to be set with each interrupt."""
        return CALL_PYTHON

    def reset(self) -> None:
        """See `Slot`."""
        self.virtio.reset()

    def redeliver(self) -> None:
        """See `Slot`. The driver may have acknowledged the status of an interrupt whose edge has not reached it yet."""
        ready = [index for index, queue in enumerate(self.transport.queues) if queue.setup().ready]
        for index in ready:
            self.transport.used(index)
        if not (ready and self.transport.live):
            self.interrupt(None, self.transport.isr)
        self.runner.arrived()
