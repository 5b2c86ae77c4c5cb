"""The display: a linear framebuffer with the registers of Bochs's VBE extension, as QEMU's ``bochs-display`` has them.

This is the 4 KiB of registers in BAR 2 (QEMU docs/specs/standard-vga.rst):

=============  ==================================================================================
0x000 - 0x3ff  EDID: one block, then zeros
0x400 - 0x41f  VGA ports 0x3c0 to 0x3df: palette and blanking (`vga_registers`)
0x500 - 0x515  dispi registers, 16 bits each
0x600 - 0x607  size of this part; byte order of the framebuffer, which is little-endian and stays so
=============  ==================================================================================

The dispi registers are at the ports 0x1ce (index) and 0x1cf (data) too, which is `ports`. BAR 0, the video memory, is
RAM of the guest's: nothing here sees what is written there.

The guest may write anything into any register, in any order. What all of them together mean is worked out anew each
time, as QEMU's bochs-display does: either a picture that lies in the video memory and has a size that this device has,
or none. No register is corrected behind the guest's back. Rejected: to correct them as QEMU's std VGA does, where the
order of writes decides. Turning the display on does not clear its memory either.

Text mode, and with it the whole VGA core, is not part of this: a directly booted kernel needs none, and it comes with
the firmware work. Until then only the two things are here that a framebuffer's driver needs of VGA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices.common import check_record, check_uint
from tvmm.devices.edid import make_edid
from tvmm.devices.pci_config import PciIdentity
from tvmm.devices.vga_registers import VGA_LENGTH, VgaRegisters, VgaState
from tvmm.records import check_uints
from tvmm.screen import Surface

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "IDENTITY",
    "MAX_HEIGHT",
    "MAX_VRAM",
    "MAX_WIDTH",
    "MIN_SIDE",
    "MIN_VRAM",
    "PORT",
    "PORT_COUNT",
    "REGISTERS_BAR",
    "REGISTERS_LENGTH",
    "VRAM_BAR",
    "BochsDisplay",
    "BochsDisplayState",
    "DispiPorts",
]

IDENTITY = PciIdentity(0x1234, 0x1111, 0x03_80_00, revision=2, subsystem_vendor_id=0x1AF4, subsystem_id=0x1100)
VRAM_BAR, REGISTERS_BAR, REGISTERS_LENGTH = 0, 2, 0x1000
MIN_VRAM, MAX_VRAM = 4 << 20, 256 << 20

MAX_WIDTH, MAX_HEIGHT, MIN_SIDE = 2560, 1600, 64
"""Pixels. Everything behind this device (canvas, encoders) has buffers for a picture of that size."""

PORT, PORT_COUNT = 0x1CE, 4

EDID_END = 0x400
VGA, DISPI, EXTENDED = 0x400, 0x500, 0x600
DISPI_LENGTH, EXTENDED_LENGTH = 0x16, 8
LITTLE_ENDIAN = 0x1E1E_1E1E

# The dispi registers.
ID, XRES, YRES, BPP, ENABLE, BANK, VIRT_WIDTH, VIRT_HEIGHT, X_OFFSET, Y_OFFSET, MEMORY_64K = range(11)
KEPT = MEMORY_64K
"""How many registers keep what is written."""
ID_FIRST, ID_LAST = 0xB0C0, 0xB0C5
ENABLED, GET_CAPABILITIES, EIGHT_BIT_DAC, LINEAR = 0x01, 0x02, 0x20, 0x40
CAPABILITIES = {XRES: MAX_WIDTH, YRES: MAX_HEIGHT, BPP: 32}
"""What these registers read as while the guest asks for the limits."""
BYTES = {8: 1, 15: 2, 16: 2, 24: 3, 32: 4}
"""Bytes of a pixel, by bits."""


class BochsDisplayState(NamedTuple):
    """`dispi` are the registers 0 to 9, `port_index` is the last one chosen by port."""

    dispi: tuple[int, ...] = (ID_LAST, *(0,) * (KEPT - 1))
    port_index: int = 0
    vga: VgaState = VgaState()


class DispiPorts:
    """The ports from 0x1ce on: words only, the index at 0x1ce, the data at 0x1cf or, aligned, at 0x1d0."""

    def __init__(self, display: BochsDisplay) -> None:
        self._display = display

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at port 0x1ce + `offset`."""
        if size != 2 or offset > 2:
            return (1 << 8 * size) - 1
        return self._display.read_register(self._display.index) if offset else self._display.index

    def write(self, offset: int, size: int, value: int) -> None:
        """`size` bytes at port 0x1ce + `offset`."""
        if size != 2 or offset > 2:
            return
        if offset:
            self._display.write_register(self._display.index, value)
        else:
            self._display.index = value


class BochsDisplay:
    """The registers. `vram_size` is in bytes, `width` and `height` are of the monitor's preferred mode, in pixels.

    `on_mode` is called after anything about `surface` has changed but by `restore`, on the thread that did it, under
    the bus lock. Raises `ValueError` for sizes that it cannot have.
    """

    def __init__(self, vram_size: int, width: int, height: int, on_mode: Callable[[], None]) -> None:
        check_uint("vram_size", vram_size, MAX_VRAM)
        if vram_size < MIN_VRAM or vram_size & vram_size - 1:
            raise ValueError(f"vram_size {vram_size} is not a power of two from {MIN_VRAM}")
        if not (MIN_SIDE <= width <= MAX_WIDTH and MIN_SIDE <= height <= MAX_HEIGHT):
            raise ValueError(f"a mode of {width}x{height} is not possible")
        if 4 * width * height > vram_size:
            raise ValueError(f"a mode of {width}x{height} does not fit into {vram_size} bytes")
        self.vram_size = vram_size
        self.preferred = width, height
        self.edid = make_edid(width, height, memory=vram_size)
        self._on_mode = on_mode
        self.ports = DispiPorts(self)
        self.index = 0
        """The register that the ports reach."""
        self._vga = VgaRegisters(self._vga_changed)
        self._load(BochsDisplayState())

    def _load(self, state: BochsDisplayState) -> None:
        self._dispi = list(state.dispi)
        self.index = state.port_index
        self._vga.restore(state.vga)
        self._seen = self._geometry()

    # -- what is to be seen --------------------------------------------------------------------------------

    @property
    def surface(self) -> Surface | None:
        """What the guest shows; None for nothing. Under the bus lock."""
        found = self._geometry()
        if found is not None and found.bits_per_pixel == 8:
            return found._replace(palette=self._vga.palette(eight_bits=bool(self._dispi[ENABLE] & EIGHT_BIT_DAC)))
        return found

    def _geometry(self) -> Surface | None:
        """The surface without its palette."""
        dispi = self._dispi
        width, height, size = dispi[XRES], dispi[YRES], BYTES.get(dispi[BPP])
        if not dispi[ENABLE] & ENABLED or self._vga.blanked or size is None:
            return None
        if not (MIN_SIDE <= width <= MAX_WIDTH and MIN_SIDE <= height <= MAX_HEIGHT):
            return None
        stride = max(dispi[VIRT_WIDTH], width) * size
        offset = dispi[X_OFFSET] * size + dispi[Y_OFFSET] * stride
        if offset + stride * height > self.vram_size:
            return None
        return Surface(width, height, stride, dispi[BPP], offset)

    def _settle(self) -> None:
        found = self._geometry()
        if found != self._seen:
            self._seen = found
            self._on_mode()

    def _vga_changed(self) -> None:
        if self._seen is not None and self._seen.bits_per_pixel == 8 and not self._vga.blanked:
            self._on_mode()
        else:
            self._settle()

    def switch_on(self) -> Surface:
        """The preferred mode with 32 bits a pixel, as firmware leaves it for a kernel; what is to be seen then."""
        width, height = self.preferred
        values = (ID_LAST, width, height, 32, ENABLED | LINEAR, 0, width, height, 0, 0)
        self._dispi[:] = values
        self._settle()
        return Surface(width, height, 4 * width, 32, 0)

    # -- the guest's side: BAR 2 ---------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset` of BAR 2; ones where nothing is."""
        value = done = 0
        while done < size:
            at = offset + done
            part = 1 if VGA <= at < DISPI else min(4 - at % 4, size - done)
            value |= self._read_part(at, part) << 8 * done
            done += part
        return value

    def _read_part(self, at: int, size: int) -> int:
        """At most a dword, inside of one."""
        if at < EDID_END:
            return int.from_bytes(self.edid[at : at + size], "little")
        if at < VGA + VGA_LENGTH:
            return self._vga.read(at - VGA, size)
        base = at & ~3
        if DISPI <= at < DISPI + DISPI_LENGTH:
            index = (base - DISPI) // 2
            word = self.read_register(index) | self.read_register(index + 1) << 16
        elif EXTENDED <= at < EXTENDED + EXTENDED_LENGTH:
            word = EXTENDED_LENGTH if base == EXTENDED else LITTLE_ENDIAN
        else:
            word = 0xFFFF_FFFF
        return word >> 8 * (at - base) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """`size` bytes at `offset` of BAR 2, in words for dispi registers; dropped where nothing is."""
        done = 0
        while done < size:
            at = offset + done
            part = 1 if at < DISPI else min(2 - at % 2, size - done)
            piece = value >> 8 * done & (1 << 8 * part) - 1
            if VGA <= at < VGA + VGA_LENGTH:
                self._vga.write(at - VGA, 1, piece)
            elif DISPI <= at < DISPI + DISPI_LENGTH:
                index, shift = (at - DISPI) // 2, 8 * (at % 2)
                if part == 1:
                    piece = self.read_register(index) & ~(0xFF << shift) | piece << shift
                self.write_register(index, piece)
            done += part

    # -- the guest's side: dispi registers -----------------------------------------------------------------

    def read_register(self, index: int) -> int:
        """A dispi register; ones for an `index` that none has."""
        if index == MEMORY_64K:
            return self.vram_size >> 16
        if index >= KEPT:
            return 0xFFFF
        if self._dispi[ENABLE] & GET_CAPABILITIES and index in CAPABILITIES:
            return CAPABILITIES[index]
        return self._dispi[index]

    def write_register(self, index: int, value: int) -> None:
        """16 bits to a dispi register. An ID says which version the guest would like; those that exist are kept."""
        if index >= KEPT or (index == ID and not ID_FIRST <= value <= ID_LAST):
            return
        before, self._dispi[index] = self._dispi[index], value
        self._settle()
        if index == ENABLE and (before ^ value) & EIGHT_BIT_DAC and before & value & ENABLED:
            self._vga_changed()

    # -- state ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """To power-on: nothing to be seen."""
        before = self._seen
        self._load(BochsDisplayState())
        if before is not None:
            self._on_mode()

    def state(self) -> BochsDisplayState:
        """The registers as a record."""
        return BochsDisplayState(tuple(self._dispi), self.index, self._vga.state())

    def restore(self, state: BochsDisplayState) -> None:
        """Take over `state` and tell nobody; raises `ValueError` with the name of a bad field and changes nothing."""
        check_record(state, BochsDisplayState)
        check_uints("dispi", state.dispi, KEPT, 0xFFFF)
        if not ID_FIRST <= state.dispi[ID] <= ID_LAST:
            raise ValueError("dispi has an ID that does not exist")
        check_uint("port_index", state.port_index, 0xFFFF)
        self._vga.check(state.vga)
        self._load(state)
