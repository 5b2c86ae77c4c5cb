"""The PCI bus of a board: host bridge, windows, interrupt pins, and the addresses that firmware would give.

There is no firmware, so BARs are placed here before a kernel is entered: one after the other from the start of the
32-bit window. Kernels keep what they find there, or move it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from tvmm.boot.dsdt_buses import PciWindows
from tvmm.devices.pci_bars import IO
from tvmm.devices.pci_config import BARS, INTERRUPT_LINE
from tvmm.devices.pci_host import CONFIG_PORT, CONFIG_PORTS, PciHost
from tvmm.devices.pci_mapper import BarMapper
from tvmm.errors import HostError
from tvmm.kvm.irq import LevelLine, take_events
from tvmm.memory.layout import PCI_ECAM, PCI_IO, PCI_MMIO32, Range, pci_mmio64, ram_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from tvmm.bus import Device, MmioBus, PortBus
    from tvmm.devices.pci_bars import Bar
    from tvmm.devices.pci_function import PciFunction, PciFunctionState
    from tvmm.devices.pci_host import PciHostState, Place
    from tvmm.kvm.bus_lock import BusLock
    from tvmm.kvm.vm import Vm

__all__ = ["PciBus", "PciCard"]

INTX_GSI, INTX_COUNT = 16, 4
LARGE_BAR = 1 << 20


class PciCard(Protocol):
    """A device on the bus, whatever it is."""

    where: Place

    @property
    def function(self) -> PciFunction:
        """Its function, plugged in at `where`."""

    def restore_function(self, state: PciFunctionState) -> None:
        """Take over the function's record and what follows from it. Under the bus lock.

        Raises `ValueError` with the name of a bad field, or `OSError` if KVM refuses what follows from the record.
        """


class PciBus:
    """Bus 0 on `ports` and `mmio`. `reset_control` answers at port 0xcf9, in the middle of PCI's own."""

    def __init__(
        self,
        vm: Vm,
        ports: PortBus,
        mmio: MmioBus,
        bus_lock: BusLock,
        ram_size: int,
        reset_control: Device,
        stack: ExitStack,
    ) -> None:
        self.windows = PciWindows(PCI_ECAM, PCI_IO, PCI_MMIO32, pci_mmio64(ram_size), INTX_GSI)
        self._bus_lock = bus_lock
        self._slots: list[PciCard] = []
        self._watched: dict[int, tuple[Callable[[int | None, int | None], None], int | None]] = {}
        self._lines: dict[int, LevelLine] = {}
        for gsi in range(INTX_GSI, INTX_GSI + INTX_COUNT):
            try:
                line = LevelLine(vm, gsi)
            except OSError as error:
                raise HostError(f"KVM gives no level-triggered interrupt: {error.strerror}") from error
            stack.callback(line.close)
            self._lines[gsi] = line
        # Kernels without ACPI place BARs behind the RAM if they move them at all: let them.
        low_end = ram_ranges(ram_size)[0].end
        below_ecam = Range(low_end, PCI_ECAM.start - low_end)
        self.mapper = BarMapper(ports, mmio, PCI_IO, (below_ecam, self.windows.mmio64), self._mapped)
        self.host = PciHost(self.mapper, self._set_level, reset_control, INTX_GSI, self.windows.bus_count)
        ports.add(CONFIG_PORT, CONFIG_PORTS, self.host, "pci")
        mmio.add(PCI_ECAM.start, PCI_ECAM.size, self.host.ecam, "pci ecam")

    def add(self, slot: PciCard) -> None:
        """A device that has plugged itself in; its BARs are placed by `place_bars`."""
        self._slots.append(slot)

    # -- BARs ---------------------------------------------------------------------------------------------

    def watch(self, device: Device, moved: Callable[[int | None, int | None], None]) -> None:
        """Call `moved(old address, new address)` whenever the BAR of `device` is mapped elsewhere; None is nowhere."""
        self._watched[id(device)] = (moved, None)

    def _mapped(self, bar: Bar, address: int | None) -> None:
        moved, old = self._watched.get(id(bar.device), (None, None))
        if moved is not None:
            self._watched[id(bar.device)] = (moved, address)
            moved(old, address)

    def place_bars(self) -> None:
        """What firmware does: an address for each BAR, decoding left off, and the pin's interrupt for old kernels."""
        memory, port = PCI_MMIO32.start, PCI_IO.start
        bars = [(window.bar, slot.function) for slot in self._slots for window in slot.function.bars.windows]
        # What is large first, so that it leaves no gap; the others where they have always been.
        for bar, function in sorted(bars, key=lambda found: -max(found[0].size, LARGE_BAR)):
            if bar.kind == IO:
                port = -(-port // bar.size) * bar.size
                function.write(BARS + 4 * bar.number, 4, port)
                port += bar.size
            else:
                memory = -(-memory // bar.size) * bar.size
                function.write(BARS + 4 * bar.number, 4, memory)
                memory += bar.size
        for slot in self._slots:
            if pin := slot.function.config.interrupt_pin:
                slot.function.write(INTERRUPT_LINE, 1, self.host.gsi(slot.where.slot, pin))

    @property
    def slots(self) -> Sequence[PciCard]:
        """Devices, in the order of their places."""
        return self._slots

    def slots_with_pins(self) -> tuple[int, ...]:
        """For the interrupt tables."""
        return tuple(slot.where.slot for slot in self._slots if slot.function.config.interrupt_pin)

    def reset(self) -> None:
        """The bus's reset line. Under the bus lock."""
        self.host.reset()

    def line(self, gsi: int) -> LevelLine:
        """The line of one of PCI's four GSIs."""
        return self._lines[gsi]

    # -- saving, under the bus lock --------------------------------------------------------------------------

    def restore(self, state: PciHostState) -> None:
        """Take over the host bridge's record, after those of all functions. Raises `ValueError` that names a field."""
        self.host.restore(state)
        for gsi in self._lines:
            up = any(
                slot.function.intx and self.host.gsi(slot.where.slot, slot.function.config.interrupt_pin) == gsi
                for slot in self._slots
            )
            if up != self.host.level(gsi):
                raise ValueError("levels is not what the functions' pins say")

    def redeliver(self) -> None:
        """Raise the lines that have a cause."""
        for gsi in self._lines:
            self.host.resample(gsi)

    # -- pins ---------------------------------------------------------------------------------------------

    def _set_level(self, gsi: int, level: bool) -> None:
        # Down is what the guest's end of interrupt does; see `watch_pins`.
        if level:
            self._lines[gsi].raise_line()

    async def watch_pins(self) -> None:
        """Raise lines anew that still have a cause when the guest ends their interrupt. A task of the machine."""
        async with trio.open_nursery() as nursery:
            for line in self._lines.values():
                nursery.start_soon(self._watch_pin, line, name=f"pci pin gsi {line.gsi}")

    async def _watch_pin(self, line: LevelLine) -> None:
        while True:
            await trio.lowlevel.wait_readable(line.resample_fd)
            take_events(line.resample_fd)
            with self._bus_lock:
                self.host.resample(line.gsi)
