"""virtio-mmio, version 2 (virtio 1.3, 4.2): the register page of one device.

Control registers are 32 bits wide and are accessed as such, aligned; from offset 0x100 on there is the
configuration space, in whatever width. What a driver must not do here (another width, a read-only register, a
register of the legacy layout) reads zero or changes nothing, and is counted.

====== ==================== === ============================================================
0x000  MagicValue           r   ``virt``
0x004  Version              r   2
0x008  DeviceID             r
0x00c  VendorID             r
0x010  DeviceFeatures       r   the word that 0x014 selects
0x014  DeviceFeaturesSel    w
0x020  DriverFeatures       w   the word that 0x024 selects
0x024  DriverFeaturesSel    w
0x030  QueueSel             w   which queue the queue registers mean
0x034  QueueNumMax          r   0: there is no such queue
0x038  QueueNum             w
0x044  QueueReady           rw
0x050  QueueNotify          w
0x060  InterruptStatus      r
0x064  InterruptACK         w
0x070  Status               rw
0x080  QueueDesc            w   low and high half, as the next two
0x090  QueueDriver          w
0x0a0  QueueDevice          w
0x0ac  SHMSel               w   there is no shared memory: length and base read -1
0x0b0  SHMLen, SHMBase      r   two halves each
0x0c0  QueueReset           rw
0x0fc  ConfigGeneration     r
====== ==================== === ============================================================

The interrupt is one line, up while InterruptStatus is not zero. On an edge-triggered line the shell sends a pulse
for each event, and one more after an acknowledgement that leaves a bit standing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.virtio.features import Ring
from tvmm.virtio.shell import CONFIG_EVENT, QUEUE_EVENT, Kick
from tvmm.virtio.transport import Transport

if TYPE_CHECKING:
    from tvmm.bus import Hold
    from tvmm.virtio.device import VirtioDevice
    from tvmm.virtio.shell import Shell
    from tvmm.virtio.transport_state import TransportState

__all__ = ["LENGTH", "VENDOR_ID", "VirtioMmio"]

LENGTH = 0x1000
CONFIG = 0x100

MAGIC = 0x7472_6976
VERSION = 2
VENDOR_ID = int.from_bytes(b"TVMM", "little")


class Register:
    """Offsets of the control registers, by the names that the specification has for them."""

    MAGIC_VALUE, VERSION, DEVICE_ID, VENDOR_ID = 0x000, 0x004, 0x008, 0x00C
    DEVICE_FEATURES, DEVICE_FEATURES_SEL, DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x010, 0x014, 0x020, 0x024
    QUEUE_SEL, QUEUE_NUM_MAX, QUEUE_NUM, QUEUE_READY, QUEUE_NOTIFY = 0x030, 0x034, 0x038, 0x044, 0x050
    INTERRUPT_STATUS, INTERRUPT_ACK, STATUS = 0x060, 0x064, 0x070
    SHM_SEL, SHM_LEN, SHM_BASE, QUEUE_RESET, CONFIG_GENERATION = 0x0AC, 0x0B0, 0x0B8, 0x0C0, 0x0FC


ADDRESSES = {
    0x080: ("desc", False),
    0x084: ("desc", True),
    0x090: ("driver", False),
    0x094: ("driver", True),
    0x0A0: ("device", False),
    0x0A4: ("device", True),
}
"""Register to area of the selected queue, and whether it is the high half."""

LEGACY = (0x028, 0x03C, 0x040)
"""GuestPageSize, QueueAlign and QueuePFN, by which a driver of version 1 gives itself away."""

SHARED_MEMORY = range(Register.SHM_LEN, Register.QUEUE_RESET, 4)

READABLE = frozenset(
    {
        Register.MAGIC_VALUE,
        Register.VERSION,
        Register.DEVICE_ID,
        Register.VENDOR_ID,
        Register.DEVICE_FEATURES,
        Register.QUEUE_NUM_MAX,
        Register.QUEUE_READY,
        Register.INTERRUPT_STATUS,
        Register.STATUS,
        *SHARED_MEMORY,
        Register.QUEUE_RESET,
        Register.CONFIG_GENERATION,
    }
)


class VirtioMmio:
    """The device on a memory bus, `LENGTH` bytes.

    `transport` is where the owner reports used buffers, errors and the end of resets.
    """

    def __init__(self, device: VirtioDevice, shell: Shell) -> None:
        self.transport = Transport(device, shell)

    # -- the guest's side --------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """A register, or `size` bytes of the configuration space."""
        if offset >= CONFIG:
            return self.transport.read_config(offset - CONFIG, size)
        if size != 4 or offset % 4:
            self.transport.mistake("access-size")
            return 0
        if offset not in READABLE:
            self.transport.mistake("legacy" if offset in LEGACY else "register-write-only")
            return 0
        return self._register(offset)

    def _register(self, offset: int) -> int:
        transport = self.transport
        match offset:
            case Register.INTERRUPT_STATUS:
                return transport.isr
            case Register.MAGIC_VALUE:
                return MAGIC
            case Register.VERSION:
                return VERSION
            case Register.DEVICE_ID:
                return transport.device.device_id
            case Register.VENDOR_ID:
                return VENDOR_ID
            case Register.DEVICE_FEATURES:
                return transport.offered_word()
            case Register.STATUS:
                return transport.status
            case Register.CONFIG_GENERATION:
                return transport.device.generation
        if offset in SHARED_MEMORY:
            return 0xFFFF_FFFF
        queue = transport.selected()
        if queue is None:
            return 0
        if offset == Register.QUEUE_NUM_MAX:
            return queue.max_size
        return int(queue.ready if offset == Register.QUEUE_READY else queue.resetting)

    def write(self, offset: int, size: int, value: int) -> Hold | None:
        """A register, or the configuration space; a reset that takes time holds the writer."""
        transport = self.transport
        if offset >= CONFIG:
            transport.write_config(offset - CONFIG, size, value)
            return None
        if size != 4 or offset % 4:
            transport.mistake("access-size")
            return None
        if offset in ADDRESSES:
            transport.set_queue_address(*ADDRESSES[offset], value)
            return None
        match offset:
            case Register.QUEUE_NOTIFY:
                transport.notify(value)
            case Register.INTERRUPT_ACK:
                self._acknowledge(value)
            case Register.STATUS:
                return transport.write_status(value)
            case Register.DEVICE_FEATURES_SEL:
                transport.device_select = value
            case Register.DRIVER_FEATURES:
                transport.accept_word(value)
            case Register.DRIVER_FEATURES_SEL:
                transport.driver_select = value
            case Register.QUEUE_SEL:
                transport.queue_select = value
            case Register.QUEUE_NUM:
                transport.set_queue_size(value)
            case Register.QUEUE_READY:
                return self._ready(value)
            case Register.QUEUE_RESET:
                return transport.reset_queue(value)
            case Register.SHM_SEL:
                pass  # Whatever is selected does not exist.
            case _:
                transport.mistake("legacy" if offset in LEGACY else "register-read-only")
        return None

    def _acknowledge(self, value: int) -> None:
        if value & ~(QUEUE_EVENT | CONFIG_EVENT):
            self.transport.mistake("acknowledge-undefined")
        self.transport.acknowledge(value)

    def _ready(self, value: int) -> Hold | None:
        if value == 1:
            self.transport.enable_queue()
        elif value == 0:
            return self.transport.stop_queue()
        else:
            self.transport.mistake("queue-ready")
        return None

    # -- the owner's side --------------------------------------------------------------------------------

    def kicks(self) -> tuple[Kick, ...]:
        """Where the driver kicks each queue.

        With NOTIFICATION_DATA the value changes with each kick and one register serves all queues, so only
        accesses can tell them apart: then there are none to listen at.
        """
        if self.transport.device.features & Ring.NOTIFICATION_DATA:
            return ()
        return tuple(Kick(queue.index, Register.QUEUE_NOTIFY, 4, queue.index) for queue in self.transport.queues)

    def reset(self) -> None:
        """With the machine, at once."""
        self.transport.reset()

    def state(self) -> TransportState:
        """Registers and device as a record."""
        return self.transport.state()

    def restore(self, state: TransportState) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        self.transport.restore(state)
