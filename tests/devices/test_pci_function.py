"""A PCI function: how its parts work on each other."""

from __future__ import annotations

import pytest

from tests.devices.pci_parts import NETWORK, LoosePlace, Store, some_bars
from tvmm.devices import pci_config as config
from tvmm.devices.pci_bars import MEMORY32, Bar
from tvmm.devices.pci_function import PciFunction
from tvmm.devices.pci_msix import Msix

MSIX = 0x40
CONTROL = MSIX + 2
ON = 0x8000


class Loose:
    """A function with INTA and four vectors on no bus."""

    def __init__(self) -> None:
        self.place = LoosePlace()
        self.told: list[object] = []
        self.commands: list[int] = []
        self.msix = Msix(4, lambda *changed: self.told.append(changed), self.told.append)
        self.function = PciFunction(
            self.place,
            NETWORK,
            interrupt_pin=1,
            bars=some_bars(self.msix),
            msix=self.msix,
            on_command=self.commands.append,
        )
        self.place.function = self.function

    def command(self, value: int) -> None:
        """Write the command register."""
        self.function.write(config.COMMAND, 2, value)


@pytest.fixture
def loose() -> Loose:
    """After power-on."""
    return Loose()


def test_bars_follow_the_command_register(loose: Loose) -> None:
    """BARs are mapped while the command register decodes them; bus mastering shows, and changes are told."""
    loose.function.write(0x10, 4, 0x1000)
    loose.function.write(0x14, 4, 0xC000_0000)
    loose.command(config.COMMAND_IO | config.COMMAND_BUS_MASTER)
    assert loose.place.mapped == {0: 0x1000}
    assert loose.function.bus_master
    loose.command(config.COMMAND_MEMORY)
    assert loose.place.mapped == {1: 0xC000_0000, 2: 0, 4: 0}
    assert not loose.function.bus_master
    loose.command(config.COMMAND_MEMORY)
    assert loose.commands == [5, 2]


def test_msix_capability(loose: Loose) -> None:
    """Table and pending bits are where the capability says, and its control word is the table's."""
    assert loose.function.read(config.CAPABILITIES, 1) == MSIX
    assert loose.function.read(MSIX, 4) == 3 << 16 | config.CAP_MSIX
    assert loose.function.read(MSIX + 4, 4) == 0 | 1
    assert loose.function.read(MSIX + 8, 4) == loose.msix.pba_offset | 1
    loose.function.write(CONTROL, 2, 0xFFFF)
    assert loose.function.read(CONTROL, 2) == 0xC003
    loose.function.write(CONTROL + 1, 1, 0x80)
    assert loose.function.read(MSIX, 4) >> 16 == 0x8003
    loose.function.write(CONTROL, 1, 0)
    loose.function.write(MSIX, 4, 0x4000_0000)
    assert loose.function.read(CONTROL, 2) == 0x4003


@pytest.mark.parametrize("bars", [(), (Bar(0, 0x1000, MEMORY32, Store(), "other"),)])
def test_msix_needs_its_bar(bars: tuple[Bar, ...]) -> None:
    """A table that no BAR serves is refused."""
    msix = Msix(1, lambda *changed: None, lambda index: None)
    with pytest.raises(ValueError, match="no BAR"):
        PciFunction(LoosePlace(), NETWORK, bars=bars, msix=msix)


def test_pin_follows_pending_and_disable(loose: Loose) -> None:
    """The pin shows a pending interrupt unless the disable bit is set; the status bit shows it in any case."""
    loose.function.set_intx(True)
    loose.function.set_intx(True)
    loose.command(config.COMMAND_INTX_DISABLE)
    assert loose.function.read(config.STATUS, 2) & config.STATUS_INTX
    loose.command(0)
    loose.function.set_intx(False)
    assert loose.place.pin == [True, False, True, False]


def test_pin_is_low_while_msix_is_on(loose: Loose) -> None:
    """A function uses one kind of interrupt."""
    loose.function.set_intx(True)
    loose.function.write(CONTROL, 2, ON)
    loose.function.write(CONTROL, 2, 0)
    assert loose.place.pin == [True, False, True]


def test_a_function_without_pin_has_no_intx() -> None:
    """There is nothing to assert."""
    place = LoosePlace()
    function = PciFunction(place, NETWORK)
    function.set_intx(True)
    assert not function.intx
    assert place.pin == []


def test_reset(loose: Loose) -> None:
    """Nothing is mapped, the pin is low, vectors are closed, and the owner hears of the command register."""
    loose.command(0x07)
    loose.function.set_intx(True)
    loose.function.write(CONTROL, 2, ON)
    loose.msix.write(12, 4, 0)
    loose.function.reset()
    assert loose.place.mapped == {}
    assert not loose.function.intx
    assert loose.told == [(0, 0, 0, False), (0, 0, 0, True)]
    assert loose.commands == [7, 0]


def test_restore_maps_and_tells_nobody(loose: Loose) -> None:
    """BARs are where they were, the pin is as it was, and no interrupt and no change is told."""
    loose.function.write(0x14, 4, 0xC000_0000)
    loose.command(config.COMMAND_MEMORY | config.COMMAND_BUS_MASTER)
    loose.function.set_intx(True)
    other = Loose()
    other.function.restore(loose.function.state())
    assert other.place.mapped == loose.place.mapped
    assert other.function.intx
    assert other.function.bus_master
    assert (other.place.pin, other.told, other.commands) == ([], [], [])


def test_records_that_contradict_themselves(loose: Loose) -> None:
    """Decoding is said twice and has to agree; MSI-X has to be there if and only if the function has it."""
    state = loose.function.state()
    with pytest.raises(ValueError, match="decoding"):
        loose.function.restore(state._replace(bars=state.bars._replace(decoding=1)))
    with pytest.raises(ValueError, match="msix"):
        loose.function.restore(state._replace(msix=()))
    bare = PciFunction(LoosePlace(), NETWORK)
    with pytest.raises(ValueError, match="msix"):
        bare.restore(bare.state()._replace(msix=state.msix))
