"""The part of the DSDT that only some machines have: the PCI root bridge, and virtio devices in memory.

Imported when a machine has either, because the start of the others is not to pay for it. The root bridge follows
ACPI 6.5, 6.2 and 6.4, and the PCI Firmware Specification 3.3, chapter 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.boot.aml import (
    and_,
    arg,
    bus_numbers,
    create_dword_field,
    device,
    eisa_id,
    else_,
    equal,
    if_,
    interrupt,
    io,
    io_window,
    memory32,
    memory_window,
    method,
    name,
    name_string,
    not_equal,
    or_,
    package,
    resource_template,
    return_,
    uuid,
)
from tvmm.memory.layout import Range

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PciWindows", "VirtioMmio", "bus_devices"]

_SLOTS, _PINS = 32, 4
_CONFIG_PORTS = Range(0xCF8, 8)

_OSC_PCI = "33db4d5b-1ff7-401c-9657-7441c03dd766"
"""PCI Firmware Specification 3.3, 4.5: what is negotiated is who runs the features of PCI Express."""
_OSC_UNKNOWN_UUID, _OSC_UNKNOWN_REVISION, _OSC_MASKED = 0x04, 0x08, 0x10
_OSC_GRANTED = 0x1D
"""Native hot-plug, PME, AER and the capability structure, all to the guest: there is no firmware that would run
them. Not the standard hot-plug controller (bit 1), which the machine does not have."""


class PciWindows(NamedTuple):
    """What the PCI root bridge passes on, in guest-physical addresses and I/O ports.

    `ecam` has 1 MiB for each bus, from bus 0 on. The pins INTA to INTD of slot n on bus 0 go round the four GSIs
    from `intx_gsi` on; they are level-triggered and active low, as PCI says where no link device says otherwise.
    """

    ecam: Range
    io: Range
    mmio32: Range
    mmio64: Range
    intx_gsi: int = 16

    def gsi(self, slot: int, pin: int) -> int:
        """The interrupt of pin 0 (INTA) to 3 (INTD) of the device in `slot` (0 to 31) on bus 0."""
        return self.intx_gsi + (slot + pin) % _PINS

    @property
    def bus_count(self) -> int:
        """How many buses `ecam` has room for; raises `ValueError` if that is not 1 to 256."""
        count, rest = divmod(self.ecam.size, 1 << 20)
        if rest or not 1 <= count <= 256:
            raise ValueError(f"an ECAM of {self.ecam.size:#x} bytes is not 1 to 256 buses of 1 MiB")
        return count


class VirtioMmio(NamedTuple):
    """A virtio device with the MMIO transport: its registers, and its edge-triggered interrupt."""

    registers: Range
    gsi: int


def bus_devices(pci: PciWindows | None, virtio_mmio: Sequence[VirtioMmio]) -> list[bytes]:
    """The root bridge with the claim on its ECAM, and the virtio devices in their order.

    Raises `ValueError` for ranges that cannot be described, and if a device's edge-triggered GSI is one that PCI
    uses level-triggered: the guest could serve only one of them.
    """
    devices = []
    if pci is not None:
        devices += [_root_bridge(pci), _reserved(pci.ecam)]
        taken = range(pci.intx_gsi, pci.intx_gsi + _PINS)
        for virtio in virtio_mmio:
            if virtio.gsi in taken:
                raise ValueError(f"GSI {virtio.gsi} is used by PCI already, and that level-triggered")
    return devices + [_virtio(number, virtio) for number, virtio in enumerate(virtio_mmio)]


def _virtio(number: int, virtio: VirtioMmio) -> bytes:
    resources = resource_template(
        memory32(virtio.registers.start, virtio.registers.size), interrupt(virtio.gsi)
    )
    return device(f"V{number:03X}", name("_HID", "LNRO0005"), name("_UID", number), name("_CRS", resources))


def _reserved(ecam: Range) -> bytes:
    """Kernels use the ECAM only if a motherboard device claims it."""
    return device(
        "MRES", name("_HID", eisa_id("PNP0C02")), name("_CRS", resource_template(memory32(ecam.start, ecam.size)))
    )


def _root_bridge(pci: PciWindows) -> bytes:
    """A PCI Express root, which old kernels may take for a plain PCI one."""
    resources = resource_template(
        bus_numbers(0, pci.bus_count),
        io(_CONFIG_PORTS.start, _CONFIG_PORTS.size),
        io_window(pci.io.start, pci.io.size),
        memory_window(pci.mmio32.start, pci.mmio32.size),
        memory_window(pci.mmio64.start, pci.mmio64.size),
    )
    return device(
        "PCI0",
        name("_HID", eisa_id("PNP0A08")),
        name("_CID", eisa_id("PNP0A03")),
        name("_UID", 0),
        name("_SEG", 0),
        name("_BBN", 0),
        name("_CRS", resources),
        name("_PRT", _interrupt_routing(pci)),
        _negotiation(),
    )


def _interrupt_routing(pci: PciWindows) -> bytes:
    """All pins of all slots: address of the slot with any function, pin, no link device, GSI."""
    return package(
        *(
            package(slot << 16 | 0xFFFF, pin, 0, pci.gsi(slot, pin))
            for slot in range(_SLOTS)
            for pin in range(_PINS)
        )
    )


def _negotiation() -> bytes:
    """_OSC (ACPI 6.5, 6.2.11): the guest asks what it may run itself, and gets all that there is.

    Without it Linux runs none of it and says so in its log. Arguments: UUID, revision, count of DWORDs, and the
    buffer: status, what the guest supports, what it asks to control.
    """
    status, control = name_string("STAT"), name_string("CTRL")
    return method(
        "_OSC",
        4,
        create_dword_field(arg(3), 0, "STAT"),
        if_(
            equal(arg(0), uuid(_OSC_PCI)),
            create_dword_field(arg(3), 8, "CTRL"),
            if_(not_equal(arg(1), 1), or_(status, _OSC_UNKNOWN_REVISION, status)),
            if_(
                not_equal(and_(control, _OSC_GRANTED, b"\0"), control),
                or_(status, _OSC_MASKED, status),
                and_(control, _OSC_GRANTED, control),
            ),
        ),
        else_(or_(status, _OSC_UNKNOWN_UUID, status)),
        return_(arg(3)),
    )
