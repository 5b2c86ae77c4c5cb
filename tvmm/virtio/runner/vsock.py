"""Serves a socket device: one thread for its queues and for the sockets of all its connections.

Packets and connections are C's (`tvmm.kvm.vsock`). Somebody else listens for programs on the host, and gives each to
`connect`. Connections do not move with a guest: they end, and the guest hears of it by the event queue (5.10.6.7).
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from tvmm.errors import HostError
from tvmm.kvm.serve import CALL_PYTHON, SERVE_BROKEN, SERVE_INTERRUPT
from tvmm.kvm.vring import Vring
from tvmm.kvm.vsock import VsockCounters, VsockEngine
from tvmm.records import check_bits, check_flag, check_record
from tvmm.virtio.runner.base import QueueRun, check_runs, ring_config
from tvmm.virtio.runner.thread import ServerThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.kvm.vring_records import VringConfig
    from tvmm.virtio.device import Activation, QueueSetup
    from tvmm.virtio.runner.base import Ends
    from tvmm.virtio.vsock import SocketDevice

__all__ = ["VsockInfo", "VsockRun", "VsockRunner"]

BAD_BUFFER = "a receive buffer is readable, or has no room for a packet with data"


class VsockInfo(NamedTuple):
    """A device for `tvmm info`."""

    guest_cid: int
    connections: int
    counters: VsockCounters


class VsockRun(NamedTuple):
    """What is saved. `given_up`: a bit for each queue whose driver broke the rules, and was told.

    `had_driver`: the guest may have had connections, and is to hear that they are gone.
    """

    queues: tuple[QueueRun, ...]
    given_up: int = 0
    had_driver: bool = False


class VsockRunner:
    """The runner of a `SocketDevice`: the guest's connections to port N go to the unix socket ``path_N``.

    Raises `UserError`, see `VsockEngine`.
    """

    def __init__(self, name: str, model: SocketDevice, ends: Ends, *, path: str, poll_ns: int) -> None:
        self._model = model
        self._ends = ends
        self.rings = [Vring(ends.memory) for _ in model.queue_sizes]
        self._calls = [CALL_PYTHON] * len(self.rings)
        self._features = 0
        self._handed_over: set[int] = set()
        """Descriptors of clients that the thread has not looked at yet."""
        self._engine = VsockEngine(model.settings.guest_cid, path, poll_ns)
        self._thread = ServerThread(name, self._engine.waker, self)
        self.active, self.serve, self.drain = self._engine.active, self._engine.serve, self._engine.drain

    # -- life, under the bus lock ----------------------------------------------------------------------------

    def activate(self, activation: Activation) -> None:
        """Serve what is ready."""
        self._features = activation.features
        for setup in activation.queues:
            if setup.ready:
                self.start_queue(setup)

    def reset(self, done: Callable[[], None]) -> None:
        """All connections end with the driver that had them."""

        def let_go() -> None:
            for index in range(len(self.rings)):
                self._stop(index)
            self._engine.close_all()
            self._engine.reset_due = False
            with self._ends.bus_lock:
                done()

        self._thread.post(let_go)

    def start_queue(self, setup: QueueSetup) -> None:
        """Serve this one too."""
        config = ring_config(setup, self._features)
        self._thread.post(lambda: self._start(setup.queue, config))

    def stop_queue(self, index: int, done: Callable[[], None]) -> None:
        """The others go on, and connections stay."""

        def let_go() -> None:
            self._stop(index)
            with self._ends.bus_lock:
                done()

        self._thread.post(let_go)

    def notify(self, index: int) -> None:
        """As if it had come by the eventfd."""
        os.eventfd_write(self._ends.kick_fds[index], 1)

    def set_call(self, index: int, fd: int) -> None:
        """Remembered for later too: vectors are chosen before the device is live."""
        self._calls[index] = fd
        self._engine.set_call(index, fd)

    # -- the host's side, from any thread ----------------------------------------------------------------------

    def connect(self, fd: int, port: int) -> None:
        """Connect `fd`, which is not blocking and is this runner's from now on, with the guest's `port`.

        The program at its other end gets ``OK NUMBER`` and a newline when the guest has taken the connection. If there
        is no driver, or the guest refuses, it is closed.
        """

        def call() -> None:
            self._handed_over.discard(fd)
            if not self._engine.active() or not self._engine.call(fd, port):
                os.close(fd)

        self._handed_over.add(fd)
        self._thread.post(call)

    def close_connections(self) -> None:
        """The guest has moved: programs on this host are told at once."""
        self._thread.post(self._engine.close_all)

    def info(self) -> VsockInfo:
        """As it is."""
        return VsockInfo(self._model.settings.guest_cid, self._engine.connections, self._engine.counters)

    # -- tasks -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The thread, until cancelled."""
        await self._thread.run(trio.CapacityLimiter(1))

    def suspend(self) -> None:
        """As `hold`, without waiting."""
        self._thread.suspend()

    async def hold(self) -> None:
        """Connections stay; what the host's programs send meanwhile waits in their sockets."""
        await self._thread.hold()

    def release(self) -> None:
        """Go on after `hold`."""
        self._thread.release()

    def close(self) -> None:
        """The thread has ended."""
        for fd in self._handed_over:
            os.close(fd)
        self._engine.close()

    # -- saving, held ------------------------------------------------------------------------------------------

    def save(self) -> VsockRun:
        """See `Runner`."""
        engine = self._engine
        runs = tuple(QueueRun(ring.state(), engine.ring(index) is not None) for index, ring in enumerate(self.rings))
        return VsockRun(runs, engine.stopped, engine.active())

    async def restore(self, activation: Activation, state: VsockRun) -> None:
        """See `Runner`."""
        check_record(state, VsockRun)
        runs = check_runs(state.queues, activation)
        check_bits("given_up", state.given_up, sum(1 << index for index, run in enumerate(runs) if run.served))
        had_driver = check_flag("had_driver", state.had_driver)
        if had_driver != any(run.served for run in runs):
            raise ValueError("had_driver is not what the queues say")
        if any(run.ring.in_flight for run in runs):
            raise ValueError("queues: in_flight is not empty")
        self._features = activation.features
        for index, run in enumerate(runs):
            await self._thread.call(partial(self._go_on, index, run))
        await self._thread.call(partial(self._settle, state))

    def _go_on(self, index: int, run: QueueRun) -> None:
        try:
            self.rings[index].restore(run.ring)
        except ValueError as error:
            raise ValueError(f"queues: ring {index}: {error}") from None
        if run.served:
            self._engine.start(index, self.rings[index], self._ends.kick_fds[index], self._calls[index])

    def _settle(self, state: VsockRun) -> None:
        self._engine.close_all()
        self._engine.stopped = state.given_up
        self._engine.reset_due = state.had_driver

    def arrived(self) -> None:
        """The event queue says it."""

    # -- on the server's thread ----------------------------------------------------------------------------------

    def _start(self, index: int, config: VringConfig) -> None:
        self._stop(index)
        ring = self.rings[index]
        try:
            wrong = ring.error_sentence if ring.configure(config) else ""
            if not wrong:
                self._engine.start(index, ring, self._ends.kick_fds[index], self._calls[index])
        except HostError as error:
            wrong = str(error)
        if wrong:
            self._give_up(index, wrong)

    def _stop(self, index: int) -> None:
        if self._engine.ring(index) is not None:
            self._engine.stop(index)
            self.rings[index].reset()

    def react(self, word: int) -> None:
        """Interrupts, and rings that stop."""
        index = self._engine.queue
        if word == SERVE_INTERRUPT:
            with self._ends.bus_lock:
                self._ends.used(index)
        elif word == SERVE_BROKEN:
            self._give_up(index, self.rings[index].error_sentence or BAD_BUFFER)

    def _give_up(self, index: int, reason: str) -> None:
        with self._ends.bus_lock:
            self._ends.needs_reset(f"queue {index}: {reason}")
