"""The guest's page tables, walked as the processor does (Intel SDM volume 3, chapter 4).

`translate` is a function of memory and control registers. It knows 32-bit, PAE, 4-level and 5-level
paging with all page sizes, rights (WP, NX, SMEP, SMAP) and the error codes of #PF. Protection keys are
left out: they would need the XSAVE image at each access, and what goes through here is the guest
kernel's own data.

`read_linear` and `write_linear` also set the accessed and dirty bits, or a guest that saves or evicts
pages by them would lose what an assisted instruction wrote. The bits are set one byte at a time and
only where they are clear; a second vCPU that clears bits of the very same entry in between may see its
change undone, which is why no more than that byte is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.vcpu.assist.cpu import (
    AC,
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NXE,
    GENERAL_PROTECTION,
    MASK64,
    GuestException,
    PageFault,
)

if TYPE_CHECKING:
    from tvmm.memory.layout import GuestMemory
    from tvmm.vcpu.assist.cpu import GuestRegs, GuestSregs

__all__ = ["Paging", "Translation", "paging_of", "read_linear", "translate", "write_linear"]

PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = 1, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 7
NO_EXECUTE = 1 << 63
ADDRESS_MASK = 0x000F_FFFF_FFFF_F000

# Error code of #PF.
FAULT_PROTECTION, FAULT_WRITE, FAULT_USER, FAULT_RESERVED, FAULT_FETCH = 1, 2, 4, 8, 16

MAX_ACCESS = 1 << 16
"""Bytes of one access. No instruction moves more than an XSAVE area; a longer one is a bug of the
caller."""


class Paging(NamedTuple):
    """The registers that paging depends on; `ac` is RFLAGS.AC, which lifts SMAP."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    ac: bool = False


class Translation(NamedTuple):
    """Where a linear address leads: `gpa`, and how many bytes from there lie on the same page.

    `marks` are the table entries whose accessed or dirty bits are to be set: (gpa of the entry's low
    byte, new value of that byte).
    """

    gpa: int
    room: int
    marks: tuple[tuple[int, int], ...] = ()


def paging_of(regs: GuestRegs, sregs: GuestSregs) -> Paging:
    """The paging registers of a vCPU."""
    return Paging(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, bool(regs.rflags & AC))


def is_canonical(paging: Paging, address: int) -> bool:
    """Whether the bits above the translated ones repeat the topmost of them."""
    top = address >> (56 if paging.cr4 & CR4_LA57 else 47)
    return top == 0 or top == MASK64 >> (56 if paging.cr4 & CR4_LA57 else 47)


class _Level(NamedTuple):
    """One level of tables: where its index lies, and whether an entry may map a page itself."""

    shift: int
    index_mask: int
    large: bool


_LONG5: tuple[_Level, ...] = (
    _Level(48, 511, False),
    _Level(39, 511, False),
    _Level(30, 511, True),
    _Level(21, 511, True),
    _Level(12, 511, False),
)
_LONG4: tuple[_Level, ...] = _LONG5[1:]
_PAE: tuple[_Level, ...] = (_Level(30, 3, False), _Level(21, 511, True), _Level(12, 511, False))
_LEGACY: tuple[_Level, ...] = (_Level(22, 1023, True), _Level(12, 1023, False))


def translate(
    memory: GuestMemory,
    paging: Paging,
    address: int,
    *,
    write: bool = False,
    user: bool = False,
    fetch: bool = False,
) -> Translation:
    """Walk the tables for one byte at `address`.

    Raises `PageFault`, `GuestException` (#GP) for an address that is not canonical, and
    `MemoryAccessError` for tables outside of RAM.
    """
    cr0, cr3, cr4, efer, ac = paging
    if not cr0 & CR0_PG:
        address &= 0xFFFF_FFFF
        return Translation(address, 0x1000 - (address & 0xFFF))
    width, root = 8, cr3 & ADDRESS_MASK
    if efer & EFER_LMA:
        levels = _LONG5 if cr4 & CR4_LA57 else _LONG4
        if not is_canonical(paging, address):
            raise GuestException(GENERAL_PROTECTION, 0)
    elif cr4 & CR4_PAE:
        levels, root, address = _PAE, cr3 & 0xFFFF_FFE0, address & 0xFFFF_FFFF
    else:
        levels, width, address = _LEGACY, 4, address & 0xFFFF_FFFF
        root &= 0xFFFF_FFFF

    nx = width == 8 and bool(efer & EFER_NXE)
    error = (FAULT_WRITE if write else 0) | (FAULT_USER if user else 0)
    if fetch and (nx or cr4 & CR4_SMEP):
        error |= FAULT_FETCH

    rights = WRITABLE | USER
    execute = True
    marks: list[tuple[int, int]] = []
    for level in levels:
        slot = root + ((address >> level.shift) & level.index_mask) * width
        entry = int.from_bytes(memory.read(slot, width), "little")
        if not entry & PRESENT:
            raise PageFault(address, error)
        leaf = level.shift == 12
        large = not leaf and bool(entry & LARGE)
        if large and width == 4 and not cr4 & CR4_PSE:
            large = False
        # The top table of PAE has no rights and no accessed bit of its own.
        pointer = levels is _PAE and level.shift == 30
        if (large and not level.large) or (entry & NO_EXECUTE and not nx):
            raise PageFault(address, error | FAULT_RESERVED | FAULT_PROTECTION)
        if not pointer:
            rights &= entry
            if entry & NO_EXECUTE:
                execute = False
        last = leaf or large
        wanted = (0 if pointer else ACCESSED) | (DIRTY if last and write else 0)
        if wanted & ~entry:
            marks.append((slot, (entry | wanted) & 0xFF))
        if last:
            break
        root = entry & (ADDRESS_MASK if width == 8 else 0xFFFF_F000)

    size = 1 << level.shift
    base = entry & ADDRESS_MASK & ~(size - 1)
    if width == 4:
        base &= 0xFFFF_FFFF
        if large:  # PSE-36: bits 13 to 20 of the entry are bits 32 to 39 of the address.
            base |= (entry >> 13 & 0xFF) << 32
    elif large and entry & (size - 1) & ~0x1FFF:
        raise PageFault(address, error | FAULT_RESERVED | FAULT_PROTECTION)

    if user:
        allowed = bool(rights & USER) and (not write or bool(rights & WRITABLE))
    else:
        allowed = not write or bool(rights & WRITABLE) or not cr0 & CR0_WP
        if rights & USER and (cr4 & CR4_SMEP if fetch else cr4 & CR4_SMAP and not ac):
            allowed = False
    if not allowed or (fetch and not execute):
        raise PageFault(address, error | FAULT_PROTECTION)
    offset = address & (size - 1)
    return Translation(base | offset, size - offset, tuple(marks))


def _pieces(
    memory: GuestMemory, paging: Paging, address: int, length: int, write: bool, user: bool
) -> list[tuple[int, int]]:
    """The (gpa, length) pieces of an access; faults before anything is marked or moved."""
    if length > MAX_ACCESS:
        raise ValueError(f"an access of {length} bytes")
    pieces: list[tuple[int, int]] = []
    marks: list[tuple[int, int]] = []
    limit = MASK64 if paging.efer & EFER_LMA else 0xFFFF_FFFF
    while length > 0:
        found = translate(memory, paging, address, write=write, user=user)
        size = min(length, found.room)
        pieces.append((found.gpa, size))
        marks.extend(found.marks)
        address = (address + size) & limit
        length -= size
    for slot, value in marks:
        memory.write(slot, bytes((value,)))
    return pieces


def read_linear(memory: GuestMemory, paging: Paging, address: int, length: int, user: bool = False) -> bytes:
    """Read `length` bytes at a linear address.

    Raises `PageFault`, `GuestException` (#GP, not canonical), `MemoryAccessError` (no RAM behind the page).
    """
    pieces = _pieces(memory, paging, address, length, False, user)
    if len(pieces) == 1:
        return memory.read(*pieces[0])
    return b"".join([memory.read(gpa, size) for gpa, size in pieces])


def write_linear(memory: GuestMemory, paging: Paging, address: int, data: bytes, user: bool = False) -> None:
    """Write `data` at a linear address: all of it or, when a page faults, nothing. Raises as
    `read_linear`."""
    done = 0
    for gpa, size in _pieces(memory, paging, address, len(data), True, user):
        memory.write(gpa, data[done : done + size])
        done += size
