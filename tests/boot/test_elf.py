"""ELF files: what is loaded where, and what is refused with which words."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack, pack_into

import pytest

from tests.support.images import EM_ARM, Load, elf32, elf64, xen_note
from tests.support.memory import FakeMemory
from tvmm.boot.elf import (
    LOADER_AREAS,
    MAX_NOTE_BYTES,
    MAX_PROGRAM_HEADERS,
    ElfImage,
    check_placement,
    is_elf,
    load_elf,
    parse_elf,
)
from tvmm.boot.linux import BOOT_PAGE_TABLES_SIZE
from tvmm.errors import ImageError
from tvmm.memory.layout import (
    BOOT_GDT,
    BOOT_PAGE_TABLES,
    COMMAND_LINE,
    COMMAND_LINE_LIMIT,
    MP_TABLE,
    ONE_MIB,
    PVH_INFO,
    ZERO_PAGE,
    Range,
)

RAM = 64 << 20
TEXT = Load(ONE_MIB, b"\x90" * 100, 200)
DATA = Load(ONE_MIB + 0x1000, b"data")


def parse(image: bytes) -> ElfImage:
    return parse_elf(memoryview(image), "k")


def test_64_bit_file() -> None:
    """Segments come sorted, with the physical entry point and the span of all of them."""
    elf = parse(elf64([DATA, TEXT], entry=ONE_MIB + 4))
    assert [(s.address, s.file_size, s.size) for s in elf.segments] == [
        (ONE_MIB, 100, 200),
        (ONE_MIB + 0x1000, 4, 4),
    ]
    assert elf.bits == 64
    assert elf.entry == ONE_MIB + 4
    assert elf.pvh_entry is None
    assert elf.extent == Range(ONE_MIB, 0x1004)


def test_virtual_entry_becomes_physical() -> None:
    """An entry point that lies in a segment's virtual addresses only is translated."""
    high = 0xFFFF_FFFF_8000_0000
    elf = parse(elf64([TEXT._replace(virtual=high)], entry=high + 8))
    assert elf.entry == ONE_MIB + 8


def test_entry_outside_of_all_segments_is_no_entry() -> None:
    """The loader decides whether that matters: with PVH it does not."""
    assert parse(elf64([TEXT], entry=5)).entry is None


@pytest.mark.parametrize("size", [4, 8])
def test_pvh_note(size: int) -> None:
    """The entry of Xen's note 18 is found, in either width, behind other notes."""
    notes = xen_note(1, 4, kind=3, owner=b"GNU\0") + xen_note(7, 4, kind=6) + xen_note(ONE_MIB + 2, size)
    assert parse(elf64([TEXT], entry=ONE_MIB, notes=notes)).pvh_entry == ONE_MIB + 2


def test_note_of_another_owner_is_not_pvh() -> None:
    """Type 18 means something only in Xen's name."""
    notes = xen_note(ONE_MIB, owner=b"Foo\0")
    assert parse(elf64([TEXT], entry=ONE_MIB, notes=notes)).pvh_entry is None


def test_32_bit_file_with_pvh_note() -> None:
    """PVH is all that a 32-bit file can be entered by, and it is enough."""
    elf = parse(elf32([TEXT, DATA], entry=ONE_MIB, notes=xen_note(ONE_MIB + 1, 4)))
    assert (elf.bits, elf.pvh_entry, len(elf.segments)) == (32, ONE_MIB + 1, 2)


def test_load_writes_file_parts_only() -> None:
    """Each segment is one write of its bytes; zeros are left to fresh memory."""
    image = elf64([TEXT, DATA, Load(ONE_MIB + 0x2000, b"", 0x8000)], entry=ONE_MIB)
    memory = FakeMemory(RAM)
    load_elf(memoryview(image), parse(image), memory)
    assert memory.writes == [Range(ONE_MIB, 100), Range(ONE_MIB + 0x1000, 4)]
    assert memory.read(ONE_MIB, 101) == TEXT.data + b"\0"
    assert memory.read(ONE_MIB + 0x1000, 4) == b"data"


def test_zeros_need_no_room_in_the_file() -> None:
    """A segment without file bytes may have any offset, as linkers leave it."""
    bss = pack("<IIQQQQQQ", 1, 6, 1 << 40, 0, 2 << 20, 0, 4096, 0x1000)
    elf = parse(elf64([TEXT], entry=ONE_MIB, extra_headers=[bss]))
    assert elf.segments[-1].size == 4096


HEADER_FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "only the magic": (lambda i: i[:4], "truncated"),
    "header cut": (lambda i: i[:40], "truncated"),
    "program headers cut": (lambda i: i[:100], "truncated: the file ends before its program headers"),
    "segment cut": (lambda i: i[:-1], "truncated"),
    "big-endian": (lambda i: i[:5] + b"\2" + i[6:], "big-endian"),
    "class 3": (lambda i: i[:4] + b"\3" + i[5:], "class 3"),
    "object file": (lambda i: i[:16] + b"\1\0" + i[18:], "an object file"),
    "core dump": (lambda i: i[:16] + b"\4\0" + i[18:], "a core dump"),
    "type 9": (lambda i: i[:16] + b"\x09\0" + i[18:], "ELF type 9"),
    "RISC-V": (lambda i: i[:18] + b"\xf3\0" + i[20:], "an ELF for RISC-V"),
    "unknown machine": (lambda i: i[:18] + b"\x34\x12" + i[20:], "machine 4660"),
    "386 in 64 bits": (lambda i: i[:18] + b"\3\0" + i[20:], "machine 3"),
    "no program headers": (lambda i: i[:56] + b"\0\0" + i[58:], "no program headers"),
    "65535 program headers": (lambda i: i[:56] + b"\xff\xff" + i[58:], "65535 program headers"),
    "odd entry size": (lambda i: i[:54] + b"\x20\0" + i[56:], "program headers of 32 bytes"),
    "table at 2^63": (lambda i: i[:32] + pack("<Q", 1 << 63) + i[40:], "truncated"),
}


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_damaged_headers(fault: str) -> None:
    """Each fault of the headers is named, and nothing else is raised."""
    damage, words = HEADER_FAULTS[fault]
    with pytest.raises(ImageError, match=words):
        parse(damage(elf64([TEXT], entry=ONE_MIB)))


def test_arm_is_named() -> None:
    """A kernel of another machine is told apart from a damaged one."""
    with pytest.raises(ImageError, match="an ELF for ARM, not x86-64; this machine has x86-64"):
        parse(elf32([TEXT], entry=ONE_MIB, machine=EM_ARM))


def test_32_bit_without_note_says_what_is_missing() -> None:
    """The refusal of a 32-bit file names the note that would make it acceptable."""
    with pytest.raises(ImageError, match=r"32-bit ELF without a PVH note; .*CONFIG_PVH"):
        parse(elf32([TEXT], entry=ONE_MIB))


def test_no_loadable_segments() -> None:
    """Empty segments do not count."""
    with pytest.raises(ImageError, match="no loadable segments"):
        parse(elf64([Load(ONE_MIB, b"")], entry=ONE_MIB))


def test_dynamic_program_is_no_kernel() -> None:
    """A program that wants an interpreter is for an operating system."""
    interpreter = pack("<IIQQQQQQ", 3, 4, 0, 0, 0, 4, 4, 1)
    with pytest.raises(ImageError, match="program for an operating system"):
        parse(elf64([TEXT], entry=ONE_MIB, extra_headers=[interpreter]))


def test_overlapping_segments() -> None:
    """Zeros of one segment over bytes of another are an overlap too."""
    with pytest.raises(ImageError, match=r"overlap at 0x1000c0"):
        parse(elf64([TEXT, Load(ONE_MIB + 0xC0, b"x")], entry=ONE_MIB))


def test_more_in_the_file_than_in_memory() -> None:
    """A file size beyond the memory size contradicts itself."""
    image = bytearray(elf64([TEXT], entry=ONE_MIB))
    pack_into("<Q", image, 64 + 40, 10)
    with pytest.raises(ImageError, match="larger in the file"):
        parse(bytes(image))


def test_too_many_program_headers() -> None:
    """The cap holds for headers that are there as well."""
    null = bytes(56)
    parse(elf64([TEXT], entry=ONE_MIB, extra_headers=[null] * (MAX_PROGRAM_HEADERS - 1)))
    with pytest.raises(ImageError, match="at most"):
        parse(elf64([TEXT], entry=ONE_MIB, extra_headers=[null] * MAX_PROGRAM_HEADERS))


NOTE_FAULTS = {
    "value runs past": (pack("<III", 4, 100, 18) + b"Xen\0" + bytes(8), "runs past its segment"),
    "name runs past": (pack("<III", 0xFFFF_FFFF, 0, 18) + b"Xen\0", "runs past its segment"),
    "two bytes of entry": (pack("<III", 4, 2, 18) + b"Xen\0" + bytes(4), "PVH note of 2 bytes"),
    "entry in no segment": (xen_note(0x42), "entry 0x42, which is in none"),
    "entry above 4 GiB": (xen_note(1 << 40), "in none of its segments"),
    "too many": (bytes(MAX_NOTE_BYTES + 4), "bytes of notes"),
}


@pytest.mark.parametrize("fault", NOTE_FAULTS)
def test_damaged_notes(fault: str) -> None:
    """Each fault of the notes is named."""
    notes, words = NOTE_FAULTS[fault]
    with pytest.raises(ImageError, match=words):
        parse(elf64([TEXT], entry=ONE_MIB, notes=notes))


def test_empty_notes_end() -> None:
    """A note segment full of the smallest notes is walked once, to its end."""
    assert parse(elf64([TEXT], entry=ONE_MIB, notes=bytes(MAX_NOTE_BYTES))).pvh_entry is None


PLACES = {
    "GDT": BOOT_GDT,
    "start info": PVH_INFO,
    "zero page": ZERO_PAGE,
    "page tables": BOOT_PAGE_TABLES + BOOT_PAGE_TABLES_SIZE - 1,
    "command line": COMMAND_LINE + COMMAND_LINE_LIMIT - 1,
    "MP table": MP_TABLE,
    "ROM": ONE_MIB - 1,
}


@pytest.mark.parametrize("place", PLACES)
def test_segments_keep_off_the_loader(place: str) -> None:
    """What the loader writes to low memory is never written over by a kernel."""
    elf = parse(elf64([Load(PLACES[place], b"x"), TEXT], entry=ONE_MIB))
    with pytest.raises(ImageError, match="must be; link it to run at 1 MiB"):
        check_placement(elf, RAM, "k")


def test_free_low_memory_may_be_used() -> None:
    """Between the loader's areas there is room for a small program."""
    elf = parse(elf64([Load(0x1_0000, bytes(0x1_0000)), Load(0x3_0000, b"", 0x6_FC00)], entry=0x1_0000))
    check_placement(elf, RAM, "k")
    assert all(area.end <= ONE_MIB for _, area in LOADER_AREAS)


def test_larger_than_memory() -> None:
    """The hint names enough memory."""
    elf = parse(elf64([Load(ONE_MIB, b"x", 100 << 20)], entry=ONE_MIB))
    with pytest.raises(ImageError, match=r"RAM ends at 0x4000000; .*--memory 101M"):
        check_placement(elf, RAM, "k")
    check_placement(elf, 101 << 20, "k")


def test_no_amount_of_memory_helps_above_3_gib() -> None:
    """A kernel linked into the PCI hole cannot be helped by more memory."""
    elf = parse(elf64([Load((3 << 30) - 1, b"xy")], entry=3 << 30))
    with pytest.raises(ImageError, match="linked to run below 3 GiB"):
        check_placement(elf, 3 << 30, "k")


def test_is_elf() -> None:
    """Four bytes decide; fewer are no ELF."""
    assert is_elf(b"\x7fELF")
    assert not is_elf(b"\x7fEL")
    with pytest.raises(ImageError, match="not an ELF"):
        parse(b"")
