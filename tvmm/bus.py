"""Address ranges to devices, for port I/O and for memory-mapped I/O.

A device sees offsets into its own range, never addresses. Reads that nobody claims give all ones and
writes are dropped, as on a PC bus; both are counted, because a guest that does much of it is either probing
or broken. Ranges are fixed up by `add` and `remove`; the look-up on the exit path is one dictionary hit for
ports, one bisection for memory.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BusRange", "Device", "Hold", "MmioBus", "OffsetDevice", "PortBus"]

PORT_COUNT = 0x1_0000
PORT_SIZES = (1, 2, 4)
ALL_ONES = 0xFFFF_FFFF


class Hold(Protocol):
    """A device's word that it is full: the vCPU that wrote waits before it runs on."""

    def call_when_ready(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called, from any thread, once there is room. False, and no call, if there is room now."""


class Device(Protocol):
    """What a bus asks of a device: little-endian accesses of `size` bytes at an offset into its range."""

    def read(self, offset: int, size: int) -> int:
        """The value of `size` bytes at `offset`; bits above `8 * size` are ignored."""

    def write(self, offset: int, size: int, value: int) -> Hold | None:
        """Write `value`, which fits in `size` bytes, at `offset`."""


class OffsetDevice:
    """A device seen through a window that starts at `base` of its own range."""

    def __init__(self, device: Device, base: int) -> None:
        self._device = device
        self._base = base

    def read(self, offset: int, size: int) -> int:
        """As `Device`."""
        return self._device.read(self._base + offset, size)

    def write(self, offset: int, size: int, value: int) -> Hold | None:
        """As `Device`."""
        return self._device.write(self._base + offset, size, value)


class BusRange(NamedTuple):
    """One claimed range of a bus."""

    start: int
    length: int
    device: Device
    name: str

    @property
    def end(self) -> int:
        """First address behind the range."""
        return self.start + self.length


class _Ranges:
    """A sorted list of ranges that do not overlap, all below `limit`."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self.unclaimed_reads = 0
        self.unclaimed_writes = 0
        self._starts: list[int] = []
        self._ranges: list[BusRange] = []

    def __iter__(self) -> Iterator[BusRange]:
        return iter(self._ranges)

    def add(self, start: int, length: int, device: Device, name: str) -> BusRange:
        """Claim `length` addresses from `start`.

        Raises `ConfigError` for an empty range, one that leaves the bus, and one that overlaps another.
        """
        if length <= 0 or start < 0 or start + length > self.limit:
            raise ConfigError(f"{self.name} range {start:#x}+{length:#x} of {name} is empty or leaves the bus")
        index = bisect_right(self._starts, start)
        for neighbour in self._ranges[max(index - 1, 0) : index + 1]:
            if start < neighbour.end and neighbour.start < start + length:
                raise ConfigError(
                    f"{self.name} range {start:#x}+{length:#x} of {name} overlaps {neighbour.name} "
                    f"at {neighbour.start:#x}+{neighbour.length:#x}"
                )
        claimed = BusRange(start, length, device, name)
        self._starts.insert(index, start)
        self._ranges.insert(index, claimed)
        return claimed

    def remove(self, start: int) -> None:
        """Give the range that begins at `start` back. Raises `KeyError` if none does."""
        index = bisect_right(self._starts, start) - 1
        if index < 0 or self._starts[index] != start:
            raise KeyError(start)
        del self._starts[index], self._ranges[index]

    def find(self, address: int, size: int) -> BusRange | None:
        """The range that holds all `size` bytes at `address`, if there is one."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        found = self._ranges[index]
        return found if address + size <= found.end else None


class MmioBus(_Ranges):
    """Memory-mapped devices, looked up by bisection."""

    def __init__(self, limit: int = 1 << 52) -> None:
        super().__init__("MMIO", limit)

    def read(self, address: int, size: int) -> int:
        """Read `size` bytes (1 to 8) at `address`."""
        found = self.find(address, size)
        if found is None:
            self.unclaimed_reads += 1
            return (1 << (8 * size)) - 1
        return found.device.read(address - found.start, size) & ((1 << (8 * size)) - 1)

    def write(self, address: int, size: int, value: int) -> Hold | None:
        """Write `size` bytes (1 to 8) at `address`; what comes back, if anything, is to be waited for."""
        found = self.find(address, size)
        if found is None:
            self.unclaimed_writes += 1
            return None
        return found.device.write(address - found.start, size, value)


class PortBus(_Ranges):
    """Port I/O.

    `reads` and `writes` are what a vCPU's loop calls, one entry (method, offset, size) for each access that lies
    wholly in a claimed range. The key is `port << 8 | size`, with `READ` set in the keys of `reads`, as the C step
    returns it.
    """

    READ = 1 << 24

    def __init__(self) -> None:
        super().__init__("port", PORT_COUNT)
        self.reads: dict[int, tuple[Callable[[int, int], int], int, int]] = {}
        self.writes: dict[int, tuple[Callable[[int, int, int], Hold | None], int, int]] = {}

    def add(self, start: int, length: int, device: Device, name: str) -> BusRange:
        """As for any bus; every access that fits gets its entry in the tables."""
        claimed = super().add(start, length, device, name)
        for offset in range(length):
            for size in PORT_SIZES:
                if offset + size <= length:
                    key = start + offset << 8 | size
                    self.reads[self.READ | key] = device.read, offset, size
                    self.writes[key] = device.write, offset, size
        return claimed

    def remove(self, start: int) -> None:
        """As for any bus."""
        claimed = self.find(start, 1)
        super().remove(start)
        for port in range(start, claimed.end if claimed else start):
            for size in PORT_SIZES:
                self.reads.pop(self.READ | port << 8 | size, None)
                self.writes.pop(port << 8 | size, None)

    def unclaimed(self, is_read: int) -> int:
        """Count an access that no device answers; what a read finds is ones, in as many bits as a port access has."""
        if is_read:
            self.unclaimed_reads += 1
        else:
            self.unclaimed_writes += 1
        return ALL_ONES

    def read(self, port: int, size: int) -> int:
        """Read `size` bytes (1, 2 or 4) at `port`."""
        entry = self.reads.get(self.READ | port << 8 | size)
        value = entry[0](*entry[1:]) if entry else self.unclaimed(True)
        return value & (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> Hold | None:
        """Write `size` bytes (1, 2 or 4) at `port`; what comes back, if anything, is to be waited for."""
        entry = self.writes.get(port << 8 | size)
        if entry is None:
            self.unclaimed(False)
            return None
        write, offset, size = entry
        return write(offset, size, value)
