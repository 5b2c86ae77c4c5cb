"""ELF executables: headers to a checked record, segments to guest memory.

The file is somebody else's: every offset and count in it is checked before it is used, nothing is written
before the whole file has been judged, and segments go to memory as slices of a `memoryview`, so that no
copy of a kernel is made. 64-bit files for x86-64 are what Linux and most kernels are; 32-bit files are of
use only with a PVH note, because the PVH entry is 32-bit code and needs nothing else from the file.

Rejected: trusting the section headers. They are not needed to load a program, are often stripped, and would
be one more table to check.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from tvmm.errors import ImageError
from tvmm.memory.layout import (
    BASE_MEMORY_END,
    COMMAND_LINE,
    COMMAND_LINE_LIMIT,
    HOLE_START,
    ONE_MIB,
    GuestMemory,
    Range,
)

__all__ = ["LOADER_AREAS", "ElfImage", "ElfSegment", "check_placement", "is_elf", "load_elf", "parse_elf"]

MAX_PROGRAM_HEADERS = 128
"""Linux has five. A header may announce 65535, each of which would cost a walk over its notes."""
MAX_NOTE_BYTES = 16 << 10
"""Of all note segments together. The smallest note is 12 bytes: a file full of them would take minutes."""

LOADER_AREAS = (
    ("the boot structures", Range(0, 0x1_0000)),
    ("the command line", Range(COMMAND_LINE, COMMAND_LINE_LIMIT)),
    ("the firmware area", Range(BASE_MEMORY_END, ONE_MIB - BASE_MEMORY_END)),
)
"""Low memory that the loader writes itself, or that the memory map reserves (see `tvmm.memory.layout`)."""

_IDENT_SIZE = 16
_HEADER_64 = Struct("<HHIQQQIHHHHHH")
_HEADER_32 = Struct("<HHIIIIIHHHHHH")
_PROGRAM_64 = Struct("<IIQQQQQQ")
_PROGRAM_32 = Struct("<IIIIIIII")
_NOTE = Struct("<III")

_ET_EXEC = 2
_ET_DYN = 3
_EM_386 = 3
_EM_X86_64 = 62
_PT_LOAD = 1
_PT_INTERP = 3
_PT_NOTE = 4
_XEN_PHYS32_ENTRY = 18

_MACHINES = {
    2: "SPARC",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC64",
    22: "S/390",
    40: "ARM",
    43: "SPARC64",
    50: "IA-64",
    183: "ARM64",
    243: "RISC-V",
    258: "LoongArch",
}
_TAKE_A_KERNEL = "give a linked kernel, such as Linux's vmlinux"
_TYPES = {0: "no type", 1: "an object file", 4: "a core dump"}


class ElfSegment(NamedTuple):
    """`file_size` bytes at `offset` of the file go to physical `address`, zeros follow up to `size` bytes."""

    address: int
    virtual: int
    offset: int
    file_size: int
    size: int


class ElfImage(NamedTuple):
    """A judged ELF file. `segments` are sorted by address, do not overlap, and there is at least one.

    `entry` is the physical address of the file's entry point, or None if it lies in no segment; `pvh_entry`
    is what the PVH note says, or None without such a note. `extent` spans all segments with their zeros.
    """

    bits: int
    entry: int | None
    pvh_entry: int | None
    segments: tuple[ElfSegment, ...]
    extent: Range


def is_elf(image: bytes | memoryview) -> bool:
    """Does the file start with ELF's magic number?"""
    return bytes(image[:4]) == b"\x7fELF"


def parse_elf(image: memoryview, name: str) -> ElfImage:
    """Check the headers, the program headers and the notes of the executable `image`.

    `name` is for messages. Raises `ImageError` for anything but a whole, little-endian x86 executable; a
    32-bit file must have a PVH note. (System V ABI, chapter 5; Xen's PVH boot ABI.)
    """
    bits, kind, machine, entry, table, entry_size, count = _header(image, name)
    if kind not in (_ET_EXEC, _ET_DYN):
        raise ImageError(
            f"{name} is {_TYPES.get(kind, f'of ELF type {kind}')}, not an executable",
            _TAKE_A_KERNEL,
        )
    if machine != _EM_X86_64 and (bits == 64 or machine != _EM_386):
        raise ImageError(
            f"{name} is an ELF for {_MACHINES.get(machine, f'machine {machine}')}, not x86-64",
            "this machine has x86-64 processors: take a kernel built for them",
        )
    program = _PROGRAM_64 if bits == 64 else _PROGRAM_32
    if count == 0:
        raise ImageError(f"{name} has no program headers, so nothing says where it wants to be loaded")
    if count > MAX_PROGRAM_HEADERS:
        raise ImageError(f"{name} has {count} program headers; at most {MAX_PROGRAM_HEADERS} are taken")
    if entry_size != program.size:
        raise ImageError(f"{name} has program headers of {entry_size} bytes in place of {program.size}")
    if table > len(image) or count * program.size > len(image) - table:
        raise _truncated(name, "its program headers")

    segments: list[ElfSegment] = []
    notes: list[tuple[int, int, int]] = []
    for row in program.iter_unpack(image[table : table + count * program.size]):
        if bits == 64:
            tag, _, offset, virtual, address, file_size, size, align = row
        else:
            tag, offset, virtual, address, file_size, size, _, align = row
        if tag == _PT_INTERP:
            raise ImageError(f"{name} is a program for an operating system, not a kernel", _TAKE_A_KERNEL)
        if tag not in (_PT_LOAD, _PT_NOTE) or (tag == _PT_LOAD and size == 0):
            continue
        if file_size and (offset > len(image) or file_size > len(image) - offset):
            raise _truncated(name, f"the segment for {address:#x}")
        if tag == _PT_NOTE:
            notes.append((offset, file_size, 8 if align == 8 else 4))
        elif file_size > size:
            raise ImageError(
                f"{name} has a segment for {address:#x} that is larger in the file "
                f"({file_size} bytes) than in memory ({size})"
            )
        else:
            segments.append(ElfSegment(address, virtual, offset, file_size, size))
    if not segments:
        raise ImageError(f"{name} has no loadable segments", _TAKE_A_KERNEL)
    segments.sort()
    end = segments[0].address
    for segment in segments:
        if segment.address < end:
            raise ImageError(f"{name} has segments that overlap at {segment.address:#x}")
        end = segment.address + segment.size
    pvh_entry = _find_pvh_entry(image, notes, name)
    if pvh_entry is not None and not any(s.address <= pvh_entry < s.address + s.size for s in segments):
        raise ImageError(f"{name} has a PVH note with entry {pvh_entry:#x}, which is in none of its segments")
    if bits == 32 and pvh_entry is None:
        raise ImageError(
            f"{name} is a 32-bit ELF without a PVH note",
            "use a 64-bit kernel, or build this one with PVH support (Linux: CONFIG_PVH=y)",
        )
    start = segments[0].address
    return ElfImage(bits, _physical(entry, segments), pvh_entry, tuple(segments), Range(start, end - start))


def check_placement(elf: ElfImage, ram_end: int, name: str) -> None:
    """Raise `ImageError` if a segment is outside of low RAM, or where the loader keeps structures of its own.

    `ram_end` is where low RAM ends: boot page tables and the 32-bit entry do not reach further than 4 GiB.
    """
    end = elf.extent.end
    if end > ram_end:
        hint = "it has to be linked to run below 3 GiB"
        if end <= HOLE_START:
            hint = f"give the machine more memory: --memory {-(-end >> 20)}M"
        raise ImageError(f"{name} wants memory up to {end:#x}, but RAM ends at {ram_end:#x}", hint)
    for segment in elf.segments:
        start, end = segment.address, segment.address + segment.size
        for owner, area in LOADER_AREAS:
            if start < area.end and area.start < end:
                raise ImageError(
                    f"{name} wants memory at {start:#x}, where {owner} "
                    f"({area.start:#x} to {area.end:#x}) must be",
                    "link it to run at 1 MiB or above",
                )


def load_elf(image: memoryview, elf: ElfImage, memory: GuestMemory) -> None:
    """Write the segments of `elf`, which `check_placement` has passed, to `memory`.

    Zeros behind a segment's file part are not written: RAM has to be fresh.
    """
    for segment in elf.segments:
        if segment.file_size:
            memory.write(segment.address, image[segment.offset : segment.offset + segment.file_size])


def _header(image: memoryview, name: str) -> tuple[int, int, int, int, int, int, int]:
    """Class, type, machine, entry, and offset, entry size and count of the program headers."""
    if not is_elf(image):
        raise ImageError(f"{name} is not an ELF file")
    if len(image) < _IDENT_SIZE:
        raise _truncated(name, "the ELF header")
    if image[5] == 2:
        raise ImageError(
            f"{name} is a big-endian ELF, for another kind of processor",
            "this machine has x86-64 processors: take a kernel built for them",
        )
    if image[4] not in (1, 2) or image[5] != 1 or image[6] != 1:
        raise ImageError(
            f"{name} has an ELF header of class {image[4]}, byte order {image[5]}, "
            f"version {image[6]}: damaged, or no ELF at all"
        )
    header = _HEADER_64 if image[4] == 2 else _HEADER_32
    if len(image) < _IDENT_SIZE + header.size:
        raise _truncated(name, "the ELF header")
    kind, machine, _, entry, table, _, _, _, entry_size, count, _, _, _ = header.unpack_from(
        image, _IDENT_SIZE
    )
    return 32 * image[4], kind, machine, entry, table, entry_size, count


def _find_pvh_entry(image: memoryview, notes: list[tuple[int, int, int]], name: str) -> int | None:
    """The 32-bit physical entry point that Xen's note 18 gives, if there is one."""
    left = MAX_NOTE_BYTES
    for offset, size, align in notes:
        left -= size
        if left < 0:
            raise ImageError(f"{name} has more than {MAX_NOTE_BYTES} bytes of notes")
        end = offset + size
        while end - offset >= _NOTE.size:
            name_size, value_size, kind = _NOTE.unpack_from(image, offset)
            value = offset + (_NOTE.size + name_size + align - 1) // align * align
            if value > end or value_size > end - value:
                raise ImageError(f"{name} has a note at offset {offset:#x} that runs past its segment")
            if kind == _XEN_PHYS32_ENTRY and bytes(image[offset + 12 : offset + 12 + name_size]) == b"Xen\0":
                if value_size not in (4, 8):
                    raise ImageError(f"{name} has a PVH note of {value_size} bytes; 4 or 8 are meaningful")
                return int.from_bytes(image[value : value + value_size], "little")
            offset = value + (value_size + align - 1) // align * align
    return None


def _physical(entry: int, segments: list[ElfSegment]) -> int | None:
    """Linux gives its entry as a physical address; other kernels give a virtual one."""
    for segment in segments:
        if 0 <= entry - segment.address < segment.size:
            return entry
    for segment in segments:
        if 0 <= entry - segment.virtual < segment.size:
            return entry - segment.virtual + segment.address
    return None


def _truncated(name: str, what: str) -> ImageError:
    return ImageError(f"{name} is truncated: the file ends before {what} does", "copy or build it again")
