"""The guest's half of PCI: looks for functions, sizes and places BARs, turns MSI-X on, through the buses alone.

Two ways to configuration space have one shape (`ConfigAccess`), so that whatever is done by one can be done by the
other and compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tvmm.bus import MmioBus, PortBus
    from tvmm.memory.layout import Range

__all__ = [
    "Allocator",
    "ConfigAccess",
    "EcamAccess",
    "FoundBar",
    "FoundFunction",
    "Mechanism1",
    "capabilities",
    "enable_msix",
    "enumerate_bus",
    "size_bars",
]

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
COMMAND, STATUS, CLASS, HEADER, BARS, CAPABILITY_LINK, PIN = 0x04, 0x06, 0x08, 0x0E, 0x10, 0x34, 0x3D
DECODE = 3
DWORD = 0xFFFF_FFFF
MSIX = 0x11


class ConfigAccess(Protocol):
    """A way to configuration space; `where` is slot and function number of bus 0."""

    def read(self, where: tuple[int, int], register: int, size: int) -> int:
        """`size` bytes (1, 2, 4) at `register`, aligned."""

    def write(self, where: tuple[int, int], register: int, size: int, value: int) -> None:
        """`size` bytes (1, 2, 4) at `register`, aligned."""


class Mechanism1:
    """Ports 0xcf8 and 0xcfc."""

    def __init__(self, ports: PortBus) -> None:
        self._ports = ports

    def _select(self, where: tuple[int, int], register: int) -> int:
        slot, number = where
        self._ports.write(CONFIG_ADDRESS, 4, 1 << 31 | slot << 11 | number << 8 | register & 0xFC)
        return CONFIG_DATA + (register & 3)

    def read(self, where: tuple[int, int], register: int, size: int) -> int:
        """Select, then read the byte lanes."""
        return self._ports.read(self._select(where, register), size)

    def write(self, where: tuple[int, int], register: int, size: int, value: int) -> None:
        """Select, then write the byte lanes."""
        self._ports.write(self._select(where, register), size, value)


class EcamAccess:
    """Configuration space in memory at `base`."""

    def __init__(self, mmio: MmioBus, base: int) -> None:
        self._mmio = mmio
        self._base = base

    def _address(self, where: tuple[int, int], register: int) -> int:
        slot, number = where
        return self._base + (slot << 15 | number << 12 | register)

    def read(self, where: tuple[int, int], register: int, size: int) -> int:
        """A load."""
        return self._mmio.read(self._address(where, register), size)

    def write(self, where: tuple[int, int], register: int, size: int, value: int) -> None:
        """A store."""
        self._mmio.write(self._address(where, register), size, value)


class FoundBar(NamedTuple):
    """What sizing tells of a BAR; `kind` is named as in the models."""

    number: int
    kind: str
    size: int
    prefetchable: bool


class FoundFunction(NamedTuple):
    """What enumeration tells of a function."""

    where: tuple[int, int]
    vendor_id: int
    device_id: int
    class_code: int
    pin: int
    capabilities: tuple[tuple[int, int], ...]
    bars: tuple[FoundBar, ...]


def enumerate_bus(access: ConfigAccess) -> list[FoundFunction]:
    """All functions of bus 0, with their BARs sized and left where they were."""
    return [_look_at(access, where) for where in _present(access)]


def _present(access: ConfigAccess) -> Iterator[tuple[int, int]]:
    for slot in range(32):
        if access.read((slot, 0), 0, 2) == 0xFFFF:
            continue
        many = access.read((slot, 0), HEADER, 1) & 0x80
        for number in range(8 if many else 1):
            if access.read((slot, number), 0, 4) & 0xFFFF != 0xFFFF:
                yield slot, number


def _look_at(access: ConfigAccess, where: tuple[int, int]) -> FoundFunction:
    identity = access.read(where, 0, 4)
    return FoundFunction(
        where,
        identity & 0xFFFF,
        identity >> 16,
        access.read(where, CLASS, 4) >> 8,
        access.read(where, PIN, 1),
        tuple(capabilities(access, where)),
        tuple(size_bars(access, where)),
    )


def capabilities(access: ConfigAccess, where: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Identifier and offset of each capability. Asserts that the list is one, and ends."""
    if not access.read(where, STATUS, 2) & 0x10:
        return
    offset, seen = access.read(where, CAPABILITY_LINK, 1), set[int]()
    while offset:
        assert offset >= 0x40
        assert offset % 4 == 0
        assert offset not in seen
        seen.add(offset)
        identifier, offset_of_next = access.read(where, offset, 1), access.read(where, offset + 1, 1)
        yield identifier, offset
        offset = offset_of_next


def _probe(access: ConfigAccess, where: tuple[int, int], register: int) -> tuple[int, int]:
    """What the register has, and which bits stay when ones are written; put back as it was."""
    old = access.read(where, register, 4)
    access.write(where, register, 4, DWORD)
    mask = access.read(where, register, 4)
    access.write(where, register, 4, old)
    return old, mask


def size_bars(access: ConfigAccess, where: tuple[int, int], decode_off: bool = True) -> Iterator[FoundBar]:
    """The BARs of a function: as Linux does it, or, without `decode_off`, as some firmware, with decoding left on."""
    command = access.read(where, COMMAND, 2)
    if decode_off:
        access.write(where, COMMAND, 2, command & ~DECODE)
    number = 0
    while number < 6:
        old, mask = _probe(access, where, BARS + 4 * number)
        taken = 1
        if old & 1:
            if mask & ~3:
                yield FoundBar(number, "io", -(mask & ~3) & DWORD, False)
        elif old & 6 == 4:
            mask = mask & ~0xF | _probe(access, where, BARS + 4 * number + 4)[1] << 32
            yield FoundBar(number, "memory64", -mask & (1 << 64) - 1, bool(old & 8))
            taken = 2
        elif mask & ~0xF:
            yield FoundBar(number, "memory32", -(mask & ~0xF) & DWORD, bool(old & 8))
        number += taken
    access.write(where, COMMAND, 2, command)


class Allocator:
    """Gives addresses to BARs: from a window each for ports, memory below 4 GiB, and 64-bit BARs."""

    def __init__(self, io: Range, memory32: Range, memory64: Range) -> None:
        self._next = {"io": io.start, "memory32": memory32.start, "memory64": memory64.start}

    def place(self, access: ConfigAccess, function: FoundFunction) -> dict[int, int]:
        """Write addresses into the BARs of `function` and let it decode; BAR to address."""
        placed = {}
        for bar in function.bars:
            address = -(-self._next[bar.kind] // bar.size) * bar.size
            self._next[bar.kind] = address + bar.size
            access.write(function.where, BARS + 4 * bar.number, 4, address & DWORD)
            if bar.kind == "memory64":
                access.write(function.where, BARS + 4 * bar.number + 4, 4, address >> 32)
            placed[bar.number] = address
        access.write(function.where, COMMAND, 2, access.read(function.where, COMMAND, 2) | DECODE | 4)
        return placed


def enable_msix(
    access: ConfigAccess,
    mmio: MmioBus,
    function: FoundFunction,
    placed: dict[int, int],
    messages: Sequence[tuple[int, int]],
) -> None:
    """Turn MSI-X on as Linux does: all masked while the table is filled, then each entry of `messages` opened."""
    offset = dict(function.capabilities)[MSIX]
    control = access.read(function.where, offset + 2, 2)
    assert len(messages) <= (control & 0x7FF) + 1
    access.write(function.where, offset + 2, 2, control | 0xC000)
    where = access.read(function.where, offset + 4, 4)
    table = placed[where & 7] + (where & ~7)
    for number, (address, data) in enumerate(messages):
        entry = table + 16 * number
        assert mmio.read(entry + 12, 4) == 1
        mmio.write(entry, 4, address & DWORD)
        mmio.write(entry + 4, 4, address >> 32)
        mmio.write(entry + 8, 4, data)
    access.write(function.where, offset + 2, 2, control & 0x7FF | 0x8000)
    for number in range(len(messages)):
        mmio.write(table + 16 * number + 12, 4, 0)
