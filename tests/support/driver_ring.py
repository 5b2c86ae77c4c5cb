"""The driver's half of a virtqueue, split and packed, and guest memory for rings: shared by tests, benchmarks, fuzzers.

Written from the driver's side of Virtio 1.3, sections 2.7 and 2.8, with nothing shared with the device's half. A driver
is well-behaved unless told otherwise: `write_descriptor`, `set_index` and writes to its memory make it hostile.
"""

from __future__ import annotations

import mmap
from struct import Struct
from typing import NamedTuple, Protocol

from tvmm.kvm.vring_records import F_EVENT_IDX, F_IN_ORDER, F_RING_PACKED, VringConfig
from tvmm.memory.regions import Region, RegionTable

__all__ = [
    "AVAIL",
    "DESCRIPTOR",
    "INDIRECT",
    "NEXT",
    "USED",
    "WRITE",
    "Buffer",
    "Driver",
    "Memory",
    "PackedDriver",
    "RingMemory",
    "SplitDriver",
    "lay_out",
    "make_driver",
]

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
DESCRIPTOR = Struct("<QIHH")
LE16, LE32 = Struct("<H"), Struct("<I")
EVENT_ENABLE, EVENT_DISABLE, EVENT_DESCRIPTOR = 0, 1, 2
TABLE_LENGTH = 32
"""Descriptors that an indirect table has room for."""


class Memory(Protocol):
    """Guest memory as a driver sees it."""

    def read(self, gpa: int, length: int) -> bytes:
        """Bytes at an address."""

    def write(self, gpa: int, data: bytes) -> None:
        """The other way."""


class HostPages:
    """Page-aligned host memory."""

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size)
        self.view = memoryview(self.map)


class RingMemory:
    """Guest memory with everything that addresses can go wrong in.

    `low` from 0 on, which is one block in two regions; `next` behind it without a gap, but elsewhere in the host;
    a hole; `rom`, read-only; `top`, a page at the end of what the table of regions can hold.
    """

    ROM = 1 << 32
    TOP = (1 << 52) - 4096

    def __init__(self, low: int = 0x8000) -> None:
        self.low = low
        self.blocks = {
            "low": HostPages(low),
            "next": HostPages(0x2000),
            "rom": HostPages(0x1000),
            "top": HostPages(0x1000),
        }
        self.regions = RegionTable()
        self.regions.add(Region(0, 0x3000, "low", 0))
        self.regions.add(Region(0x3000, low - 0x3000, "low", 0x3000))
        self.regions.add(Region(low, 0x2000, "next", 0))
        self.regions.add(Region(self.ROM, 0x1000, "rom", 0, read_only=True))
        self.regions.add(Region(self.TOP, 0x1000, "top", 0))
        self.end = low + 0x2000

    def read(self, gpa: int, length: int) -> bytes:
        """Bytes at an address; raises `MemoryAccessError` outside of RAM."""
        return b"".join(
            self.blocks[region.block].view[offset : offset + count]
            for region, offset, count in self.regions.spans(gpa, length)
        )

    def write(self, gpa: int, data: bytes) -> None:
        """The other way, to read-only memory too."""
        done = 0
        for region, offset, count in self.regions.spans(gpa, len(data)):
            self.blocks[region.block].view[offset : offset + count] = data[done : done + count]
            done += count

    def contents(self) -> tuple[bytes, ...]:
        """All of it."""
        return tuple(block.map[:] for block in self.blocks.values())

    def clear(self) -> None:
        """To zeros."""
        for block in self.blocks.values():
            block.view[:] = bytes(len(block.view))


class Buffer(NamedTuple):
    """One element of a chain."""

    gpa: int
    length: int
    writable: bool = False


def lay_out(size: int, features: int, base: int = 0x1000) -> tuple[VringConfig, int]:
    """A queue from `base` on, and the first address behind it."""
    packed = bool(features & F_RING_PACKED)
    driver = base + 16 * size
    device = driver + (4 if packed else 6 + 2 * size + 3 & ~3)
    end = device + (4 if packed else 6 + 8 * size)
    return VringConfig(size, base, driver, device, features), end + 15 & ~15


class Driver:
    """What both formats have in common.

    `outstanding`: chains that the device has, oldest first: id to (ring slots, bytes that the device may write).
    """

    def __init__(self, memory: Memory, config: VringConfig, tables: int) -> None:
        """`tables`: where indirect tables may go, `TABLE_LENGTH` descriptors for each id."""
        self.memory = memory
        self.config = config
        self.size = config.size
        self.event_idx = bool(config.features & F_EVENT_IDX)
        self.in_order = bool(config.features & F_IN_ORDER)
        self.outstanding: dict[int, tuple[int, int]] = {}
        self.free_slots = config.size
        self._tables = tables

    def write_descriptor(self, index: int, gpa: int, length: int, word12: int, word14: int) -> None:
        """All of a ring descriptor: the last two words are flags and next, or id and flags."""
        self.memory.write(self.config.descriptor_area + 16 * index, DESCRIPTOR.pack(gpa, length, word12, word14))

    def add(self, buffers: list[Buffer], direct: int | None = None) -> int | None:
        """Put a chain into the ring, to be seen with the next `publish`; None if it has no room.

        `direct`: so many buffers in the ring and the others in a table (packed: 0); None puts all into the ring.
        """
        slots = len(buffers) if direct is None else direct + 1
        if slots > self.free_slots or not buffers:
            return None
        writable = sum(buffer.length for buffer in buffers if buffer.writable)
        number = self._put(buffers, len(buffers) if direct is None else direct)
        self.free_slots -= slots
        self.outstanding[number] = (slots, writable)
        return number

    def _put(self, buffers: list[Buffer], direct: int) -> int:
        raise NotImplementedError

    def publish(self) -> bool:
        """Make what was added visible. Whether the device wants a kick for it."""
        raise NotImplementedError

    def collect(self) -> list[tuple[int, int]]:
        """What the device gave back since last time: (id, bytes written)."""
        raise NotImplementedError

    def ask_for_interrupt(self, after: int = 0) -> None:
        """For the next used chain; with EVENT_IDX, for the one that is `after` ring positions behind it."""
        raise NotImplementedError

    def refuse_interrupts(self) -> None:
        """None at all, as far as the format can say so."""
        raise NotImplementedError

    def _table(self, number: int, buffers: list[Buffer], *, linked: bool) -> tuple[int, int]:
        """An indirect table: its address and length."""
        assert len(buffers) <= TABLE_LENGTH
        gpa = self._tables + 16 * TABLE_LENGTH * (number % self.size)
        data = b""
        for index, buffer in enumerate(buffers, 1):
            flags = WRITE if buffer.writable else 0
            last = index == len(buffers)
            following = (flags | (0 if last else NEXT), 0 if last else index) if linked else (0, flags)
            data += DESCRIPTOR.pack(buffer.gpa, buffer.length, *following)
        self.memory.write(gpa, data)
        return gpa, len(data)

    def _returned(self, number: int, length: int) -> list[tuple[int, int]]:
        """The chains that one used entry stands for. With IN_ORDER those before it were used completely."""
        result = []
        for known in list(self.outstanding) if self.in_order else (number,):
            slots, writable = self.outstanding.pop(known)
            self.free_slots += slots
            result.append((known, length if known == number else writable))
            if known == number:
                return result
        raise AssertionError(f"the device gave {number} back, which it did not have")

    def _read16(self, gpa: int) -> int:
        return int(LE16.unpack(self.memory.read(gpa, 2))[0])

    def _write16(self, gpa: int, value: int) -> None:
        self.memory.write(gpa, LE16.pack(value & 0xFFFF))


class SplitDriver(Driver):
    """Descriptor table, available ring, used ring (2.7)."""

    def __init__(self, memory: Memory, config: VringConfig, tables: int) -> None:
        super().__init__(memory, config, tables)
        self.available = self._published = self.used = 0
        self._free = list(range(config.size))
        self._chains: dict[int, list[int]] = {}

    def set_index(self, value: int) -> None:
        """The available index, to any value."""
        self._write16(self.config.driver_area + 2, value)

    def _put(self, buffers: list[Buffer], direct: int) -> int:
        slots = min(direct + 1, len(buffers))
        # In order: descriptors in the table's order (2.7.9). Else the last one freed first, as real drivers do.
        indices = [self._free.pop(0 if self.in_order else -1) for _ in range(slots)]
        head = indices[0]
        for position in range(slots):
            following = indices[position + 1] if position + 1 < slots else 0
            flags = NEXT if position + 1 < slots else 0
            if position == direct:
                table = self._table(head, buffers[direct:], linked=True)
                self.write_descriptor(indices[position], *table, flags | INDIRECT, following)
            else:
                gpa, length, writable = buffers[position]
                self.write_descriptor(indices[position], gpa, length, flags | (WRITE if writable else 0), following)
        self._write16(self.config.driver_area + 4 + 2 * (self.available % self.size), head)
        self.available = self.available + 1 & 0xFFFF
        self._chains[head] = indices
        return head

    def publish(self) -> bool:
        """The available index, then the look at what the device wants."""
        old, self._published = self._published, self.available
        self.set_index(self.available)
        added = self.available - old & 0xFFFF
        if self.event_idx:
            event = self._read16(self.config.device_area + 4 + 8 * self.size)
            return any(old + step & 0xFFFF == event for step in range(added))
        return bool(added) and not self._read16(self.config.device_area) & 1

    def collect(self) -> list[tuple[int, int]]:
        """Used entries up to the used index."""
        result: list[tuple[int, int]] = []
        while self.used != self._read16(self.config.device_area + 2):
            entry = self.config.device_area + 4 + 8 * (self.used % self.size)
            number, length = (LE32.unpack(self.memory.read(entry + at, 4))[0] for at in (0, 4))
            returned = self._returned(number, length)
            for known, _ in returned:
                self._free += self._chains.pop(known)
            self.used = self.used + len(returned) & 0xFFFF
            result += returned
        return result

    def ask_for_interrupt(self, after: int = 0) -> None:
        """used_event, or the flag cleared."""
        if self.event_idx:
            self._write16(self.config.driver_area + 4 + 2 * self.size, self.used + after)
        else:
            self._write16(self.config.driver_area, 0)

    def refuse_interrupts(self) -> None:
        """used_event just passed, or the flag set."""
        if self.event_idx:
            self._write16(self.config.driver_area + 4 + 2 * self.size, self.used - 1)
        else:
            self._write16(self.config.driver_area, 1)


class PackedDriver(Driver):
    """One ring of descriptors, two records that suppress events (2.8)."""

    def __init__(self, memory: Memory, config: VringConfig, tables: int, first_id: int = 0) -> None:
        """`first_id`: buffer ids are any numbers of 16 bits; these are `first_id` and on."""
        super().__init__(memory, config, tables)
        self.index, self.wrap = 0, True
        self.used, self.used_wrap = 0, True
        self._old = (0, True)
        self._ids = [first_id + number & 0xFFFF for number in range(config.size)]
        self._pending: list[tuple[int, int]] = []

    def _put(self, buffers: list[Buffer], direct: int) -> int:
        assert direct in (0, len(buffers)), "a packed chain is all in the ring or all in a table"
        number = self._ids.pop(0)
        elements = [(*buffer[:2], WRITE if buffer.writable else 0) for buffer in buffers[:direct]]
        if not direct:
            elements = [(*self._table(number, buffers, linked=False), INDIRECT)]
        for position, (gpa, length, flags) in enumerate(elements):
            flags |= AVAIL if self.wrap else USED
            if position + 1 < len(elements):
                flags |= NEXT
            if position:
                self.write_descriptor(self.index, gpa, length, number, flags)
            else:
                # All but the flags, which make the chain visible and come last.
                at = self.config.descriptor_area + 16 * self.index
                self.memory.write(at, DESCRIPTOR.pack(gpa, length, number, 0)[:14])
                self._pending.append((self.index, flags))
            self.index, self.wrap = self._behind(self.index, self.wrap, 1)
        return number

    def _behind(self, index: int, wrap: bool, steps: int) -> tuple[int, bool]:
        index += steps
        return (index - self.size, not wrap) if index >= self.size else (index, wrap)

    def publish(self) -> bool:
        """The first descriptors' flags, newest chain first, then the look at what the device wants."""
        for index, flags in reversed(self._pending):
            self._write16(self.config.descriptor_area + 16 * index + 14, flags)
        added = bool(self._pending)
        self._pending.clear()
        at, self._old = self._old, (self.index, self.wrap)
        word = LE32.unpack(self.memory.read(self.config.device_area, 4))[0]
        mode, event = word >> 16 & 3, (word & 0x7FFF, bool(word & 0x8000))
        if mode != EVENT_DESCRIPTOR:
            return added and mode == EVENT_ENABLE
        while at != self._old:
            if at == event:
                return True
            at = self._behind(*at, 1)
        return False

    def collect(self) -> list[tuple[int, int]]:
        """Used descriptors from where the last one was expected."""
        result: list[tuple[int, int]] = []
        while True:
            at = self.config.descriptor_area + 16 * self.used
            _, length, number, flags = DESCRIPTOR.unpack(self.memory.read(at, 16))
            if not bool(flags & AVAIL) == bool(flags & USED) == self.used_wrap:
                return result
            slots = self.free_slots
            returned = self._returned(number, length if flags & WRITE else 0)
            self._ids += [known for known, _ in returned]
            self.used, self.used_wrap = self._behind(self.used, self.used_wrap, self.free_slots - slots)
            result += returned

    def ask_for_interrupt(self, after: int = 0) -> None:
        """For a descriptor, or for all."""
        index, wrap = self._behind(self.used, self.used_wrap, after % self.size)
        event = EVENT_DESCRIPTOR << 16 | wrap << 15 | index if self.event_idx else EVENT_ENABLE << 16
        self.memory.write(self.config.driver_area, LE32.pack(event))

    def refuse_interrupts(self) -> None:
        """The flag."""
        self.memory.write(self.config.driver_area, LE32.pack(EVENT_DISABLE << 16))


def make_driver(memory: Memory, config: VringConfig, tables: int, first_id: int = 0) -> Driver:
    """The driver of a ring's format; `first_id` has a meaning for packed ones."""
    if config.packed:
        return PackedDriver(memory, config, tables, first_id)
    return SplitDriver(memory, config, tables)
