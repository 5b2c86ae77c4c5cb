"""Interrupt lines: a device raises an edge, an irqfd carries it into KVM; no device calls KVM."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvmm.kvm.vm import Vm

__all__ = ["IrqLine"]


class IrqLine:
    """An edge-triggered line to one pin of PIC and IOAPIC. Calling it raises one edge, from any thread."""

    def __init__(self, vm: Vm, gsi: int) -> None:
        self.gsi = gsi
        self.edges = 0
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
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
