"""A machine and the signals of the process it runs in.

The first SIGINT, SIGTERM or SIGHUP presses the guest's power button; a second one, or the end of the grace
period, ends the machine; whoever sends a third does not want to wait for anything. A second SIGHUP counts
for nothing: when a terminal closes, the kernel and the shell may both send one.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import trio

from tvmm.cli.run import Ending
from tvmm.config.units import format_duration
from tvmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from tvmm.config.machine import MachineConfig
    from tvmm.outcome import Outcome

__all__ = ["SIGNALS", "Guest", "receive_signals", "supervise", "supervise_with"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

LISTENING = ("pty", "unix", "tcp")
"""Kinds of serial ports that somebody has to open from outside, and so must be told the name of."""


class Guest(Protocol):
    """What is asked of a machine here."""

    backend_path: str
    """What to open to reach the serial port from outside, '' for nothing."""

    async def run(self) -> Outcome:
        """Let it run until it ends."""

    async def wait(self) -> Outcome:
        """Leave it as it is until it ends."""

    def powerdown(self) -> None:
        """Press the power button. Raises `UserError` if the guest cannot see it now."""

    def keeps_another_alive(self) -> bool:
        """Whether the guest runs elsewhere and would die there with this machine."""

    def quit(self) -> None:
        """End it; `run` and `wait` return soon."""


async def supervise(
    machine: AbstractAsyncContextManager[Guest], config: MachineConfig, say: Callable[[str], None]
) -> Ending:
    """Run `machine`, made from `config`, to its end, passing on signals, of which `say` tells the user.

    A signal that comes while the machine is still being made ends it at once. To be called in the main
    thread.
    """
    with receive_signals() as received:
        return await supervise_with(machine, config, say, received)


async def supervise_with(
    machine: AbstractAsyncContextManager[Guest],
    config: MachineConfig,
    say: Callable[[str], None],
    received: AsyncIterator[int] | None,
) -> Ending:
    """The same with signals from `received`: of several machines in one process each has to hear of all."""
    watch = _Watch(config.powerdown_timeout_s, say)
    outcome: Outcome | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run, received, nursery)
        async with machine as guest:
            watch.guest = guest
            if guest.backend_path and config.serial.kind in LISTENING:
                say(f"the serial port is at {config.serial.kind}:{guest.backend_path}")
            outcome = await (guest.wait() if config.paused else guest.run())
            watch.guest = None
        nursery.cancel_scope.cancel()
    return Ending(outcome, watch.ended_by)


@contextmanager
def receive_signals() -> Iterator[AsyncIterator[int] | None]:
    """The signals as they come; those that whoever started us has ignored (``nohup``, ``&``) stay ignored."""
    wanted = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    if not wanted:
        yield None
        return
    with trio.open_signal_receiver(*wanted) as received:
        yield received


class _Watch:
    """What the signals so far have led to."""

    def __init__(self, grace_seconds: float, say: Callable[[str], None]) -> None:
        self.guest: Guest | None = None
        self.ended_by = 0
        self._grace_seconds = grace_seconds
        self._say = say
        self._asked = False

    async def run(self, received: AsyncIterator[int] | None, nursery: trio.Nursery) -> None:
        """Act on signals until cancelled."""
        if received is None:
            return
        async for number in received:
            if self.guest is None or self.ended_by:
                self.ended_by = number
                nursery.cancel_scope.cancel()
            elif not self._asked:
                self._asked = True
                self._ask(self.guest, number, nursery)
            elif number != signal.SIGHUP:
                self._end(self.guest, number)

    def _ask(self, guest: Guest, number: int, nursery: trio.Nursery) -> None:
        name = signal.Signals(number).name
        if guest.keeps_another_alive():
            self._say(
                f"{name}: the guest runs elsewhere, and part of its memory is here alone: it would die with this; "
                "a second signal ends it all the same"
            )
            return
        try:
            guest.powerdown()
        except UserError as error:
            self._say(f"{name}: {error.message}; ending the machine")
            self._end(guest, number)
            return
        self._say(
            f"{name}: asked the guest to power off, it has {format_duration(self._grace_seconds)}; "
            "a second signal ends it at once"
        )
        nursery.start_soon(self._deadline, guest, number)

    async def _deadline(self, guest: Guest, number: int) -> None:
        await trio.sleep(self._grace_seconds)
        if not self.ended_by:
            self._say(f"the guest did not power off within {format_duration(self._grace_seconds)}")
            self._end(guest, number)

    def _end(self, guest: Guest, number: int) -> None:
        self.ended_by = number
        guest.quit()
