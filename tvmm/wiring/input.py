"""The hub of a board's keyboards and pointers: virtio ones in the order of the command line, then the PS/2 ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.devices.input_hub import InputHub, KeySink, PointerSink
from tvmm.devices.ps2_sinks import Ps2Keys, Ps2Pointer

if TYPE_CHECKING:
    from tvmm.board import Board

__all__ = ["make_hub"]


def make_hub(board: Board) -> InputHub:
    """With everything that the board has."""
    keyboards: list[KeySink] = []
    pointers: list[PointerSink] = []
    with board.bus_lock:
        hub = InputHub(board.bus_lock, [*keyboards, Ps2Keys(board.keyboard)], [*pointers, Ps2Pointer(board.keyboard)])
        board.keyboard.on_leds = hub.leds_changed
        hub.leds_changed()
    return hub
