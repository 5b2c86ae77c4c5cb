"""The whole way from files to an entry state: choices, placement, checks, and what memory holds
afterwards."""

from __future__ import annotations

from struct import unpack_from
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.images import Load, bzimage, elf32, elf64, pack_kernel, pe_program, xen_note
from tests.support.memory import FakeMemory
from tvmm.boot.entry import EntryState
from tvmm.boot.loader import Hardware, KernelOptions, load
from tvmm.errors import ConfigError, ImageError, UserError
from tvmm.memory.layout import COMMAND_LINE, COMMAND_LINE_LIMIT, MP_TABLE, ONE_MIB, PVH_INFO, ZERO_PAGE, Range

RAM = 64 << 20
START = 0x100_0000
TEXT = Load(START, b"\x90" * 64, 0x1000)
PLAIN = elf64([TEXT], entry=START + 4)
PVH = elf64([TEXT], entry=START + 4, notes=xen_note(START + 8))
PVH_32 = elf32([TEXT], entry=START, notes=xen_note(START + 8, 4))
PACKED = bzimage(pack_kernel("gzip", PVH), init_size=2 << 20)


def boot(
    kernel: bytes,
    *,
    ram: int = RAM,
    cpus: int = 1,
    emulated: bool = False,
    initrd: bytes | None = None,
    append: str = "",
    entry: Literal["auto", "pvh", "linux64"] = "auto",
    decompress: Literal["auto", "on", "off"] = "auto",
) -> tuple[EntryState, FakeMemory]:
    """Load into fresh memory; if that is refused, nothing may have been written."""
    memory = FakeMemory(ram)
    options = KernelOptions(memoryview(kernel), "k", initrd, append, entry, decompress)
    try:
        state = load(options, memory, ram, Hardware(cpus), emulated)
    except UserError:
        assert not memory.writes
        raise
    assert not memory.overlapping_writes()
    return state, memory


def initrd_of(memory: FakeMemory) -> Range:
    """Where the zero page says the initrd is."""
    return Range(*unpack_from("<II", memory.read(ZERO_PAGE, 4096), 0x218))


@pytest.mark.parametrize(
    ("kernel", "entry", "decompress", "emulated", "rip", "kind"),
    [
        (PVH, "auto", "auto", False, START + 8, "PVH ELF"),
        (PVH, "pvh", "auto", False, START + 8, "PVH ELF"),
        (PVH, "linux64", "auto", False, START + 4, "64-bit ELF"),
        (PLAIN, "auto", "auto", True, START + 4, "64-bit ELF"),
        (PVH_32, "auto", "auto", False, START + 8, "PVH ELF"),
        (PACKED, "auto", "auto", False, START + 0x200, "Linux 6.1.0-test, bzImage"),
        (PACKED, "auto", "auto", True, START + 4, "Linux 6.1.0-test, bzImage, unpacked by the loader"),
        (PACKED, "auto", "on", False, START + 4, "Linux 6.1.0-test, bzImage, unpacked by the loader"),
        (PACKED, "linux64", "off", True, START + 0x200, "Linux 6.1.0-test, bzImage"),
        (PACKED, "pvh", "on", False, START + 8, "PVH ELF"),
        (bzimage(b"", release=b""), "auto", "auto", False, START + 0x200, "Linux (unknown release), bzImage"),
    ],
)
def test_entry(
    kernel: bytes,
    entry: Literal["auto", "pvh", "linux64"],
    decompress: Literal["auto", "on", "off"],
    emulated: bool,
    rip: int,
    kind: str,
) -> None:
    """Which protocol is used, by what the file is and what was asked for."""
    state, _ = boot(kernel, entry=entry, decompress=decompress, emulated=emulated)
    assert (state.registers["rip"], state.kernel) == (rip, kind)
    if kind == "PVH ELF":
        assert state.registers["rbx"] == PVH_INFO
        assert state.efer == 0
    else:
        assert state.registers["rsi"] == ZERO_PAGE
        assert state.efer == 0x500


REFUSALS: dict[str, tuple[bytes, Literal["auto", "pvh", "linux64"], str]] = {
    "PVH without note": (PLAIN, "pvh", "no PVH note; use --entry linux64"),
    "PVH of a bzImage": (PACKED, "pvh", "no PVH entry point; .*--decompress on"),
    "64-bit entry of a 32-bit file": (PVH_32, "linux64", "no 64-bit entry point; use --entry pvh"),
    "entry in no segment": (elf64([TEXT], entry=4), "auto", "in none of its segments"),
    "32-bit bzImage": (bzimage(xloadflags=0), "auto", "32-bit kernel"),
    "PE": (pe_program(0x20B), "auto", r"PE32\+"),
    "gzip": (pack_kernel("gzip", PVH), "auto", "gzip-compressed"),
    "empty": (b"", "auto", "empty"),
    "too large": (elf64([Load(START, b"x", RAM)], entry=START), "auto", "--memory 80M"),
    "bzImage too large": (bzimage(init_size=RAM), "auto", "--memory 80M"),
    "segment on the MP table": (elf64([Load(MP_TABLE, b"x")], entry=MP_TABLE), "auto", "firmware area"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    """Each says what and why, and leaves memory alone."""
    kernel, entry, words = REFUSALS[case]
    with pytest.raises(ImageError, match=words):
        boot(kernel, entry=entry)


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (b"no ELF at all", "unpacked from k is not an ELF"),
        (elf32([TEXT], entry=0), "unpacked from k is a 32-bit"),
    ],
)
def test_unpacked_kernel_is_judged_too(inner: bytes, words: str) -> None:
    """What comes out of a bzImage is no more trusted than the file."""
    with pytest.raises(ImageError, match=words):
        boot(bzimage(pack_kernel("xz", inner)), emulated=True)


def test_segments_of_unpacked_kernel_are_in_memory() -> None:
    """The unpacked kernel is at its link address, and the zero page has its bzImage's own header."""
    _, memory = boot(PACKED, emulated=True)
    assert memory.read(START, 64) == TEXT.data
    page = memory.read(ZERO_PAGE, 4096)
    assert unpack_from("<H", page, 0x206) == (0x20F,)
    assert unpack_from("<I", page, 0x214) == (START,)


def test_unpacking_here_needs_less_memory() -> None:
    """init_size is for the guest's decompressor; without it the segments count."""
    kernel = bzimage(pack_kernel("zstd", PVH), init_size=RAM)
    with pytest.raises(ImageError, match="to unpack itself"):
        boot(kernel)
    boot(kernel, decompress="on")


def test_platform_tables() -> None:
    """The MP table is there, and the map of the zero page is that of the machine's size."""
    _, memory = boot(PLAIN, cpus=3)
    assert memory.read(MP_TABLE, 4) == b"_MP_"
    assert memory.read(ZERO_PAGE + 0x1E8, 1) == b"\3"


@pytest.mark.parametrize("cpus", [0, 255])
def test_processor_count(cpus: int) -> None:
    """A count that no table can name is refused before anything is written."""
    with pytest.raises(ConfigError, match="processors"):
        boot(PLAIN, cpus=cpus)


@pytest.mark.parametrize("ram", [0, ONE_MIB, (2 << 20) - 4096])
def test_too_little_memory(ram: int) -> None:
    """Below 2 MiB there is no room for any kernel."""
    with pytest.raises(ConfigError, match="--memory 2M"):
        boot(PLAIN, ram=ram)


# --- command line ---


def test_command_line_is_there() -> None:
    """UTF-8, with a NUL at its end; bytes that came as surrogates are the same bytes again."""
    for text, data in (("", b"\0"), ("a=ü", b"a=\xc3\xbc\0"), ("x\udcff", b"x\xff\0")):
        _, memory = boot(PLAIN, append=text)
        assert memory.read(COMMAND_LINE, len(data)) == data


def test_command_line_limits() -> None:
    """Both numbers are named; the kernel's own limit counts if it has one."""
    boot(PLAIN, append="x" * (COMMAND_LINE_LIMIT - 1))
    with pytest.raises(ConfigError, match="65536 bytes long; there is room for 65535"):
        boot(PLAIN, append="x" * COMMAND_LINE_LIMIT)
    kernel = bzimage(command_line_size=100)
    boot(kernel, append="x" * 100)
    with pytest.raises(ConfigError, match="101 bytes long; this kernel takes 100"):
        boot(kernel, append="x" * 101)
    with pytest.raises(ConfigError, match="102 bytes long"):
        boot(kernel, append="ü" * 51)


@pytest.mark.parametrize(("text", "words"), [("a\0b", "NUL"), ("\ud800", "UTF-8 cannot express")])
def test_command_line_characters(text: str, words: str) -> None:
    """What cannot be passed on is refused, not cut."""
    with pytest.raises(ConfigError, match=words):
        boot(PLAIN, append=text)


# --- initrd ---


def test_initrd_is_at_the_top() -> None:
    """Page-aligned, as high as it goes, whole."""
    initrd = b"initrd" * 1000
    _, memory = boot(PLAIN, initrd=initrd)
    place = initrd_of(memory)
    assert place == Range(RAM - 0x2000, 6000)
    assert memory.read(place.start, place.size) == initrd


def test_initrd_in_the_start_info() -> None:
    """PVH has it as its one module."""
    _, memory = boot(PVH, initrd=b"x" * 10)
    (module_list,) = unpack_from("<Q", memory.read(PVH_INFO, 56), 16)
    assert unpack_from("<QQ", memory.read(module_list, 32)) == (RAM - 0x1000, 10)


def test_initrd_stays_below_the_kernels_limit() -> None:
    """initrd_addr_max is the last byte that may be used."""
    _, memory = boot(bzimage(initrd_addr_max=0x1FF_FFFF), initrd=b"x" * 4097)
    assert initrd_of(memory) == Range(0x1FF_E000, 4097)


def test_initrd_stays_below_2_gib() -> None:
    """Kernels that say nothing get what every 64-bit Linux says, even if there is RAM above."""
    _, memory = boot(PLAIN, initrd=b"x", ram=6 << 30)
    assert initrd_of(memory).start == (2 << 30) - 4096


def test_initrd_keeps_off_init_size() -> None:
    """The memory that the decompressor uses is not free, though the file does not reach that far."""
    kernel = bzimage(init_size=(48 << 20) - 0x1000)
    _, memory = boot(kernel, initrd=b"x" * 4096)
    assert initrd_of(memory).start == RAM - 4096
    _, memory = boot(kernel, initrd=b"x" * 4097)
    assert initrd_of(memory).start == START - 0x2000


def test_initrd_below_a_kernel_at_the_top() -> None:
    """If the kernel has the top of RAM, the initrd goes below it."""
    kernel = elf64([Load(RAM - 4096, b"x" * 4096)], entry=RAM - 4096)
    _, memory = boot(kernel, initrd=b"y" * 5000)
    assert initrd_of(memory).start == RAM - 4096 - 0x2000


@pytest.mark.parametrize("size", [RAM, RAM - (1 << 20), 49 << 20])
def test_initrd_too_large(size: int) -> None:
    """More than what is free on either side of the kernel does not fit."""
    with pytest.raises(ImageError, match=f"initrd \\({size} bytes\\) does not fit .*more --memory"):
        boot(PLAIN, initrd=bytes(size))


def test_initrd_limit_without_room() -> None:
    """A limit below the kernel leaves less room, and more memory would not help."""
    with pytest.raises(ImageError, match="smaller initrd"):
        boot(bzimage(initrd_addr_max=0x10_0FFF), initrd=bytes(8192))


def test_empty_initrd() -> None:
    """An empty file is a mistake, not an initrd."""
    with pytest.raises(ImageError, match="initrd is empty"):
        boot(PLAIN, initrd=b"")


@settings(deadline=None, max_examples=100)
@given(
    start=st.integers(ONE_MIB, RAM + 4096),
    size=st.integers(1, RAM),
    initrd=st.integers(1, 1 << 20),
    limit=st.integers(0, 0xFFFF_FFFF),
)
def test_initrd_placement_property(start: int, size: int, initrd: int, limit: int) -> None:
    """Wherever the kernel is: the initrd is in RAM above 1 MiB, aligned, below the limit, beside the
    kernel."""
    kernel = bzimage(pref_address=start, init_size=size, initrd_addr_max=limit)
    try:
        _, memory = boot(kernel, initrd=bytes(initrd))
    except ImageError:
        return
    place, used = initrd_of(memory), Range(start, max(size, 0x400))
    assert place.size == initrd
    assert place.start % 4096 == 0
    assert place.start >= ONE_MIB
    assert place.end <= min(RAM, limit + 1)
    assert place.end <= used.start or used.end <= place.start
