"""Xen's PVH boot ABI: a start info structure in memory, and the boot CPU in 32-bit protected mode without
paging.

The shortest way into a kernel: no page tables, no zero page. The physical entry point comes from the ELF
note; see Xen's docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h.
"""

from __future__ import annotations

from struct import Struct

from tvmm.boot.e820 import MapEntry
from tvmm.boot.entry import EntryState
from tvmm.boot.gdt import CODE_32, DATA, NO_IDT, TASK_32, write_gdt
from tvmm.memory.layout import COMMAND_LINE, PVH_INFO, GuestMemory, Range

__all__ = ["START_INFO_MAGIC", "enter_pvh"]

START_INFO_MAGIC = 0x336E_C578
_VERSION = 1
"""The first with a memory map."""

_START_INFO = Struct("<IIIIQQQQII")
_MODULE = Struct("<QQQQ")
_MAP_ENTRY = Struct("<QQII")
_CR0_PE_ET = 0x11


def enter_pvh(
    memory: GuestMemory,
    entry: int,
    memory_map: tuple[MapEntry, ...],
    initrd: Range | None,
    *,
    rsdp: int = 0,
) -> EntryState:
    """Write start info, module list and memory map in one piece; return the registers for the 32-bit `entry`.

    The command line is at its fixed place already. `rsdp` is the address of ACPI's root pointer, 0 for none.
    """
    modules = _MODULE.pack(initrd.start, initrd.size, 0, 0) if initrd else b""
    module_list = PVH_INFO + _START_INFO.size
    map_start = module_list + len(modules)
    info = _START_INFO.pack(
        START_INFO_MAGIC,
        _VERSION,
        0,
        1 if initrd else 0,
        module_list if initrd else 0,
        COMMAND_LINE,
        rsdp,
        map_start,
        len(memory_map),
        0,
    )
    ranges = b"".join([_MAP_ENTRY.pack(part.start, part.size, part.kind, 0) for part in memory_map])
    memory.write(PVH_INFO, info + modules + ranges)
    return EntryState(
        registers={"rip": entry, "rbx": PVH_INFO},
        code=CODE_32,
        data=DATA,
        task=TASK_32,
        gdt=write_gdt(memory, CODE_32),
        idt=NO_IDT,
        cr0=_CR0_PE_ET,
        cr3=0,
        cr4=0,
        efer=0,
        kernel="PVH ELF",
    )
