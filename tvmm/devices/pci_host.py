"""The PCI host bridge: bus 0, the two ways to configuration space, and the interrupt pins' way to GSIs.

Mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2): a dword at port 0xcf8 chooses bus, device, function and register, the ports
0xcfc to 0xcff are the bytes of that register. Only an access of the whole dword reaches CONFIG_ADDRESS; others to
those ports are none of the bridge's, and a byte at port 0xcf9 is the reset control register of the chip set, which
lies in the middle.

ECAM (PCI Express Base 5.0, 7.2.2): 4096 bytes for each function in memory, 1 MiB for each bus.

What is not there reads as all ones, and writes to it are dropped. There are no bridges behind this one, so on
buses from 1 on nothing is.

The pins are level-triggered and shared: a GSI is up as long as any function on it asserts its pin. The level is always
worked out from the functions themselves, so that a count of who is up cannot go wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices.common import check_bits, check_record, check_uint
from tvmm.devices.pci_config import PciIdentity
from tvmm.devices.pci_function import PciFunction, PciFunctionState
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.bus import Device, Hold
    from tvmm.devices.pci_bars import Bar
    from tvmm.devices.pci_mapper import BarMapper

__all__ = [
    "CONFIG_PORT",
    "CONFIG_PORTS",
    "ECAM_BUS_SIZE",
    "HOST_BRIDGE",
    "Ecam",
    "EcamState",
    "PciHost",
    "PciHostState",
    "Place",
]

CONFIG_PORT, CONFIG_PORTS = 0xCF8, 8
DATA = 4
RESET_CONTROL = 1

ADDRESS_ENABLE = 1 << 31
ADDRESS_BITS = 0x80FF_FFFC

SLOT_COUNT, FUNCTION_COUNT, PIN_COUNT = 32, 8, 4
FUNCTION_SIZE = 4096
ECAM_BUS_SIZE = SLOT_COUNT * FUNCTION_COUNT * FUNCTION_SIZE
BARS_PER_FUNCTION = 8

# The host bridge of QEMU's machines without a chip set: no driver wants it and no kernel has a workaround for it.
HOST_BRIDGE = PciIdentity(vendor_id=0x1B36, device_id=0x0008, class_code=0x06_00_00)


class PciHostState(NamedTuple):
    """CONFIG_ADDRESS, a bit for each GSI that is up from the first on, and the bridge's own function."""

    address: int = 0
    levels: int = 0
    bridge: PciFunctionState = PciFunctionState()


class Place:
    """A slot and function number of bus 0, to build a function with."""

    def __init__(self, host: PciHost, slot: int, number: int) -> None:
        self.slot = slot
        self.number = number
        self._host = host

    def __str__(self) -> str:
        return f"00:{self.slot:02x}.{self.number}"

    @property
    def devfn(self) -> int:
        """Slot and number in one byte, as in CONFIG_ADDRESS."""
        return self.slot * FUNCTION_COUNT + self.number

    def rank(self, bar: Bar) -> int:
        """The rank of a BAR here: the first function's first BAR is served first."""
        return self.devfn * BARS_PER_FUNCTION + bar.number

    def map_bar(self, bar: Bar, address: int) -> None:
        """Have `bar` mapped, if there is room for it."""
        self._host.mapper.want(self.rank(bar), bar, address)

    def unmap_bar(self, bar: Bar) -> None:
        """Have `bar` taken away."""
        self._host.mapper.want(self.rank(bar), bar, None)

    def intx_changed(self) -> None:
        """Work out the level of the GSI that the pin here goes to."""
        self._host.update_intx(self)


class PciHost:
    """Bus 0 with the host bridge at 00:00.0. The device is the eight ports from 0xcf8 on; `ecam` is the other one.

    `irq_level` gets a GSI and its level whenever that changes. `reset_control` answers to bytes at port 0xcf9. Pin
    INTA of slot n goes to GSI ``intx_gsi + n % 4``, the next pins to the next ones, round the four.
    """

    def __init__(
        self,
        mapper: BarMapper,
        irq_level: Callable[[int, bool], None],
        reset_control: Device | None = None,
        intx_gsi: int = 16,
        bus_count: int = 256,
    ) -> None:
        self.mapper = mapper
        self.intx_gsi = intx_gsi
        self.ecam = Ecam(self, bus_count)
        self._irq_level = irq_level
        self._reset_control = reset_control
        self._address = 0
        self._levels = 0
        self._functions: dict[int, PciFunction] = {}
        self._bridge = PciFunction(Place(self, 0, 0), HOST_BRIDGE)
        self._functions[0] = self._bridge

    # -- building ------------------------------------------------------------------------------------------

    def place(self, slot: int | None = None, number: int = 0) -> Place:
        """A free place, in the first free slot if none is asked for. Raises `ConfigError` if there is none."""
        if slot is None:
            used = {devfn // FUNCTION_COUNT for devfn in self._functions}
            slot = next((slot for slot in range(SLOT_COUNT) if slot not in used), SLOT_COUNT)
            if slot == SLOT_COUNT:
                raise ConfigError(f"all {SLOT_COUNT} PCI slots are taken")
        if not (0 <= slot < SLOT_COUNT and 0 <= number < FUNCTION_COUNT):
            raise ConfigError(f"PCI slot {slot}, function {number} is not one of {SLOT_COUNT} and {FUNCTION_COUNT}")
        place = Place(self, slot, number)
        self._check_free(place)
        return place

    def plug(self, place: Place, function: PciFunction) -> None:
        """Put `function` where it was built for. Raises `ConfigError` if somebody else is there by now.

        Function 0 of a slot comes first: guests look for the others only if that one is there and says so.
        """
        self._check_free(place)
        first = self._functions.get(place.slot * FUNCTION_COUNT)
        if place.number and first is None:
            raise ConfigError(f"PCI function {place} needs a function 0 in its slot")
        self._functions[place.devfn] = function
        if first is not None:
            first.config.set_multifunction()
            function.config.set_multifunction()

    def _check_free(self, place: Place) -> None:
        if place.devfn in self._functions:
            raise ConfigError(f"PCI slot {place} is taken")

    # -- configuration space -------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at port 0xcf8 + `offset`."""
        ones = (1 << 8 * size) - 1
        if offset == 0 and size == 4:
            return self._address
        if offset == RESET_CONTROL and size == 1 and self._reset_control is not None:
            return self._reset_control.read(0, 1) & ones
        if offset < DATA or offset + size > CONFIG_PORTS or not self._address & ADDRESS_ENABLE:
            return ones
        return self.config_read(*self._target(offset), size)

    def write(self, offset: int, size: int, value: int) -> Hold | None:
        """`size` bytes at port 0xcf8 + `offset`."""
        if offset == 0 and size == 4:
            self._address = value & ADDRESS_BITS
        elif offset == RESET_CONTROL and size == 1 and self._reset_control is not None:
            return self._reset_control.write(0, 1, value)
        elif offset >= DATA and offset + size <= CONFIG_PORTS and self._address & ADDRESS_ENABLE:
            self.config_write(*self._target(offset), size, value)
        return None

    def _target(self, offset: int) -> tuple[int, int, int]:
        """Bus, slot with function, and register that the data port at `offset` stands for."""
        return self._address >> 16 & 0xFF, self._address >> 8 & 0xFF, (self._address & 0xFC) + offset - DATA

    def config_read(self, bus: int, devfn: int, register: int, size: int) -> int:
        """`size` bytes at `register` of a function; all ones if there is none."""
        function = self._functions.get(devfn) if bus == 0 else None
        return (1 << 8 * size) - 1 if function is None else function.read(register, size)

    def config_write(self, bus: int, devfn: int, register: int, size: int, value: int) -> None:
        """`size` bytes at `register` of a function, if there is one."""
        function = self._functions.get(devfn) if bus == 0 else None
        if function is not None:
            function.write(register, size, value)

    # -- interrupt pins ------------------------------------------------------------------------------------

    def gsi(self, slot: int, pin: int) -> int:
        """The GSI of pin 1 (INTA) to 4 (INTD) of `slot`."""
        return self.intx_gsi + (slot + pin - 1) % PIN_COUNT

    def update_intx(self, place: Place) -> None:
        """A pin of the function at `place` has changed: work out the level of its GSI, and tell if it is another."""
        function = self._functions.get(place.devfn)
        if function is None or not function.config.interrupt_pin:
            return
        gsi = self.gsi(place.slot, function.config.interrupt_pin)
        level = any(self._asserts(devfn, other, gsi) for devfn, other in self._functions.items())
        bit = 1 << gsi - self.intx_gsi
        if level != bool(self._levels & bit):
            self._levels ^= bit
            self._irq_level(gsi, level)

    def _asserts(self, devfn: int, function: PciFunction, gsi: int) -> bool:
        return function.intx and self.gsi(devfn // FUNCTION_COUNT, function.config.interrupt_pin) == gsi

    def level(self, gsi: int) -> bool:
        """Whether `gsi` is up. Raises `ValueError` for one that no pin goes to."""
        if not 0 <= gsi - self.intx_gsi < PIN_COUNT:
            raise ValueError(f"GSI {gsi} is not one of PCI's")
        return bool(self._levels >> gsi - self.intx_gsi & 1)

    def resample(self, gsi: int) -> None:
        """The guest has acknowledged `gsi`, which took the line down: up again, if a function still asserts it.

        Also what a shell calls for each GSI after `restore`, which tells nobody.
        """
        if self.level(gsi):
            self._irq_level(gsi, True)

    # -- state ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """The bus's reset line: CONFIG_ADDRESS and every function to their states after power-on."""
        self._address = 0
        for function in self._functions.values():
            function.reset()

    def state(self) -> PciHostState:
        """The bridge alone; each function is in the record of its owner."""
        return PciHostState(self._address, self._levels, self._bridge.state())

    def restore(self, state: PciHostState) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        check_record(state, PciHostState)
        check_bits("address", state.address, ADDRESS_BITS)
        check_uint("levels", state.levels, (1 << PIN_COUNT) - 1)
        self._bridge.restore(state.bridge)
        self._address = state.address
        self._levels = state.levels


class EcamState(NamedTuple):
    """Nothing: what is seen through it is in the functions."""


class Ecam:
    """Configuration space in memory, 1 MiB for each of `bus_count` buses (1 to 256)."""

    def __init__(self, host: PciHost, bus_count: int) -> None:
        if not 1 <= bus_count <= 256:
            raise ValueError(f"{bus_count} buses are not 1 to 256")
        self.length = bus_count * ECAM_BUS_SIZE
        self._host = host

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`, in dwords: an access never crosses one on the bus."""
        value = done = 0
        while done < size:
            part = min(4 - (offset + done & 3), size - done)
            value |= self._host.config_read(*self._target(offset + done), part) << 8 * done
            done += part
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """`size` bytes at `offset`, in dwords."""
        done = 0
        while done < size:
            part = min(4 - (offset + done & 3), size - done)
            self._host.config_write(*self._target(offset + done), part, value >> 8 * done & (1 << 8 * part) - 1)
            done += part

    @staticmethod
    def _target(offset: int) -> tuple[int, int, int]:
        """Bus, slot with function, and register at `offset`."""
        return offset >> 20, offset >> 12 & 0xFF, offset & 0xFFF

    def reset(self) -> None:
        """Nothing to do."""

    def state(self) -> EcamState:
        """An empty record."""
        return EcamState()

    def restore(self, state: EcamState) -> None:
        """Nothing to take over; raises `ValueError` if `state` is not the right record."""
        check_record(state, EcamState)
