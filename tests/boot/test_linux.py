"""The 64-bit Linux entry: zero page, page tables as the processor walks them, registers."""

from __future__ import annotations

from struct import iter_unpack, unpack, unpack_from

import pytest

from tests.support.memory import FakeMemory
from tvmm.boot.e820 import memory_map
from tvmm.boot.entry import EntryState
from tvmm.boot.framebuffer import Framebuffer
from tvmm.boot.linux import (
    BOOT_PAGE_TABLES_SIZE,
    HEADER_END,
    HEADER_START,
    LinuxEntry,
    enter_linux,
    made_header,
)
from tvmm.memory.layout import BOOT_PAGE_TABLES, COMMAND_LINE, ZERO_PAGE, Range

RAM = 5 << 30
ENTRY = LinuxEntry(0x100_0200, 0x100_0000, made_header(2047, 0x7FFF_FFFF), Range(0x2000_0000, 999), "k")


def enter(entry: LinuxEntry = ENTRY) -> tuple[EntryState, bytes, FakeMemory]:
    memory = FakeMemory(RAM)
    state = enter_linux(memory, entry, memory_map(RAM))
    return state, memory.read(ZERO_PAGE, 4096), memory


def test_zero_page_fields() -> None:
    """What a boot loader has to fill in (boot.rst, "obligatory" fields) is filled in."""
    _, page, _ = enter(ENTRY._replace(rsdp=0xE_0000))
    assert unpack_from("<H4sH", page, 0x1FE) == (0xAA55, b"\0\0Hd", 0x5372)
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF
    assert page[0x211] & 1
    assert unpack_from("<I", page, 0x214) == (0x100_0000,)
    assert unpack_from("<II", page, 0x218) == (0x2000_0000, 999)
    assert unpack_from("<I", page, 0x228) == (COMMAND_LINE,)
    assert unpack_from("<Q", page, 0x70) == (0xE_0000,)
    assert page[0x1EF] == 0, "the sentinel"


def test_no_screen() -> None:
    """Without a framebuffer the kernel is told of no screen at all."""
    _, page, _ = enter()
    assert page[:0x40] == bytes(0x40)


def test_screen() -> None:
    """A VESA mode with a linear framebuffer; base, depth and colours at the offsets of struct screen_info."""
    framebuffer = Framebuffer(0xC100_0000, 32 << 20, 1366, 768, 5504)
    _, page, _ = enter(ENTRY._replace(framebuffer=framebuffer, rsdp=0xE_0000))
    assert (page[0x07], page[0x0E], page[0x0F]) == (80, 25, 0x23)
    assert unpack_from("<HHHHII", page, 0x10) == (16, 1366, 768, 32, 0xC100_0000, 512)
    assert unpack_from("<H", page, 0x24) == (5504,)
    red, green, blue, rest = iter_unpack("<BB", page[0x26:0x2E])
    assert (red, green, blue, rest) == ((8, 16), (8, 8), (8, 0), (8, 24))
    assert unpack_from("<II", page, 0x36) == (1, 0)
    assert unpack_from("<Q", page, 0x70) == (0xE_0000,)


def test_screen_above_4_gib() -> None:
    """The high half of the address goes with a flag that says so."""
    _, page, _ = enter(ENTRY._replace(framebuffer=Framebuffer(0x40_C000_0000, 16 << 20, 640, 480, 2560)))
    assert unpack_from("<I", page, 0x18) == (0xC000_0000,)
    assert unpack_from("<II", page, 0x36) == (3, 0x40)


def test_memory_map_in_the_zero_page() -> None:
    """All entries with their count, 20 bytes each."""
    _, page, _ = enter()
    count = page[0x1E8]
    entries = list(iter_unpack("<QQI", page[0x2D0 : 0x2D0 + 20 * count]))
    assert entries == [tuple(part) for part in memory_map(RAM)]


def test_own_header_is_kept() -> None:
    """A kernel's own header is copied, but for what the loader has to say, and setup_data, which it has
    not."""
    header = bytearray(range(256))[: HEADER_END - HEADER_START]
    _, page, _ = enter(ENTRY._replace(header=bytes(header)))
    assert page[0x230:0x250] == header[0x230 - HEADER_START : 0x250 - HEADER_START]
    assert page[0x258:HEADER_END] == header[0x258 - HEADER_START :]
    assert unpack_from("<Q", page, 0x250) == (0,)
    assert page[0x210] == 0xFF


def test_header_cannot_reach_further() -> None:
    """A header that is too long does not get into the fields behind it."""
    _, page, _ = enter(ENTRY._replace(header=b"\xff" * 0x400))
    assert page[HEADER_END:0x2D0] == bytes(0x2D0 - HEADER_END)


def test_no_initrd() -> None:
    """Address and size are zero."""
    _, page, _ = enter(ENTRY._replace(initrd=None))
    assert unpack_from("<II", page, 0x218) == (0, 0)
    assert unpack_from("<II", page, 0xC0) == (0, 0)


def test_made_header() -> None:
    """The header for a bare vmlinux has magic, version and limits in their places."""
    header = made_header(1234, 0x37FF_FFFF)
    assert len(header) == HEADER_END - HEADER_START
    assert unpack_from("<I", header, 0x22C - HEADER_START) == (0x37FF_FFFF,)
    assert unpack_from("<I", header, 0x238 - HEADER_START) == (1234,)
    assert unpack_from("<H", header, 0x206 - HEADER_START) >= (0x20C,)


def walk(memory: FakeMemory, cr3: int, address: int) -> int | None:
    """Translate as the processor does with 4-level paging; None is a page fault."""
    table = cr3
    for level in (3, 2, 1, 0):
        index = address >> (12 + 9 * level) & 0x1FF
        (entry,) = unpack("<Q", memory.read(table + 8 * index, 8))
        if entry & 3 != 3:
            return None
        table = entry & 0x000F_FFFF_FFFF_F000
        if level and entry & 0x80:
            mask = (1 << (12 + 9 * level)) - 1
            assert not table & mask
            return int(table | address & mask)
    return int(table | address & 0xFFF)


@pytest.mark.parametrize(
    "address", [0, 0x7000, 0x100_0200, 0x1FF_FFFF, (3 << 30) - 1, 1 << 30, (4 << 30) - 1]
)
def test_identity_map(address: int) -> None:
    """Every address below 4 GiB is mapped to itself, writable."""
    state, _, memory = enter()
    assert walk(memory, state.cr3, address) == address


@pytest.mark.parametrize("address", [4 << 30, 1 << 39, 1 << 47])
def test_nothing_above(address: int) -> None:
    """Above 4 GiB nothing is mapped."""
    state, _, memory = enter()
    assert walk(memory, state.cr3, address) is None


def test_registers() -> None:
    """Long mode with paging, RSI at the zero page, the selectors that the protocol names, a stack in free
    memory."""
    state, _, memory = enter()
    assert state.registers["rip"] == 0x100_0200
    assert state.registers["rsi"] == ZERO_PAGE
    assert state.cr0 & 1
    assert state.cr0 >> 31
    assert state.cr4 & 0x20
    assert state.efer == 0x500
    assert (state.code.selector, state.code.l, state.code.db) == (0x10, 1, 0)
    assert state.data.selector == 0x18
    assert state.kernel == "k"
    stack = Range(ZERO_PAGE + 4096, state.registers["rsp"] - ZERO_PAGE - 4096)
    assert stack.size > 2048
    assert all(written.end <= stack.start or written.start >= stack.end for written in memory.writes)
    assert not memory.overlapping_writes()
    assert Range(BOOT_PAGE_TABLES, BOOT_PAGE_TABLES_SIZE) in memory.writes
