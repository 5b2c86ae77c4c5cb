"""BARs: sizing, moving, and who gets what on the buses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.pci_parts import IO_WINDOW, WINDOW32, WINDOW64, LoosePlace, Store, some_bars
from tvmm.bus import MmioBus, PortBus
from tvmm.devices.pci_bars import DECODE_IO, DECODE_MEMORY, IO, MEMORY32, MEMORY64, Bar, BarRegisters
from tvmm.devices.pci_mapper import BarMapper
from tvmm.memory.layout import Range

if TYPE_CHECKING:
    from collections.abc import Sequence

DWORD = 0xFFFF_FFFF
BOTH = DECODE_IO | DECODE_MEMORY


class Registers:
    """`some_bars` on no bus."""

    def __init__(self, bars: Sequence[Bar] = ()) -> None:
        self.place = LoosePlace()
        self.device = BarRegisters(bars or some_bars(), self.place.map_bar, self.place.unmap_bar)

    def read(self, number: int) -> int:
        """A register."""
        return self.device.read(4 * number, 4)

    def write(self, number: int, value: int) -> None:
        """A register."""
        self.device.write(4 * number, 4, value)


@pytest.fixture
def registers() -> Registers:
    """One BAR of each kind."""
    return Registers()


def test_kinds_after_power_on(registers: Registers) -> None:
    """All at address 0, each with the bits that tell its kind."""
    assert [registers.read(number) for number in range(6)] == [0x1, 0x0, 0xC, 0x0, 0xC, 0x0]


def test_size_masks(registers: Registers) -> None:
    """After ones are written, the bits below the size are those of the kind, also in BARs of 4 GiB and more."""
    for number in range(6):
        registers.write(number, DWORD)
    assert [registers.read(number) for number in range(6)] == [
        0xFFFF_FFE1, 0xFFFF_F000, 0x0000_000C, DWORD, 0xFFFF_C00C, DWORD,
    ]  # fmt: skip


def test_missing_bars_read_zero() -> None:
    """A register that no BAR has is zero whatever is written."""
    registers = Registers((Bar(3, 16, MEMORY32, Store(), "small"),))
    for number in range(6):
        registers.write(number, DWORD)
    assert [registers.read(number) for number in range(6)] == [0, 0, 0, 0xFFFF_FFF0, 0, 0]


def test_decoding_follows_the_command(registers: Registers) -> None:
    """Ports with I/O decoding, memory with memory decoding, and nothing without."""
    registers.write(0, 0x1020)
    registers.write(1, 0xC000_0000)
    assert registers.place.mapped == {}
    registers.device.set_decoding(DECODE_IO)
    assert registers.place.mapped == {0: 0x1020}
    registers.device.set_decoding(BOTH)
    assert registers.place.mapped == {0: 0x1020, 1: 0xC000_0000, 2: 0, 4: 0}
    registers.device.set_decoding(DECODE_MEMORY)
    assert registers.place.mapped == {1: 0xC000_0000, 2: 0, 4: 0}
    registers.device.set_decoding(0x0404)
    assert registers.place.mapped == {}


def test_a_64_bit_bar_moves_by_halves_or_at_once(registers: Registers) -> None:
    """Each access takes effect; one of 8 bytes has no half-way."""
    registers.device.set_decoding(DECODE_MEMORY)
    registers.write(4, 0x0001_4000)
    assert registers.place.mapped[4] == 0x1_4000
    registers.write(5, 0x80)
    assert registers.place.mapped[4] == 0x80_0001_4000
    registers.device.write(16, 8, 0x81_0000_8000)
    assert registers.place.mapped[4] == 0x81_0000_8000


def test_reset_unmaps(registers: Registers) -> None:
    """After reset nothing is decoded."""
    registers.write(1, 0xC000_0000)
    registers.device.set_decoding(BOTH)
    registers.device.reset()
    assert registers.place.mapped == {}
    assert registers.read(1) == 0


@pytest.mark.parametrize(
    "bars",
    [
        (Bar(6, 16, MEMORY32, Store(), "x"),),
        (Bar(5, 16, MEMORY64, Store(), "x"),),
        (Bar(0, 16, MEMORY64, Store(), "x"), Bar(1, 16, MEMORY32, Store(), "y")),
        (Bar(0, 24, MEMORY32, Store(), "x"),),
        (Bar(0, 8, MEMORY32, Store(), "x"),),
        (Bar(0, 512, IO, Store(), "x"),),
        (Bar(0, 1 << 32, MEMORY32, Store(), "x"),),
    ],
)
def test_impossible_bars(bars: tuple[Bar, ...]) -> None:
    """BARs that have no register, share one, or have a size that cannot be asked for are refused."""
    with pytest.raises(ValueError, match=r"x|y"):
        Registers(bars)


@pytest.mark.parametrize("wrong", [(0, 0x1010), (1, 0x800), (3, 0x1_0000_0000), (0, -0x20)])
def test_addresses_that_no_register_holds(registers: Registers, wrong: tuple[int, int]) -> None:
    """A record whose BAR has bits that cannot be written is refused."""
    number, value = wrong
    values = [0] * 6
    values[number] = value
    with pytest.raises(ValueError, match=rf"registers\[{number}\]"):
        registers.device.restore(registers.device.state()._replace(registers=tuple(values)))


def size_as_linux(registers: Registers, number: int, wide: bool) -> int:
    """Decoding off, ones written, read, put back; 0 for no BAR."""
    decoding = registers.device.state().decoding
    registers.device.set_decoding(0)
    size = size_as_firmware(registers, number, wide)
    registers.device.set_decoding(decoding)
    return size


def size_as_firmware(registers: Registers, number: int, wide: bool) -> int:
    """As above with decoding left as it is."""
    mask = 0
    for half in range(2 if wide else 1):
        old = registers.read(number + half)
        registers.write(number + half, DWORD)
        mask |= registers.read(number + half) << 32 * half
        registers.write(number + half, old)
    width = 64 if wide else 32
    low_bits = 0x3 if mask & 1 else 0xF
    return -(mask & ~low_bits) & (1 << width) - 1


kinds = st.sampled_from((IO, MEMORY32, MEMORY64))


@settings(max_examples=60, deadline=None)
@given(kinds, st.integers(0, 40), st.integers(0, 4), st.integers(0, (1 << 64) - 1), st.integers(0, 3), st.booleans())
def test_sizing_protocols(kind: str, order: int, number: int, address: int, decoding: int, linux: bool) -> None:
    """Both ways of sizing find the size, and leave address and mapping as they were."""
    low, high = {IO: (2, 8), MEMORY32: (4, 31), MEMORY64: (4, 40)}[kind]
    size = 1 << min(max(order, low), high)
    registers = Registers((Bar(number, size, kind, Store(), "probed"),))
    registers.write(number, address & DWORD)
    if kind == MEMORY64:
        registers.write(number + 1, address >> 32)
    registers.device.set_decoding(decoding)
    before = registers.device.state(), dict(registers.place.mapped)
    find = size_as_linux if linux else size_as_firmware
    assert find(registers, number, kind == MEMORY64) == size
    assert (registers.device.state(), registers.place.mapped) == before
    if registers.place.mapped:
        width = 64 if kind == MEMORY64 else 32
        assert registers.place.mapped[number] == address & -size & (1 << width) - 1


# --- the mapper ---


class Buses:
    """Buses with a device at port 0x2000 and one at 0xd0000000 that are not PCI's."""

    def __init__(self) -> None:
        self.ports = PortBus()
        self.mmio = MmioBus()
        self.ports.add(0x2000, 8, Store(8), "fixed")
        self.mmio.add(0xD000_0000, 0x1000, Store(), "fixed")
        self.changes: list[tuple[str, int | None]] = []
        self.mapper = BarMapper(
            self.ports,
            self.mmio,
            IO_WINDOW,
            (WINDOW32, WINDOW64),
            lambda bar, address: self.changes.append((bar.name, address)),
        )

    def names(self) -> dict[str, int]:
        """What is where, without the fixed ones."""
        return {claimed.name: claimed.start for bus in (self.ports, self.mmio) for claimed in bus} | {"fixed": 0}


@pytest.fixture
def buses() -> Buses:
    """Nothing of PCI's on them."""
    return Buses()


A = Bar(0, 0x1000, MEMORY32, Store(), "a")
B = Bar(0, 0x2000, MEMORY64, Store(), "b")
PORTS = Bar(1, 0x20, IO, Store(), "p")


def test_a_mapped_bar_answers(buses: Buses) -> None:
    """The device behind a BAR sees offsets, moves with it, and is gone afterwards."""
    buses.mapper.want(1, A, 0xC000_0000)
    buses.mmio.write(0xC000_0010, 4, 0x1234)
    buses.mapper.want(1, A, 0xC100_0000)
    assert buses.mmio.read(0xC100_0010, 4) == 0x1234
    assert buses.mmio.read(0xC000_0010, 4) == 0xFFFF_FFFF
    buses.mapper.want(1, A, None)
    assert buses.mmio.read(0xC100_0010, 4) == 0xFFFF_FFFF
    assert buses.changes == [("a", 0xC000_0000), ("a", None), ("a", 0xC100_0000), ("a", None)]
    assert buses.mapper.refusals == 0


@pytest.mark.parametrize(
    ("bar", "address"),
    [
        (A, 0x0),
        (A, 0x0010_0000),
        (A, WINDOW32.end - 0x800),
        (A, 0xFEE0_0000),
        (A, 0xD000_0000),
        (B, 0xCFFF_F000),
        (B, WINDOW64.end),
        (B, (1 << 64) - 0x2000),
        (PORTS, 0x60),
        (PORTS, 0x2000),
        (PORTS, 0x1FE4),
        (PORTS, 0xFFFF_FFE0),
        (PORTS, 0xFFF0),
    ],
)
def test_refusals(buses: Buses, bar: Bar, address: int) -> None:
    """RAM, the edges of windows, and what others have claimed are not for BARs; that is counted and nothing else."""
    before = buses.names()
    buses.mapper.want(1, bar, address)
    assert (buses.names(), buses.mapper.refusals, buses.changes) == (before, 1, [])
    assert buses.mapper.address(1) is None
    buses.mapper.want(1, bar, None)
    assert buses.names() == before


def test_a_refused_bar_is_mapped_once_there_is_room(buses: Buses) -> None:
    """Two BARs change places through an overlap, and both are there in the end."""
    buses.mapper.want(1, A, 0xC000_0000)
    buses.mapper.want(2, B, 0xC000_0000)
    assert (buses.mapper.address(1), buses.mapper.address(2)) == (0xC000_0000, None)
    buses.mapper.want(3, PORTS, 0x1000)
    assert buses.mapper.refusals == 1
    buses.mapper.want(1, A, 0xC100_0000)
    assert (buses.mapper.address(1), buses.mapper.address(2)) == (0xC100_0000, 0xC000_0000)


def test_a_lower_rank_displaces(buses: Buses) -> None:
    """Who is served does not depend on who came first."""
    buses.mapper.want(2, B, 0xC000_0000)
    buses.mapper.want(1, A, 0xC000_1000)
    assert (buses.mapper.address(1), buses.mapper.address(2)) == (0xC000_1000, None)


POOL = [Bar(number % 6, 0x1000 << number % 3, MEMORY32, Store(), f"m{number}") for number in range(5)]
POOL += [Bar(0, 0x20 << number, IO, Store(), f"p{number}") for number in range(3)]
wishes = st.lists(
    st.tuples(st.integers(0, 7), st.none() | st.integers(-2, 8), st.sampled_from((0xC000_0000, 0xCFFF_E000))),
    max_size=25,
)


def test_a_port_and_an_address_of_the_same_number() -> None:
    """A BAR on one bus is no excuse for one on top of somebody else's range of the other."""
    ports, mmio = PortBus(), MmioBus()
    mapper = BarMapper(ports, mmio, IO_WINDOW, (Range(0, 1 << 32),))
    mmio.add(0x4000, 0x1000, Store(), "fixed")
    mapper.want(1, PORTS, 0x4000)
    mapper.want(2, A, 0x4000)
    assert (mapper.address(1), mapper.address(2)) == (0x4000, None)


@settings(max_examples=100, deadline=None)
@given(wishes)
def test_mapping_is_a_function_of_the_wishes(steps: list[tuple[int, int | None, int]]) -> None:
    """After any history the buses are as if the last wishes had been taken one by one in order of rank."""
    buses = Buses()
    wanted: dict[int, int] = {}
    for rank, place, base in steps:
        bar = POOL[rank]
        if place is None:
            wanted.pop(rank, None)
            buses.mapper.want(rank, bar, None)
            continue
        wanted[rank] = 0x1FC0 + place * 0x20 if bar.kind == IO else base + place * 0x1000
        wanted[rank] &= -bar.size
        buses.mapper.want(rank, bar, wanted[rank])
    expected = {"fixed": (0xD000_0000, 0xD000_1000)}
    claimed = {IO: [(0x2000, 0x2008)], MEMORY32: [(0xD000_0000, 0xD000_1000)]}
    for rank in sorted(wanted):
        start, end = wanted[rank], wanted[rank] + POOL[rank].size
        low = 0x1000 if POOL[rank].kind == IO else 0xC000_0000
        if start >= low and all(end <= other or other_end <= start for other, other_end in claimed[POOL[rank].kind]):
            claimed[POOL[rank].kind].append((start, end))
            expected[POOL[rank].name] = (start, end)
    found = {entry.name: (entry.start, entry.end) for bus in (buses.ports, buses.mmio) for entry in bus}
    assert found == expected
    for rank, bar in enumerate(POOL):
        assert buses.mapper.address(rank) == (expected[bar.name][0] if bar.name in expected else None)
