"""Linux's 64-bit boot protocol: the zero page, identity page tables, and the boot CPU in long mode.

Facts are from Linux's Documentation/arch/x86/boot.rst and zero-page.rst. The same entry serves a bzImage
(512 bytes behind its load address) and a bare vmlinux (its ELF entry): both find the zero page by RSI.

Rejected: the 16-bit entry, which needs a BIOS, and the 32-bit one, which would only add another way to the
same kernel.
"""

from __future__ import annotations

from struct import pack, pack_into
from typing import TYPE_CHECKING, NamedTuple

from tvmm.boot.e820 import MapEntry
from tvmm.boot.entry import EntryState
from tvmm.boot.gdt import CODE_64, DATA, NO_IDT, TASK_64, write_gdt
from tvmm.memory.layout import BOOT_PAGE_TABLES, COMMAND_LINE, ZERO_PAGE, GuestMemory, Range

if TYPE_CHECKING:
    from tvmm.boot.framebuffer import Framebuffer

__all__ = ["BOOT_PAGE_TABLES_SIZE", "HEADER_END", "HEADER_START", "LinuxEntry", "enter_linux", "made_header"]

HEADER_START = 0x1F1
"""Offset of the setup header, the same in a bzImage and in the zero page."""
HEADER_END = 0x290
"""Where the zero page goes on with other fields; a header that says it is longer is cut here."""
BOOT_PAGE_TABLES_SIZE = 6 << 12
"""One level-4 table, one level-3 table and four level-2 tables of 2 MiB pages for 4 GiB."""

_PAGE = 0x1000
_STACK_TOP = BOOT_PAGE_TABLES - 16
"""In the page below the page tables. The protocol promises no stack; some kernels push before they have
one."""

SCREEN_INFO_LENGTH = 0x40
"""At the start of the zero page."""
_ACPI_RSDP = 0x070
_EXT_RAMDISK_ADDRESS = 0x0C0
_E820_COUNT = 0x1E8
_BOOT_FLAG = 0x1FE
_MAGIC_AND_VERSION = 0x202
_TYPE_OF_LOADER = 0x210
_LOADFLAGS = 0x211
_CODE32_START = 0x214
_RAMDISK = 0x218
_COMMAND_LINE = 0x228
_INITRD_ADDR_MAX = 0x22C
_COMMAND_LINE_SIZE = 0x238
_SETUP_DATA = 0x250
_E820_TABLE = 0x2D0

_LOADED_HIGH = 1
_UNREGISTERED_LOADER = 0xFF
_MADE_VERSION = 0x20C

_PRESENT_WRITABLE = 0x3
_LARGE_PAGE = 0x83
_CR0 = 0x8000_0011
"""PG, ET, PE."""
_CR4_PAE = 0x20
_EFER_LME_LMA = 0x500


class LinuxEntry(NamedTuple):
    """What `enter_linux` puts into the zero page. All addresses are guest-physical, all sizes in bytes.

    `header` is the kernel's own setup header, from `HEADER_START` on, or `made_header()`; `start` is where
    the kernel was loaded; `kernel` is for reports. `rsdp` is the address of ACPI's root pointer, 0 for
    none. `framebuffer` is where a picture can be made without a driver.
    """

    rip: int
    start: int
    header: bytes
    initrd: Range | None
    kernel: str
    rsdp: int = 0
    framebuffer: Framebuffer | None = None


def enter_linux(memory: GuestMemory, entry: LinuxEntry, memory_map: tuple[MapEntry, ...]) -> EntryState:
    """Write zero page, page tables and GDT; return the registers for the 64-bit entry point.

    The command line is at its fixed place already.
    """
    memory.write(ZERO_PAGE, _zero_page(entry, memory_map))
    memory.write(BOOT_PAGE_TABLES, _identity_page_tables())
    return EntryState(
        registers={"rip": entry.rip, "rsi": ZERO_PAGE, "rsp": _STACK_TOP},
        code=CODE_64,
        data=DATA,
        task=TASK_64,
        gdt=write_gdt(memory, CODE_64),
        idt=NO_IDT,
        cr0=_CR0,
        cr3=BOOT_PAGE_TABLES,
        cr4=_CR4_PAE,
        efer=_EFER_LME_LMA,
        kernel=entry.kernel,
    )


def made_header(command_line_size: int, initrd_addr_max: int) -> bytes:
    """A setup header for a kernel that comes without one: the fields that say what a boot loader would rely
    on."""
    page = bytearray(HEADER_END)
    pack_into("<H", page, _BOOT_FLAG, 0xAA55)
    pack_into("<4sH", page, _MAGIC_AND_VERSION, b"HdrS", _MADE_VERSION)
    pack_into("<I", page, _INITRD_ADDR_MAX, initrd_addr_max)
    pack_into("<I", page, _COMMAND_LINE_SIZE, command_line_size)
    return bytes(page[HEADER_START:])


def _zero_page(entry: LinuxEntry, memory_map: tuple[MapEntry, ...]) -> bytes:
    """struct boot_params: the header with a boot loader's fields filled in, and the memory map.

    Everything else is zero, which also tells the kernel (by the sentinel at 0x1ef) that the page was not
    copied from a file without care.
    """
    page = bytearray(_PAGE)
    header = entry.header[: HEADER_END - HEADER_START]
    page[HEADER_START : HEADER_START + len(header)] = header
    page[_TYPE_OF_LOADER] = _UNREGISTERED_LOADER
    page[_LOADFLAGS] |= _LOADED_HIGH
    initrd = entry.initrd or Range(0, 0)
    pack_into("<I", page, _CODE32_START, entry.start)
    pack_into("<II", page, _RAMDISK, initrd.start & 0xFFFF_FFFF, initrd.size & 0xFFFF_FFFF)
    pack_into("<II", page, _EXT_RAMDISK_ADDRESS, initrd.start >> 32, initrd.size >> 32)
    pack_into("<I", page, _COMMAND_LINE, COMMAND_LINE)
    pack_into("<Q", page, _SETUP_DATA, 0)
    pack_into("<Q", page, _ACPI_RSDP, entry.rsdp)
    if entry.framebuffer is not None:
        from tvmm.boot.framebuffer import screen_info

        page[:SCREEN_INFO_LENGTH] = screen_info(entry.framebuffer)
    page[_E820_COUNT] = len(memory_map)
    for index, part in enumerate(memory_map):
        pack_into("<QQI", page, _E820_TABLE + 20 * index, part.start, part.size, part.kind)
    return bytes(page)


def _identity_page_tables() -> bytes:
    """Tables that map the low 4 GiB to themselves, which covers all that a loader puts anywhere."""
    level3 = BOOT_PAGE_TABLES + _PAGE
    level2 = level3 + _PAGE
    return b"".join(
        (
            pack("<Q4088x", level3 | _PRESENT_WRITABLE),
            pack("<4Q4064x", *range(level2 | _PRESENT_WRITABLE, level2 + 4 * _PAGE, _PAGE)),
            pack("<2048Q", *range(_LARGE_PAGE, 4 << 30, 2 << 20)),
        )
    )
