"""The display on the PCI bus of a board: registers, video memory, and the mode that a kernel is started with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.boot.framebuffer import Framebuffer
from tvmm.devices.bochs_display import (
    IDENTITY,
    PORT,
    PORT_COUNT,
    REGISTERS_BAR,
    REGISTERS_LENGTH,
    VRAM_BAR,
    BochsDisplay,
)
from tvmm.devices.pci_bars import MEMORY32, Bar
from tvmm.devices.pci_config import COMMAND, COMMAND_MEMORY
from tvmm.devices.pci_function import PciFunction
from tvmm.kvm.vram import VramMemory
from tvmm.memory.ram import VRAM_BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.board import Board
    from tvmm.config.display import DisplayConfig
    from tvmm.devices.bochs_display import BochsDisplayState
    from tvmm.devices.pci_function import PciFunctionState
    from tvmm.screen import Surface
    from tvmm.wiring.devices import Devices
    from tvmm.wiring.pci_bus import PciBus

__all__ = ["Display", "make_display"]


class Display:
    """In the next free slot of `bus`, without an interrupt. Raises `ConfigError` if there is no slot."""

    def __init__(self, board: Board, bus: PciBus, config: DisplayConfig) -> None:
        self.on_mode: Callable[[], None] = lambda: None
        """Called when `surface` is another one, on any thread, under the bus lock: to wake who then looks at it."""
        self.vram = VramMemory(board.vm, board.ram, has_rings=board.rings is not None)
        self.model = BochsDisplay(config.vgamem, config.xres, config.yres, self._mode_changed)
        self._bus_lock = board.bus_lock
        self.where = bus.host.place()
        self.function = PciFunction(
            self.where,
            IDENTITY,
            bars=(
                Bar(VRAM_BAR, config.vgamem, MEMORY32, self.vram, VRAM_BLOCK, prefetchable=True),
                Bar(REGISTERS_BAR, REGISTERS_LENGTH, MEMORY32, self.model, "display"),
            ),
        )
        bus.host.plug(self.where, self.function)
        bus.add(self)
        bus.watch(self.vram, self.vram.move)
        board.ports.add(PORT, PORT_COUNT, self.model.ports, "display")

    def _mode_changed(self) -> None:
        self.on_mode()

    @property
    def surface(self) -> Surface | None:
        """What the guest shows now; None for nothing. Not under the bus lock, which is taken here."""
        with self._bus_lock:
            return self.model.surface

    def introduce(self) -> Framebuffer | None:
        """Leave it as firmware does for a kernel, showing its memory; BARs are placed. Under the bus lock.

        None if the memory could not be mapped: then there is nothing to tell the kernel.
        """
        function = self.function
        function.write(COMMAND, 2, function.config.command | COMMAND_MEMORY)
        surface, address = self.model.switch_on(), self.vram.address
        if address is None:
            return None
        return Framebuffer(address, self.model.vram_size, surface.width, surface.height, surface.stride)

    def reset(self) -> None:
        """Registers as after power-on; the function is reset with its bus. Under the bus lock."""
        self.model.reset()

    # -- saving, under the bus lock ------------------------------------------------------------------------

    def restore_function(self, state: PciFunctionState) -> None:
        """See `PciCard`."""
        self.function.restore(state)

    def restore(self, state: BochsDisplayState) -> None:
        """The registers; the memory has come before. Raises `ValueError` with the name of a bad field."""
        self.model.restore(state)
        self.vram.forget()
        self.on_mode()


def make_display(devices: Devices, board: Board, config: DisplayConfig) -> None:
    """Put it on the bus. Raises `ConfigError` if there is no room."""
    devices.display = Display(board, devices.pci(), config)
