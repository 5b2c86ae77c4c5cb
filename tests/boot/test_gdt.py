"""The boot descriptor table against the registers that it describes."""

from __future__ import annotations

from struct import unpack, unpack_from

import pytest

from tests.support.memory import FakeMemory
from tvmm.boot.entry import Segment
from tvmm.boot.gdt import CODE_32, CODE_64, DATA, TASK_32, TASK_64, write_gdt
from tvmm.memory.layout import BOOT_GDT


def decode(table: bytes, selector: int) -> Segment:
    """The descriptor as the processor unpacks it (Intel SDM vol. 3, figure 3-8)."""
    limit_low, base_low, base_mid, access, flags, base_high = unpack_from("<HHBBBB", table, selector)
    granular = flags >> 7
    limit = limit_low | (flags & 0xF) << 16
    return Segment(
        selector,
        base_low | base_mid << 16 | base_high << 24,
        limit << 12 | 0xFFF if granular else limit,
        type=access & 0xF,
        present=access >> 7,
        dpl=access >> 5 & 3,
        db=flags >> 6 & 1,
        s=access >> 4 & 1,
        l=flags >> 5 & 1,
        g=granular,
    )


@pytest.mark.parametrize(("code", "task"), [(CODE_32, TASK_32), (CODE_64, TASK_64)], ids=["32", "64"])
def test_table_agrees_with_registers(code: Segment, task: Segment) -> None:
    """A guest that reloads a segment gets what the register already had."""
    memory = FakeMemory(1 << 20)
    gdt = write_gdt(memory, code)
    assert gdt.base == BOOT_GDT
    table = memory.read(gdt.base, gdt.limit + 1)
    for segment in (code, DATA, task):
        assert decode(table, segment.selector) == segment


def test_well_known_values() -> None:
    """The flat segments are the eight bytes that every boot loader has."""
    memory = FakeMemory(1 << 20)
    write_gdt(memory, CODE_64)
    entries = unpack("<6Q", memory.read(BOOT_GDT, 48))
    assert entries[:4] == (0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
    assert entries[5] == 0, "upper half of the 64-bit task descriptor"
    assert (CODE_32.db, CODE_32.l, CODE_64.db, CODE_64.l) == (1, 0, 0, 1)
