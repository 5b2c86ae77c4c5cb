"""The page table walk: sizes, depths, rights, error codes, accessed and dirty bits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.assist_cpu import FlatMemory, TableBuilder
from tvmm.errors import MemoryAccessError
from tvmm.vcpu.assist.cpu import GuestException, PageFault
from tvmm.vcpu.assist.paging import Paging, Translation, read_linear, translate, write_linear

ROOT = 0x1000
LONG = Paging(cr0=0x80050033, cr3=ROOT, cr4=0x3006B0, efer=0xD01)
"""64-bit mode with WP, SMEP, SMAP and NX."""
KERNEL = 0xFFFF_8880_0000_0000
USER = 0x0000_5555_5555_0000
NX = 1 << 63
PWU = 7  # present, writable, user
PW = 3


@pytest.fixture(name="memory")
def _memory() -> FlatMemory:
    return FlatMemory()


def fault_of(memory: FlatMemory, paging: Paging, address: int, **access: bool) -> int:
    """The error code with which an access faults."""
    with pytest.raises(PageFault) as caught:
        translate(memory, paging, address, **access)
    assert caught.value.address == address
    assert caught.value.error_code is not None
    return caught.value.error_code


@pytest.mark.parametrize(("size", "gpa"), [(1 << 12, 0x7000), (1 << 21, 0x60_0000), (1 << 30, 0x1_4000_0000)])
@pytest.mark.parametrize("levels", [4, 5])
def test_page_sizes(memory: FlatMemory, size: int, gpa: int, levels: int) -> None:
    """4 KiB, 2 MiB and 1 GiB pages in 4-level and 5-level tables."""
    address = KERNEL if levels == 4 else 0xFF11_0000_0000_0000
    TableBuilder(memory, ROOT, levels).map(address, gpa, flags=0x63, size=size, table_flags=0x63)
    paging = LONG._replace(cr4=LONG.cr4 | 1 << 12) if levels == 5 else LONG
    assert translate(memory, paging, address + 0x123) == Translation(gpa + 0x123, size - 0x123)


def test_no_paging(memory: FlatMemory) -> None:
    """Without paging linear addresses are physical ones, of 32 bits."""
    assert translate(memory, Paging(0x11, 0, 0, 0), 0x1_0000_5432) == Translation(0x5432, 0x1000 - 0x432)


def test_pae(memory: FlatMemory) -> None:
    """PAE: four top entries without rights, 2 MiB pages, entries of 8 bytes."""
    paging = Paging(0x80010011, 0x1020, 1 << 5, 0)
    memory.put_word(0x1020 + 8 * 3, 0x2001)
    memory.put_word(0x2000 + 8 * 1, 0x3063)
    memory.put_word(0x3000 + 8 * 2, 0x9063)
    memory.put_word(0x2000 + 8 * 4, 0x40_0000 | 0xE3)
    assert translate(memory, paging, 0xC020_2010, write=True) == Translation(0x9010, 0xFF0)
    assert translate(memory, paging, 0xC080_0010) == Translation(0x40_0010, 0x1F_FFF0)
    assert fault_of(memory, paging, 0xC020_2010, user=True) == 5
    assert fault_of(memory, paging, 0x1000) == 0


def test_32_bit(memory: FlatMemory) -> None:
    """Entries of 4 bytes, 4 MiB pages with PSE only, and PSE-36's high address bits."""
    paging = Paging(0x80010011, ROOT, 1 << 4, 0)
    memory.put_word(ROOT + 4 * 5, 0x2027, 4)
    memory.put_word(0x2000 + 4 * 6, 0x9067, 4)
    memory.put_word(ROOT + 4 * 7, 0x0080_0000 | 3 << 13 | 0xE7, 4)
    assert translate(memory, paging, 5 << 22 | 6 << 12 | 8) == Translation(0x9008, 0xFF8)
    assert translate(memory, paging, 7 << 22 | 8) == Translation(3 << 32 | 0x80_0008, (4 << 20) - 8)
    # Without PSE the same entry leads to a table.
    memory.put_word(ROOT + 4 * 7, 0x20A7, 4)
    assert translate(memory, paging._replace(cr4=0), 7 << 22 | 6 << 12).gpa == 0x9000


@pytest.mark.parametrize(
    ("flags", "access", "error"),
    [
        (PW, {"user": True}, 5),
        (PW, {"user": True, "fetch": True}, 0x15),
        (1, {"write": True}, 3),
        (5, {"user": True, "write": True}, 7),
        (PWU, {}, 1),
        (PWU, {"write": True}, 3),
        (PWU, {"fetch": True}, 0x11),
        (PW | NX, {"fetch": True}, 0x11),
        (PWU | NX, {"fetch": True, "user": True}, 0x15),
        (0, {}, 0),
        (0, {"write": True, "user": True}, 6),
        (0, {"fetch": True}, 0x10),
    ],
)
def test_faults(memory: FlatMemory, flags: int, access: dict[str, bool], error: int) -> None:
    """What each right, SMEP, SMAP, NX and an absent page say in the error code."""
    TableBuilder(memory, ROOT).map(USER, 0x9000, flags=flags)
    assert fault_of(memory, LONG, USER, **access) == error


@pytest.mark.parametrize(
    ("flags", "paging", "access"),
    [
        (1, LONG._replace(cr0=0x80040033), {"write": True}),
        (PWU, LONG._replace(ac=True), {"write": True}),
        (PWU, LONG._replace(cr4=0x6B0), {}),
        (PWU, LONG._replace(cr4=0x2006B0), {"fetch": True}),
        (PWU, LONG, {"user": True, "write": True}),
        (PW, LONG, {"fetch": True}),
    ],
)
def test_allowed(memory: FlatMemory, flags: int, paging: Paging, access: dict[str, bool]) -> None:
    """Without WP, SMAP or SMEP, or with AC set, the same accesses go through."""
    TableBuilder(memory, ROOT).map(USER, 0x9000, flags=flags)
    assert translate(memory, paging, USER + 1, **access).gpa == 0x9001


def test_rights_of_tables_count(memory: FlatMemory) -> None:
    """A page is writable, or the user's, only if every table on the way is."""
    TableBuilder(memory, ROOT).map(USER, 0x9000, flags=PWU, table_flags=PW)
    assert fault_of(memory, LONG, USER, user=True) == 5
    assert translate(memory, LONG, USER, write=True).gpa == 0x9000


def test_reserved_bits(memory: FlatMemory) -> None:
    """NX without NXE, a large page at the top level, and low address bits in a large page are reserved."""
    builder = TableBuilder(memory, ROOT)
    builder.map(KERNEL, 0x9000, flags=PW | NX)
    assert fault_of(memory, LONG._replace(efer=0x501), KERNEL) == 9
    slot = builder.map(KERNEL + (1 << 30), 0x60_0000, size=1 << 21)
    memory.put_word(slot, memory.word(slot) | 1 << 14)
    assert fault_of(memory, LONG, KERNEL + (1 << 30)) == 9
    memory.put_word(ROOT + 8 * 511, 0x9083)
    assert fault_of(memory, LONG, MASK - 0xFFF) == 9


MASK = (1 << 64) - 1


@pytest.mark.parametrize("address", [0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63])
def test_not_canonical(memory: FlatMemory, address: int) -> None:
    """An address whose upper bits differ raises #GP, not #PF."""
    with pytest.raises(GuestException) as caught:
        translate(memory, LONG, address)
    assert (caught.value.vector, caught.value.error_code) == (13, 0)


def test_tables_outside_of_ram(memory: FlatMemory) -> None:
    """A table that is not in RAM is no fault of the guest's: the caller learns of it."""
    memory.put_word(ROOT, 0x4000_0000_0003)
    with pytest.raises(MemoryAccessError):
        translate(memory, LONG, 0)


def test_accessed_and_dirty(memory: FlatMemory) -> None:
    """A read sets the accessed bits of all levels, a write the dirty bit of the page as well."""
    slot = TableBuilder(memory, ROOT).map(KERNEL, 0x9000, flags=PW | NX)
    assert read_linear(memory, LONG, KERNEL, 4) == bytes(4)
    assert memory.word(slot) == 0x9000 | PW | NX | 0x20
    assert memory.word(ROOT + 8 * 0x111) & 0x20
    write_linear(memory, LONG, KERNEL, b"abc")
    assert memory.word(slot) == 0x9000 | PW | NX | 0x60
    assert memory.read(0x9000, 3) == b"abc"
    assert translate(memory, LONG, KERNEL, write=True).marks == ()


def test_access_across_pages(memory: FlatMemory) -> None:
    """The parts of an access go to the pages that they lie on."""
    builder = TableBuilder(memory, ROOT)
    builder.map(KERNEL, 0x9000)
    builder.map(KERNEL + 0x1000, 0x7000)
    write_linear(memory, LONG, KERNEL + 0xFFD, b"abcdef")
    assert memory.read(0x9FFD, 3) + memory.read(0x7000, 3) == b"abcdef"
    assert read_linear(memory, LONG, KERNEL + 0xFFD, 6) == b"abcdef"


def test_write_is_all_or_nothing(memory: FlatMemory) -> None:
    """When the second page of a write faults, the first is as it was, marks included."""
    builder = TableBuilder(memory, ROOT)
    slot = builder.map(KERNEL, 0x9000)
    builder.map(KERNEL + 0x1000, 0x7000, flags=1)
    before = bytes(memory.ram)
    with pytest.raises(PageFault) as caught:
        write_linear(memory, LONG, KERNEL + 0xFFE, b"abcd")
    assert (caught.value.address, caught.value.error_code) == (KERNEL + 0x1000, 3)
    assert bytes(memory.ram) == before
    assert memory.word(slot) & 0x60 == 0


@settings(deadline=None, max_examples=200)
@given(
    entries=st.lists(st.tuples(st.integers(0, 511), st.integers(0, MASK)), max_size=40),
    address=st.integers(0, MASK),
    mode=st.sampled_from(
        (
            LONG,
            LONG._replace(cr4=LONG.cr4 | 1 << 12),
            Paging(0x80000001, ROOT, 0x20, 0),
            Paging(0x80000001, ROOT, 0x10, 0),
        )
    ),
    access=st.fixed_dictionaries({name: st.booleans() for name in ("write", "user", "fetch")}),
)
def test_any_tables(entries: list[tuple[int, int]], address: int, mode: Paging, access: dict[str, bool]) -> None:
    """Whatever the guest puts into its tables, a walk ends in a translation or one of the defined errors."""
    memory = FlatMemory(0x8000)
    for index, value in entries:
        memory.put_word(ROOT + 8 * index, value & 0x7FFF | value & ~0xFF_FFFF_FFFF)
    try:
        found = translate(memory, mode, address, **access)
    except (GuestException, MemoryAccessError):
        return
    assert found.room >= 1
    assert found.gpa >= 0
