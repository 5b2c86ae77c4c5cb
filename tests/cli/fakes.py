"""Machines without guests: some that the command line can find, and one to send signals to."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import trio

from tests.control.fakes import FakeMachine, serving
from tvmm.control.registry import register
from tvmm.errors import UserError
from tvmm.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType


class HeedingMachine(FakeMachine):
    """A machine whose guest powers off when its button is pressed."""

    def powerdown(self) -> None:
        super().powerdown()
        self.shut_down()
        self.ended.set()


@contextmanager
def running(base: Path, machine: FakeMachine, console: bytes = b"") -> Iterator[FakeMachine]:
    """`machine`, registered at `base` and served in a thread, until it ends or the block does.

    With `console` its console says that to each who connects, and hangs up.
    """
    ready = threading.Event()
    stop: list[Callable[[], None]] = []
    failures: list[BaseException] = []

    async def serve() -> None:
        token = trio.lowlevel.current_trio_token()
        stop.append(lambda: token.run_sync_soon(machine.ended.set))
        with register(base, machine.name) as paths:
            async with trio.open_nursery() as nursery, serving(machine, paths.control):
                if console:
                    listening = trio.socket.socket(trio.socket.AF_UNIX)
                    await listening.bind(str(paths.console))
                    listening.listen()
                    nursery.start_soon(greet, trio.SocketListener(listening))
                ready.set()
                await machine.ended.wait()
                nursery.cancel_scope.cancel()

    async def greet(listener: trio.SocketListener) -> None:
        async with listener:
            while True:
                async with await listener.accept() as stream:
                    await stream.send_all(console)

    def main() -> None:
        try:
            trio.run(serve)
        except BaseException as error:
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=main)
    thread.start()
    try:
        ready.wait()
        assert not failures, failures
        yield machine
    finally:
        with suppress(trio.RunFinishedError):
            stop[0]()
        thread.join()


class FakeGuest:
    """A machine for `supervise`: a context manager that can run, be asked to power off, and be ended."""

    def __init__(self, *, heeds: bool = False, ends: Outcome | None = None, stuck_while_made: bool = False) -> None:
        self.backend_path = ""
        self.made = trio.Event()
        self.started = trio.Event()
        self.button_presses = 0
        self.refusal = ""
        self.needed_elsewhere = False
        self.closed = False
        self._heeds = heeds
        self._stuck = stuck_while_made
        self._ended = trio.Event()
        self._outcome = ends or Outcome("quit")
        if ends is not None:
            self._ended.set()

    async def __aenter__(self) -> Self:
        self.made.set()
        if self._stuck:
            await trio.sleep_forever()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed = True

    async def run(self) -> Outcome:
        self.started.set()
        return await self.wait()

    async def wait(self) -> Outcome:
        await self._ended.wait()
        return self._outcome

    def powerdown(self) -> None:
        if self.refusal:
            raise UserError(self.refusal)
        self.button_presses += 1
        if self._heeds:
            self._outcome = Outcome("poweroff")
            self._ended.set()

    def keeps_another_alive(self) -> bool:
        return self.needed_elsewhere

    def quit(self) -> None:
        self._ended.set()
