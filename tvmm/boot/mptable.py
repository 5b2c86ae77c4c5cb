"""The Intel MultiProcessor Specification 1.4 tables: processors, IOAPIC and how ISA interrupts are wired.

Kernels without ACPI learn from it that there are more processors and where the IOAPIC is; without it Linux
waits for the timer interrupt to come in some other way. The floating pointer has to lie in an area that
kernels search (the last KiB of base memory is one), the table itself may be anywhere in memory that the map
reserves.
"""

from __future__ import annotations

from struct import pack
from typing import NamedTuple

from tvmm.errors import ConfigError
from tvmm.memory.layout import IOAPIC_BASE, LAPIC_BASE, LEGACY_WINDOW, MP_TABLE, GuestMemory

__all__ = ["MAX_CPUS", "MP_TABLE_HIGH", "BusInterrupts", "check_cpu_count", "write_mp_table"]

MAX_CPUS = 254
"""APIC ids are 8 bits here, 255 addresses all processors, and the IOAPIC takes one."""
MP_TABLE_HIGH = 0xF_0000
"""Where the table goes when it is too long for the last KiB of base memory: the area of the system ROM."""

_POINTER_SIZE = 16
_HEADER_SIZE = 44
_SPEC_REVISION = 4

_PROCESSOR = 0
_BUS = 1
_IOAPIC = 2
_IO_INTERRUPT = 3
_LOCAL_INTERRUPT = 4

_INT = 0
_NMI = 1
_EXTINT = 3

_APIC_VERSION = 0x14
"""An integrated APIC (82489DX has 0x0X)."""
_IOAPIC_VERSION = 0x11
_ENABLED = 1
_BOOT_PROCESSOR = 2
_SIGNATURE = 0x600
_FEATURES = 0x201
"""FPU and APIC. Kernels ask CPUID for the rest."""
_PCI_BUS, _ISA_BUS = 0, 1
"""A PCI bus has its own number as its id."""
_ISA_LINES = 16
_ALL_APICS = 0xFF
_LOW_LEVEL = 0xF


class BusInterrupts(NamedTuple):
    """Interrupts besides those that the ISA bus of every PC has.

    `pci` are (slot, pin from 0 on, IOAPIC pin) of bus 0; there is no PCI bus without any. `lines` are IOAPIC pins
    of edge-triggered devices on no bus; they are given as ISA interrupts of the same number.
    """

    pci: tuple[tuple[int, int, int], ...] = ()
    lines: tuple[int, ...] = ()


def check_cpu_count(cpu_count: int) -> None:
    """Raise `ConfigError` unless the table can name that many processors."""
    if not 1 <= cpu_count <= MAX_CPUS:
        raise ConfigError(f"{cpu_count} processors: there can be 1 to {MAX_CPUS}", "choose another --cpus")


ISA_ALONE = BusInterrupts()


def write_mp_table(memory: GuestMemory, cpu_count: int, buses: BusInterrupts = ISA_ALONE) -> None:
    """Write floating pointer and table for processors with APIC ids 0 to `cpu_count` - 1; 0 is the boot CPU.

    The IOAPIC's id is `cpu_count`. ISA interrupt n comes in on its pin n, except for the timer (0), which
    comes in on pin 2 as on every PC; there is no interrupt 2. Raises `ConfigError` for more than
    `MAX_CPUS`.
    """
    check_cpu_count(cpu_count)
    table = _table(cpu_count, buses)
    address = MP_TABLE + _POINTER_SIZE
    if address + len(table) > LEGACY_WINDOW:
        address = MP_TABLE_HIGH
    pointer = pack("<4sIBBB5x", b"_MP_", address, _POINTER_SIZE // 16, _SPEC_REVISION, 0)
    memory.write(MP_TABLE, _with_checksum(pointer, 10))
    memory.write(address, table)


def _table(cpu_count: int, buses: BusInterrupts) -> bytes:
    """Header and entries (MP specification 1.4, 4.2 and 4.3), sorted by entry type as the specification
    asks."""
    ioapic_id = cpu_count
    entries = [
        pack(
            "<BBBBII8x",
            _PROCESSOR,
            cpu,
            _APIC_VERSION,
            _ENABLED if cpu else _ENABLED | _BOOT_PROCESSOR,
            _SIGNATURE,
            _FEATURES,
        )
        for cpu in range(cpu_count)
    ]
    if buses.pci:
        entries.append(pack("<BB6s", _BUS, _PCI_BUS, b"PCI   "))
    entries.append(pack("<BB6s", _BUS, _ISA_BUS, b"ISA   "))
    entries.append(pack("<BBBBI", _IOAPIC, ioapic_id, _IOAPIC_VERSION, _ENABLED, IOAPIC_BASE))
    entries += [
        _interrupt(_IO_INTERRUPT, _INT, irq, ioapic_id, irq if irq else 2)
        for irq in (*range(_ISA_LINES), *(line for line in buses.lines if line >= _ISA_LINES))
        if irq != 2
    ]
    entries += [
        pack("<BBHBBBB", _IO_INTERRUPT, _INT, _LOW_LEVEL, _PCI_BUS, slot << 2 | pin, ioapic_id, line)
        for slot, pin, line in buses.pci
    ]
    entries.append(_interrupt(_LOCAL_INTERRUPT, _EXTINT, 0, _ALL_APICS, 0))
    entries.append(_interrupt(_LOCAL_INTERRUPT, _NMI, 0, _ALL_APICS, 1))
    body = b"".join(entries)
    header = pack(
        "<4sHBB8s12sIHHIHBx",
        b"PCMP",
        _HEADER_SIZE + len(body),
        _SPEC_REVISION,
        0,
        b"TVMM    ",
        b"TVMM        ",
        0,
        0,
        len(entries),
        LAPIC_BASE,
        0,
        0,
    )
    return _with_checksum(header + body, 7)


def _interrupt(entry: int, kind: int, irq: int, apic: int, pin: int) -> bytes:
    """An interrupt assignment; flags 0 mean polarity and trigger mode as the ISA bus has them."""
    return pack("<BBHBBBB", entry, kind, 0, _ISA_BUS, irq, apic, pin)


def _with_checksum(data: bytes, offset: int) -> bytes:
    """`data` with the byte at `offset`, which is 0, set so that all bytes sum up to 0 modulo 256."""
    return data[:offset] + bytes((-sum(data) & 0xFF,)) + data[offset + 1 :]
