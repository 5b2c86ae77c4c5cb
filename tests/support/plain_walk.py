"""What `PlainRing` is made of: configuration, guest memory, and the walk over descriptors as generators of buffers."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from tests.support.driver_ring import RingMemory
from tvmm.kvm.vring_records import (
    F_INDIRECT_DESC,
    RING_FEATURES,
    InFlight,
    RingError,
    VringConfig,
    VringCounters,
    valid_size,
)

__all__ = ["AVAIL", "CHAIN_BYTES", "LE16", "LE32", "USED", "WRITE", "Broken", "Offer", "PlainWalk"]

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
INDIRECT_LIMIT = 32768
CHAIN_BYTES = 1 << 32
DESCRIPTOR, LE16, LE32 = Struct("<QIHH"), Struct("<H"), Struct("<I")


class Run(NamedTuple):
    """Guest memory in one piece: addresses from `start` to `end`."""

    start: int
    end: int
    block: str
    offset: int
    read_only: bool


class Offer(NamedTuple):
    """A chain that is available. The boxes `id` and `slots` hold what they should when `buffers` is exhausted."""

    id: list[int]
    slots: list[int]
    buffers: Iterator[tuple[int, int, bool]]


class Broken(Exception):
    """The driver broke a rule."""

    def __init__(self, error: RingError, value: int) -> None:
        self.error = error
        self.value = value


class PlainWalk:
    """One virtqueue, without what changes it."""

    def __init__(self, memory: RingMemory) -> None:
        self.memory = memory
        self.counts = dict.fromkeys(VringCounters._fields, 0)
        self.runs: list[Run] = []
        for gpa, size, block, offset, read_only, _ in memory.regions:
            run = Run(gpa, gpa + size, block, offset, read_only)
            last = self.runs[-1] if self.runs else None
            if last and (last.end, last.block, last.offset + last.end - last.start, last.read_only) == (
                gpa,
                block,
                offset,
                read_only,
            ):
                self.runs[-1] = last._replace(end=run.end)
            else:
                self.runs.append(run)
        self.reset()

    # -- configuration -------------------------------------------------------------------------------------

    def reset(self) -> None:
        """As new."""
        self.config: VringConfig | None = None
        self.error, self.error_value = RingError.NONE, 0
        self.avail, self.avail_wrap = 0, False
        self.used, self.used_wrap = 0, False
        self.unsignalled = 0
        self.kicks_wanted, self.kick_event = False, 0
        self.in_flight: dict[int, InFlight] = {}

    def configure(self, config: VringConfig) -> RingError:
        """Start anew."""
        self.reset()
        self.config = config._replace(features=config.features & RING_FEATURES)
        self.packed = config.packed
        self.size = config.size
        self.avail_wrap = self.used_wrap = self.packed
        self.kicks_wanted = True
        try:
            self._check_areas(config)
        except Broken as broken:
            self._stop(broken)
        return self.error

    def _check_areas(self, config: VringConfig) -> None:
        if not valid_size(config.size, packed=config.packed):
            raise Broken(RingError.QUEUE_SIZE, config.size)
        areas = (
            (config.descriptor_area, 16 * config.size, 16, config.packed),
            (config.driver_area, 4 if config.packed else 6 + 2 * config.size, 4 if config.packed else 2, False),
            (config.device_area, 4 if config.packed else 6 + 8 * config.size, 4, True),
        )
        for gpa, length, align, written in areas:
            if gpa % align:
                raise Broken(RingError.AREA_MISALIGNED, gpa)
            pieces = self._pieces(gpa, length)
            if pieces is None:
                raise Broken(RingError.AREA_OUTSIDE_RAM, gpa)
            if len(pieces) > 1:
                raise Broken(RingError.AREA_DIVIDED, gpa)
            if written and pieces[0][0].read_only:
                raise Broken(RingError.AREA_READ_ONLY, gpa)
        for index, (gpa, length, _, _) in enumerate(areas):
            other, other_length = areas[(index + 1) % 3][:2]
            if set(range(gpa, gpa + length)) & set(range(other, other + other_length)):
                raise Broken(RingError.AREAS_OVERLAP, gpa)

    def _stop(self, broken: Broken) -> None:
        self.error, self.error_value = broken.error, broken.value
        self.counts["errors"] += 1

    # -- guest memory --------------------------------------------------------------------------------------

    def _run(self, gpa: int) -> Run | None:
        return next((run for run in self.runs if run.start <= gpa < run.end), None)

    def _pieces(self, gpa: int, length: int) -> list[tuple[Run, int, int]] | None:
        """The range as (run, address, length), None if some of it is no memory."""
        result = []
        while length:
            run = self._run(gpa)
            if run is None:
                return None
            part = min(length, run.end - gpa)
            result.append((run, gpa, part))
            gpa += part
            length -= part
        return result

    def _read16(self, gpa: int) -> int:
        return int(LE16.unpack(self.memory.read(gpa, 2))[0])

    def _write16(self, gpa: int, value: int) -> None:
        self.memory.write(gpa, LE16.pack(value & 0xFFFF))

    def _descriptor(self, table: int, index: int) -> tuple[int, int, int, int]:
        gpa, length, word12, word14 = DESCRIPTOR.unpack(self.memory.read(table + 16 * index, 16))
        return gpa, length, word12, word14

    def _has(self, feature: int) -> bool:
        return self.config is not None and bool(self.config.features & feature)

    # -- the walk ------------------------------------------------------------------------------------------

    def _behind(self, index: int, wrap: bool, steps: int) -> tuple[int, bool]:
        if not self.packed:
            return index + steps & 0xFFFF, False
        position = (index + (0 if wrap else self.size) + steps) % (2 * self.size)
        return position % self.size, position < self.size

    def ready(self) -> bool:
        """Whether a pop would find something."""
        if self.config is None or self.error:
            return False
        if not self.packed:
            return self._read16(self.config.driver_area + 2) != self.avail
        flags = self._descriptor(self.config.descriptor_area, self.avail)[3]
        return flags & (AVAIL | USED) == (AVAIL if self.avail_wrap else USED)

    def _offers(self) -> Iterator[Offer]:
        """What is available; each must be taken before the next one is asked for."""
        assert self.config is not None
        if self.packed:
            while self.ready():
                packed_id: list[int] = []
                slots: list[int] = [0]
                yield Offer(packed_id, slots, self._packed_buffers(packed_id, slots))
            return
        index = self._read16(self.config.driver_area + 2)
        pending = index - self.avail & 0xFFFF
        if pending > self.size:
            raise Broken(RingError.INDEX_JUMP, index)
        for _ in range(pending):
            head = self._read16(self.config.driver_area + 4 + 2 * (self.avail % self.size))
            if head >= self.size:
                raise Broken(RingError.HEAD_RANGE, head)
            yield Offer([head], [1], self._split_buffers(head))

    def _table(self, gpa: int, length: int) -> int:
        """How many descriptors an indirect table has."""
        if length == 0 or length % 16:
            raise Broken(RingError.INDIRECT_LENGTH, length)
        if length // 16 > INDIRECT_LIMIT:
            raise Broken(RingError.INDIRECT_TOO_LONG, length)
        if self._pieces(gpa, length) is None:
            raise Broken(RingError.INDIRECT_OUTSIDE_RAM, gpa)
        return length // 16

    def _split_buffers(self, head: int) -> Iterator[tuple[int, int, bool]]:
        assert self.config is not None
        table, count, index = self.config.descriptor_area, self.size, head
        in_table = False
        left = count
        while True:
            if not left:
                raise Broken(RingError.CHAIN_TOO_LONG, head)
            left -= 1
            gpa, length, flags, following = self._descriptor(table, index)
            if flags & INDIRECT:
                if not self._has(F_INDIRECT_DESC):
                    raise Broken(RingError.INDIRECT_REFUSED, head)
                if in_table:
                    raise Broken(RingError.INDIRECT_NESTED, head)
                if flags & NEXT:
                    raise Broken(RingError.INDIRECT_LINKED, head)
                table, count, index, in_table = gpa, self._table(gpa, length), 0, True
                left = count
                continue
            yield gpa, length, bool(flags & WRITE)
            if not flags & NEXT:
                return
            if following >= count:
                raise Broken(RingError.NEXT_RANGE, following)
            index = following

    def _packed_buffers(self, number: list[int], slots: list[int]) -> Iterator[tuple[int, int, bool]]:
        assert self.config is not None
        free = self.size - sum(chain.slots for chain in self.in_flight.values())
        while True:
            if slots[0] == free:
                raise Broken(RingError.CHAIN_TOO_LONG, self.avail)
            index = (self.avail + slots[0]) % self.size
            gpa, length, buffer_id, flags = self._descriptor(self.config.descriptor_area, index)
            slots[0] += 1
            number[:] = [buffer_id]
            if flags & INDIRECT:
                if not self._has(F_INDIRECT_DESC):
                    raise Broken(RingError.INDIRECT_REFUSED, self.avail)
                if flags & NEXT or slots[0] > 1:
                    raise Broken(RingError.INDIRECT_LINKED, self.avail)
                for entry in range(self._table(gpa, length)):
                    inner_gpa, inner_length, _, inner_flags = self._descriptor(gpa, entry)
                    yield inner_gpa, inner_length, bool(inner_flags & WRITE)
                return
            yield gpa, length, bool(flags & WRITE)
            if not flags & NEXT:
                return

