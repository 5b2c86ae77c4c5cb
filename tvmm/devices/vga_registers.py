"""The few VGA registers of a display that has no VGA core: the palette, and the switch that blanks the screen.

A driver for a linear framebuffer writes to the DAC for its palette (IBM VGA XGA Technical Reference, video DAC), and
sets bit 5 of the attribute controller's index to have a picture. Offsets are ports less 0x3c0. All other registers read
as ones and take nothing.

At power-on the screen is not blanked, other than with VGA: there is no VGA BIOS that would turn it on, and simple
guests do not know that they should.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices.common import (
    check_bytes,
    check_flag,
    check_record,
    check_uint,
    read_bytewise,
    write_bytewise,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["VGA_LENGTH", "VgaRegisters", "VgaState"]

VGA_LENGTH = 0x20

ATTRIBUTE, ATTRIBUTE_READ, MISC_WRITE, DAC_READ_INDEX, DAC_WRITE_INDEX, DAC_DATA = 0x00, 0x01, 0x02, 0x07, 0x08, 0x09
MISC_READ, STATUS_MONO, STATUS_COLOUR = 0x0C, 0x3BA - 0x3C0, 0x1A
"""The first input status register, whose read resets the flip-flop, is where the colour adapter had it."""

VIDEO_ENABLE = 0x20
INDEX_BITS = 0x3F
COLOURS, COMPONENTS = 256, 3
PALETTE_LENGTH = COLOURS * COMPONENTS
DAC_READING = 3

_SIX_BITS = bytes((value & 0x3F) << 2 | (value & 0x3F) >> 4 for value in range(256))


class VgaState(NamedTuple):
    """`palette` has R, G, B of each colour as written. `latch` is what was written of the next one, 0 to 2 bytes.

    `attribute_is_data`: the next write to the attribute controller is data, which nobody takes. `component` counts the
    reads of a colour.
    """

    attribute_index: int = VIDEO_ENABLE
    attribute_is_data: bool = False
    misc: int = 0
    palette: bytes = bytes(PALETTE_LENGTH)
    write_index: int = 0
    read_index: int = 0
    latch: bytes = b""
    component: int = 0
    reading: bool = False


class VgaRegisters:
    """`on_change` is called after a colour has changed, or blanking."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._load(VgaState())

    def _load(self, state: VgaState) -> None:
        self._attribute_index = state.attribute_index
        self._attribute_is_data = bool(state.attribute_is_data)
        self._misc = state.misc
        self._palette = bytearray(state.palette)
        self._write_index = state.write_index
        self._read_index = state.read_index
        self._latch = bytearray(state.latch)
        self._component = state.component
        self._reading = bool(state.reading)

    @property
    def blanked(self) -> bool:
        """Whether the guest wants no picture."""
        return not self._attribute_index & VIDEO_ENABLE

    def palette(self, *, eight_bits: bool) -> bytes:
        """256 times B, G, R, 0; the guest has written values of `eight_bits`, or of six."""
        values = bytes(self._palette)
        if not eight_bits:
            values = values.translate(_SIX_BITS)
        colours = bytearray(4 * COLOURS)
        colours[0::4], colours[1::4], colours[2::4] = values[2::3], values[1::3], values[0::3]
        return bytes(colours)

    # -- the guest's side ----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at port 0x3c0 + `offset`, as byte reads one after the other."""
        return read_bytewise(self._read_byte, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """`size` bytes at port 0x3c0 + `offset`, as byte writes one after the other."""
        write_bytewise(self._write_byte, offset, size, value)

    def _read_byte(self, offset: int) -> int:
        if offset == ATTRIBUTE:
            return self._attribute_index
        if offset == STATUS_COLOUR:
            self._attribute_is_data = False
            return 0
        if offset == MISC_READ:
            return self._misc
        if offset == DAC_READ_INDEX:
            return DAC_READING if self._reading else 0
        if offset == DAC_WRITE_INDEX:
            return self._write_index
        if offset == DAC_DATA:
            return self._read_colour()
        return 0xFF

    def _read_colour(self) -> int:
        value = self._palette[COMPONENTS * self._read_index + self._component]
        self._component += 1
        if self._component == COMPONENTS:
            self._component = 0
            self._read_index = (self._read_index + 1) % COLOURS
        return value

    def _write_byte(self, offset: int, value: int) -> None:
        if offset == ATTRIBUTE:
            self._write_attribute(value)
        elif offset == MISC_WRITE:
            self._misc = value
        elif offset == DAC_READ_INDEX:
            self._read_index, self._component, self._reading = value, 0, True
        elif offset == DAC_WRITE_INDEX:
            self._write_index, self._reading = value, False
            self._latch.clear()
        elif offset == DAC_DATA:
            self._write_colour(value)

    def _write_attribute(self, value: int) -> None:
        self._attribute_is_data = not self._attribute_is_data
        if not self._attribute_is_data:
            return
        was = self.blanked
        self._attribute_index = value & INDEX_BITS
        if self.blanked != was:
            self._on_change()

    def _write_colour(self, value: int) -> None:
        self._latch.append(value)
        if len(self._latch) < COMPONENTS:
            return
        where = slice(COMPONENTS * self._write_index, COMPONENTS * (self._write_index + 1))
        changed = self._palette[where] != self._latch
        self._palette[where] = self._latch
        self._latch.clear()
        self._write_index = (self._write_index + 1) % COLOURS
        if changed:
            self._on_change()

    # -- state ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """To power-on; tells nobody."""
        self._load(VgaState())

    def state(self) -> VgaState:
        """The registers as a record."""
        return VgaState(
            self._attribute_index,
            self._attribute_is_data,
            self._misc,
            bytes(self._palette),
            self._write_index,
            self._read_index,
            bytes(self._latch),
            self._component,
            self._reading,
        )

    def check(self, state: VgaState) -> None:
        """Raise `ValueError` with the name of a bad field for what `restore` would not take."""
        check_record(state, VgaState)
        check_uint("attribute_index", state.attribute_index, INDEX_BITS)
        check_flag("attribute_is_data", state.attribute_is_data)
        check_uint("misc", state.misc, 0xFF)
        check_bytes("palette", state.palette, PALETTE_LENGTH, PALETTE_LENGTH)
        check_uint("write_index", state.write_index, COLOURS - 1)
        check_uint("read_index", state.read_index, COLOURS - 1)
        check_bytes("latch", state.latch, 0, COMPONENTS - 1)
        check_uint("component", state.component, COMPONENTS - 1)
        check_flag("reading", state.reading)

    def restore(self, state: VgaState) -> None:
        """Take over `state` and tell nobody; raises `ValueError` and then changes nothing."""
        self.check(state)
        self._load(state)
