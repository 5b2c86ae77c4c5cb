"""A display on fakes, with a smaller range of offsets in which there is more to hit."""

from __future__ import annotations

from typing import Any

from tests.support.device_contract import Subject
from tvmm.devices.bochs_display import PORT_COUNT, BochsDisplay
from tvmm.devices.vga_registers import VGA_LENGTH, VgaRegisters

__all__ = ["DENSE_LENGTH", "MIB", "SUBJECTS", "DenseDisplay", "make_display"]

MIB = 1 << 20
WINDOWS = ((0x500, 0x18), (0x400, 0x20), (0x600, 0x10), (0x07C, 8), (0x3FC, 4), (0xFFC, 4))
"""Parts of the BAR, and behind them the ports."""
DENSE_LENGTH = sum(length for _, length in WINDOWS) + PORT_COUNT


class DenseDisplay:
    """A display whose interesting offsets follow each other."""

    def __init__(self, display: BochsDisplay) -> None:
        self.display = display
        self.reset, self.state, self.restore = display.reset, display.state, display.restore

    def _target(self, offset: int) -> tuple[Any, int]:
        for start, length in WINDOWS:
            if offset < length:
                return self.display, start + offset
            offset -= length
        return self.display.ports, offset

    def read(self, offset: int, size: int) -> int:
        """In the BAR, or at a port."""
        device, at = self._target(offset)
        return int(device.read(at, size)) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """As above."""
        device, at = self._target(offset)
        device.write(at, size, value)


def make_display(log: list[object] | None = None, size: int = 16 * MIB) -> BochsDisplay:
    """With a preferred mode of 1280x800; changes go to `log`."""
    said = log if log is not None else []
    return BochsDisplay(size, 1280, 800, lambda: said.append("mode"))


class DisplayRig:
    """A display that firmware may turn on."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.display = make_display(self.log)
        self.device = DenseDisplay(self.display)

    def stimulate(self, choice: int, amount: int) -> None:
        """Turn it on, or look at it."""
        if choice == 0:
            self.log.append(self.display.switch_on())
        else:
            self.log.append(self.display.surface)

    def follow(self, other: DisplayRig) -> None:
        """There is nothing outside."""


class VgaRig:
    """The registers alone."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.device = VgaRegisters(lambda: self.log.append("change"))

    def stimulate(self, choice: int, amount: int) -> None:
        """Look at them."""
        self.log.append((self.device.blanked, self.device.palette(eight_bits=bool(choice & 1))))

    def follow(self, other: VgaRig) -> None:
        """There is nothing outside."""


SUBJECTS = [
    Subject("bochs_display", DisplayRig, DENSE_LENGTH, "tvmm.devices.bochs_display"),
    Subject("vga_registers", VgaRig, VGA_LENGTH, "tvmm.devices.vga_registers"),
]
