"""Network devices on a stream: connected when the machine is made, and brought back while it runs.

A connection that is lost takes the link down. One to a path is made again when somebody listens there; a passt that
has ended, or has lost count of its frames, is started again. Then the link is as it was wanted, and the guest says
where it is.
"""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import trio

from tvmm.errors import UserError
from tvmm.net.stream import StreamWire, connect_stream, inherited_stream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from contextlib import ExitStack

    from tvmm.config.net import NetConfig
    from tvmm.net.passt import Passt
    from tvmm.virtio.runner.net import NetRunner

__all__ = ["Keeper", "open_stream"]

FIRST_DELAY_S, LAST_DELAY_S = 0.1, 10.0
LASTING_S = 30.0
"""Who lived this long is started again at once, and not after ever longer times."""
LOOK_S, DYING_S = 0.02, 1.0
PATIENCE_S = 5.0
"""For a passt that does not answer; it may serve all the same."""


class Keeper(ABC):
    """Looks after the connection of one device. `wire` is its wire; `adopt` gives it the rest."""

    def __init__(self, wire: StreamWire, config: NetConfig) -> None:
        self.wire = wire
        self.config = config
        self._lost = trio.Event()
        self._reason = ""
        self._token: trio.lowlevel.TrioToken | None = None
        self._runner: NetRunner
        self._warn: Callable[[str], None]
        self._announce: Callable[[], None]

    def adopt(self, runner: NetRunner, warn: Callable[[str], None], announce: Callable[[], None]) -> None:
        """The device's runner, what tells the user, and what tells the network where the guest is."""
        self._runner, self._warn, self._announce = runner, warn, announce
        runner.beside[f"{self.config.id} connection"] = self.run
        if self._reason:
            runner.wire.fail(self._reason)

    def lost(self, reason: str) -> None:
        """From any thread: the device can use the connection no more."""
        self._reason = reason
        if self._token is not None:
            self._token.run_sync_soon(self._lost.set)

    @abstractmethod
    async def useless(self) -> str:
        """Return, with the reason, when the connection has to be replaced."""

    @abstractmethod
    async def renew(self) -> socket.socket:
        """A new connection. Raises `UserError`."""

    def advice(self) -> str:
        """What the user should know from the start, or ''."""
        return ""

    def replaced(self) -> None:  # noqa: B027  # most have nothing to do
        """The device has the new connection, and nobody the old one."""

    async def run(self) -> None:
        """Until cancelled."""
        self._token = trio.lowlevel.current_trio_token()
        if advice := self.advice():
            self._tell(advice)
        if self._reason:
            self._lost.set()
        delay = FIRST_DELAY_S
        while True:
            since = trio.current_time()
            reason = await self.useless()
            self._runner.wire.fail(reason)
            self._tell(f"{reason}; its link is down")
            if trio.current_time() - since > LASTING_S:
                delay = FIRST_DELAY_S
            delay = await self._bring_back(delay)
            self._tell("connected again; its link is up" if self._runner.info().link_up else "connected again")
            self._announce()

    async def _bring_back(self, delay: float) -> float:
        """Return when the device has a new connection: how long to wait the next time."""
        said = ""
        while True:
            await trio.sleep(delay)
            delay = min(2 * delay, LAST_DELAY_S)
            try:
                connection = await self.renew()
                break
            except UserError as error:
                if str(error) != said:
                    self._tell(f"{error}; trying again")
                said = str(error)
        swapped = trio.Event()
        token = trio.lowlevel.current_trio_token()
        # What the old one had to complain about is over; what comes from here on is about the new one.
        self._lost, self._reason = trio.Event(), ""
        self._runner.reconnect(self.wire.offer(connection), lambda: token.run_sync_soon(swapped.set))
        await swapped.wait()
        self.wire.swap()
        self.replaced()
        return delay

    def _tell(self, what: str) -> None:
        self._warn(f"{self.config.id}: {what}")


class PathKeeper(Keeper):
    """Of a connection to a unix socket's path."""

    async def useless(self) -> str:
        """When the device says so."""
        await self._lost.wait()
        return self._reason

    async def renew(self) -> socket.socket:
        """As soon as somebody listens there."""
        return await trio.to_thread.run_sync(connect_stream, self.config.path)


class PasstKeeper(Keeper):
    """Of a child process: `start` makes one."""

    def __init__(self, wire: StreamWire, config: NetConfig, start: Callable[[], Passt], first: Passt | None) -> None:
        super().__init__(wire, config)
        self._start = start
        self._passt = first
        self._next: Passt | None = None

    def close(self) -> None:
        """It has ended when this returns."""
        for passt in (self._passt, self._next):
            if passt is not None:
                passt.close()

    def advice(self) -> str:
        """Pings take more than passt can tell."""
        from tvmm.net.passt import ping_advice

        return ping_advice() if self.config.ipv4 else ""

    async def useless(self) -> str:
        """When the process has ended, or the device cannot make sense of it."""
        passt = self._passt
        if passt is None:
            return self._reason
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, passt)
            nursery.start_soon(self._wait_end, passt)
            await self._lost.wait()
            # One that ended has closed its end a moment before.
            with trio.move_on_after(DYING_S):
                while passt.status is None:
                    await trio.sleep(LOOK_S)
            nursery.cancel_scope.cancel()
        status = passt.status
        if status is None:
            return f"passt is of no use any more: {self._reason}"
        if status < 0:
            return f"passt was ended by {signal.Signals(-status).name}"
        if status:
            return str(passt.why_it_ended())
        return "passt has ended"

    async def _wait_end(self, passt: Passt) -> None:
        """Until it has; the device need not have noticed."""
        try:
            process = os.pidfd_open(passt.pid)
        except ProcessLookupError:  # it is gone, and was waited for
            self._lost.set()
            return
        try:
            await trio.lowlevel.wait_readable(process)
            self._lost.set()
        finally:
            os.close(process)

    async def _listen(self, passt: Passt) -> None:
        """What it says, to the user."""
        while True:
            await trio.lowlevel.wait_readable(passt.stderr)
            for line in passt.hear():
                self._tell(f"passt: {line}")
            await trio.sleep(LOOK_S)

    async def renew(self) -> socket.socket:
        """A new one that answers, or has had its time to."""
        if self._passt is not None:
            # Its ports have to be free.
            self._passt.hang_up()
            await trio.to_thread.run_sync(self._passt.end)
        passt = self._start()
        try:
            with trio.move_on_after(PATIENCE_S):
                while not passt.is_ready():
                    await trio.sleep(LOOK_S)
        except BaseException:
            passt.close()
            raise
        self._next = passt
        return passt.connection

    def replaced(self) -> None:
        """The old one is gone for good."""
        if self._passt is not None:
            self._passt.close()
        self._passt, self._next = self._next, None


def open_stream(config: NetConfig, mac: bytes, stack: ExitStack, *, may_wait: bool) -> tuple[StreamWire, Keeper | None]:
    """The wire that `config` asks for, and who brings it back, if that can be done. What is acquired goes with `stack`.

    `may_wait`: what cannot be had now is for the keeper to get. Raises `UserError`.
    """
    if config.type == "user":
        return _open_passt(config, mac, stack, may_wait=may_wait)
    if config.fd is not None:
        wire = StreamWire(f"socket {config.fd}", inherited_stream(config.fd))
        stack.callback(wire.close)
        return wire, None
    wire = StreamWire(config.path, connect_stream(config.path))
    stack.callback(wire.close)
    return wire, PathKeeper(wire, config)


def _open_passt(
    config: NetConfig, mac: bytes, stack: ExitStack, *, may_wait: bool
) -> tuple[StreamWire, Keeper | None]:
    from tvmm.net.passt import Passt, find_passt
    from tvmm.net.stream import closed_stream

    program = find_passt()

    def start() -> Passt:
        return Passt(program, config, mac)

    passt, why = start(), ""
    try:
        passt.wait_ready()
    except UserError as error:
        passt.close()
        if not may_wait:
            raise
        why = str(error)
    except BaseException:
        passt.close()
        raise
    wire = StreamWire("passt", closed_stream() if why else passt.connection)
    keeper = PasstKeeper(wire, config, start, None if why else passt)
    stack.callback(keeper.close)
    stack.callback(wire.close)
    if why:
        keeper.lost(why)
    return wire, keeper
