"""A console with its ports, from its options, and the lines that its ports lead to."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import trio

from tvmm.chardev.factory import open_backend
from tvmm.chardev.port import SerialHub
from tvmm.control.target import ChardevInfo
from tvmm.virtio.console import Console, ConsoleSettings
from tvmm.virtio.console_control import PortSettings
from tvmm.virtio.runner.console import ConsoleRunner
from tvmm.wiring.ring import ring_features

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AsyncExitStack

    from tvmm.chardev.port import Actions
    from tvmm.config.console import ConsoleConfig
    from tvmm.wiring.devices import Devices

__all__ = ["ConsoleDevice", "make_console"]

COLUMNS, ROWS = 80, 25
"""What a guest is told of a terminal that nobody knows the size of."""


class ConsoleDevice:
    """The host's side of one console: a hub with its backend for each port that leads somewhere."""

    def __init__(self, options: ConsoleConfig, runner: ConsoleRunner) -> None:
        self._options = options
        self._runner = runner
        self._hubs: list[SerialHub] = []
        self._paths: dict[int, str] = {}

    async def connect(self, stack: AsyncExitStack, nursery: trio.Nursery, actions: Actions) -> None:
        """Open the backends, which `stack` closes, and begin to carry bytes. Raises `UserError`."""
        for number, port in enumerate(self._options.ports):
            end = self._runner.ports[number]
            backend = await stack.enter_async_context(open_backend(port.chardev, actions))
            self._paths[number] = backend.path
            hub = SerialHub(end, backend)
            end.queued_input, end.put_back_input = hub.queued_input, hub.put_back_input
            if port.chardev.kind in ("pty", "unix", "tcp"):
                hub.watch_holders(end.set_open)
            self._hubs.append(hub)
            nursery.start_soon(hub.run, name=self._label(number))
            if port.chardev.kind == "stdio" and threading.current_thread() is threading.main_thread():
                nursery.start_soon(self._follow_terminal, name=f"{self._label(number)} size")

    def resize(self, columns: int, rows: int) -> None:
        """The window behind the consoles has another size; the guest is told."""
        self._runner.resize(columns, rows)

    async def _follow_terminal(self) -> None:
        """Tell the guest the size of tvmm's own terminal, now and whenever it changes, unless the user has chosen."""
        if self._options.cols:
            return
        with trio.open_signal_receiver(signal.SIGWINCH) as changes:
            while True:
                try:
                    self.resize(*os.get_terminal_size(sys.stdin.fileno()))
                except OSError:
                    return  # No terminal: input comes from a file or a pipe.
                await anext(changes)

    async def drain(self, at_most: float) -> None:
        """The guest writes no more: pass on what it wrote, for as long as the backends have patience."""
        for number in range(len(self._hubs)):
            self._runner.ports[number].finish()
        for hub in self._hubs:
            await hub.drain(at_most)

    def info(self) -> Sequence[ChardevInfo]:
        """The ports with what they lead to."""
        return [
            ChardevInfo(
                self._label(number),
                f"{port.chardev.kind}:{path}" if (path := self._paths.get(number)) else port.chardev.kind,
                self._runner.ports[number].guest_open,
            )
            for number, port in enumerate(self._options.ports)
        ]

    def _label(self, number: int) -> str:
        name = self._options.ports[number].name
        return f"{self._options.id}.{name or number}"


def make_console(devices: Devices, options: ConsoleConfig) -> None:
    """Put it into a slot of `devices`. Raises `UserError`."""
    settings = ConsoleSettings(
        tuple(PortSettings(port.name, port.console) for port in options.ports),
        options.max_ports,
        options.cols or COLUMNS,
        options.rows or ROWS,
    )
    model = Console(settings, lambda byte: None, ring_features(options))
    slot = devices.place(model, options)
    runner = ConsoleRunner(model, slot.ends(), options.id)
    devices.host.stack.callback(runner.close)
    slot.connect(runner)
    devices.consoles[options.id] = ConsoleDevice(options, runner)
