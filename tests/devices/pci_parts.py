"""PCI functions on fakes: storage behind BARs, a place that notes, a bus with everything on it, and rigs."""

from __future__ import annotations

from tests.support.device_contract import Subject
from tvmm.bus import MmioBus, PortBus
from tvmm.devices import pci_bars, pci_config, pci_host, pci_msix
from tvmm.devices.pci_bars import IO, MEMORY32, MEMORY64, Bar, BarRegisters
from tvmm.devices.pci_config import ConfigSpace, PciIdentity
from tvmm.devices.pci_function import PciFunction
from tvmm.devices.pci_host import PciHost
from tvmm.devices.pci_mapper import BarMapper
from tvmm.devices.pci_msix import Msix
from tvmm.memory.layout import Range

IO_WINDOW = Range(0x1000, 0xF000)
WINDOW32 = Range(0xC000_0000, 0x2000_0000)
WINDOW64 = Range(0x80_0000_0000, 64 << 30)
ECAM = Range(0xE000_0000, 256 << 20)

NETWORK = PciIdentity(0x1AF4, 0x1041, 0x02_00_00, 1, 0x1AF4, 0x1100)


class Store:
    """Storage of `length` bytes."""

    def __init__(self, length: int = 0x1000) -> None:
        self.data = bytearray(length)

    def read(self, offset: int, size: int) -> int:
        """What was written."""
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep it."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")


class LoosePlace:
    """A place on no bus: notes where BARs are and how the pin moves."""

    def __init__(self) -> None:
        self.mapped: dict[int, int] = {}
        self.pin: list[bool] = []
        self.function: PciFunction | None = None

    def map_bar(self, bar: Bar, address: int) -> None:
        """Note it; nothing is mapped twice."""
        assert bar.number not in self.mapped
        self.mapped[bar.number] = address

    def unmap_bar(self, bar: Bar) -> None:
        """Note it; it was mapped."""
        del self.mapped[bar.number]

    def intx_changed(self) -> None:
        """Note the level."""
        assert self.function is not None
        self.pin.append(self.function.intx)


def some_bars(msix: Msix | None = None) -> tuple[Bar, ...]:
    """One of each kind; the table of `msix` in BAR 1."""
    behind = Store() if msix is None else msix
    return (
        Bar(0, 0x20, IO, Store(0x20), "ports"),
        Bar(1, 0x1000, MEMORY32, behind, "registers"),
        Bar(2, 0x1_0000_0000, MEMORY64, Store(), "huge", prefetchable=True),
        Bar(4, 0x4000, MEMORY64, Store(0x4000), "rings", prefetchable=True),
    )


class Bus:
    """A host bridge with its buses, a mapper, and a note of each interrupt line."""

    def __init__(self) -> None:
        self.ports = PortBus()
        self.mmio = MmioBus()
        self.lines: list[tuple[int, bool]] = []
        self.mapper = BarMapper(self.ports, self.mmio, IO_WINDOW, (WINDOW32, WINDOW64))
        self.reset_control = Store(1)
        self.host = PciHost(self.mapper, lambda gsi, level: self.lines.append((gsi, level)), self.reset_control)
        self.ports.add(pci_host.CONFIG_PORT, pci_host.CONFIG_PORTS, self.host, "pci")
        self.mmio.add(ECAM.start, self.host.ecam.length, self.host.ecam, "ecam")

    def plug(
        self, slot: int, number: int = 0, pin: int = 1, bars: tuple[Bar, ...] = (), msix: Msix | None = None
    ) -> PciFunction:
        """A function like any other."""
        place = self.host.place(slot, number)
        function = PciFunction(place, NETWORK, interrupt_pin=pin, bars=bars, msix=msix)
        function.config.add_express_capability()
        self.host.plug(place, function)
        return function


class ConfigRig:
    """A configuration space with capabilities and a delegate; events are latched in it."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.device = ConfigSpace(NETWORK, 1)
        self.device.add_vendor_capability(bytes(13), bytes(9) + b"\xff" * 4)
        self.device.add_express_capability()

    def stimulate(self, choice: int, amount: int) -> None:
        """An error is noted, or the interrupt moves."""
        if choice < 4:
            self.device.latch(pci_config.STATUS + 1, amount)
        else:
            self.device.set_interrupt_status(bool(amount & 1))

    def follow(self, other: ConfigRig) -> None:
        """There is nothing outside."""


class BarRig:
    """BARs that notes are taken of; the command register is outside."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.place = LoosePlace()
        self.device = BarRegisters(some_bars(), self.place.map_bar, self.place.unmap_bar)

    def stimulate(self, choice: int, amount: int) -> None:
        """Decode more or less, and see where things are."""
        self.device.set_decoding(amount)
        self.log.append(dict(self.place.mapped))

    def follow(self, other: BarRig) -> None:
        """There is nothing else outside."""


class MsixRig:
    """A table whose function has interrupts, some of them by another way."""

    VECTORS = 5

    def __init__(self) -> None:
        self.log: list[object] = []
        self.waiting: set[int] = set()
        self.device = Msix(self.VECTORS, lambda *changed: self.log.append(changed), self.log.append, self.poll)

    def poll(self, index: int) -> bool:
        """Something came by the other way."""
        came = index in self.waiting
        self.waiting.discard(index)
        return came

    def stimulate(self, choice: int, amount: int) -> None:
        """The guest turns MSI-X on or off, an interrupt comes or goes, the guest reads the pending bits."""
        index = amount % self.VECTORS
        if choice < 3:
            self.device.write_control(amount << 8)
        elif choice == 3:
            self.waiting.add(index)
        elif choice == 4:
            self.log.append(self.device.read(self.device.pba_offset, 8))
        elif choice == 5:
            self.device.withdraw(index)
        else:
            self.device.pending(index)

    def follow(self, other: MsixRig) -> None:
        """The same interrupts on the other way."""
        self.waiting = set(other.waiting)


class FunctionRig:
    """A whole function on no bus."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.place = LoosePlace()
        msix = Msix(4, lambda *changed: self.log.append(changed), self.log.append)
        self.device = PciFunction(
            self.place,
            NETWORK,
            interrupt_pin=2,
            bars=some_bars(msix),
            msix=msix,
            on_command=lambda command: self.log.append(("command", command)),
        )
        self.place.function = self.device
        self.place.pin = self.log  # type: ignore[assignment]
        self.msix = msix

    def stimulate(self, choice: int, amount: int) -> None:
        """Interrupts; the guest writes where it matters; see where things are."""
        if choice < 2:
            self.device.set_intx(bool(amount & 1))
        elif choice == 2:
            self.msix.pending(amount & 3)
        elif choice == 3:
            self.msix.write(16 * (amount & 3) + 12, 4, amount >> 7)
        elif choice == 4:
            self.device.write(0x42, 2, amount << 8)
        else:
            self.device.write(pci_config.COMMAND, 2, amount << 8 if choice == 5 else amount)
        self.log.append(dict(self.place.mapped))

    def follow(self, other: FunctionRig) -> None:
        """There is nothing outside."""


class HostRig:
    """The configuration ports; another function on the bus goes its own way, for its record is its owner's."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.bus = Bus()
        self.bus.lines = self.log  # type: ignore[assignment]
        self.function = self.bus.plug(3, bars=some_bars())
        self.device = self.bus.host

    def stimulate(self, choice: int, amount: int) -> None:
        """Choose a register, see the line, or have an interrupt."""
        if choice < 4:
            self.device.write(0, 4, 1 << 31 | (choice & 1) * 3 << 11 | amount)
        elif choice == 4:
            self.device.resample(16 + amount % 4)
        else:
            self.function.set_intx(bool(amount & 1))

    def follow(self, other: HostRig) -> None:
        """The owner of the other function brings it along."""
        self.function.restore(other.function.state())
        self.bus.reset_control.data[:] = other.bus.reset_control.data


class EcamRig(HostRig):
    """The same bus from memory."""

    def __init__(self) -> None:
        super().__init__()
        self.ecam = self.device.ecam
        self.device = self.ecam  # type: ignore[assignment]

    def stimulate(self, choice: int, amount: int) -> None:
        """Write somewhere else than the steps do."""
        self.ecam.write(3 << 15 | choice << 8 | amount, 4, 0x0101_0101 * amount)

    def follow(self, other: HostRig) -> None:
        """Host and function, as their owners do it."""
        super().follow(other)
        self.bus.host.restore(other.bus.host.state())


SUBJECTS = [
    Subject("pci_config", ConfigRig, pci_config.CONFIG_SIZE, "tvmm.devices.pci_config"),
    Subject("pci_bars", BarRig, pci_bars.LENGTH, "tvmm.devices.pci_bars"),
    Subject("pci_msix", MsixRig, MsixRig.VECTORS * pci_msix.ENTRY_SIZE, "tvmm.devices.pci_msix"),
    Subject("pci_function", FunctionRig, pci_config.CONFIG_SIZE, "tvmm.devices.pci_function"),
    Subject("pci_host", HostRig, pci_host.CONFIG_PORTS, "tvmm.devices.pci_host"),
    Subject("pci_ecam", EcamRig, ECAM.size, "tvmm.devices.pci_host"),
]
