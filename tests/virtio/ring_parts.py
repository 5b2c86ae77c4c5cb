"""A ring's two ends for tests: the C half and its plain twin behind one face, and memory that both can be run on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tests.support.driver_ring import Driver, Memory, RingMemory, lay_out, make_driver
from tests.support.plain_ring import PlainChain, PlainRing
from tvmm.kvm.calls import ffi
from tvmm.kvm.device_log import DeviceLog
from tvmm.kvm.memory_map import MemoryMap
from tvmm.kvm.vring import Batch, Vring
from tvmm.kvm.vring_records import (
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    RingError,
    VringConfig,
    VringCounters,
    VringState,
)

__all__ = ["FEATURES", "CRing", "Mirror", "Ring", "feature_names", "make_ring", "start"]

FEATURES = tuple(
    packed | indirect | event | order
    for packed in (0, F_RING_PACKED)
    for indirect in (0, F_INDIRECT_DESC)
    for event in (0, F_EVENT_IDX)
    for order in (0, F_IN_ORDER)
)
"""All combinations."""


def feature_names(features: int) -> str:
    """For test ids."""
    names = [(F_INDIRECT_DESC, "indirect"), (F_EVENT_IDX, "event"), (F_IN_ORDER, "order")]
    form = "packed" if features & F_RING_PACKED else "split"
    return "-".join([form, *(name for bit, name in names if features & bit)])


class Ring(Protocol):
    """The device's half."""

    @property
    def error(self) -> RingError:
        """Why it stopped."""

    @property
    def counters(self) -> VringCounters:
        """What it counted."""

    def configure(self, config: VringConfig) -> RingError:
        """Start anew."""

    def reset(self) -> None:
        """As new."""

    def pop(self, chains: int, iovecs: int) -> list[PlainChain]:
        """Take."""

    def unpop(self, chains: Sequence[PlainChain], count: int) -> None:
        """Put back."""

    def push_many(self, used: Sequence[tuple[int, int]]) -> None:
        """Give back."""

    def should_notify(self) -> bool:
        """Interrupt."""

    def ready(self) -> bool:
        """Anything there."""

    def enable_kicks(self) -> bool:
        """May sleep."""

    def disable_kicks(self) -> None:
        """Looks by itself."""

    def state(self) -> VringState:
        """To be saved."""

    def restore(self, state: VringState) -> None:
        """Go on."""


class CRing(Vring):
    """The C half with guest addresses in place of host addresses."""

    def __init__(self, memory: RingMemory, log: DeviceLog | None = None) -> None:
        self.map = MemoryMap(memory, log)
        super().__init__(self.map)
        self.last = Batch(1, 1)

    def pop(self, chains: int, iovecs: int) -> list[PlainChain]:  # type: ignore[override]
        """Take into a batch of that size."""
        self.last = Batch(chains, iovecs)
        assert super().pop(self.last) == len(self.last)
        result = []
        position = 0
        for chain in self.last.chains:
            assert chain.first == position
            behind = chain.first + chain.readable_count
            position = behind + chain.writable_count
            readable, writable = self._pieces(chain.first, behind), self._pieces(behind, position)
            assert sum(length for _, length in readable) == chain.readable_bytes
            assert sum(length for _, length in writable) == chain.writable_bytes
            result.append(PlainChain(chain.id, readable, writable))
        assert self.last.raw.iovec_count == position
        return result

    def unpop(self, chains: Sequence[PlainChain], count: int) -> None:  # type: ignore[override]
        """From the batch that the last pop made."""
        super().unpop(self.last, count)

    def _pieces(self, first: int, behind: int) -> tuple[tuple[int, int], ...]:
        iovecs = (self.last.raw.iovecs[index] for index in range(first, behind))
        return tuple((self._gpa(iovec.iov_base, iovec.iov_len), int(iovec.iov_len)) for iovec in iovecs)

    def _gpa(self, base: object, length: int) -> int:
        """Where a piece is; it must be wholly in one region."""
        address = int(ffi.cast("uintptr_t", base))
        for index in range(self.map.raw.count):
            region = self.map.raw.regions[index]
            offset = address - int(ffi.cast("uintptr_t", region.hva))
            if 0 <= offset < region.size:
                assert offset + length <= region.size
                return int(region.gpa) + offset
        raise AssertionError(f"{address:#x} is no guest memory")


class Mirror:
    """Writes go to all memories, reads to the first."""

    def __init__(self, *memories: Memory) -> None:
        self.memories = memories

    def read(self, gpa: int, length: int) -> bytes:
        """From the first."""
        return self.memories[0].read(gpa, length)

    def write(self, gpa: int, data: bytes) -> None:
        """To all."""
        for memory in self.memories:
            memory.write(gpa, data)


def make_ring(kind: str, memory: RingMemory) -> Ring:
    """The device's half, "c" or "plain"."""
    return CRing(memory) if kind == "c" else PlainRing(memory)


def start(kind: str, features: int, size: int, low: int = 0x8000) -> tuple[RingMemory, Ring, Driver, int]:
    """Memory, both halves of a queue that is set up, and the first address of memory that is free for buffers."""
    memory = RingMemory(low)
    config, behind = lay_out(size, features)
    ring = make_ring(kind, memory)
    assert ring.configure(config) is RingError.NONE
    tables_end = behind + (512 * size if features & F_INDIRECT_DESC else 0)
    # Ids from 65533 on: a packed ring's are any 16-bit numbers.
    return memory, ring, make_driver(memory, config, behind, first_id=0xFFFD), tables_end
