"""The host bridge: configuration mechanisms and interrupt pins."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.pci_parts import ECAM, NETWORK, Bus, Store, some_bars
from tvmm.devices import pci_config as config
from tvmm.devices.pci_function import PciFunction
from tvmm.errors import ConfigError

ENABLE = 1 << 31


@pytest.fixture
def bus() -> Bus:
    """A bus with the host bridge alone."""
    return Bus()


def select(bus: Bus, slot: int, register: int, number: int = 0, on_bus: int = 0) -> None:
    """Write CONFIG_ADDRESS."""
    bus.ports.write(0xCF8, 4, ENABLE | on_bus << 16 | slot << 11 | number << 8 | register)


def test_address_register_is_a_dword(bus: Bus) -> None:
    """It reads back without its reserved bits; narrower accesses to its ports are not its."""
    bus.ports.write(0xCF8, 4, 0xFFFF_FFFF)
    assert bus.ports.read(0xCF8, 4) == 0x80FF_FFFC
    for port, size in ((0xCF8, 1), (0xCF8, 2), (0xCFA, 2), (0xCFB, 1)):
        bus.ports.write(port, size, 0)
        assert bus.ports.read(port, size) == (1 << 8 * size) - 1
    assert bus.ports.read(0xCF8, 4) == 0x80FF_FFFC


def test_how_a_kernel_looks_for_mechanism_1(bus: Bus) -> None:
    """Linux's two probes: type 1 is found, with a host bridge on bus 0, and type 2 is not."""
    bus.ports.write(0xCFB, 1, 1)
    bus.ports.write(0xCF8, 4, ENABLE)
    assert bus.ports.read(0xCF8, 4) == ENABLE
    select(bus, 0, 0x08)
    assert bus.ports.read(0xCFE, 2) == 0x0600
    for port in (0xCFB, 0xCF8, 0xCFA):
        bus.ports.write(port, 1, 0)
    assert (bus.ports.read(0xCF8, 1), bus.ports.read(0xCFA, 1)) == (0xFF, 0xFF)


def test_reset_control_lies_in_the_middle(bus: Bus) -> None:
    """A byte at port 0xcf9 goes to the chip set and leaves the address alone; other sizes do neither."""
    select(bus, 0, 0)
    bus.ports.write(0xCF9, 1, 0x06)
    bus.ports.write(0xCF9, 2, 0)
    assert bus.reset_control.data == b"\x06"
    assert bus.ports.read(0xCF9, 1) == 0x06
    assert bus.ports.read(0xCF8, 4) == ENABLE


def test_data_ports_are_the_bytes_of_the_register(bus: Bus) -> None:
    """Bytes and words at 0xcfc to 0xcff reach their part of the dword; what crosses the end reaches nothing."""
    bus.plug(2)
    select(bus, 2, 0)
    assert bus.ports.read(0xCFC, 4) == 0x1041_1AF4
    assert [bus.ports.read(0xCFC + lane, 1) for lane in range(4)] == [0xF4, 0x1A, 0x41, 0x10]
    assert bus.ports.read(0xCFD, 2) == 0x411A
    select(bus, 2, config.COMMAND)
    bus.ports.write(0xCFD, 1, 0x04)
    bus.ports.write(0xCFC, 1, 0x02)
    assert bus.ports.read(0xCFC, 2) == 0x0402
    assert bus.ports.read(0xCFE, 4) == bus.host.read(6, 4) == 0xFFFF_FFFF
    bus.host.write(7, 2, 0)


def test_data_needs_the_enable_bit(bus: Bus) -> None:
    """Without it the data ports are nobody's."""
    bus.ports.write(0xCF8, 4, 0)
    assert bus.ports.read(0xCFC, 4) == 0xFFFF_FFFF


def test_absent_functions(bus: Bus) -> None:
    """All ones from both mechanisms, on this bus and on those that are not there; writes are dropped."""
    for slot, number, on_bus in ((1, 0, 0), (0, 1, 0), (31, 7, 0), (0, 0, 1), (0, 0, 2), (0, 0, 255)):
        select(bus, slot, 0, number, on_bus)
        bus.ports.write(0xCFC, 4, 0)
        assert bus.ports.read(0xCFC, 4) == 0xFFFF_FFFF
        assert bus.ports.read(0xCFE, 2) == 0xFFFF
        address = ECAM.start + (on_bus << 20 | slot << 15 | number << 12)
        bus.mmio.write(address, 4, 0)
        assert bus.mmio.read(address, 4) == 0xFFFF_FFFF


def test_ecam_reaches_all_4096_bytes(bus: Bus) -> None:
    """Behind the first 256 there are no capabilities and then zeros, which also says that they do not repeat."""
    bus.plug(2)
    base = ECAM.start + (2 << 15)
    assert bus.mmio.read(base, 4) == 0x1041_1AF4
    assert [bus.mmio.read(base + offset, 4) for offset in range(0x100, 0x1000, 0x100)] == [0] * 15
    assert bus.mmio.read(base + 0xFFC, 8) == 0xFFFF_FFFF_0000_0000


def test_ecam_takes_all_sizes(bus: Bus) -> None:
    """1 to 8 bytes, also across a dword, are the bytes of the space."""
    bus.plug(2)
    base = ECAM.start + (2 << 15)
    whole = bus.mmio.read(base, 8)
    for offset in range(8):
        for size in range(1, 9 - offset):
            assert bus.mmio.read(base + offset, size) == whole >> 8 * offset & (1 << 8 * size) - 1
    bus.mmio.write(base + 3, 2, 0x0700)
    assert bus.mmio.read(base + config.COMMAND, 2) == 0x07


def test_ecam_is_dwords_on_the_bus(bus: Bus) -> None:
    """A wide access reaches what is behind the registers as two, and the end of a function is none of the next's."""
    seen: list[tuple[str, int, int]] = []

    class Witness(Store):
        def read(self, offset: int, size: int) -> int:
            seen.append(("read", offset, size))
            return super().read(offset, size)

        def write(self, offset: int, size: int, value: int) -> None:
            seen.append(("write", offset, size))
            super().write(offset, size, value)

    bus.plug(2).config.delegate(0x200, 0x10, Witness(0x10))
    base = ECAM.start + (2 << 15) + 0x200
    bus.mmio.write(base, 8, 0x1122_3344_5566_7788)
    assert bus.mmio.read(base, 8) == 0x1122_3344_5566_7788
    assert bus.mmio.read(base + 6, 4) == 0x1122
    assert seen == [
        ("write", 0, 4), ("write", 4, 4), ("read", 0, 4), ("read", 4, 4), ("read", 6, 2), ("read", 8, 2),
    ]  # fmt: skip


def test_fewer_buses() -> None:
    """The memory for configuration space can end after any bus, but not before the first."""
    host = Bus().host
    assert host.ecam.length == 256 << 20
    small = type(host)(host.mapper, lambda gsi, level: None, bus_count=1)
    assert small.ecam.length == 1 << 20
    with pytest.raises(ValueError, match="buses"):
        type(host)(host.mapper, lambda gsi, level: None, bus_count=0)


def test_places(bus: Bus) -> None:
    """The first free slot unless one is asked for; one function to a place; functions need a first one."""
    assert str(bus.host.place()) == "00:01.0"
    bus.plug(1)
    assert bus.host.place().slot == 2
    with pytest.raises(ConfigError, match=r"00:01\.0 is taken"):
        bus.host.place(1)
    with pytest.raises(ConfigError, match="32 and 8"):
        bus.host.place(32)
    with pytest.raises(ConfigError, match="function 0"):
        bus.plug(5, 1)
    early = bus.host.place(7)
    bus.plug(7)
    with pytest.raises(ConfigError, match="taken"):
        bus.host.plug(early, PciFunction(early, NETWORK))
    for slot in set(range(32)) - {0, 1, 7}:
        bus.plug(slot)
    with pytest.raises(ConfigError, match="all 32"):
        bus.host.place()


def test_multifunction_bit(bus: Bus) -> None:
    """A slot with a second function says so in the first one's header, also after reset."""
    first = bus.plug(3)
    assert first.read(config.HEADER_TYPE, 1) == 0
    second = bus.plug(3, 4)
    bus.host.reset()
    assert first.read(config.HEADER_TYPE, 1) == second.read(config.HEADER_TYPE, 1) == 0x80


def test_pins_go_round_four_lines(bus: Bus) -> None:
    """Pin A of slot n is GSI 16 + n % 4, and each next pin the next line."""
    for slot in range(1, 9):
        function = bus.plug(slot, pin=(slot - 1) // 4 + 1)
        function.set_intx(True)
        function.set_intx(False)
    expected = [17, 18, 19, 16, 18, 19, 16, 17]
    assert bus.lines == [(gsi, level) for gsi in expected for level in (True, False)]


def test_a_shared_line_is_up_until_the_last_lets_go(bus: Bus) -> None:
    """Slots 1 and 5 share pin A's line: one rise, one fall."""
    one, five = bus.plug(1), bus.plug(5)
    one.set_intx(True)
    five.set_intx(True)
    one.set_intx(False)
    assert bus.lines == [(17, True)]
    assert bus.host.level(17)
    five.write(config.COMMAND, 2, config.COMMAND_INTX_DISABLE)
    assert bus.lines == [(17, True), (17, False)]


def test_resample(bus: Bus) -> None:
    """After an acknowledgement the line goes up again if it is still asserted, and only then."""
    function = bus.plug(1)
    bus.host.resample(17)
    function.set_intx(True)
    bus.host.resample(17)
    bus.host.resample(16)
    assert bus.lines == [(17, True), (17, True)]
    with pytest.raises(ValueError, match="GSI 20"):
        bus.host.resample(20)


def test_reset_lowers_lines_and_unmaps(bus: Bus) -> None:
    """The bus's reset reaches each function."""
    function = bus.plug(1, bars=some_bars())
    function.write(0x14, 4, 0xC000_0000)
    function.write(config.COMMAND, 2, config.COMMAND_MEMORY)
    function.set_intx(True)
    assert bus.mmio.find(0xC000_0000, 4) is not None
    bus.host.reset()
    assert bus.mmio.find(0xC000_0000, 4) is None
    assert bus.lines == [(17, True), (17, False)]
    assert bus.ports.read(0xCF8, 4) == 0


pins = st.lists(st.tuples(st.integers(0, 31), st.integers(0, 7), st.integers(0, 4)), unique_by=lambda pin: pin[:2])


@settings(max_examples=60, deadline=None)
@given(pins, st.lists(st.tuples(st.integers(0, 300), st.booleans(), st.sampled_from("pdr")), max_size=40))
def test_lines_are_the_or_of_their_pins(places: list[tuple[int, int, int]], steps: list[tuple[int, bool, str]]) -> None:
    """Whatever functions do, a line is up while any pin on it is asserted, and told once for each change."""
    bus = Bus()
    functions = []
    slots = {0}
    for slot, number, pin in places:
        if (slot, number) == (0, 0):
            continue
        if slot not in slots and number:
            bus.plug(slot, 0, 0)
        if slot in slots and not number:
            continue
        slots.add(slot)
        functions.append((bus.plug(slot, number, pin), slot, pin))
    pending = [False] * len(functions)
    disabled = [False] * len(functions)
    levels: dict[int, bool] = {}
    for which, value, what in steps if functions else ():
        index = which % len(functions)
        function = functions[index][0]
        if what == "p":
            pending[index] = value
            function.set_intx(value)
        elif what == "d":
            disabled[index] = value
            function.write(config.COMMAND, 2, config.COMMAND_INTX_DISABLE * value)
        else:
            pending[index] = disabled[index] = False
            function.reset()
        for gsi, level in bus.lines:
            assert levels.get(gsi, False) != level
            levels[gsi] = level
        bus.lines.clear()
        up = {
            16 + (slot + pin - 1) % 4
            for at, (_, slot, pin) in enumerate(functions)
            if pin and pending[at] and not disabled[at]
        }
        assert {gsi for gsi, level in levels.items() if level} == up


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0xFFF), st.sampled_from((1, 2, 4, 8)), st.binary(min_size=8, max_size=8))))
def test_a_guest_cannot_break_the_buses(writes: list[tuple[int, int, bytes]]) -> None:
    """Whatever is written to a function and to the bridge, nothing raises and what is not PCI's stays where it is."""
    bus = Bus()
    bus.ports.add(0x3F8, 8, bus.reset_control, "serial")
    bus.plug(1, bars=some_bars())
    bus.plug(2, bars=some_bars())
    mine = {entry[:2] for either in (bus.ports, bus.mmio) for entry in either}
    for offset, size, raw in writes:
        low = offset & 0x3F if raw[7] & 1 else offset
        value = int.from_bytes(raw[:size], "little")
        bus.mmio.write(ECAM.start + (raw[6] % 3 << 15) + low, size, value)
        bus.mmio.write(ECAM.start + (raw[6] % 3 << 15) + config.COMMAND, 2, raw[5] | 3)
        for either in (bus.ports, bus.mmio):
            entries = list(either)
            assert all(one.end <= other.start for one, other in pairwise(entries))
    assert mine <= {entry[:2] for either in (bus.ports, bus.mmio) for entry in either}
    bus.host.reset()
    assert {entry[:2] for either in (bus.ports, bus.mmio) for entry in either} == mine
