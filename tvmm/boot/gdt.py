"""The descriptor table and segment registers that a guest starts with, the same layout for both protocols.

Linux wants its code segment at selector 0x10 and data at 0x18 (Documentation/arch/x86/boot.rst, 64-bit
protocol); PVH does not care about the numbers. The table lies in guest memory as well as in the hidden
parts of the registers, so that a guest may reload a segment before it has a table of its own.
"""

from __future__ import annotations

from struct import pack

from tvmm.boot.entry import DescriptorTable, Segment
from tvmm.memory.layout import BOOT_GDT, GuestMemory

__all__ = ["CODE_32", "CODE_64", "DATA", "NO_IDT", "TASK_32", "TASK_64", "write_gdt"]

_FLAT = 0xFFFF_FFFF
CODE_32 = Segment(0x10, 0, _FLAT, type=0xB, present=1, dpl=0, db=1, s=1, l=0, g=1)
CODE_64 = Segment(0x10, 0, _FLAT, type=0xB, present=1, dpl=0, db=0, s=1, l=1, g=1)
DATA = Segment(0x18, 0, _FLAT, type=0x3, present=1, dpl=0, db=1, s=1, l=0, g=1)
TASK_32 = Segment(0x20, 0, 0x67, type=0xB, present=1, dpl=0, db=0, s=0, l=0, g=0)
TASK_64 = TASK_32
"""A busy TSS in either mode: type 11 means 32-bit in protected mode and 64-bit in long mode (SDM vol. 3,
3.5)."""
NO_IDT = DescriptorTable(0, 0)
"""Interrupts are off at entry, and an exception before the guest has a table ends in a triple fault."""


def write_gdt(memory: GuestMemory, code: Segment) -> DescriptorTable:
    """Write the table with `code`, `DATA` and the task segment to its place in low memory.

    In long mode a TSS descriptor takes two slots; the upper one (base bits 32 to 63) stays zero.
    """
    table = pack("<6Q", 0, 0, _descriptor(code), _descriptor(DATA), _descriptor(TASK_32), 0)
    memory.write(BOOT_GDT, table)
    return DescriptorTable(BOOT_GDT, len(table) - 1)


def _descriptor(segment: Segment) -> int:
    """The 8 bytes that describe `segment` (Intel SDM vol. 3, 3.4.5)."""
    limit = segment.limit >> 12 if segment.g else segment.limit
    return (
        limit & 0xFFFF
        | (segment.base & 0xFF_FFFF) << 16
        | segment.type << 40
        | segment.s << 44
        | segment.dpl << 45
        | segment.present << 47
        | (limit >> 16) << 48
        | segment.l << 53
        | segment.db << 54
        | segment.g << 55
        | (segment.base >> 24) << 56
    )
