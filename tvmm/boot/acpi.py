"""The ACPI tables (ACPI 6.5, chapter 5) that stock kernels find the machine by: what is fixed, and where it is.

======= ====================================================================================
RSDP    root pointer, in the area of the system ROM that kernels search
XSDT    where the other tables are
FADT    power management registers, reset register, what a PC has and this machine lacks
FACS    memory shared between firmware and kernel: empty, as there is no firmware
MADT    local APICs, IOAPIC, and how ISA interrupts are wired
MCFG    where the PCI configuration space is in memory; only with PCI
DSDT    devices and the soft-off state, in AML (`tvmm.boot.dsdt`)
======= ====================================================================================

All of it lies between 896 KiB and 1 MiB, which the memory map reserves. The hardware is the full ACPI model, not
the reduced one: with the registers of `tvmm.devices.acpi_pm` the power button and soft off need no AML to run.

How the SCI is wired is said here alone, in the MADT: `acpi_pm` pulses it, so it is edge-triggered; `sci_level`
is for a machine that holds the line until the event is cleared.
"""

from __future__ import annotations

from struct import pack, pack_into
from typing import TYPE_CHECKING

from tvmm.boot.dsdt import dsdt_body
from tvmm.boot.mptable import MP_TABLE_HIGH
from tvmm.errors import ConfigError
from tvmm.memory.layout import ACPI_TABLES, IOAPIC_BASE, LAPIC_BASE, RSDP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.boot.dsdt_buses import PciWindows, VirtioMmio

__all__ = ["build_tables"]


_ALIGNMENT = 64
"""The FACS asks for it."""
_MOST_NAMES = 0x1000
"""Devices of one kind have three hexadecimal digits in their names. Room for the tables ends before that."""
_HEADER_SIZE = 36
_CHECKSUM = 9
_OEM, _OEM_TABLE, _CREATOR = b"TVMM  ", b"TVMM    ", b"TVMM"
_OEM_REVISION = _CREATOR_REVISION = 1

_SCI = 9
_PM1_EVENT, _PM1_CONTROL, _PM_TIMER, _GPE0, _RESET = 0x600, 0x604, 0x608, 0x60C, 0xCF9
_RESET_VALUE = 6
_CMOS_CENTURY = 0x32
_NO_C2, _NO_C3 = 101, 1001
"""Microseconds: the least latencies that say that there is no such state."""

# FADT, IAPC_BOOT_ARCH: the ISA has devices to use, there is a keyboard controller, and no VGA to probe. The bits
# for "no MSI", "no ASPM" and "no CMOS clock" stay clear.
_HAS_ISA_DEVICES, _HAS_8042, _HAS_NO_VGA = 1 << 0, 1 << 1, 1 << 2
# FADT, flags: WBINVD works, HLT (C1) too; there is no sleep button and no RTC status among the PM1 events; the
# reset register exists. PWR_BUTTON (bit 4) is clear, so the power button is the PM1 event; TMR_VAL_EXT (bit 8) is
# clear, so the timer has 24 bits.
_WBINVD, _PROC_C1, _SLP_BUTTON, _FIX_RTC, _RESET_REG_SUP = 1 << 0, 1 << 2, 1 << 5, 1 << 6, 1 << 10

_PCAT_COMPAT = 1
_ENABLED = 1
_AS_THE_BUS, _EDGE_HIGH, _LEVEL_HIGH = 0x0, 0x5, 0xD
_FIRST_X2APIC_ID = 0xFF
"""In the 8 bits of an xAPIC id this means all processors."""
_ALL_PROCESSORS, _ALL_X2_PROCESSORS = 0xFF, 0xFFFF_FFFF


def build_tables(
    cpu_count: int,
    *,
    sci_level: bool = False,
    pci: PciWindows | None = None,
    virtio_mmio: Sequence[VirtioMmio] = (),
) -> list[tuple[int, bytes]]:
    """All tables, each with its guest-physical address, for processors with APIC ids 0 to `cpu_count` - 1.

    Nothing overlaps, and all of it is between `ACPI_TABLES` and 1 MiB. Raises `ConfigError` if there are more
    processors and devices than there is room to name, `ValueError` for windows that contradict each other.
    """
    if not 1 <= cpu_count <= _MOST_NAMES or len(virtio_mmio) > _MOST_NAMES:
        raise _too_many(cpu_count, len(virtio_mmio))
    placed: list[tuple[int, bytes]] = []
    end = ACPI_TABLES

    def place(table: bytes) -> int:
        nonlocal end
        address = end
        end = -(-(address + len(table)) // _ALIGNMENT) * _ALIGNMENT
        if end > MP_TABLE_HIGH:
            raise _too_many(cpu_count, len(virtio_mmio))
        placed.append((address, table))
        return address

    facs = place(_facs())
    dsdt = place(_table(b"DSDT", 2, dsdt_body(cpu_count, pci, virtio_mmio)))
    tables = [place(_fadt(facs, dsdt)), place(_madt(cpu_count, sci_level))]
    if pci is not None:
        tables.append(place(_mcfg(pci)))
    xsdt = place(_table(b"XSDT", 1, pack(f"<{len(tables)}Q", *tables)))
    placed.append((RSDP, _rsdp(xsdt)))
    return placed


def _too_many(cpu_count: int, virtio_count: int) -> ConfigError:
    return ConfigError(
        f"the ACPI tables cannot name {cpu_count} processors and {virtio_count} virtio-mmio devices",
        "choose another number of them",
    )


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: header (5.2.6) and body."""
    header = pack(
        "<4sIBB6s8sI4sI",
        signature,
        _HEADER_SIZE + len(body),
        revision,
        0,
        _OEM,
        _OEM_TABLE,
        _OEM_REVISION,
        _CREATOR,
        _CREATOR_REVISION,
    )
    return _with_checksum(header + body, _CHECKSUM)


def _with_checksum(data: bytes, offset: int) -> bytes:
    """`data` with the byte at `offset`, which is 0, set so that all bytes sum up to 0 modulo 256."""
    return data[:offset] + bytes((-sum(data) & 0xFF,)) + data[offset + 1 :]


def _rsdp(xsdt: int) -> bytes:
    """The root pointer (5.2.5.3): the first 20 bytes are ACPI 1.0's, with a checksum of their own, and no RSDT."""
    old = _with_checksum(pack("<8sB6sBI", b"RSD PTR ", 0, _OEM, 2, 0), 8)
    return _with_checksum(old + pack("<IQB3x", 36, xsdt, 0), 32)


def _facs() -> bytes:
    """5.2.10: no waking vector, no lock held, no checksum."""
    return pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _fadt(facs: int, dsdt: int) -> bytes:
    """5.2.9, revision 6.3. SMI_CMD is 0, which says that the machine is in ACPI mode from the start."""
    table = bytearray(276)
    fields: tuple[tuple[int, str, int], ...] = (
        (36, "I", facs),  # FIRMWARE_CTRL; X_FIRMWARE_CTRL stays 0, only one of them may be given
        (40, "I", dsdt),  # DSDT
        (46, "H", _SCI),  # SCI_INT
        (56, "I", _PM1_EVENT),  # PM1a_EVT_BLK
        (64, "I", _PM1_CONTROL),  # PM1a_CNT_BLK
        (76, "I", _PM_TIMER),  # PM_TMR_BLK
        (80, "I", _GPE0),  # GPE0_BLK
        (88, "B", 4),  # PM1_EVT_LEN
        (89, "B", 2),  # PM1_CNT_LEN
        (91, "B", 4),  # PM_TMR_LEN
        (92, "B", 2),  # GPE0_BLK_LEN: status and enable
        (96, "H", _NO_C2),  # P_LVL2_LAT
        (98, "H", _NO_C3),  # P_LVL3_LAT
        (108, "B", _CMOS_CENTURY),  # CENTURY
        (109, "H", _HAS_ISA_DEVICES | _HAS_8042 | _HAS_NO_VGA),  # IAPC_BOOT_ARCH
        (112, "I", _WBINVD | _PROC_C1 | _SLP_BUTTON | _FIX_RTC | _RESET_REG_SUP),  # Flags
        (128, "B", _RESET_VALUE),  # RESET_VALUE
        (131, "B", 3),  # FADT minor version
        (140, "Q", dsdt),  # X_DSDT
    )
    for offset, kind, value in fields:
        pack_into("<" + kind, table, offset, value)
    registers = (
        (116, 8, _RESET),  # RESET_REG
        (148, 32, _PM1_EVENT),  # X_PM1a_EVT_BLK: status and enable
        (172, 16, _PM1_CONTROL),  # X_PM1a_CNT_BLK
        (208, 32, _PM_TIMER),  # X_PM_TMR_BLK
        (220, 16, _GPE0),  # X_GPE0_BLK
    )
    for offset, bits, port in registers:
        table[offset : offset + 12] = _port_register(port, bits)
    table[268:276] = _OEM.ljust(8)  # Hypervisor Vendor Identity
    return _table(b"FACP", 6, bytes(table[_HEADER_SIZE:]))


def _port_register(port: int, bits: int) -> bytes:
    """A generic address (5.2.3.2) of an I/O port. Event blocks are two registers each: read by halves."""
    access = {8: 1, 16: 2, 32: 3}[bits // 2 if port in (_PM1_EVENT, _GPE0) else bits]
    return pack("<BBBBQ", 1, bits, 0, access, port)


def _madt(cpu_count: int, sci_level: bool) -> bytes:
    """5.2.12. The same wiring as in the MP table, with the same id for the IOAPIC; the boot processor is first.

    An interrupt that is not overridden comes in on the pin of its own number, as the ISA bus has it.
    """
    small = min(cpu_count, _FIRST_X2APIC_ID)
    parts = [pack("<II", LAPIC_BASE, _PCAT_COMPAT)]
    parts += [pack("<BBBBI", 0, 8, cpu, cpu, _ENABLED) for cpu in range(small)]
    parts += [pack("<BBHIII", 9, 16, 0, cpu, _ENABLED, cpu) for cpu in range(small, cpu_count)]
    # Beyond 8 bits the IOAPIC's id is free to choose: it is not in one space with the processors' ids.
    parts.append(pack("<BBBBII", 1, 12, cpu_count if cpu_count < 0xFF else 0, 0, IOAPIC_BASE, 0))
    parts.append(_override(0, 2, _AS_THE_BUS))  # the timer, as on every PC
    parts.append(_override(_SCI, _SCI, _LEVEL_HIGH if sci_level else _EDGE_HIGH))
    parts.append(pack("<BBBHB", 4, 6, _ALL_PROCESSORS, _AS_THE_BUS, 1))  # NMI on LINT1
    if small < cpu_count:
        parts.append(pack("<BBHIB3x", 10, 12, _AS_THE_BUS, _ALL_X2_PROCESSORS, 1))
    return _table(b"APIC", 5, b"".join(parts))


def _override(irq: int, gsi: int, flags: int) -> bytes:
    """Interrupt source override: ISA interrupt `irq` comes in as `gsi`; flags are polarity and trigger mode."""
    return pack("<BBBBIH", 2, 10, 0, irq, gsi, flags)


def _mcfg(pci: PciWindows) -> bytes:
    """PCI Firmware Specification 3.3, 4.1.2: the ECAM of segment 0."""
    return _table(b"MCFG", 1, pack("<8xQHBB4x", pci.ecam.start, 0, 0, pci.bus_count - 1))
