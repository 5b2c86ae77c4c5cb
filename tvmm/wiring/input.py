"""Virtio keyboards and tablets from their options, and the hub of all of a board's keyboards and pointers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.devices.input_hub import InputHub, KeySink, PointerSink
from tvmm.devices.ps2_sinks import Ps2Keys, Ps2Pointer
from tvmm.virtio.input import Input, InputSettings
from tvmm.virtio.runner.input import InputRunner
from tvmm.wiring.ring import ring_features

if TYPE_CHECKING:
    from collections.abc import Collection

    from tvmm.board import Board
    from tvmm.config.input import InputConfig
    from tvmm.wiring.devices import Devices

__all__ = ["VirtioSink", "make_hub", "make_input"]


def make_input(devices: Devices, options: InputConfig) -> None:
    """Put it into a slot of `devices`. Raises `UserError`."""
    model = Input(InputSettings(options.kind, options.serial), ring_features(options))
    slot = devices.place(model, options)
    runner = InputRunner(model, slot.ends(), options.id)
    devices.host.stack.callback(runner.close)
    slot.connect(runner)
    devices.inputs[options.id] = runner


class VirtioSink:
    """A virtio keyboard or tablet as a sink of an `InputHub`. Called under the bus lock."""

    def __init__(self, runner: InputRunner) -> None:
        self.name = runner.name
        self._runner = runner
        self._model = runner.model
        self.absolute = self._model.absolute
        self.press = self._model.press
        self.move = self._model.move
        self.wheel = self._model.wheel

    @property
    def ready(self) -> bool:
        """Whether the guest has a driver for it."""
        return self._runner.ready

    @property
    def leds(self) -> int:
        """As the guest has set them."""
        return self._model.leds

    def held(self) -> Collection[int]:
        """See `Sink`."""
        return self._model.held()

    def sync(self) -> None:
        """The group goes out at once if there are buffers."""
        self._model.sync()
        self._runner.deliver()


def make_hub(board: Board) -> InputHub:
    """With everything that the board has: virtio devices in the order of the command line, then those of PS/2."""
    runners = list(board.devices.inputs.values()) if board.devices is not None else []
    keyboards: list[KeySink] = [VirtioSink(runner) for runner in runners if not runner.model.absolute]
    pointers: list[PointerSink] = [VirtioSink(runner) for runner in runners if runner.model.absolute]
    with board.bus_lock:
        hub = InputHub(board.bus_lock, [*keyboards, Ps2Keys(board.keyboard)], [*pointers, Ps2Pointer(board.keyboard)])
        board.keyboard.on_leds = hub.leds_changed
        for runner in runners:
            runner.on_ready = runner.model.on_leds = hub.leds_changed
        hub.leds_changed()
    return hub
