"""What the specification (virtio 1.3) says that a device MUST do, as far as transports can see it.

`MUSTS` lists the requirements by section, in words of this project. A test names with `must` those that it shows, and
``test_conformance`` fails for one that no test shows. What concerns rings is in the tests of rings, what concerns one
device in the tests of that device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.support.virtio_driver import MmioDriver, PciDriver, RecordingShell
from tests.virtio.devices import MAKERS, make_blk

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.virtio.device import VirtioDevice

Test = TypeVar("Test")

MUSTS = {
    "2.1.2 quiet before DRIVER_OK": "consume no buffer and report none as used before DRIVER_OK",
    "2.1.2 needs reset is told": "after setting DEVICE_NEEDS_RESET on a live device, notify of a configuration change",
    "2.2.2 offer consistent": "offer no feature without those that it requires",
    "2.2.2 refuse": "leave FEATURES_OK unset for a set of features that it cannot do with",
    "2.2.2 offer only supported": "offer no feature that is undefined, reserved, or unknown to transport or device",
    "2.4.1 status": "set the status to 0 after a reset",
    "2.4.1 silent": "after that neither notify nor touch queues until it is initialised again",
    "2.5.2 readable early": "let any configuration field be read before FEATURES_OK",
    "2.6.1.1.1 stop": "after a queue's reset execute no request of it and send no notification for it",
    "2.6.1.1.1 state": "bring all state of that queue to its default",
    "2.6.1.2.1 reconfigure": "take the configuration that the queue is enabled anew with",
    "4.1.2.1 vendor": "have PCI vendor 0x1af4",
    "4.1.2.1 device": "have the PCI device ID that follows from the virtio device ID",
    "4.1.3.2 halves": "let the halves of 64-bit fields be accessed independently",
    "4.1.4.2 cap_len": "count all of a capability in its length",
    "4.1.4.3.1 aligned": "align the common configuration to 4 bytes",
    "4.1.4.3.1 present": "have a common configuration",
    "4.1.4.3.1 device_feature": "show 32 offered features from the selected word on, zero beyond the last",
    "4.1.4.3.1 driver_feature": "show the valid features that the driver wrote in the selected word",
    "4.1.4.3.1 generation": "change config_generation when a value that was read has changed since",
    "4.1.4.3.1 reset": "reset when 0 is written to the status, and show 0 when that is done",
    "4.1.4.3.1 enable": "show 0 in queue_enable on reset",
    "4.1.4.3.1 queue reset on reset": "show 0 in queue_reset on reset",
    "4.1.4.3.1 queue reset after enable": "show 0 in queue_reset after the queue is enabled",
    "4.1.4.3.1 queue reset": "reset the queue when 1 is written, show 1 meanwhile, then 0 there and in queue_enable",
    "4.1.4.3.1 unavailable": "show 0 in queue_size for a queue that does not exist",
    "4.1.4.3.1 power of two": "without RING_PACKED show 0 or a power of two in queue_size",
    "4.1.4.4.1 present": "have a notification structure",
    "4.1.4.4.1 multiplier": "have a multiplier of 0 or an even power of 2, for NOTIFICATION_DATA a multiple of 4",
    "4.1.4.4.1 aligned": "align the structure to 2 bytes, for NOTIFICATION_DATA to 4",
    "4.1.4.4.1 length": "have room for the doorbells of all queues",
    "4.1.4.5.1 present": "have an ISR structure",
    "4.1.4.5.1 config": "set the configuration bit before a configuration change notification",
    "4.1.4.5.1 queue": "without MSI-X set the queue bit before a used buffer notification",
    "4.1.4.5.1 line": "without MSI-X let the interrupt status in PCI be the OR of all ISR bits",
    "4.1.4.5.1 read": "clear the ISR when the driver reads it",
    "4.1.4.6 present": "have a device configuration structure if the device type has such a space",
    "4.1.4.6.1 aligned": "align it to 4 bytes",
    "4.1.4.9.1 present": "have a PCI configuration access capability",
    "4.1.4.9.1 write": "write to the BAR when its data is written",
    "4.1.4.9.1 read": "read from the BAR when its data is read",
    "4.1.5.1.2.1 any vector": "map any event to any vector of the table",
    "4.1.5.1.2.1 unmap": "let any event be unmapped",
    "4.1.5.1.2.1 read back": "show the vector of an event, NO_VECTOR if it has none",
    "4.1.5.1.2.1 reset": "have all events unmapped on reset",
    "4.1.5.1.2.1 failure": "show NO_VECTOR for a mapping that failed",
    "4.1.5.3.1 no vector": "with MSI-X on send nothing for a queue without a vector",
    "4.1.5.4.1 no vector": "with MSI-X on send nothing for configuration changes without a vector",
    "4.2.2.1 magic": "show the magic value",
    "4.2.2.1 version": "show version 2",
    "4.2.2.1 interrupt": "show each event in InterruptStatus until it is acknowledged, and no other bit",
    "4.2.2.1 reset": "clear InterruptStatus and all QueueReady on reset",
    "4.2.2.1 generation": "change ConfigGeneration when the driver might see torn values",
    "4.2.2.1 not ready": "leave a queue alone while QueueReady is zero",
    "4.2.2.1 queue reset on reset": "show 0 in QueueReset on reset",
    "4.2.2.1 queue reset after enable": "show 0 in QueueReset after the queue is enabled",
    "4.2.2.1 queue reset": "reset the queue when 1 is written, show 1 meanwhile, then 0 there and in QueueReady",
    "6.2 version": "offer VERSION_1",
    "6.2 sr-iov": "offer SR_IOV only as a PCI device with that capability",
}

SHOWN: set[str] = set()

both = pytest.mark.parametrize("transport", ["mmio", "pci"])
each_device = pytest.mark.parametrize("kind", list(MAKERS))


def must(*names: str) -> Callable[[Test], Test]:
    """Mark a test with the requirements that it shows."""
    SHOWN.update(names)
    return lambda test: test


def mmio(make: Callable[[], VirtioDevice] = make_blk, prompt: bool = True) -> MmioDriver:
    """A driver over virtio-mmio."""
    return MmioDriver(make(), RecordingShell(prompt))


def pci(make: Callable[[], VirtioDevice] = make_blk, vectors: int = 8, prompt: bool = True) -> PciDriver:
    """A driver over virtio-pci."""
    return PciDriver(make(), RecordingShell(prompt), vectors)
