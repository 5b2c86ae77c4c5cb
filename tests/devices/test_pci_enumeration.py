"""A driver finds what is on the bus, by both mechanisms, and puts it to work."""

from __future__ import annotations

import pytest

from tests.devices.pci_parts import ECAM, IO_WINDOW, WINDOW32, WINDOW64, Bus, some_bars
from tests.support.pci_driver import (
    Allocator,
    ConfigAccess,
    EcamAccess,
    FoundBar,
    FoundFunction,
    Mechanism1,
    enable_msix,
    enumerate_bus,
    size_bars,
)
from tvmm.devices.pci_bars import MEMORY32, Bar
from tvmm.devices.pci_msix import Msix

BARS = (
    FoundBar(0, "io", 0x20, False),
    FoundBar(1, "memory32", 0x1000, False),
    FoundBar(2, "memory64", 1 << 32, True),
    FoundBar(4, "memory64", 0x4000, True),
)
TREE = [
    FoundFunction((0, 0), 0x1B36, 0x0008, 0x060000, 0, (), ()),
    FoundFunction((1, 0), 0x1AF4, 0x1041, 0x020000, 1, ((0x11, 0x40), (0x10, 0x4C)), BARS),
    FoundFunction((4, 0), 0x1AF4, 0x1041, 0x020000, 3, ((0x10, 0x40),), ()),
    FoundFunction((4, 5), 0x1AF4, 0x1041, 0x020000, 4, ((0x10, 0x40),), BARS),
    FoundFunction((31, 0), 0x1AF4, 0x1041, 0x020000, 1, ((0x11, 0x40), (0x10, 0x4C)), (BARS[1],)),
]


class Machine(Bus):
    """A bus with functions of all sorts."""

    def __init__(self) -> None:
        super().__init__()
        self.routes: dict[int, tuple[int, int]] = {}
        self.sent: list[tuple[int, int]] = []
        self.msix = Msix(3, self._routed, lambda index: self.sent.append(self.routes[index]))
        self.network = self.plug(1, bars=some_bars(self.msix), msix=self.msix)
        self.plug(4, pin=3)
        self.plug(4, 5, pin=4, bars=some_bars())
        other = Msix(1, lambda *changed: None, lambda index: None)
        self.plug(31, bars=(Bar(1, 0x1000, MEMORY32, other, "registers"),), msix=other)

    def _routed(self, index: int, address: int, data: int, masked: bool) -> None:
        if masked:
            del self.routes[index]
        else:
            self.routes[index] = address, data

    def access(self, way: str) -> ConfigAccess:
        """Either mechanism."""
        return Mechanism1(self.ports) if way == "ports" else EcamAccess(self.mmio, ECAM.start)


each_way = pytest.mark.parametrize("way", ["ports", "ecam"])


@each_way
def test_the_tree(way: str) -> None:
    """Each mechanism finds all functions with their capabilities and BARs, and changes nothing by looking."""
    machine = Machine()
    before = machine.network.state()
    assert enumerate_bus(machine.access(way)) == TREE
    assert machine.network.state() == before
    assert machine.mapper.refusals == 0


@each_way
def test_all_bars_are_placed(way: str) -> None:
    """What an allocator hands out is where the devices then are, and both mechanisms read the same addresses."""
    machine = Machine()
    access = machine.access(way)
    allocator = Allocator(IO_WINDOW, WINDOW32, WINDOW64)
    expected = {}
    for function in enumerate_bus(access):
        for number, address in allocator.place(access, function).items():
            expected[address] = next(bar.size for bar in function.bars if bar.number == number)
            for other in ("ports", "ecam"):
                found = machine.access(other).read(function.where, 0x10 + 4 * number, 4)
                assert found & ~0xF == address & 0xFFFF_FFFF & ~0xF
    fixed = {0xCF8, ECAM.start}
    placed = {entry.start: entry.length for bus in (machine.ports, machine.mmio) for entry in bus}
    assert {start: length for start, length in placed.items() if start not in fixed} == expected
    assert len(expected) == 9
    assert machine.mapper.refusals == 0


@each_way
def test_firmware_sizes_with_decoding_on(way: str) -> None:
    """BARs that are probed while they are decoded are found, and are afterwards where they were."""
    machine = Machine()
    access = machine.access(way)
    allocator = Allocator(IO_WINDOW, WINDOW32, WINDOW64)
    for function in TREE:
        allocator.place(access, function)
    before = [tuple(entry) for bus in (machine.ports, machine.mmio) for entry in bus]
    for function in TREE:
        assert tuple(size_bars(access, function.where, decode_off=False)) == function.bars
    assert [tuple(entry) for bus in (machine.ports, machine.mmio) for entry in bus] == before
    assert machine.mapper.refusals > 0


@each_way
def test_msix_through_the_bus(way: str) -> None:
    """Opened as Linux does it, vectors are sent where the table says, and to elsewhere after a change while running."""
    machine = Machine()
    access = machine.access(way)
    allocator = Allocator(IO_WINDOW, WINDOW32, WINDOW64)
    function = enumerate_bus(access)[1]
    placed = allocator.place(access, function)
    messages = [(0xFEE0_0000, 0x41), (0xFEE0_1000, 0x42), (0x1_0000_0FE0_0000, 0x43)]
    enable_msix(access, machine.mmio, function, placed, messages)
    for index in (2, 0, 1):
        machine.msix.pending(index)
    assert machine.sent == [messages[2], messages[0], messages[1]]

    entry = placed[1] + 16
    machine.mmio.write(entry + 12, 4, 1)
    machine.mmio.write(entry, 8, 0xFEE0_2000)
    machine.msix.pending(1)
    assert machine.mmio.read(placed[1] + machine.msix.pba_offset, 8) == 0b010
    assert len(machine.sent) == 3
    machine.mmio.write(entry + 12, 4, 0)
    assert machine.sent[3:] == [(0xFEE0_2000, 0x42)]
    assert machine.mmio.read(placed[1] + machine.msix.pba_offset, 4) == 0


def test_a_moved_machine_goes_on() -> None:
    """Records of host and function bring a second machine to the same tree, addresses and routes."""
    first, second = Machine(), Machine()
    access = first.access("ecam")
    allocator = Allocator(IO_WINDOW, WINDOW32, WINDOW64)
    placed = allocator.place(access, TREE[1])
    enable_msix(access, first.mmio, TREE[1], placed, [(0xFEE0_0000, 0x41)])
    second.host.restore(first.host.state())
    second.network.restore(first.network.state())
    for vector in second.msix.vectors():
        if not vector.masked:
            second.routes[vector.number] = vector.address, vector.data
    second.msix.pending(0)
    assert second.sent == [(0xFEE0_0000, 0x41)]
    assert [entry[:2] for entry in second.mmio] == [entry[:2] for entry in first.mmio]
    assert enumerate_bus(second.access("ports")) == TREE
