"""The PVH start info, read back field by field, and the registers of the entry."""

from __future__ import annotations

from struct import iter_unpack, unpack

import pytest

from tests.support.memory import FakeMemory
from tvmm.boot.e820 import memory_map
from tvmm.boot.pvh import START_INFO_MAGIC, enter_pvh
from tvmm.memory.layout import COMMAND_LINE, HIGH_MEMORY, PVH_INFO, ZERO_PAGE, Range

RAM = 5 << 30


def start_info(memory: FakeMemory) -> tuple[int, ...]:
    return unpack("<IIIIQQQQII", memory.read(PVH_INFO, 56))


def test_start_info_with_initrd() -> None:
    """Version 1 with one module, the command line, and the whole memory map."""
    memory = FakeMemory(RAM)
    enter_pvh(memory, 0x100_0000, memory_map(RAM), Range(0x200_0000, 12345), rsdp=0xE_0000)
    magic, version, flags, modules, module_list, command_line, rsdp, table, count, reserved = start_info(
        memory
    )
    assert (magic, version, flags, modules, reserved) == (START_INFO_MAGIC, 1, 0, 1, 0)
    assert (command_line, rsdp) == (COMMAND_LINE, 0xE_0000)
    assert unpack("<QQQQ", memory.read(module_list, 32)) == (0x200_0000, 12345, 0, 0)
    entries = list(iter_unpack("<QQII", memory.read(table, 24 * count)))
    assert entries == [(part.start, part.size, part.kind, 0) for part in memory_map(RAM)]
    assert entries[-1][0] == HIGH_MEMORY


def test_start_info_without_initrd() -> None:
    """No module list at all."""
    memory = FakeMemory(RAM)
    enter_pvh(memory, 0x100_0000, memory_map(RAM), None)
    assert start_info(memory)[3:5] == (0, 0)
    assert start_info(memory)[6] == 0


def test_stays_in_its_page() -> None:
    """The largest start info ends before the zero page."""
    memory = FakeMemory(RAM)
    enter_pvh(memory, 0x100_0000, memory_map(RAM), Range(0x200_0000, 1))
    assert max(written.end for written in memory.writes) <= ZERO_PAGE


def test_registers() -> None:
    """Protected mode, no paging, flat 32-bit segments, EBX at the start info, a 32-bit TSS (Xen's
    pvh.pandoc)."""
    memory = FakeMemory(RAM)
    entry = enter_pvh(memory, 0x100_0000, memory_map(RAM), None)
    assert entry.registers == {"rip": 0x100_0000, "rbx": PVH_INFO}
    assert entry.cr0 & 1
    assert not entry.cr0 >> 31
    assert (entry.cr4, entry.efer) == (0, 0)
    for segment in (entry.code, entry.data):
        assert (segment.base, segment.limit, segment.db, segment.l) == (0, 0xFFFF_FFFF, 1, 0)
    assert (entry.task.base, entry.task.limit, entry.task.type) == (0, 0x67, 11)


@pytest.mark.parametrize("size", [4 << 20, 3 << 30, 64 << 30])
def test_map_count_follows_memory(size: int) -> None:
    """The number of entries in the start info is the number in the map."""
    memory = FakeMemory(size)
    enter_pvh(memory, 0x10_0000, memory_map(size), None)
    assert start_info(memory)[8] == len(memory_map(size))
