"""The body of the DSDT: which devices the machine has that no bus tells of, and how it is switched off.

What is fixed hardware (power button, sleep control, timer) is in the FADT and has no device here. Device ids are
from the UEFI forum's list of Plug and Play ids; what is below each device follows ACPI 6.5, chapters 6, 8 and 9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.boot.aml import device, eisa_id, io, irq, method, name, notify, package, resource_template, scope
from tvmm.memory.layout import GENERATION_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tvmm.boot.dsdt_buses import PciWindows, VirtioMmio

__all__ = ["GENERATION_EVENT", "S5_SLEEP_TYPE", "dsdt_body"]

GENERATION_EVENT = 5
"""The general-purpose event that tells of another generation ID."""
_CHANGED = 0x80
"""The notification, by the specification of the generation ID."""
S5_SLEEP_TYPE = 5
"""SLP_TYP that the guest is told to write for soft off. Any value would do: to this machine, sleep is power off."""


def dsdt_body(cpu_count: int, pci: PciWindows | None = None, virtio_mmio: Sequence[VirtioMmio] = ()) -> bytes:
    r"""All terms of the table: ``\_S5``, the devices in ``\_SB``, and the event of one of them.

    Raises `ValueError` for ranges that cannot be described, and if a device's edge-triggered GSI is one that PCI
    uses level-triggered.
    """
    devices = [_processor(number) for number in range(cpu_count)]
    devices += [_serial_port(), _keyboard(), _mouse(), _clock(), _generation_id()]
    if pci is not None or virtio_mmio:
        from tvmm.boot.dsdt_buses import bus_devices

        devices += bus_devices(pci, virtio_mmio)
    event = method(f"_E{GENERATION_EVENT:02X}", 0, notify(r"\_SB.VGEN", _CHANGED))
    soft_off = name("_S5", package(S5_SLEEP_TYPE, S5_SLEEP_TYPE, 0, 0))
    return soft_off + scope("_SB", *devices) + scope("_GPE", event)


def _processor(number: int) -> bytes:
    """What an entry of the MADT with the same UID belongs to."""
    return device(f"C{number:03X}", name("_HID", "ACPI0007"), name("_UID", number))


def _serial_port() -> bytes:
    resources = resource_template(io(0x3F8, 8), irq(4))
    return device("COM1", name("_HID", eisa_id("PNP0501")), name("_UID", 1), name("_CRS", resources))


def _keyboard() -> bytes:
    """The keyboard controller."""
    resources = resource_template(io(0x60, 1), io(0x64, 1), irq(1))
    return device("KBD", name("_HID", eisa_id("PNP0303")), name("_CRS", resources))


def _mouse() -> bytes:
    """Behind the same controller, whose ports are the keyboard's. Without it drivers do not look for a mouse."""
    return device("MOU", name("_HID", eisa_id("PNP0F13")), name("_CRS", resource_template(irq(12))))


def _clock() -> bytes:
    resources = resource_template(io(0x70, 2), irq(8))
    return device("RTC", name("_HID", eisa_id("PNP0B00")), name("_CRS", resources))


def _generation_id() -> bytes:
    """Where `tvmm.devices.generation_id` is; drivers find it by _CID or _DDN, whatever _HID is."""
    return device(
        "VGEN",
        name("_HID", "TVMM0001"),
        name("_CID", "VM_Gen_Counter"),
        name("_DDN", "VM_Gen_Counter"),
        name("ADDR", package(GENERATION_ID & 0xFFFF_FFFF, GENERATION_ID >> 32)),
    )
