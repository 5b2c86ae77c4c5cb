"""Which interrupt goes where: KVM's routing table (KVM_SET_GSI_ROUTING), written as a whole at each change.

The first 24 GSIs are the ISA lines and the IOAPIC's pins, fixed. Those behind are messages (MSI), one for each vector
of a PCI function that the guest has opened.
"""

from __future__ import annotations

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, ioctl, lib

__all__ = ["IOAPIC_PINS", "IrqRoutes"]

IOAPIC_PINS, PIC_PINS, TIMER_PIN = 24, 16, 2
MAX_ROUTES = 4096
"""KVM_MAX_IRQ_ROUTES on x86: entries of the table. A pin of both PIC and IOAPIC has two."""


class IrqRoutes:
    """The table of one VM. Calls come under the bus lock, or before anything runs."""

    def __init__(self, vm_fd: int) -> None:
        self._fd = vm_fd
        self._free: list[int] = []
        self._next = IOAPIC_PINS
        self._reserved = 0
        self._messages: dict[int, tuple[int, int]] = {}
        self._pins = _isa_lines()

    def reserve(self, count: int) -> None:
        """Room for `count` messages that may be wanted later. Raises `HostError` if KVM's table has not got it."""
        self._reserved += count
        if len(self._pins) + self._reserved > MAX_ROUTES:
            raise HostError(f"KVM has room for {MAX_ROUTES} interrupts in all", "use fewer queues or devices")

    def allocate(self) -> int:
        """A GSI for messages, one of those that were reserved."""
        if self._free:
            return self._free.pop()
        self._next += 1
        return self._next - 1

    def release(self, gsi: int) -> None:
        """Give a GSI back that nothing is connected with any more."""
        self._messages.pop(gsi, None)
        self._free.append(gsi)

    def set_message(self, gsi: int, address: int, data: int) -> None:
        """`gsi` is a write of `data` to `address` from now on."""
        if self._messages.get(gsi) != (address, data):
            self._messages[gsi] = (address, data)
            self.apply()

    def apply(self) -> None:
        """Tell KVM."""
        count = len(self._pins) + len(self._messages)
        table = ffi.new("struct kvm_irq_routing *", {"entries": count})
        table.nr = count
        for index, (line, chip, pin) in enumerate(self._pins):
            lib.tvmm_route_to_pin(ffi.addressof(table.entries, index), line, chip, pin)
        for index, (gsi, (address, data)) in enumerate(self._messages.items(), len(self._pins)):
            lib.tvmm_route_to_msi(ffi.addressof(table.entries, index), gsi, address, data)
        ioctl(self._fd, "KVM_SET_GSI_ROUTING", table)


def _isa_lines() -> list[tuple[int, int, int]]:
    """Line i to pin i of PIC and IOAPIC, but the timer's line 0 to IOAPIC pin 2, as PCs are wired and tables say.

    KVM's own default has line 0 at pin 0, where no guest looks for the timer.
    """
    routes = []
    for line in range(IOAPIC_PINS):
        if line < PIC_PINS:
            chip = lib.KVM_IRQCHIP_PIC_MASTER if line < 8 else lib.KVM_IRQCHIP_PIC_SLAVE
            routes.append((line, chip, line % 8))
        if line != TIMER_PIN:
            routes.append((line, lib.KVM_IRQCHIP_IOAPIC, line or TIMER_PIN))
    return routes
