"""The ACPI tables: read the way a kernel does, held against the devices they describe, and shown to ACPICA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from struct import unpack, unpack_from
from time import perf_counter
from typing import NamedTuple

import pytest

from tests.support.acpica import disassemble, evaluate, recompile
from tests.support.images import Load, elf64, xen_note
from tests.support.memory import FakeMemory
from tvmm.board import GPE_PORT, GPE_PORTS, PM_PORT, PM_PORTS, RESET_CONTROL_PORT, SCI_IRQ
from tvmm.boot.acpi import build_tables
from tvmm.boot.dsdt import GENERATION_EVENT
from tvmm.boot.dsdt_buses import PciWindows, VirtioMmio
from tvmm.boot.e820 import RESERVED, memory_map
from tvmm.boot.loader import Hardware, KernelOptions, load
from tvmm.boot.mptable import MAX_CPUS, MP_TABLE_HIGH, write_mp_table
from tvmm.bus import PortBus
from tvmm.devices.acpi_gpe import AcpiGpe
from tvmm.devices.acpi_pm import AcpiPm
from tvmm.devices.misc import SystemControl
from tvmm.devices.rtc_cmos import CENTURY
from tvmm.errors import ConfigError
from tvmm.memory.layout import (
    ACPI_TABLES,
    GENERATION_ID,
    IOAPIC_BASE,
    LAPIC_BASE,
    MP_TABLE,
    ONE_MIB,
    PVH_INFO,
    RSDP,
    ZERO_PAGE,
    Range,
)

RAM = 64 << 20
PCI = PciWindows(
    ecam=Range(0xE000_0000, 256 << 20),
    io=Range(0x1000, 0xF000),
    mmio32=Range(0xC000_0000, 512 << 20),
    mmio64=Range(0x80_0000_0000, 64 << 30),
)
VIRTIO = [VirtioMmio(Range(0xF000_0000 + 0x1000 * number, 0x1000), 20 + number) for number in range(4)]


class Tables(NamedTuple):
    """What a kernel finds: tables by signature, and in which order the XSDT has them."""

    by_name: dict[str, bytes]
    listed: list[str]


def table_at(memory: FakeMemory, address: int) -> bytes:
    """A table with a header, checksum included; it has to lie in one of the map's reserved ranges."""
    (length,) = unpack("<I", memory.read(address + 4, 4))
    assert any(
        part.kind == RESERVED and part.start <= address and address + length <= part.start + part.size
        for part in memory_map(RAM)
    )
    return memory.read(address, length)


def find(memory: FakeMemory) -> Tables:
    """Look for the root pointer in the area of the system ROM and follow it to everything."""
    area = memory.read(0xE_0000, ONE_MIB - 0xE_0000)
    (at,) = [at for at in range(0, len(area), 16) if area[at : at + 8] == b"RSD PTR "]
    pointer = area[at : at + 36]
    assert not sum(pointer[:20]) & 0xFF
    assert not sum(pointer) & 0xFF
    revision, rsdt, length, xsdt = unpack_from("<BIIQ", pointer, 15)
    assert (0xE_0000 + at, revision, rsdt, length) == (RSDP, 2, 0, 36)

    by_name = {"XSDT": table_at(memory, xsdt)}
    listed = []
    for (address,) in [unpack_from("<Q", by_name["XSDT"], at) for at in range(36, len(by_name["XSDT"]), 8)]:
        table = table_at(memory, address)
        listed.append(table[:4].decode())
        by_name[listed[-1]] = table
    facs, dsdt = unpack_from("<II", by_name["FACP"], 36)
    assert unpack_from("<Q", by_name["FACP"], 140) == (dsdt,)
    assert not facs % 64
    by_name["DSDT"] = table_at(memory, dsdt)
    for signature, table in by_name.items():
        assert table[:4].decode() == signature
        assert not sum(table) & 0xFF, signature
    by_name["FACS"] = table_at(memory, facs)
    return Tables(by_name, listed)


def tables(cpu_count: int = 1, *, pci: PciWindows | None = None, virtio: int = 0, sci_level: bool = False) -> Tables:
    """Build, write and find the tables."""
    memory = FakeMemory(RAM)
    for gpa, table in build_tables(cpu_count, pci=pci, virtio_mmio=VIRTIO[:virtio], sci_level=sci_level):
        memory.write(gpa, table)
    assert not memory.overlapping_writes()
    assert all(part.start >= ACPI_TABLES and part.end <= ONE_MIB for part in memory.writes)
    return find(memory)


# --- what the fixed tables say ---


def test_which_tables_there_are() -> None:
    """PCI brings one table, nothing else does."""
    assert tables().listed == ["FACP", "APIC"]
    assert tables(4, pci=PCI, virtio=4).listed == ["FACP", "APIC", "MCFG"]


def test_registers_work_where_the_fadt_has_them() -> None:
    """Through the table's ports a kernel enables the button, is interrupted, reads the timer, and powers off."""
    fadt = tables().by_name["FACP"]
    pulses: list[str] = []
    sleeps: list[int] = []
    pm = AcpiPm(lambda: pulses.append("sci"), sleeps.append, lambda: 1_000_000_000)
    ports = PortBus()
    ports.add(PM_PORT, PM_PORTS, pm, "acpi-pm")
    event, control, timer = (unpack_from("<I", fadt, offset)[0] for offset in (56, 64, 76))
    event_length, control_length, timer_length = fadt[88], fadt[89], fadt[91]

    ports.write(event + event_length // 2, event_length // 2, 0x100)
    pm.press_power_button()
    assert (ports.read(event, event_length // 2), pulses) == (0x100, ["sci"])
    assert ports.read(control, control_length) == 1
    assert ports.read(timer, timer_length) == 0
    (sleep_type,) = re.findall(rb"\x08_S5_\x12.\x04\x0a(.)", tables().by_name["DSDT"])
    ports.write(control, control_length, sleep_type[0] << 10 | 1 << 13)
    assert sleeps == [sleep_type[0]]


def test_events_work_where_the_fadt_has_them() -> None:
    """Through the table's ports a kernel enables an event, is interrupted, finds it and clears it."""
    fadt = tables().by_name["FACP"]
    pulses: list[str] = []
    gpe = AcpiGpe(lambda: pulses.append("sci"))
    ports = PortBus()
    ports.add(GPE_PORT, GPE_PORTS, gpe, "acpi-gpe")
    (block,), half = unpack_from("<I", fadt, 80), fadt[92] // 2
    ports.write(block + half, half, 1 << GENERATION_EVENT)
    gpe.signal(GENERATION_EVENT)
    assert (ports.read(block, half), pulses) == (1 << GENERATION_EVENT, ["sci"])
    ports.write(block, half, 1 << GENERATION_EVENT)
    assert (ports.read(block, half), pulses) == (0, ["sci"])


def test_generation_id_is_in_reserved_memory() -> None:
    """In a page of the memory map's reserved part where no table is, aligned to 8 bytes as its specification asks."""
    page = Range(GENERATION_ID, 0x1000)
    assert not GENERATION_ID % 0x1000
    assert any(
        part.kind == RESERVED and part.start <= page.start and page.end <= part.start + part.size
        for part in memory_map(RAM)
    )
    memory = FakeMemory(RAM)
    write_mp_table(memory, MAX_CPUS)
    for gpa, table in build_tables(MAX_CPUS, pci=PCI, virtio_mmio=VIRTIO):
        memory.write(gpa, table)
    assert not any(written.start < page.end and page.start < written.end for written in memory.writes)


def test_fadt_numbers() -> None:
    """In ACPI mode from the start; SCI, century and extended addresses are those of the devices."""
    fadt = tables().by_name["FACP"]
    assert (len(fadt), fadt[8], fadt[131]) == (276, 6, 3)
    assert unpack_from("<HI", fadt, 46) == (SCI_IRQ, 0)
    assert fadt[108] == CENTURY
    assert fadt[92] == GPE_PORTS
    for old, new, bits, access in ((56, 148, 32, 2), (64, 172, 16, 2), (76, 208, 32, 3), (80, 220, 16, 1)):
        (port,) = unpack_from("<I", fadt, old)
        assert unpack_from("<BBBBQ", fadt, new) == (1, bits, 0, access, port)
    for absent in (60, 68, 72, 84):  # PM1b, PM2, GPE1
        assert unpack_from("<I", fadt, absent) == (0,)


def test_fadt_flags() -> None:
    """A keyboard controller and a CMOS clock, no VGA; the power button is fixed hardware of the full ACPI model."""
    fadt = tables().by_name["FACP"]
    (has,) = unpack_from("<H", fadt, 109)
    assert {bit for bit in range(16) if has >> bit & 1} == {0, 1, 2}
    (flags,) = unpack_from("<I", fadt, 112)
    assert {bit for bit in range(32) if flags >> bit & 1} == {0, 2, 5, 6, 10}


def test_reset_register() -> None:
    """The value that the table gives resets the machine at the port that the table gives."""
    fadt = tables().by_name["FACP"]
    space, bits, _, access, port = unpack_from("<BBBBQ", fadt, 116)
    assert (space, bits, access) == (1, 8, 1)
    resets: list[str] = []
    ports = PortBus()
    control = SystemControl(lambda: resets.append("reset"))
    ports.add(RESET_CONTROL_PORT - 1, 2, control, "system-control")
    ports.write(port, 1, fadt[128])
    assert resets == ["reset"]


def entries(madt: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of each interrupt controller structure."""
    at = 44
    while at < len(madt):
        kind, length = madt[at], madt[at + 1]
        yield kind, madt[at + 2 : at + length]
        at += length
    assert at == len(madt)


@pytest.mark.parametrize("count", [1, 4, MAX_CPUS, 255, 256, 300])
def test_processors(count: int) -> None:
    """Ids are 0 and up, all enabled; those that need more than an xAPIC's bits are x2APICs, with NMI for both."""
    madt = tables(count).by_name["APIC"]
    assert unpack_from("<II", madt, 36) == (LAPIC_BASE, 1)
    small = [unpack("<BBI", data) for kind, data in entries(madt) if kind == 0]
    large = [unpack("<2xIII", data) for kind, data in entries(madt) if kind == 9]
    assert small == [(cpu, cpu, 1) for cpu in range(min(count, 255))]
    assert large == [(cpu, 1, cpu) for cpu in range(255, count)]
    assert [unpack("<BHB", data) for kind, data in entries(madt) if kind == 4] == [(0xFF, 0, 1)]
    assert [unpack("<HIB3x", data) for kind, data in entries(madt) if kind == 10] == (
        [(0, 0xFFFF_FFFF, 1)] if large else []
    )


@pytest.mark.parametrize("count", [1, 4, MAX_CPUS])
def test_wiring_is_that_of_the_mp_table(count: int) -> None:
    """IOAPIC id, and which pin each ISA interrupt comes in on."""
    memory = FakeMemory(RAM)
    write_mp_table(memory, count)
    (address,) = unpack("<I", memory.read(MP_TABLE + 4, 4))
    (length,) = unpack("<H", memory.read(address + 4, 2))
    mp = memory.read(address, length)[44 + 20 * count :]
    mp_entries = [mp[at : at + 8] for at in range(0, len(mp), 8)]

    madt = tables(count).by_name["APIC"]
    ((apic_id, base, first_gsi),) = [unpack("<BxII", data) for kind, data in entries(madt) if kind == 1]
    assert (base, first_gsi) == (IOAPIC_BASE, 0)
    assert [entry[1] for entry in mp_entries if entry[0] == 2] == [apic_id]
    pins = dict(enumerate(range(16)))
    for kind, data in entries(madt):
        if kind == 2:
            bus, irq, gsi, _ = unpack("<BBIH", data)
            assert bus == 0
            pins[irq] = gsi
    del pins[2]  # the cascade of the two PICs, no interrupt
    assert {entry[5]: entry[7] for entry in mp_entries if entry[0] == 3} == pins


@pytest.mark.parametrize(("level", "flags"), [(False, 0x5), (True, 0xD)])
def test_sci(level: bool, flags: int) -> None:
    """One override says how the SCI comes: active high, as an edge unless the machine holds it."""
    madt = tables(sci_level=level).by_name["APIC"]
    overrides = [unpack("<BBIH", data) for kind, data in entries(madt) if kind == 2]
    assert overrides == [(0, 0, 2, 0), (0, SCI_IRQ, SCI_IRQ, flags)]


def test_mcfg() -> None:
    """Segment 0, all the buses that the ECAM has room for."""
    mcfg = tables(pci=PCI).by_name["MCFG"]
    assert unpack_from("<8xQHBB4x", mcfg, 36) == (0xE000_0000, 0, 0, 255)
    few = tables(pci=PCI._replace(ecam=Range(0xE000_0000, 3 << 20))).by_name["MCFG"]
    assert unpack_from("<8xQHBB4x", few, 36) == (0xE000_0000, 0, 0, 2)


# --- limits ---


@pytest.mark.parametrize("size", [0, 1 << 19, 257 << 20])
def test_ecam_is_whole_buses(size: int) -> None:
    """1 to 256 of them."""
    with pytest.raises(ValueError, match="1 to 256 buses"):
        tables(pci=PCI._replace(ecam=Range(0xE000_0000, size)))


def test_one_interrupt_is_not_edge_and_level() -> None:
    """A virtio device cannot have a GSI that a PCI pin has; without PCI it can."""
    device = VirtioMmio(Range(0xF000_0000, 0x1000), 19)
    with pytest.raises(ValueError, match="GSI 19"):
        build_tables(1, pci=PCI, virtio_mmio=[device])
    assert build_tables(1, virtio_mmio=[device])


def test_largest_machine_has_room() -> None:
    """As many processors as the MP table can name, with PCI; the tables end before a long MP table begins."""
    placed = build_tables(MAX_CPUS, pci=PCI, virtio_mmio=VIRTIO)
    assert max(gpa + len(table) for gpa, table in placed if gpa != RSDP) <= MP_TABLE_HIGH
    memory = FakeMemory(RAM)
    write_mp_table(memory, MAX_CPUS)
    for gpa, table in placed:
        memory.write(gpa, table)
    assert not memory.overlapping_writes()


@pytest.mark.parametrize(("processors", "devices"), [(0, 0), (2000, 0), (5000, 0), (1, 3000), (1, 5000)])
def test_too_many_to_name(processors: int, devices: int) -> None:
    """What does not fit is refused, with both numbers in the message."""
    with pytest.raises(ConfigError, match=f"{processors} processors and {devices} virtio"):
        build_tables(processors, virtio_mmio=[VIRTIO[0]] * devices)


def test_made_quickly() -> None:
    """A start of 4 processors spends less than 2 ms on all tables (best of 20, an idle machine needs 0.1 ms)."""
    spent = []
    for _ in range(20):
        start = perf_counter()
        build_tables(4)
        spent.append(perf_counter() - start)
    assert min(spent) < 0.002


# --- the loader ---


@pytest.mark.parametrize("entry", ["pvh", "linux64"])
def test_loader_hands_over_the_root_pointer(entry: str) -> None:
    """Both protocols carry its address, and the tables are for the machine's processors."""
    memory = FakeMemory(RAM)
    image = elf64([Load(ONE_MIB, b"x" * 64)], entry=ONE_MIB, notes=xen_note(ONE_MIB))
    load(KernelOptions(image, "k", entry=entry), memory, RAM, Hardware(3), False)
    where = PVH_INFO + 32 if entry == "pvh" else ZERO_PAGE + 0x70
    assert unpack("<Q", memory.read(where, 8)) == (RSDP,)
    madt = find(memory).by_name["APIC"]
    assert sum(kind == 0 for kind, _ in entries(madt)) == 3


# --- ACPICA ---

MACHINES = {
    "plain": lambda: tables(4),
    "pci": lambda: tables(2, pci=PCI),
    "virtio-mmio": lambda: tables(1, virtio=4),
    "all": lambda: tables(MAX_CPUS, pci=PCI, virtio=4, sci_level=True),
    "x2apic": lambda: tables(300, pci=PCI),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_iasl_takes_and_remakes_every_table(machine: str, tmp_path: Path) -> None:
    """Each table disassembles without a warning, and its source compiles without one, to the same bytes."""
    for name, table in MACHINES[machine]().by_name.items():
        assert recompile(table, tmp_path) == table, name


def test_iasl_understands_the_devices(tmp_path: Path) -> None:
    """The disassembler names what they are."""
    source = disassemble(tables(2, pci=PCI, virtio=2).by_name["DSDT"], tmp_path)
    for words in (
        "16550A-compatible COM Serial Port",
        "IBM Enhanced Keyboard (101/102-key, PS/2 Mouse)",
        "AT Real-Time Clock",
        "Processor Device",
        "PCI Express Bus",
        "PNP Motherboard Resources",
        "S5 System State",
    ):
        assert words in source
    assert source.count('"LNRO0005"') == 2


def test_interpreter_accepts_all_predefined_names(tmp_path: Path) -> None:
    """ACPICA evaluates every name that the specification knows and finds types and resources as they should be."""
    output = evaluate(tables(2, pci=PCI, virtio=2).by_name["DSDT"], "test predefined", tmp_path)
    statuses = re.findall(r"^(\\\S+) +returned (\S+)", output, re.MULTILINE)
    assert {status for _, status in statuses} == {"AE_OK"}
    assert {r"\_S5", r"\_SB.COM1._CRS", r"\_SB.PCI0._OSC", r"\_SB.PCI0._PRT", r"\_SB.V001._CRS"} <= {
        name for name, _ in statuses
    }


def test_interpreter_finds_the_generation_id(tmp_path: Path) -> None:
    """By the names that drivers look for, in memory where the device model puts it; its event notifies with 0x80."""
    dsdt = tables().by_name["DSDT"]
    output = evaluate(dsdt, r"evaluate \_SB.VGEN.ADDR;evaluate \_SB.VGEN._CID;evaluate \_SB.VGEN._DDN", tmp_path)
    low, high = re.findall(r"\[Integer\] = ([0-9A-F]{16})", output)
    assert int(low, 16) | int(high, 16) << 32 == GENERATION_ID
    assert re.findall('"(VM_.*)"', output) == ["VM_GEN_COUNTER", "VM_Gen_Counter"]  # ids are compared in capitals
    source = disassemble(dsdt, tmp_path)
    assert re.search(r"Scope \(_GPE\)\s*{\s*Method \(_E05, 0, Serialized\).*\s*{\s*Notify \(\\_SB.VGEN, 0x80\)", source)


def test_interpreter_reads_the_root_bridge(tmp_path: Path) -> None:
    """Its resources are the windows; every pin of every slot has its GSI, and neighbours begin one further."""
    output = evaluate(tables(1, pci=PCI).by_name["DSDT"], r"resources \_SB.PCI0", tmp_path)
    ends = re.findall(r"Address Minimum : (\w+)\n *Address Maximum : (\w+)", output)
    assert [(int(first, 16), int(last, 16)) for first, last in ends] == [
        (0, 255),
        (0xCF8, 0xCF8),
        (0x1000, 0xFFFF),
        (0xC000_0000, 0xDFFF_FFFF),
        (0x80_0000_0000, 0x8F_FFFF_FFFF),
    ]
    routes = re.findall(r"Address : (\w+)\n *Pin : (\w+)\n.*\n *Source Index : (\w+)", output)
    assert [tuple(int(number, 16) for number in route) for route in routes] == [
        (slot << 16 | 0xFFFF, pin, 16 + (slot + pin) % 4) for slot in range(32) for pin in range(4)
    ]


OSC_PCI, OSC_OTHER = "5b4ddb33f71f1c4096577441c03dd766", "00112233445566778899aabbccddeeff"
NEGOTIATIONS = [
    # UUID, revision, control asked for; status and control that come back
    (OSC_PCI, 1, 0x1D, 0x00, 0x1D),
    (OSC_PCI, 1, 0x04, 0x00, 0x04),
    (OSC_PCI, 1, 0x1F, 0x10, 0x1D),
    (OSC_PCI, 2, 0x1C, 0x08, 0x1C),
    (OSC_OTHER, 1, 0x1F, 0x04, 0x1F),
]


def test_interpreter_negotiates(tmp_path: Path) -> None:
    """_OSC gives what there is, and says so when that is less than asked, or the question is not understood."""
    commands = []
    for uuid, revision, asked, _, _ in NEGOTIATIONS:
        buffer = bytes((0, 0, 0, 0, 0x1F, 0, 0, 0, asked, 0, 0, 0))
        commands.append(
            rf"evaluate \_SB.PCI0._OSC ({bytes.fromhex(uuid).hex(' ')}) {revision} 3 ({buffer.hex(' ')})"
        )
    output = evaluate(tables(1, pci=PCI).by_name["DSDT"], ";".join(commands), tmp_path)
    answers = re.findall(r"\[Buffer\] Length 0C = +0000: ((?:[0-9A-F]{2} ){12})", output)
    assert [unpack("<III", bytes.fromhex(answer)) for answer in answers] == [
        (status, 0x1F, granted) for *_, status, granted in NEGOTIATIONS
    ]
