"""A PCI function: configuration space, BARs, MSI-X and the INTx pin put together.

What a function is for is the business of who owns it. The owner makes the devices behind the BARs, adds capabilities
of its own to `config`, plugs the function into its place on the bus, and afterwards says when its interrupt is up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from tvmm.devices.common import check_record
from tvmm.devices.pci_bars import DECODE_IO, DECODE_MEMORY, BarRegisters, BarState
from tvmm.devices.pci_config import (
    BARS,
    BARS_LENGTH,
    CAP_MSIX,
    COMMAND,
    COMMAND_BUS_MASTER,
    COMMAND_INTX_DISABLE,
    ConfigSpace,
    ConfigState,
)
from tvmm.devices.pci_msix import MsixState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.devices.pci_bars import Bar
    from tvmm.devices.pci_config import PciIdentity
    from tvmm.devices.pci_msix import Msix

__all__ = ["PciFunction", "PciFunctionState", "PciPlace"]


class PciPlace(Protocol):
    """Where a function is plugged in: what it asks of the bus. Nothing here fails."""

    def map_bar(self, bar: Bar, address: int) -> None:
        """The guest wants `bar` at `address`."""

    def unmap_bar(self, bar: Bar) -> None:
        """The guest does not want `bar` where it was."""

    def intx_changed(self) -> None:
        """The function's `intx` has another value."""


class PciFunctionState(NamedTuple):
    """The records of the parts; `msix` is empty without MSI-X."""

    config: ConfigState = ConfigState()
    bars: BarState = BarState()
    msix: MsixState | tuple[()] = ()


class _Control:
    """The message control register as two bytes of a device."""

    def __init__(self, msix: Msix) -> None:
        self._msix = msix

    def read(self, offset: int, size: int) -> int:
        return self._msix.control >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        mask = (1 << 8 * size) - 1 << 8 * offset
        self._msix.write_control(self._msix.control & ~mask | value << 8 * offset)


class PciFunction:
    """One function; its registers are the 4096 bytes of its configuration space.

    `interrupt_pin` is 0 for none, 1 to 4 for INTA to INTD. `msix` is served by the BAR whose device it is. `on_command`
    gets the command register when it has changed. Raises `ValueError` for parts that do not go together.
    """

    def __init__(
        self,
        place: PciPlace,
        identity: PciIdentity,
        *,
        interrupt_pin: int = 0,
        bars: Sequence[Bar] = (),
        msix: Msix | None = None,
        on_command: Callable[[int], None] | None = None,
    ) -> None:
        self.place = place
        self.config = ConfigSpace(identity, interrupt_pin)
        self.bars = BarRegisters(bars, place.map_bar, place.unmap_bar)
        self.config.delegate(BARS, BARS_LENGTH, self.bars)
        self.msix = msix
        if msix is not None:
            self._add_msix_capability(msix, bars)
        self.intx = False
        """The level of the interrupt pin: true is asserted."""
        self._on_command = on_command or _nobody_asked
        self._command = self.config.command

    def _add_msix_capability(self, msix: Msix, bars: Sequence[Bar]) -> None:
        index = next((bar.number for bar in bars if bar.device is msix and bar.size >= msix.length), None)
        if index is None:
            raise ValueError("there is no BAR for the MSI-X table, or it is too small")
        body = bytes(2) + index.to_bytes(4, "little") + (msix.pba_offset | index).to_bytes(4, "little")
        offset = self.config.add_capability(CAP_MSIX, body)
        self.config.delegate(offset + 2, 2, _Control(msix))

    # -- the guest's side ----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset` of the configuration space."""
        return self.config.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """`size` bytes at `offset`; decoding and the interrupt pin follow."""
        self.config.write(offset, size, value)
        self._settle()

    def _settle(self) -> None:
        command = self.config.command
        if command != self._command:
            self._command = command
            self.bars.set_decoding(command)
            self._on_command(command)
        self._drive_pin()

    def _pin_level(self) -> bool:
        allowed = not self.config.command & COMMAND_INTX_DISABLE and not (self.msix and self.msix.enabled)
        return allowed and self.config.interrupt_status

    def _drive_pin(self) -> None:
        level = self._pin_level()
        if level != self.intx:
            self.intx = level
            self.place.intx_changed()

    # -- the owner's side ----------------------------------------------------------------------------------

    @property
    def bus_master(self) -> bool:
        """Whether the guest lets the function read and write memory and send messages."""
        return bool(self._command & COMMAND_BUS_MASTER)

    def set_intx(self, pending: bool) -> None:
        """Whether the function has an interrupt for its pin; the pin shows it unless it is disabled or MSI-X is on."""
        self.config.set_interrupt_status(pending)
        self._drive_pin()

    # -- state ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """To the state after power-on: nothing decoded, the pin low."""
        self.config.reset()
        self.bars.reset()
        if self.msix is not None:
            self.msix.reset()
        self._settle()

    def state(self) -> PciFunctionState:
        """The parts as a record."""
        return PciFunctionState(self.config.state(), self.bars.state(), () if self.msix is None else self.msix.state())

    def check(self, state: PciFunctionState) -> None:
        """Raise `ValueError` with the name of a bad field for what `restore` would not take."""
        check_record(state, PciFunctionState)
        self.config.check(state.config)
        self.bars.check(state.bars)
        if self.msix is None:
            if state.msix != ():
                raise ValueError("msix is there, and the function has none")
        elif isinstance(state.msix, MsixState):
            self.msix.check(state.msix)
        else:
            raise ValueError("msix is missing")
        if state.bars.decoding != state.config.registers[COMMAND] & (DECODE_IO | DECODE_MEMORY):
            raise ValueError("decoding is not what the command register says")

    def restore(self, state: PciFunctionState) -> None:
        """Take over `state`, with BARs mapped as it says; raises `ValueError` and then changes nothing.

        Interrupts are not told: the level of the pin and the vectors are there to be looked at.
        """
        self.check(state)
        self.config.restore(state.config)
        self.bars.restore(state.bars)
        if self.msix is not None and isinstance(state.msix, MsixState):
            self.msix.restore(state.msix)
        self._command = self.config.command
        self.intx = self._pin_level()


def _nobody_asked(command: int) -> None:
    """For an owner that looks when it needs to know."""
