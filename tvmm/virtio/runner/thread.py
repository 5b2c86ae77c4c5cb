"""A thread that serves queues in C, and takes orders.

One thread owns the rings of its queues: all that is done with them, starting and stopping included, is done there,
as a command that others post. Between commands the thread is in the server's C loop, without the interpreter lock, or
asleep. So a ring needs no lock, and an order that takes time (a reset with requests in flight) holds nobody up.
"""

from __future__ import annotations

import signal
from collections import deque
from typing import TYPE_CHECKING, Protocol, TypeVar

import outcome
import trio

from tvmm.kvm.serve import SERVE_CONTROL, Waker

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["QueueServer", "ServerThread"]

T = TypeVar("T")


class QueueServer(Protocol):
    """A C loop over some queues of a device. All of it is called on the server's thread."""

    def active(self) -> bool:
        """Whether there is a queue to serve."""

    def serve(self) -> int:
        """Serve until Python is needed: a `SERVE_` word of `tvmm.kvm.serve`."""

    def react(self, word: int) -> None:
        """Do what a word other than `SERVE_CONTROL` asks for."""

    def drain(self) -> None:
        """Wait until nothing is in flight at the backend, and give it back to the driver."""


class ServerThread:
    """The thread of one server. Methods other than `run` and `hold` may be called from any thread."""

    def __init__(self, name: str, waker: Waker, server: QueueServer) -> None:
        self.name = name
        self._waker = waker
        self._server = server
        self._commands: deque[Callable[[], None]] = deque()
        self._holds = 0
        self._finished = False
        self._token: trio.lowlevel.TrioToken | None = None

    async def run(self, limiter: trio.CapacityLimiter) -> None:
        """Until cancelled; then what is in flight is waited for, and the thread joined."""
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._finish_when_cancelled, name=f"{self.name} canceller")
            await trio.to_thread.run_sync(self._main, abandon_on_cancel=False, limiter=limiter)
            nursery.cancel_scope.cancel()

    async def _finish_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.post(self._finish)

    def _finish(self) -> None:
        self._finished = True

    def post(self, command: Callable[[], None]) -> None:
        """Have `command` run on the thread, after those posted before."""
        self._commands.append(command)
        self._waker.wake()

    async def call(self, command: Callable[[], T]) -> T:
        """What `command` returns or raises, run on the thread after what was posted before. Not cut short."""
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        results: list[outcome.Outcome[T]] = []

        def posted() -> None:
            results.append(outcome.capture(command))
            token.run_sync_soon(done.set)

        self.post(posted)
        with trio.CancelScope(shield=True):
            await done.wait()
        return results[0].unwrap()

    def suspend(self) -> None:
        """As `hold`, without waiting for it."""
        self.post(self._hold)

    def _hold(self) -> None:
        self._holds += 1
        self._server.drain()

    async def hold(self) -> None:
        """Return when the thread is out of its loop with nothing in flight; `release` undoes it."""
        held = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def command() -> None:
            self._hold()
            token.run_sync_soon(held.set)

        self.post(command)
        try:
            await held.wait()
        except trio.Cancelled:
            self.release()
            raise

    def release(self) -> None:
        """Undo one `hold`."""

        def command() -> None:
            self._holds -= 1

        self.post(command)

    def _main(self) -> None:
        # The process's signals are the main thread's affair.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGBUS})
        server = self._server
        while True:
            self._waker.clear()
            while self._commands:
                self._commands.popleft()()
            if self._finished:
                server.drain()
                return
            if self._holds or not server.active():
                self._waker.wait()
                continue
            word = server.serve()
            if word != SERVE_CONTROL:
                server.react(word)
