"""virtio-pci, modern only (virtio 1.3, 4.1): the registers behind one BAR, and the capabilities that lead there.

Layout of the BAR, `BAR_SIZE` bytes; a page for each structure, so that a shell can treat them apart:

====== =======================================================
0x0000 common configuration, 64 bytes, see `pci_common`
0x1000 ISR status, one byte, cleared by reading
0x2000 configuration space of the device
0x3000 notification: a doorbell of 4 bytes for each queue
====== =======================================================

The function around it (configuration space, BARs, MSI-X) is somebody else's: it is made with `identity`, a BAR
number `BAR` for this device, `capabilities`, and the window of the last of these delegated to `PciWindow`.
MSI-X has its own BAR. A line interrupt follows ``interrupt(None, isr)`` of the shell.
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ConfigError
from tvmm.records import check_record
from tvmm.virtio.features import BLK_ID, CONSOLE_ID, INPUT_ID, NET_ID
from tvmm.virtio.pci_common import COMMON_LENGTH, CommonConfig
from tvmm.virtio.pci_window import WINDOW_LENGTH, WINDOW_OFFSET, PciWindow, WindowState
from tvmm.virtio.shell import Kick
from tvmm.virtio.transport import Transport
from tvmm.virtio.transport_state import TransportState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.bus import Hold
    from tvmm.virtio.device import VirtioDevice
    from tvmm.virtio.shell import Shell

__all__ = [
    "BAR",
    "BAR_SIZE",
    "MSIX_BAR",
    "WINDOW_LENGTH",
    "WINDOW_OFFSET",
    "Capability",
    "Identity",
    "PciState",
    "PciWindow",
    "VirtioPci",
]

VENDOR_ID = 0x1AF4
FIRST_DEVICE_ID = 0x1040
SUBSYSTEM_ID = 0x1100
"""0x40 or more, so that no driver for legacy devices takes it for its own (4.1.2.1)."""
REVISION = 1

CLASSES = {NET_ID: 0x02_00_00, BLK_ID: 0x01_80_00, CONSOLE_ID: 0x07_80_00, INPUT_ID: 0x09_80_00}
OTHER_CLASS = 0xFF_00_00

MSIX_BAR, BAR = 1, 4
"""The BAR here is a 64-bit one and takes the register behind it too. Not prefetchable: reading the ISR clears it."""
BAR_SIZE = 0x4000
PAGE = 0x1000
COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
ISR_LENGTH = 4
NOTIFY_MULTIPLIER = 4
"""A doorbell has to hold the 32 bits of NOTIFICATION_DATA (4.1.4.4.1)."""

CAP_COMMON, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI = 1, 2, 3, 4, 5


class Identity(NamedTuple):
    """Who the function is; `class_code` is base class, sub-class and programming interface in 24 bits."""

    vendor_id: int
    device_id: int
    class_code: int
    revision: int
    subsystem_vendor_id: int
    subsystem_id: int


class Capability(NamedTuple):
    """A vendor-specific capability: `body` is what follows its length byte, `writable` a mask of the bits in it that a
    driver may write. `kind` is the structure that it leads to.

    That of kind 5 is a window: the `WINDOW_LENGTH` bytes from `WINDOW_OFFSET` of the capability on are answered by
    `VirtioPci.window`.
    """

    kind: int
    body: bytes
    writable: bytes = b""


class PciState(NamedTuple):
    """The registers in the BAR, and those of the window into it."""

    transport: TransportState
    window: WindowState


class VirtioPci:
    """The device behind the BAR.

    `vectors` is the size of the MSI-X table, `msix_enabled` whether the driver has turned MSI-X on. `transport` is
    where the owner reports used buffers, errors and the end of resets.
    """

    def __init__(
        self,
        device: VirtioDevice,
        shell: Shell,
        vectors: int = 0,
        msix_enabled: Callable[[], bool] | None = None,
    ) -> None:
        if not 0 <= vectors <= 0x800 or device.config_length > PAGE:
            raise ConfigError(f"{device.type_name} does not fit a PCI function")
        self.transport = Transport(device, shell, vectors, msix_enabled)
        self.common = CommonConfig(self.transport)
        self.window = PciWindow(self, self._reachable, self.transport.mistake)
        self._shell = shell
        # In the order of the capabilities: kind, offset in the BAR, length.
        self._structures = [
            (CAP_COMMON, COMMON, COMMON_LENGTH),
            (CAP_ISR, ISR, ISR_LENGTH),
            (CAP_NOTIFY, NOTIFY, NOTIFY_MULTIPLIER * max(len(device.queue_sizes), 1)),
        ]
        if device.config_length:
            self._structures.append((CAP_DEVICE, DEVICE, device.config_length + 3 & ~3))

    # -- what the function is made of --------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        """The header of the configuration space."""
        device_id = self.transport.device.device_id
        return Identity(
            VENDOR_ID,
            FIRST_DEVICE_ID + device_id,
            CLASSES.get(device_id, OTHER_CLASS),
            REVISION,
            VENDOR_ID,
            SUBSYSTEM_ID,
        )

    def capabilities(self) -> tuple[Capability, ...]:
        """One for each structure, and the window last (4.1.4)."""
        made = []
        for kind, offset, length in self._structures:
            body = pack("<BBBxxII", kind, BAR, 0, offset, length)
            if kind == CAP_NOTIFY:
                body += NOTIFY_MULTIPLIER.to_bytes(4, "little")
            made.append(Capability(kind, body))
        return (*made, Capability(CAP_PCI, pack("<BBBxxIII", CAP_PCI, 0, 0, 0, 0, 0)))

    def _reachable(self, bar: int, offset: int, length: int) -> bool:
        """Whether these bytes lie in a structure that a capability leads to."""
        return bar == BAR and any(
            start <= offset and offset + length <= start + size for _, start, size in self._structures
        )

    # -- the guest's side: the BAR -----------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset` of the BAR; zero where there is no structure."""
        page, within = offset & -PAGE, offset % PAGE
        if page == COMMON:
            return self.common.read(within, size)
        if page == DEVICE:
            return self.transport.read_config(within, size)
        if offset == ISR:
            isr = self.transport.isr
            self.transport.acknowledge(isr)
            return isr
        return 0

    def write(self, offset: int, size: int, value: int) -> Hold | None:
        """A write to the BAR; a reset that takes time holds the writer."""
        page, within = offset & -PAGE, offset % PAGE
        if page == COMMON:
            return self.common.write(within, size, value)
        if page == DEVICE:
            self.transport.write_config(within, size, value)
        elif page == NOTIFY:
            self.transport.notify(value)
        else:
            self.transport.mistake("register-read-only")
        return None

    # -- the owner's side --------------------------------------------------------------------------------

    def kicks(self) -> tuple[Kick, ...]:
        """Where the driver kicks each queue: offsets into the BAR. The address alone says which queue it is."""
        return tuple(
            Kick(queue.index, NOTIFY + NOTIFY_MULTIPLIER * queue.index, 0, None)
            for queue in self.transport.queues
        )

    def msix_changed(self) -> None:
        """MSI-X was turned on or off: the line is to follow the ISR status anew."""
        self._shell.interrupt(None, self.transport.isr)

    def reset(self) -> None:
        """With the machine, at once."""
        self.transport.reset()
        self.window.reset()

    def state(self) -> PciState:
        """Registers and device as a record."""
        return PciState(self.transport.state(), self.window.state())

    def restore(self, state: PciState) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        check_record(state, PciState)
        self.window.check(state.window)
        self.transport.restore(state.transport)
        self.window.restore(state.window)
