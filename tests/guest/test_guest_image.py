"""The built-in guest's ELF: entry points, segments, and the tables that the linker lays down."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from tvmm.guest.build import build

MIB = 1 << 20
PT_LOAD, PT_NOTE = 1, 4
PF_X, PF_W, PF_R = 1, 2, 4
XEN_ELFNOTE_PHYS32_ENTRY = 18

TSS_STRIDE, IO_BITMAP_BYTES, MAX_CPUS = 0x80, 0x2000, 256  # of layout.h
GDT_FIRST_TSS = 6


class Segment(NamedTuple):
    """One program header, with the bytes that it takes from the file."""

    type: int
    flags: int
    paddr: int
    memory_size: int
    align: int
    data: bytes


class Image(NamedTuple):
    """What a loader sees."""

    entry: int
    machine: int
    segments: list[Segment]

    def loads(self) -> list[Segment]:
        """The segments that get memory."""
        return [segment for segment in self.segments if segment.type == PT_LOAD]

    def at(self, address: int, length: int) -> bytes:
        """Loaded bytes; those of .bss read as zeros. Raises KeyError outside of all segments."""
        for segment in self.loads():
            if segment.paddr <= address and address + length <= segment.paddr + segment.memory_size:
                start = address - segment.paddr
                return segment.data[start : start + length].ljust(length, b"\0")
        raise KeyError(hex(address))


def parse(data: bytes) -> Image:
    """Reads an ELF64 file (System V ABI, chapters 4 and 5)."""
    assert data[:6] == b"\x7fELF\x02\x01"
    machine, _, entry, headers = struct.unpack_from("<HIQQ", data, 18)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = []
    for index in range(count):
        fields = struct.unpack_from("<IIQQQQQQ", data, headers + index * size)
        kind, flags, offset, _vaddr, paddr, file_size, memory_size, align = fields
        segments.append(Segment(kind, flags, paddr, memory_size, align, data[offset : offset + file_size]))
    return Image(entry, machine, segments)


def pvh_entry(image: Image) -> int:
    """The address in the PVH note."""
    notes = [segment.data for segment in image.segments if segment.type == PT_NOTE]
    assert len(notes) == 1
    name_size, size, kind = struct.unpack_from("<III", notes[0])
    assert (notes[0][12 : 12 + name_size], kind) == (b"Xen\0", XEN_ELFNOTE_PHYS32_ENTRY)
    assert size == 8
    return int.from_bytes(notes[0][16:24], "little")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A freshly built image."""
    output = tmp_path_factory.mktemp("guest") / "guest.elf"
    build(output)
    return output


@pytest.fixture(scope="module")
def image(path: Path) -> Image:
    """The same, parsed."""
    return parse(path.read_bytes())


def tables(image: Image) -> tuple[int, int, int]:
    """Addresses of GDT, IDT and page tables, as the 64-bit entry code loads them."""
    code = image.at(image.entry, 64)
    assert code[5:8] == b"\x0f\x01\x14"  # lgdt [disp32]
    gdt_pointer = int.from_bytes(code[9:13], "little")
    lidt = code.index(b"\x0f\x01\x1c\x25")
    idt_pointer = int.from_bytes(code[lidt + 4 : lidt + 8], "little")
    pml4 = int.from_bytes(code[code.index(b"\xb8", 20) + 1 :][:4], "little")  # the second MOV EAX, imm32
    gdt_limit, gdt = struct.unpack("<HQ", image.at(gdt_pointer, 10))
    idt_limit, idt = struct.unpack("<HQ", image.at(idt_pointer, 10))
    assert gdt_limit == GDT_FIRST_TSS * 8 + MAX_CPUS * 16 - 1
    assert idt_limit == 256 * 16 - 1
    return gdt, idt, pml4


def test_is_small(path: Path) -> None:
    """The file is under 256 KiB: it is part of the package and read at each start."""
    assert path.stat().st_size < 256 << 10


def test_memory_starts_at_one_mib_and_stays_small(image: Image) -> None:
    """Loaded from 1 MiB on, below 2 MiB, in pages that don't overlap."""
    ends = MIB
    for segment in image.loads():
        assert segment.paddr >= ends
        assert segment.paddr % 4096 == 0
        assert segment.memory_size >= len(segment.data)
        ends = segment.paddr + segment.memory_size
    assert image.loads()[0].paddr == MIB
    assert ends <= 2 * MIB


def test_zeroed_memory_is_tiny(image: Image) -> None:
    """What the loader has to clear fits 64 KiB, since nothing in the guest clears it."""
    assert sum(segment.memory_size - len(segment.data) for segment in image.loads()) <= 64 << 10


def test_no_segment_is_writable_and_executable(image: Image) -> None:
    """Code is read-only, data is not executable."""
    assert [segment.flags for segment in image.loads()] == [PF_R | PF_X, PF_R | PF_W]


def test_both_entry_points_are_code(image: Image) -> None:
    """PVH note and e_entry lead to different places inside of the executable segment; x86-64."""
    text = image.loads()[0]
    assert image.machine == 62
    entries = {image.entry, pvh_entry(image)}
    assert len(entries) == 2
    assert all(text.paddr <= entry < text.paddr + len(text.data) for entry in entries)


def test_note_lies_in_a_loaded_segment(image: Image) -> None:
    """The note's own header points into the text segment, as loaders that look at memory expect."""
    note = next(segment for segment in image.segments if segment.type == PT_NOTE)
    assert image.at(note.paddr, len(note.data)) == note.data
    assert note.align == 4


def test_identity_page_tables(image: Image) -> None:
    """The low 4 GiB are mapped one to one by 2 MiB pages that user mode may write; devices uncached."""
    _, _, pml4 = tables(image)
    pdpt = int.from_bytes(image.at(pml4, 8), "little")
    assert pdpt & 0xFFF == 0x07
    directories = struct.unpack("<512Q", image.at(pdpt & ~0xFFF, 4096))
    assert not any(directories[4:])
    for gib, directory in enumerate(directories[:4]):
        assert directory & 0xFFF == 0x07
        entries = struct.unpack("<512Q", image.at(directory & ~0xFFF, 4096))
        flags = 0xFF if gib == 3 else 0xE7
        assert entries == tuple((gib << 30) + (i << 21) + flags for i in range(512))


def test_interrupt_gates_lead_to_the_stubs(image: Image) -> None:
    """256 interrupt gates, 16 bytes of code apart; only INT3's may be used from user mode."""
    _, idt, _ = tables(image)
    targets = []
    for vector in range(256):
        low, selector, kind, high, upper, _ = struct.unpack("<HHHHII", image.at(idt + vector * 16, 16))
        assert (selector, upper) == (0x08, 0)
        assert kind == (0xEE00 if vector == 3 else 0x8E00)
        targets.append(high << 16 | low)
    assert targets == list(range(targets[0], targets[0] + 4096, 16))
    text = image.loads()[0]
    assert text.paddr <= targets[0] < targets[-1] < text.paddr + len(text.data)


def test_every_tss_reaches_the_io_bitmap(image: Image) -> None:
    """Each CPU's TSS ends at the one shared bitmap: all zero, with the byte of ones behind it."""
    gdt, _, _ = tables(image)
    ends = set()
    for cpu in range(MAX_CPUS):
        limit, base, base2, kind, flags, base3, upper, _ = struct.unpack(
            "<HHBBBBII", image.at(gdt + GDT_FIRST_TSS * 8 + cpu * 16, 16)
        )
        start = base | base2 << 16 | base3 << 24
        assert (kind, flags, upper) == (0x89, 0, 0)
        (bitmap,) = struct.unpack("<H", image.at(start + 0x66, 2))
        assert limit == bitmap + IO_BITMAP_BYTES
        assert bitmap >= 0x68
        ends.add(start + limit)
        assert image.at(start + bitmap, IO_BITMAP_BYTES + 1) == bytes(IO_BITMAP_BYTES) + b"\xff"
    assert len(ends) == 1


def test_boot_processor_has_a_kernel_stack(image: Image) -> None:
    """RSP0 of the first TSS is the end of an aligned page inside of the image's zeroed memory."""
    gdt, _, _ = tables(image)
    base, base2 = struct.unpack("<HB", image.at(gdt + GDT_FIRST_TSS * 8 + 2, 3))
    rsp0 = int.from_bytes(image.at((base | base2 << 16) + 4, 8), "little")
    assert rsp0 % 4096 == 0
    assert image.at(rsp0 - 4096, 4096) == bytes(4096)


def test_build_is_reproducible_and_silent(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Built again elsewhere, the image is the same to the byte; compiler and linker have nothing to say."""
    again = tmp_path / "deeper" / "other-name.elf"
    again.parent.mkdir()
    build(again)
    assert again.read_bytes() == path.read_bytes()
    assert list(again.parent.iterdir()) == [again]
    assert capfd.readouterr() == ("", "")


def test_missing_compiler_is_one_line(tmp_path: Path) -> None:
    """A compiler that does not exist: RuntimeError that names it, nothing left behind."""
    with pytest.raises(RuntimeError, match=r"\Acannot compile the guest: no-such-cc: [^\n]+\Z"):
        build(tmp_path / "guest.elf", cc="no-such-cc")
    assert list(tmp_path.iterdir()) == []


def test_failing_compiler_is_one_line(tmp_path: Path) -> None:
    """A compiler that refuses: RuntimeError with its first complaint; an older image stays."""
    output = tmp_path / "guest.elf"
    output.write_bytes(b"older")
    with pytest.raises(RuntimeError, match=r"\Acannot compile the guest: [^\n]*no-such-option[^\n]*\Z"):
        build(output, cc="gcc --no-such-option")
    assert output.read_bytes() == b"older"
