"""A forked process with some clones: signals and the end of its parent reach each of their machines."""

from __future__ import annotations

import copy
import os
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from tvmm.cli import error_status
from tvmm.cli.run import exit_status, farewell
from tvmm.cli.session import receive_signals, supervise_with
from tvmm.clones.family import STATUS_BUG
from tvmm.devices.generation_id import format_guid
from tvmm.errors import TvmmError, collapse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from tvmm.clones.member import Member
    from tvmm.config.machine import MachineConfig
    from tvmm.machine import Machine
    from tvmm.outcome import Outcome
    from tvmm.wiring.restoring import Restoring

__all__ = ["be_clones"]

SIGNALS_MAX = 16
"""That wait to be heard; the third ends everything."""


def be_clones(restoring: Restoring, configs: Sequence[MachineConfig], members: Sequence[Member]) -> int:
    """Their machines, to their ends; `configs` are those of all clones."""
    trio.run(_all, restoring, configs, members)
    return 0


async def _all(restoring: Restoring, configs: Sequence[MachineConfig], members: Sequence[Member]) -> None:
    orphaned = trio.Event()
    tellers: list[trio.MemorySendChannel[int]] = []
    with receive_signals() as received:
        async with trio.open_nursery() as beside:
            beside.start_soon(members[0].watch_parent, orphaned.set)
            async with trio.open_nursery() as clones:
                for member in members:
                    own = copy.copy(restoring)
                    own.config, own.say = configs[member.number - 1], member.say
                    tell, signals = trio.open_memory_channel[int](SIGNALS_MAX)
                    tellers.append(tell)
                    watched = _Watched(own.machine(), member, orphaned)
                    clones.start_soon(_one, member, watched, own.config, None if received is None else signals)
                if received is not None:
                    beside.start_soon(_pass_on, received, tellers)
            beside.cancel_scope.cancel()


async def _pass_on(received: AsyncIterator[int], tellers: Sequence[trio.MemorySendChannel[int]]) -> None:
    async for number in received:
        for teller in tellers:
            with suppress(trio.WouldBlock):  # of a machine that is gone
                teller.send_nowait(number)


async def _one(
    member: Member, machine: _Watched, config: MachineConfig, signals: AsyncIterator[int] | None
) -> None:
    """One machine; whatever becomes of it is no reason to disturb those beside it."""
    status = STATUS_BUG
    try:
        with collapse():
            # What signals lead to is the parent's to tell: they came to it, and go to all.
            ending = await supervise_with(machine, config, _nothing, signals)
        if not ending.signal or (ending.outcome is not None and ending.outcome.kind != "quit"):
            for line in farewell(ending):
                member.say(line)
        status = exit_status(ending)
    except TvmmError as error:
        member.error(str(error))
        status = error_status(error)
    except Exception:
        traceback.print_exc()
    member.ended(status)


def _nothing(text: str) -> None:
    """Nobody is told."""


class _Watched:
    """A machine that tells its parent when it runs, and that ends with it."""

    backend_path = ""
    """The parent tells of all of them at once."""

    def __init__(self, inner: AbstractAsyncContextManager[Machine], member: Member, orphaned: trio.Event) -> None:
        self._inner = inner
        self._member = member
        self._orphaned = orphaned
        self._machine: Machine

    async def __aenter__(self) -> _Watched:
        self._machine = await self._inner.__aenter__()
        # The modules for it are imported, so the guest does not have to come first.
        self._machine.control_grace_s = 0
        self.powerdown: Callable[[], None] = self._machine.powerdown
        self.keeps_another_alive: Callable[[], bool] = self._machine.keeps_another_alive
        self.quit: Callable[[], None] = self._machine.quit
        self._machine.start_task(self._watch, "parent")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._inner.__aexit__(kind, error, trace)

    async def _watch(self) -> None:
        await self._orphaned.wait()
        self._machine.quit()

    async def run(self) -> Outcome:
        """See `Guest`."""
        await self._machine.resume()
        self._machine.start_task(self._tell, "news")
        return await self._machine.wait()

    async def wait(self) -> Outcome:
        """See `Guest`."""
        self._machine.start_task(self._tell, "news")
        return await self._machine.wait()

    async def _tell(self) -> None:
        """Ready is who can be asked."""
        machine = self._machine
        await machine.control_ready.wait()
        directory = os.path.join(machine.config.runtime_dir, machine.name)
        self._member.ready(
            pid=str(os.getpid()),
            serial=f"{machine.config.serial.kind}:{machine.backend_path}" if machine.backend_path else "",
            control=os.path.join(directory, "control.sock"),
            console=os.path.join(directory, "console.sock"),
            guid=format_guid(machine.board.generation.guid),
        )


