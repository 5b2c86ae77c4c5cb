"""Fakes for instruction assist: a vCPU with linear windows of memory, and one with page tables in RAM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tvmm.errors import MemoryAccessError
from tvmm.vcpu.assist.cpu import GENERAL_PROTECTION, GuestException, PageFault
from tvmm.vcpu.assist.operation import REGISTERS
from tvmm.vcpu.assist.paging import paging_of, read_linear, write_linear
from tvmm.vcpu.assist.xsave import XsaveComponent

__all__ = ["FakeCpu", "FlatMemory", "PagedCpu", "TableBuilder", "initial_image", "segment"]

NAMES = (*REGISTERS, "rip")

LAYOUT = {2: XsaveComponent(576, 256), 9: XsaveComponent(2432, 8)}
"""AVX and PKRU, as an AMD processor lays them out."""


def initial_image() -> bytearray:
    """Extended state after a reset, in KVM's format."""
    image = bytearray(4096)
    image[0:2] = (0x37F).to_bytes(2, "little")
    image[24:28] = (0x1F80).to_bytes(4, "little")
    image[28:32] = (0x2FFFF).to_bytes(4, "little")
    image[512] = 7
    return image


def segment(**values: int) -> SimpleNamespace:
    """A flat segment with some fields changed."""
    fields = {
        "base": 0,
        "limit": 0xFFFFFFFF,
        "selector": 0,
        "type": 3,
        "present": 1,
        "dpl": 0,
        "db": 0,
        "s": 1,
    }
    return SimpleNamespace(**{**fields, "l": 0, "g": 1, **values})


class FakeCpu:
    """A vCPU in 64-bit kernel mode with everything enabled. Memory is a list of (address, bytearray)."""

    def __init__(self, *windows: tuple[int, bytearray]) -> None:
        self.windows = list(windows)
        self.regs: Any = SimpleNamespace(rflags=2, **dict.fromkeys(NAMES, 0))
        self.sregs: Any = SimpleNamespace(
            cs=segment(type=11, l=1, selector=0x10),
            **{name: segment(selector=0x18) for name in ("ds", "es", "fs", "gs", "ss")},
            tr=segment(type=11, s=0),
            ldt=segment(type=2, s=0, limit=0),
            gdt=SimpleNamespace(base=0, limit=0),
            idt=SimpleNamespace(base=0, limit=0),
            cr0=0x80050033,
            cr2=0,
            cr3=0x1000,
            cr4=0x3406B0,
            cr8=0,
            efer=0xD01,
            apic_base=0xFEE00900,
        )
        self.image = bytes(initial_image())
        self.xcr0 = 0x207
        self.msrs: dict[int, int] = {0x10: 0, 0xDA0: 0, 0xC0000082: 0, 0xC0000084: 0x47700, 0xC0000103: 0}
        self.xsave_layout = LAYOUT
        self.injected: list[tuple[int, int | None]] = []
        self.sregs_written = 0
        self.flushes = 0

    def sregs_changed(self) -> None:
        self.sregs_written += 1

    def flush_translations(self) -> None:
        self.flushes += 1

    def _find(self, address: int, length: int, error: int) -> tuple[bytearray, int]:
        for base, window in self.windows:
            if base <= address and address + length <= base + len(window):
                return window, address - base
        raise PageFault(address, error)

    def read_linear(self, address: int, length: int, user: bool = False) -> bytes:
        window, offset = self._find(address, length, 0)
        return bytes(window[offset : offset + length])

    def write_linear(self, address: int, data: bytes, user: bool = False) -> None:
        window, offset = self._find(address, len(data), 2)
        window[offset : offset + len(data)] = data

    def compare_exchange(self, address: int, expected: bytes, desired: bytes) -> bytes:
        found = self.read_linear(address, len(expected))
        self.write_linear(address, desired if found == expected else found)
        return found

    def inject(self, vector: int, error_code: int | None) -> None:
        self.injected.append((vector, error_code))

    def read_msr(self, index: int) -> int:
        if index not in self.msrs:
            raise GuestException(GENERAL_PROTECTION, 0)
        return self.msrs[index]

    def write_msr(self, index: int, value: int) -> None:
        self.read_msr(index)
        self.msrs[index] = value

    def get_xsave(self) -> bytes:
        return self.image

    def set_xsave(self, image: bytes) -> None:
        self.image = image

    def get_xcr0(self) -> int:
        return self.xcr0

    def set_xcr0(self, value: int) -> None:
        if value & ~0x207:
            raise GuestException(GENERAL_PROTECTION, 0)
        self.xcr0 = value


class FlatMemory:
    """Guest RAM from 0."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.ram = bytearray(size)

    def _check(self, gpa: int, length: int) -> None:
        if gpa + length > len(self.ram):
            raise MemoryAccessError(f"no RAM at {gpa:#x}")

    def read(self, gpa: int, length: int) -> bytes:
        self._check(gpa, length)
        return bytes(self.ram[gpa : gpa + length])

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        self._check(gpa, len(data))
        self.ram[gpa : gpa + len(data)] = data

    def word(self, gpa: int, width: int = 8) -> int:
        """A little-endian number."""
        return int.from_bytes(self.ram[gpa : gpa + width], "little")

    def put_word(self, gpa: int, value: int, width: int = 8) -> None:
        """Write a little-endian number."""
        self.ram[gpa : gpa + width] = value.to_bytes(width, "little")


class TableBuilder:
    """Makes 4-level or 5-level page tables from `root` up, with a new page for each table."""

    def __init__(self, memory: FlatMemory, root: int = 0x1000, levels: int = 4) -> None:
        self.memory = memory
        self.root = root
        self.levels = levels
        self._next = root + 0x1000

    def map(self, address: int, gpa: int, flags: int = 3, size: int = 0x1000, table_flags: int = 7) -> int:
        """Map a page; returns where its entry lies. `flags` are those of the entry, without the large bit."""
        table = self.root
        for shift in range(12 + 9 * (self.levels - 1), 11, -9):
            slot = table + 8 * (address >> shift & 511)
            if 1 << shift == size:
                self.memory.put_word(slot, gpa | flags | (0x80 if shift > 12 else 0))
                return slot
            if not self.memory.word(slot) & 1:
                self.memory.put_word(slot, self._next | table_flags)
                self._next += 0x1000
            table = self.memory.word(slot) & 0x000FFFFFFFFFF000
        raise AssertionError("no page of that size")


class PagedCpu(FakeCpu):
    """A vCPU whose linear memory goes through page tables."""

    def __init__(self, memory: FlatMemory) -> None:
        super().__init__()
        self.memory = memory

    def read_linear(self, address: int, length: int, user: bool = False) -> bytes:
        return read_linear(self.memory, paging_of(self.regs, self.sregs), address, length, user)

    def write_linear(self, address: int, data: bytes, user: bool = False) -> None:
        write_linear(self.memory, paging_of(self.regs, self.sregs), address, data, user)
