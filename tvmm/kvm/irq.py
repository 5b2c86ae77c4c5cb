"""Interrupts by eventfd: a device writes one, KVM turns it into an edge, a level or a message; no device calls KVM."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvmm.kvm.vm import Vm

__all__ = ["IrqLine", "LevelLine", "MsiVector", "take_events"]


def new_event() -> int:
    """An eventfd that does not block."""
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def take_events(event_fd: int) -> int:
    """What was written to an eventfd since it was last asked; 0 if nothing was."""
    try:
        return os.eventfd_read(event_fd)
    except BlockingIOError:
        return 0


class IrqLine:
    """An edge-triggered line to one pin of PIC and IOAPIC. Calling it raises one edge, from any thread."""

    def __init__(self, vm: Vm, gsi: int) -> None:
        self.gsi = gsi
        self.edges = 0
        self._fd = new_event()
        try:
            vm.set_irqfd(gsi, self._fd)
        except OSError:
            os.close(self._fd)
            raise

    def __call__(self) -> None:
        self.edges += 1
        os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Close the eventfd; KVM lets go of the line by itself."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LevelLine:
    """A level-triggered pin of the IOAPIC. Once raised it stays up until the guest ends the interrupt.

    Then `resample_fd` becomes readable, and whoever still has a cause raises the line anew.
    """

    def __init__(self, vm: Vm, gsi: int) -> None:
        self.gsi = gsi
        self.raised = 0
        self._fd, self.resample_fd = new_event(), new_event()
        try:
            vm.set_irqfd(gsi, self._fd, resample_fd=self.resample_fd)
        except OSError:
            self.close()
            raise

    def raise_line(self) -> None:
        """Up. From any thread."""
        self.raised += 1
        os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Close both eventfds; KVM lets go of the line by itself."""
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self.resample_fd)
            self._fd = self.resample_fd = -1


class MsiVector:
    """One vector of a PCI function: an eventfd that may be written at any time, by any thread.

    While the vector is open KVM sends its message for each write. While it is masked writes are kept in the eventfd:
    `take_pending` asks for them, and opening the vector sends them.
    """

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._gsi = -1
        self._open = False
        self.fd = new_event()

    def set(self, address: int, data: int, masked: bool) -> None:
        """How the guest has set the vector up. Under the bus lock. Raises `HostError` when KVM has no more."""
        if masked:
            self._disconnect()
            return
        if self._gsi < 0:
            self._gsi = self._vm.routes.allocate()
        self._vm.routes.set_message(self._gsi, address, data)
        if not self._open:
            # KVM sends for an eventfd that it finds written, and leaves it written: that would come out twice.
            pending = take_events(self.fd)
            self._vm.set_irqfd(self._gsi, self.fd)
            self._open = True
            if pending:
                self.send()

    def send(self) -> None:
        """One interrupt."""
        os.eventfd_write(self.fd, 1)

    def take_pending(self) -> bool:
        """Whether there was an interrupt while the vector is masked; asks once."""
        return not self._open and take_events(self.fd) > 0

    def _disconnect(self) -> None:
        if self._open:
            self._vm.set_irqfd(self._gsi, self.fd, assign=False)
            self._open = False

    def close(self) -> None:
        """Close the eventfd and give the GSI back."""
        if self.fd >= 0:
            self._disconnect()
            if self._gsi >= 0:
                self._vm.routes.release(self._gsi)
            os.close(self.fd)
            self.fd = self._gsi = -1
