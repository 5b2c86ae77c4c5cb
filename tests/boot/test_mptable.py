"""The MP table, read back the way a kernel reads it."""

from __future__ import annotations

from struct import unpack_from
from typing import NamedTuple

import pytest

from tests.support.memory import FakeMemory
from tvmm.boot.mptable import MAX_CPUS, MP_TABLE_HIGH, check_cpu_count, write_mp_table
from tvmm.errors import ConfigError
from tvmm.memory.layout import IOAPIC_BASE, LAPIC_BASE, LEGACY_WINDOW, MP_TABLE, ONE_MIB

ENTRY_SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


class Table(NamedTuple):
    """What the tables say, in the order they say it."""

    address: int
    size: int
    lapic: int
    entries: list[bytes]


def read_back(memory: FakeMemory) -> Table:
    """Find the floating pointer in the last KiB of base memory and follow it, checksums included."""
    window = memory.read(MP_TABLE, LEGACY_WINDOW - MP_TABLE)
    at = next(at for at in range(0, len(window), 16) if window[at : at + 4] == b"_MP_")
    pointer = window[at : at + 16]
    assert sum(pointer) & 0xFF == 0
    address, paragraphs, revision = unpack_from("<IBB", pointer, 4)
    assert (paragraphs, revision) == (1, 4)
    assert pointer[11:] == bytes(5)

    signature, size, revision = unpack_from("<4sHB", memory.read(address, 44))
    assert (signature, revision) == (b"PCMP", 4)
    table = memory.read(address, size)
    assert sum(table) & 0xFF == 0
    count, lapic = unpack_from("<HI", table, 34)
    entries, offset = [], 44
    while offset < size:
        length = ENTRY_SIZES[table[offset]]
        entries.append(table[offset : offset + length])
        offset += length
    assert offset == size
    assert count == len(entries)
    return Table(address, size, lapic, entries)


def tables(cpu_count: int) -> Table:
    memory = FakeMemory(64 << 20)
    write_mp_table(memory, cpu_count)
    assert not memory.overlapping_writes()
    return read_back(memory)


@pytest.mark.parametrize("cpu_count", [1, 2, 8, 40, 41, MAX_CPUS])
def test_processors(cpu_count: int) -> None:
    """Every processor is there and enabled, the first one is the boot CPU, and its LAPIC is where KVM has
    it."""
    table = tables(cpu_count)
    cpus = [entry for entry in table.entries if entry[0] == 0]
    assert [entry[1] for entry in cpus] == list(range(cpu_count))
    assert [entry[3] for entry in cpus] == [3] + [1] * (cpu_count - 1)
    assert all(0x10 <= entry[2] <= 0x15 for entry in cpus)
    assert table.lapic == LAPIC_BASE


@pytest.mark.parametrize("cpu_count", [1, 3, MAX_CPUS])
def test_ioapic(cpu_count: int) -> None:
    """One enabled IOAPIC, with an id that no processor has."""
    (ioapic,) = [entry for entry in tables(cpu_count).entries if entry[0] == 2]
    assert ioapic[1] == cpu_count
    assert ioapic[3] == 1
    assert unpack_from("<I", ioapic, 4) == (IOAPIC_BASE,)


def test_interrupts() -> None:
    """ISA interrupts go to the pins of the same number, except for the timer's, which goes to pin 2."""
    table = tables(2)
    assert [entry for entry in table.entries if entry[0] == 1] == [b"\1\1ISA   "]
    wired = {entry[5]: entry[7] for entry in table.entries if entry[0] == 3}
    assert wired == {0: 2, 1: 1} | {irq: irq for irq in range(3, 16)}
    assert all(entry[1] == 0 and entry[4] == 1 and entry[6] == 2 for entry in table.entries if entry[0] == 3)
    local = [(entry[1], entry[6], entry[7]) for entry in table.entries if entry[0] == 4]
    assert local == [(3, 0xFF, 0), (1, 0xFF, 1)]


def test_entries_are_sorted_by_type() -> None:
    """The specification asks for it, and some kernels rely on processors coming first."""
    kinds = [entry[0] for entry in tables(5).entries]
    assert kinds == sorted(kinds)


def test_place() -> None:
    """The table stays in the last KiB of base memory as long as it fits, then moves to the ROM area."""
    small, large = tables(40), tables(41)
    assert (small.address, large.address) == (MP_TABLE + 16, MP_TABLE_HIGH)
    assert small.address + small.size <= LEGACY_WINDOW
    assert MP_TABLE_HIGH + tables(MAX_CPUS).size <= ONE_MIB


@pytest.mark.parametrize("cpu_count", [-1, 0, MAX_CPUS + 1])
def test_counts_that_cannot_be_named(cpu_count: int) -> None:
    """A count that the table has no ids for is the user's error, found before anything is written."""
    memory = FakeMemory(64 << 20)
    with pytest.raises(ConfigError, match="1 to 254"):
        check_cpu_count(cpu_count)
    with pytest.raises(ConfigError, match="1 to 254"):
        write_mp_table(memory, cpu_count)
    assert not memory.writes
