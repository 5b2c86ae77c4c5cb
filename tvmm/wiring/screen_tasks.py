"""The tasks of a machine around its screen: the canvas, and the server for viewers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tvmm.wiring.screen import Screen

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from tvmm.machine import Machine
    from tvmm.wiring.display import Display

__all__ = ["start_screen"]


async def start_screen(machine: Machine, display: Display, nursery: trio.Nursery, stack: AsyncExitStack) -> None:
    """Give `machine` its screen and, with ``--vnc``, its viewers. Raises `UserError`."""
    vnc = machine.config.vnc
    screen = Screen(display, vnc.size) if vnc is not None and vnc.size is not None else Screen(display)
    machine.screen = screen
    token = machine.token

    def mode_changed() -> None:
        surface = display.surface
        if surface is not None:
            # A mouse is moved by pixels.
            machine.board.input.screen = surface.width, surface.height
        screen.mode_changed()

    display.on_mode = lambda: token.run_sync_soon(mode_changed, idempotent=True)
    mode_changed()
    nursery.start_soon(screen.run, name="screen")
    if vnc is not None and vnc.address.kind != "none":
        from tvmm.wiring.viewers import serve_viewers

        machine.viewers = await stack.enter_async_context(serve_viewers(machine, screen, vnc, nursery))
