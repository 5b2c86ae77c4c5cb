"""The registers of one queue, and which geometry can be used (virtio 1.3, 2.6 to 2.8, 4.1.4.3).

The driver writes them before it enables the queue; while it is enabled they stand. Addresses are checked here
for alignment and wrap; that they are in RAM is the ring's business, which knows the RAM.
"""

from __future__ import annotations

from typing import NamedTuple

from tvmm.records import check_flag, check_record, check_uint
from tvmm.virtio.device import MAX_QUEUE_SIZE, QueueSetup

__all__ = ["NO_VECTOR", "QueueRegisters", "QueueState", "misfit"]

NO_VECTOR = 0xFFFF
ADDRESS_LIMIT = (1 << 64) - 1

SPLIT_ALIGNMENTS = (16, 2, 4)
PACKED_ALIGNMENTS = (16, 4, 4)
"""Of descriptor, driver and device area (2.7, 2.8.10.1)."""


class QueueState(NamedTuple):
    """The registers; `resetting` from the driver's request to the device's word that the queue is idle."""

    size: int
    desc: int = 0
    driver: int = 0
    device: int = 0
    vector: int = NO_VECTOR
    ready: bool = False
    resetting: bool = False


def size_fits(size: int, max_size: int, packed: bool) -> bool:
    """Whether a queue may have `size` entries: powers of two, for packed rings any number."""
    return 0 < size <= max_size and (packed or not size & (size - 1))


def misfit(state: QueueState, max_size: int, packed: bool) -> str:
    """What is wrong with the geometry, in words; empty if it can be used."""
    if not size_fits(state.size, max_size, packed):
        return f"{state.size} entries"
    lengths = (
        (16 * state.size, 4, 4) if packed else (16 * state.size, 6 + 2 * state.size, 6 + 8 * state.size)
    )
    areas = ("descriptor", "driver", "device")
    alignments = PACKED_ALIGNMENTS if packed else SPLIT_ALIGNMENTS
    for area, address, length, alignment in zip(areas, state[1:4], lengths, alignments, strict=True):
        if address % alignment:
            return f"{area} area not aligned to {alignment}"
        if address + length > ADDRESS_LIMIT + 1:
            return f"{area} area wraps"
    return ""


class QueueRegisters:
    """One queue's registers, to be written through the transport, which knows when they may be."""

    __slots__ = ("desc", "device", "driver", "index", "max_size", "ready", "resetting", "size", "vector")

    def __init__(self, index: int, max_size: int) -> None:
        self.index = index
        self.max_size = max_size
        self.load(QueueState(max_size))

    def clear(self) -> None:
        """As after a reset of the queue or of the device."""
        self.load(QueueState(self.max_size))

    def set_address(self, area: str, high: bool, value: int) -> None:
        """Half of the address of ``desc``, ``driver`` or ``device``."""
        shift = 32 if high else 0
        old: int = getattr(self, area)
        setattr(self, area, old & ~(0xFFFF_FFFF << shift) | (value & 0xFFFF_FFFF) << shift)

    def setup(self) -> QueueSetup:
        """For a runner. A queue that is on its way out is not ready any more."""
        ready = self.ready and not self.resetting
        return QueueSetup(self.index, self.size, self.desc, self.driver, self.device, ready)

    def state(self) -> QueueState:
        """The registers as a record."""
        return QueueState(
            self.size, self.desc, self.driver, self.device, self.vector, self.ready, self.resetting
        )

    def check(self, state: object, packed: bool, vectors: int) -> QueueState:
        """`state` if this queue can have it; raises `ValueError` that names ``queues`` if not."""
        check_record(state, QueueState)
        assert isinstance(state, QueueState)
        size = check_uint("queues: size", state.size, MAX_QUEUE_SIZE)
        for area, address in zip(("desc", "driver", "device"), state[1:4], strict=True):
            check_uint(f"queues: {area}", address, ADDRESS_LIMIT)
        ready = check_flag("queues: ready", state.ready)
        resetting = check_flag("queues: resetting", state.resetting)
        vector = check_uint("queues: vector", state.vector, NO_VECTOR)
        if not size_fits(size, self.max_size, packed):
            raise ValueError("queues: size is not one that the queue can have")
        if vector != NO_VECTOR and vector >= vectors:
            raise ValueError("queues: vector is not in the table")
        if ready and misfit(state, self.max_size, packed):
            raise ValueError("queues: ready with a ring that cannot be")
        if resetting and not ready:
            raise ValueError("queues: resetting one that was not ready")
        return state._replace(ready=ready, resetting=resetting)

    def load(self, state: QueueState) -> None:
        """Take over a record that was checked."""
        self.size, self.desc, self.driver, self.device, self.vector, self.ready, self.resetting = state
