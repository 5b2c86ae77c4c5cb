"""The tasks of a machine, by name: how they begin, and what is done before they are ended. `tvmm tasks` lists them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from tvmm.halt import watch_for_halt

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from tvmm.chardev.port import Actions
    from tvmm.control.registry import MachinePaths
    from tvmm.machine import Machine

__all__ = ["start_tasks", "wind_down"]

DRAIN_SECONDS = 1.0
"""What a reader of the serial line gets to take the rest when the machine was ended from outside."""


async def start_tasks(machine: Machine, actions: Actions, stack: AsyncExitStack, paths: MachinePaths | None) -> None:
    """All of them, in the machine's nursery. `paths` are its sockets in the runtime directory, if it has a name there.

    Raises `UserError`.
    """
    nursery = machine.nursery
    limiter = trio.CapacityLimiter(len(machine.vcpus))
    nursery.start_soon(machine.hub.run, name="serial0")
    for vcpu in machine.vcpus:
        nursery.start_soon(vcpu.run, limiter, name=f"vcpu/{vcpu.index}")
    devices = machine.board.devices
    if devices is not None:
        for name, run in devices.tasks():
            nursery.start_soon(run, name=name)
        for console in devices.consoles.values():
            await console.connect(stack, nursery, actions)
        if devices.vsock is not None:
            await devices.vsock.listen(stack, nursery)
        if devices.display is not None:
            from tvmm.wiring.screen_tasks import start_screen

            await start_screen(machine, devices.display, nursery, stack)
    if machine.config.metrics is not None:
        from tvmm.wiring.metrics_endpoint import start_metrics

        await start_metrics(machine, machine.config.metrics, nursery, stack)
    nursery.start_soon(machine.supervisor.run, name="supervisor")
    nursery.start_soon(watch_for_halt, machine, name="halt watch")
    nursery.start_soon(machine.clock.run, name="clock")
    await _start_talking(machine, paths)


async def _start_talking(machine: Machine, paths: MachinePaths | None) -> None:
    """What clients and other machines reach it by."""
    nursery, config = machine.nursery, machine.config
    if config.incoming is not None:
        machine.motion.stage = "inmigrate"
        if paths:
            from tvmm.control.machine_target import serve_machine

            # Who reads that it waits can ask it: there is no guest to be waited for.
            await nursery.start(serve_machine, machine, str(paths.control), str(paths.console), name="control")
        if config.incoming.address is not None:
            await nursery.start(machine.moves.arrive, name="migration")
    elif paths:
        nursery.start_soon(_serve_later, machine, str(paths.control), str(paths.console), name="control")
    if config.control:
        from tvmm.control.machine_target import serve_machine

        # Asked for by name: it listens, or fails, before the guest runs.
        await nursery.start(serve_machine, machine, config.control, "", name="control (by path)")


async def _serve_later(machine: Machine, control: str, console: str) -> None:
    """The sockets in the runtime directory. Their modules are imported once the guest is on its way."""
    await machine.settled.wait()
    with trio.move_on_after(machine.control_grace_s), machine.hub.follow(holding=False) as follower:
        await follower.wait(1)
    from tvmm.control.machine_target import serve_machine

    await serve_machine(machine, control, console)


async def wind_down(machine: Machine) -> None:
    """Before all of them are cancelled: no vCPU runs, and what the guest wrote last is passed on."""
    await machine.hold_for_good()
    machine.serial_end.finish()
    by_itself = machine.outcome is not None and machine.outcome.kind != "quit"
    at_most = math.inf if by_itself else DRAIN_SECONDS
    await machine.hub.drain(at_most)
    devices = machine.board.devices
    for console in devices.consoles.values() if devices is not None else ():
        await console.drain(at_most)
