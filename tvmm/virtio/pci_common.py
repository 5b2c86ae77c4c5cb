"""The common configuration structure of virtio-pci (virtio 1.3, 4.1.4.3).

====== ===================== ==== ===
0x00   device_feature_select 4    rw
0x04   device_feature        4    r
0x08   driver_feature_select 4    rw
0x0c   driver_feature        4    rw
0x10   config_msix_vector    2    rw
0x12   num_queues            2    r
0x14   device_status         1    rw
0x15   config_generation     1    r
0x16   queue_select          2    rw
0x18   queue_size            2    rw
0x1a   queue_msix_vector     2    rw
0x1c   queue_enable          2    rw
0x1e   queue_notify_off      2    r
0x20   queue_desc            8    rw
0x28   queue_driver          8    rw
0x30   queue_device          8    rw
0x38   queue_notify_data     2    r
0x3a   queue_reset           2    rw
0x3c   admin_queue_index     2    r    there is none
0x3e   admin_queue_num       2    r
====== ===================== ==== ===

Each field is accessed in its own width; those of 64 bits are two of 32, and may be taken in one access too. Any other
access reads zero or changes nothing, and is counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.virtio.queues import NO_VECTOR

if TYPE_CHECKING:
    from tvmm.bus import Hold
    from tvmm.virtio.transport import Transport

__all__ = ["COMMON_LENGTH", "FIELDS", "CommonConfig", "Field"]

COMMON_LENGTH = 0x40


class Field:
    """Offsets, by the names that the specification has for them."""

    DEVICE_FEATURE_SELECT, DEVICE_FEATURE, DRIVER_FEATURE_SELECT, DRIVER_FEATURE = 0x00, 0x04, 0x08, 0x0C
    CONFIG_MSIX_VECTOR, NUM_QUEUES, DEVICE_STATUS, CONFIG_GENERATION = 0x10, 0x12, 0x14, 0x15
    QUEUE_SELECT, QUEUE_SIZE, QUEUE_MSIX_VECTOR, QUEUE_ENABLE, QUEUE_NOTIFY_OFF = 0x16, 0x18, 0x1A, 0x1C, 0x1E
    QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x20, 0x28, 0x30
    QUEUE_NOTIFY_DATA, QUEUE_RESET, ADMIN_QUEUE_INDEX, ADMIN_QUEUE_NUM = 0x38, 0x3A, 0x3C, 0x3E


ADDRESSES = {Field.QUEUE_DESC: "desc", Field.QUEUE_DRIVER: "driver", Field.QUEUE_DEVICE: "device"}
HALVES = {start + high: (area, bool(high)) for start, area in ADDRESSES.items() for high in (0, 4)}
"""Offset to area, and whether it is the high half of its address."""

FIELDS = {
    **dict.fromkeys((0x00, 0x04, 0x08, 0x0C, *HALVES), 4),
    **dict.fromkeys((0x10, 0x12, *range(0x16, 0x20, 2), *range(0x38, 0x40, 2)), 2),
    **dict.fromkeys((0x14, 0x15), 1),
}
"""Offset to width."""


class CommonConfig:
    """The structure as a device of `COMMON_LENGTH` bytes over `transport`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    # -- reading -----------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """One field."""
        if size == 8 and offset in ADDRESSES:
            return self._field(offset) | self._field(offset + 4) << 32
        if FIELDS.get(offset) != size:
            self._transport.mistake("access-size")
            return 0
        return self._field(offset)

    def _field(self, offset: int) -> int:
        transport = self._transport
        match offset:
            case Field.DEVICE_STATUS:
                return transport.status
            case Field.CONFIG_GENERATION:
                return transport.device.generation & 0xFF
            case Field.DEVICE_FEATURE_SELECT:
                return transport.device_select
            case Field.DEVICE_FEATURE:
                return transport.offered_word()
            case Field.DRIVER_FEATURE_SELECT:
                return transport.driver_select
            case Field.DRIVER_FEATURE:
                return transport.accepted_word()
            case Field.CONFIG_MSIX_VECTOR:
                return transport.config_vector
            case Field.NUM_QUEUES:
                return len(transport.queues)
            case Field.QUEUE_SELECT:
                return transport.queue_select
        return self._queue_field(offset)

    def _queue_field(self, offset: int) -> int:
        queue = self._transport.selected()
        if queue is None:
            return NO_VECTOR if offset == Field.QUEUE_MSIX_VECTOR else 0
        if offset in HALVES:
            area, high = HALVES[offset]
            address: int = getattr(queue, area)
            return address >> 32 if high else address & 0xFFFF_FFFF
        match offset:
            case Field.QUEUE_SIZE:
                return queue.size
            case Field.QUEUE_MSIX_VECTOR:
                return queue.vector
            case Field.QUEUE_ENABLE:
                return int(queue.ready)
            case Field.QUEUE_NOTIFY_OFF:
                return queue.index
            case Field.QUEUE_RESET:
                return int(queue.resetting)
        return 0  # QUEUE_NOTIFY_DATA, and the administration queues: features that are not offered.

    # -- writing -----------------------------------------------------------------------------------------

    def write(self, offset: int, size: int, value: int) -> Hold | None:
        """One field."""
        if size == 8 and offset in ADDRESSES:
            self._transport.set_queue_address(ADDRESSES[offset], False, value)
            self._transport.set_queue_address(ADDRESSES[offset], True, value >> 32)
            return None
        if FIELDS.get(offset) != size:
            self._transport.mistake("access-size")
            return None
        if offset in HALVES:
            self._transport.set_queue_address(*HALVES[offset], value)
            return None
        return self._set_field(offset, value)

    def _set_field(self, offset: int, value: int) -> Hold | None:
        transport = self._transport
        match offset:
            case Field.DEVICE_STATUS:
                return transport.write_status(value)
            case Field.QUEUE_RESET:
                return transport.reset_queue(value)
            case Field.DEVICE_FEATURE_SELECT:
                transport.device_select = value
            case Field.DRIVER_FEATURE_SELECT:
                transport.driver_select = value
            case Field.DRIVER_FEATURE:
                transport.accept_word(value)
            case Field.CONFIG_MSIX_VECTOR:
                transport.set_config_vector(value)
            case Field.QUEUE_SELECT:
                transport.queue_select = value
            case Field.QUEUE_SIZE:
                transport.set_queue_size(value)
            case Field.QUEUE_MSIX_VECTOR:
                transport.set_queue_vector(value)
            case Field.QUEUE_ENABLE if value == 1:
                transport.enable_queue()
            case Field.QUEUE_ENABLE:
                transport.mistake("queue-enable")  # Zero is not for drivers here; they have QUEUE_RESET.
            case _:
                transport.mistake("register-read-only")
        return None
