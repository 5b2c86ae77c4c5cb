"""Where guest-physical addresses lie: RAM below and above the PC hole, and what is put into low memory.

RAM starts at 0 and leaves out 3 GiB to 4 GiB, where the local APIC, the IOAPIC and devices answer; what does not
fit below the hole goes on at 4 GiB. Low memory holds what a loader leaves there for the kernel to read.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = [
    "ACPI_TABLES",
    "BASE_MEMORY_END",
    "BOOT_GDT",
    "BOOT_PAGE_TABLES",
    "COMMAND_LINE",
    "COMMAND_LINE_LIMIT",
    "GENERATION_ID",
    "HIGH_MEMORY",
    "HOLE_START",
    "IOAPIC_BASE",
    "LAPIC_BASE",
    "LEGACY_WINDOW",
    "MP_TABLE",
    "ONE_MIB",
    "PCI_ECAM",
    "PCI_IO",
    "PCI_MMIO32",
    "PVH_INFO",
    "RSDP",
    "VIRTIO_MMIO",
    "ZERO_PAGE",
    "GuestMemory",
    "Range",
    "pci_mmio64",
    "ram_ranges",
]

ONE_MIB = 1 << 20
HOLE_START = 3 << 30
HIGH_MEMORY = 4 << 30

BOOT_GDT = 0x500
PVH_INFO = 0x6000
ZERO_PAGE = 0x7000
BOOT_PAGE_TABLES = 0x9000
COMMAND_LINE = 0x2_0000
COMMAND_LINE_LIMIT = 0x1_0000
"""Bytes set aside for the command line with its final NUL."""
MP_TABLE = 0x9_FC00
BASE_MEMORY_END = MP_TABLE
ACPI_TABLES = 0xE_0000
"""Where the tables start. Behind them, at 0xf0000, may be a long MP table."""
RSDP = 0xF_5000
"""Where ACPI's root pointer is: between 0xe0000 and 1 MiB, as kernels without a boot loader's word look there."""
GENERATION_ID = 0xF_6000
"""16 bytes, in a page of their own: which life of the machine this is (`tvmm.devices.generation_id`)."""
LEGACY_WINDOW = 0xA_0000
"""From here to 1 MiB a PC has video memory and ROMs: RAM behind it, reserved for the kernel."""

IOAPIC_BASE = 0xFEC0_0000
LAPIC_BASE = 0xFEE0_0000


class Range(NamedTuple):
    """A run of guest-physical addresses, in bytes."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.start + self.size


PCI_IO = Range(0x1000, 0xF000)
PCI_MMIO32 = Range(HOLE_START, 512 << 20)
"""Room for the largest video memory, and for all else besides."""
PCI_ECAM = Range(0xE000_0000, 256 << 20)
"""1 MiB for each of 256 buses."""
VIRTIO_MMIO = Range(0xFEB0_0000, ONE_MIB)
"""A page for each device with the MMIO transport."""
_MMIO64_START, _MMIO64_SIZE = 1 << 38, 1 << 36
"""256 GiB: above the RAM of most machines, and within the 39 address bits that the smallest processors have."""


class GuestMemory(Protocol):
    """What loaders and device models ask of guest RAM."""

    def read(self, gpa: int, length: int) -> bytes:
        """`length` bytes at `gpa`; raises `MemoryAccessError` unless all of them are RAM."""

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        """Put `data` at `gpa`; raises `MemoryAccessError`, and writes nothing, unless all of it is RAM."""


def ram_ranges(size: int) -> tuple[Range, ...]:
    """The ranges of guest-physical addresses that `size` bytes of RAM occupy."""
    if size <= HOLE_START:
        return (Range(0, size),)
    return (Range(0, HOLE_START), Range(HIGH_MEMORY, size - HOLE_START))


def pci_mmio64(ram_size: int) -> Range:
    """Where 64-bit BARs may go: 64 GiB behind all RAM."""
    end = ram_ranges(ram_size)[-1].end
    return Range(max(_MMIO64_START, -(-end // _MMIO64_SIZE) * _MMIO64_SIZE), _MMIO64_SIZE)
