"""Buses: who answers where, and what nobody answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.bus import MmioBus, PortBus
from tvmm.errors import ConfigError


class Echo:
    """Answers with what it is asked, and remembers what was written."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        """Offset and size."""
        return offset << 4 | size

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep it."""
        self.written.append((offset, size, value))


@pytest.mark.parametrize("kind", [PortBus, MmioBus])
def test_a_device_sees_offsets(kind: type[PortBus | MmioBus]) -> None:
    """Reads and writes arrive with the offset into the range."""
    bus, device = kind(), Echo()
    bus.add(0x100, 8, device, "echo")
    assert bus.read(0x104, 2) == 0x42
    bus.write(0x107, 1, 0xAB)
    assert device.written == [(7, 1, 0xAB)]


@pytest.mark.parametrize("kind", [PortBus, MmioBus])
def test_what_nobody_claims_reads_as_ones_and_is_counted(kind: type[PortBus | MmioBus]) -> None:
    """Outside, and across the end of a range, there is nobody."""
    bus, device = kind(), Echo()
    bus.add(0x100, 8, device, "echo")
    assert bus.read(0x0FF, 1) == 0xFF
    assert bus.read(0x106, 4) == 0xFFFF_FFFF
    bus.write(0x108, 1, 1)
    bus.write(0x107, 2, 1)
    assert device.written == []
    assert (bus.unclaimed_reads, bus.unclaimed_writes) == (2, 2)


@pytest.mark.parametrize("kind", [PortBus, MmioBus])
@pytest.mark.parametrize(("start", "length"), [(0x107, 1), (0xF8, 9), (0xF0, 0x20), (0x200, 0), (-1, 2), (1 << 52, 1)])
def test_overlap_nothing_and_wrap_are_errors(kind: type[PortBus | MmioBus], start: int, length: int) -> None:
    """A bad range changes nothing."""
    bus = kind()
    bus.add(0x100, 8, Echo(), "first")
    with pytest.raises(ConfigError, match="second"):
        bus.add(start, length, Echo(), "second")
    assert [claimed.name for claimed in bus] == ["first"]


@pytest.mark.parametrize("kind", [PortBus, MmioBus])
def test_a_removed_range_is_free_again(kind: type[PortBus | MmioBus]) -> None:
    """Its addresses answer no more and can be claimed anew; what is not there cannot be removed."""
    bus = kind()
    bus.add(0x100, 8, Echo(), "first")
    bus.remove(0x100)
    assert bus.read(0x100, 1) == 0xFF
    bus.add(0x104, 8, Echo(), "second")
    with pytest.raises(KeyError):
        bus.remove(0x100)


RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=8)


@given(RANGES, st.integers(0, 50), st.sampled_from([1, 2, 4]))
def test_both_buses_agree(ranges: list[tuple[int, int]], address: int, size: int) -> None:
    """The port tables and the bisection give the same answers."""
    ports, mmio = PortBus(), MmioBus()
    for start, length in ranges:
        refused = []
        for bus in (ports, mmio):
            try:
                bus.add(start, length, Echo(), "echo")
            except ConfigError:
                refused.append(bus)
        assert len(refused) in (0, 2)
    assert ports.read(address, size) == mmio.read(address, size)
