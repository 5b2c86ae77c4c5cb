"""Base address registers of a PCI function (PCI Local Bus 3.0, 6.2.5).

The six registers are a device of 24 bytes that the configuration space delegates to. A guest finds the size of a BAR
by writing ones and looking at which stay zero, and moves it by writing an address; while the command register lets
the function decode, the BAR is mapped at what is written. A move takes effect with the access that makes it, also
half-way through a 64-bit register.

Where a BAR is wanted is a matter of these registers; whether it can be there is `BarMapper`'s to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices.common import check_bits, check_record, check_uint, read_bytewise, write_bytewise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.bus import Device

__all__ = [
    "BAR_COUNT",
    "DECODE_IO",
    "DECODE_MEMORY",
    "IO",
    "LENGTH",
    "MEMORY32",
    "MEMORY64",
    "Bar",
    "BarRegisters",
    "BarState",
    "BarWindow",
]

BAR_COUNT = 6
LENGTH = 4 * BAR_COUNT

IO, MEMORY32, MEMORY64 = "io", "memory32", "memory64"

SPACE_IO, TYPE_64, PREFETCHABLE = 0x01, 0x04, 0x08
"""The read-only low bits of a register."""
DWORD = 0xFFFF_FFFF

SIZES = {IO: (4, 256), MEMORY32: (16, 1 << 31), MEMORY64: (16, 1 << 40)}
"""Smallest and largest size in bytes. A PC's function may have 256 ports; a TiB is more than any device has."""

DECODE_IO, DECODE_MEMORY = 1, 2
"""What the function answers to: bits 0 and 1 of the command register."""


class Bar(NamedTuple):
    """What a function asks for.

    `number` is the register, 0 to 5, or the lower one of two for `MEMORY64`; `size` a power of two, in bytes or ports;
    `kind` is `IO`, `MEMORY32` or `MEMORY64`. `device` answers at offsets into the BAR, under `name` in maps.
    """

    number: int
    size: int
    kind: str
    device: Device
    name: str
    prefetchable: bool = False


class BarState(NamedTuple):
    """`registers` are the six without their read-only bits, `decoding` the decode bits of the command register."""

    registers: tuple[int, ...] = (0,) * BAR_COUNT
    decoding: int = 0


class BarWindow:
    """One BAR: where it is wanted, told to `map_bar` and `unmap_bar`, which never fail."""

    __slots__ = ("_map_bar", "_unmap_bar", "address", "bar", "needs")

    def __init__(self, bar: Bar, map_bar: Callable[[Bar, int], None], unmap_bar: Callable[[Bar], None]) -> None:
        self.bar = bar
        self.needs = DECODE_IO if bar.kind == IO else DECODE_MEMORY
        self.address: int | None = None
        self._map_bar = map_bar
        self._unmap_bar = unmap_bar

    def leave(self, address: int | None) -> None:
        """Be unmapped, unless `address` is where it is."""
        if self.address is not None and self.address != address:
            self.address = None
            self._unmap_bar(self.bar)

    def enter(self, address: int | None) -> None:
        """Be mapped at `address`, if it is not there and is to be somewhere."""
        if address is not None and self.address != address:
            self.address = address
            self._map_bar(self.bar, address)


class BarRegisters:
    """The BARs of one function.

    `map_bar` is called with a BAR and the address (a port for `IO`) that it is wanted at, `unmap_bar` when it is
    wanted there no longer, which is also the first half of a move. Raises `ValueError` for BARs that no function
    can have.
    """

    def __init__(
        self, bars: Sequence[Bar], map_bar: Callable[[Bar, int], None], unmap_bar: Callable[[Bar], None]
    ) -> None:
        self._fixed = [0] * BAR_COUNT
        self._writable = [0] * BAR_COUNT
        self._values = [0] * BAR_COUNT
        self._decoding = 0
        taken: set[int] = set()
        for bar in bars:
            registers = {bar.number, bar.number + 1} if bar.kind == MEMORY64 else {bar.number}
            if taken & registers or not registers <= set(range(BAR_COUNT)):
                raise ValueError(f"BAR {bar.number} of {bar.name} is taken or does not exist")
            taken |= registers
            self._define(bar)
        self.windows = [BarWindow(bar, map_bar, unmap_bar) for bar in bars]

    def _define(self, bar: Bar) -> None:
        low, high = SIZES[bar.kind]
        if not low <= bar.size <= high or bar.size & bar.size - 1:
            raise ValueError(f"size {bar.size:#x} of {bar.name} is not a power of two from {low} to {high:#x}")
        if bar.kind == IO:
            self._fixed[bar.number] = SPACE_IO
        else:
            self._fixed[bar.number] = (TYPE_64 if bar.kind == MEMORY64 else 0) | PREFETCHABLE * bar.prefetchable
        self._writable[bar.number] = -bar.size & DWORD
        if bar.kind == MEMORY64:
            self._writable[bar.number + 1] = -bar.size >> 32 & DWORD

    def set_decoding(self, decoding: int) -> None:
        """Map or unmap by the command register: `DECODE_IO` and `DECODE_MEMORY`, other bits do not matter."""
        self._decoding = decoding & (DECODE_IO | DECODE_MEMORY)
        self._settle()

    def _wanted(self, window: BarWindow) -> int | None:
        if not window.needs & self._decoding:
            return None
        index = window.bar.number
        address = self._values[index]
        return address | self._values[index + 1] << 32 if window.bar.kind == MEMORY64 else address

    def _settle(self) -> None:
        # First everything goes that has to, so that two BARs can change places in one step.
        for window in self.windows:
            window.leave(self._wanted(window))
        for window in self.windows:
            window.enter(self._wanted(window))

    # -- the guest's side ----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`; all ones behind the registers."""
        return read_bytewise(self._read_byte, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """`size` bytes at `offset`; the BARs move once all of them are written."""
        write_bytewise(self._write_byte, offset, size, value)
        self._settle()

    def _read_byte(self, offset: int) -> int:
        if offset >= LENGTH:
            return 0xFF
        return (self._values[offset >> 2] | self._fixed[offset >> 2]) >> 8 * (offset & 3) & 0xFF

    def _write_byte(self, offset: int, value: int) -> None:
        if offset < LENGTH:
            index, shift = offset >> 2, 8 * (offset & 3)
            written = self._values[index] & ~(0xFF << shift) | value << shift
            self._values[index] = written & self._writable[index]

    # -- state ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """To the state after power-on: at address 0, and not decoding."""
        self._load(BarState())

    def state(self) -> BarState:
        """The registers as a record."""
        return BarState(tuple(self._values), self._decoding)

    def check(self, state: BarState) -> None:
        """Raise `ValueError` with the name of a bad field for what `restore` would not take."""
        check_record(state, BarState)
        if type(state.registers) is not tuple or len(state.registers) != BAR_COUNT:
            raise ValueError(f"registers are not {BAR_COUNT} numbers")
        for index, value in enumerate(state.registers):
            check_bits(f"registers[{index}]", value, self._writable[index])
        check_uint("decoding", state.decoding, DECODE_IO | DECODE_MEMORY)

    def restore(self, state: BarState) -> None:
        """Take over `state`, with BARs mapped as it says; raises `ValueError` and then changes nothing."""
        self.check(state)
        self._load(state)

    def _load(self, state: BarState) -> None:
        self._values = list(state.registers)
        self._decoding = state.decoding
        self._settle()
