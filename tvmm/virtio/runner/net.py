"""Serves a network device: one thread for each pair of queues, between the rings and a TAP or a stream socket.

Frames are C's (`tvmm.kvm.net`). Pair 0's thread has the control queue too, and does what concerns the whole device:
what the host needs time for (attaching queues, offloads, see `PluggedWire`) is done there, without the bus lock.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from tvmm.config.limits import NO_LIMITS
from tvmm.errors import HostError
from tvmm.kvm.limit import Limiter
from tvmm.kvm.net import CONTROL, RX, TX, NetCounters, NetPair, SpinCounters
from tvmm.kvm.serve import CALL_PYTHON, SERVE_BROKEN, SERVE_CHAIN, SERVE_FAILED, SERVE_INTERRUPT
from tvmm.kvm.vring import Vring
from tvmm.records import check_bits, check_flag, check_record
from tvmm.virtio.features import Net as Feature
from tvmm.virtio.net import Net
from tvmm.virtio.runner.base import QueueRun, check_runs, hold_all, ring_config
from tvmm.virtio.runner.net_orders import Orders, wishes_of
from tvmm.virtio.runner.thread import ServerThread
from tvmm.virtio.runner.wire import PluggedWire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tvmm.config.limits import Limits
    from tvmm.kvm.vring_records import VringConfig
    from tvmm.metrics.histogram import Times
    from tvmm.virtio.device import Activation, QueueSetup
    from tvmm.virtio.runner.base import Ends
    from tvmm.virtio.runner.wire import Wire

__all__ = ["NetInfo", "NetRun", "NetRunner"]

BAD_BUFFER = "a receive buffer is readable, or has no room for a header"


class NetInfo(NamedTuple):
    """A device for `tvmm info`. `pairs` are in use; `counters` and `spins` have an entry for each pair there is.

    `failure`: why the wire is of no use any more, or ''.
    """

    wire: str
    mac: bytes
    link_up: bool
    pairs: int
    features: int
    offloads: int
    failure: str
    counters: tuple[NetCounters, ...]
    spins: tuple[SpinCounters, ...]


class NetRun(NamedTuple):
    """What is saved. `given_up`: a bit for each queue whose driver broke the rules, and was told.

    A frame that waits for room in the driver's buffers is not: frames may be lost. `lost`: the cable is in, and looks
    as if it were out because the wire was of no use.
    """

    queues: tuple[QueueRun, ...]
    given_up: int = 0
    lost: bool = False


class PairServer:
    """What a `ServerThread` runs for one pair. `indices`: the device's number of each queue that is served."""

    def __init__(self, runner: NetRunner, pair: NetPair) -> None:
        self.pair = pair
        self.indices: dict[int, int] = {}
        self._runner = runner
        self.active = pair.active
        self.serve = pair.serve
        self.drain = pair.drain

    def react(self, word: int) -> None:
        """Interrupts, commands, and what breaks."""
        pair, runner = self.pair, self._runner
        local = pair.queue
        if word == SERVE_INTERRUPT:
            runner.interrupt(self.indices[local])
        elif word == SERVE_CHAIN:
            runner.obey(self)
        elif word == SERVE_BROKEN:
            ring = pair.ring(local)
            assert ring is not None
            runner.give_up(self.indices[local], ring.error_sentence or BAD_BUFFER)
        elif word == SERVE_FAILED:
            runner.wire.fail(pair.failure)


class NetRunner:
    """The runner of a `Net` on a `Wire`, which stays its opener's to close.

    `on_failed(reason)` is called on a server's thread and without the bus lock when the wire is gone; the link is down
    then. Once, or once more after each `reconnect`. `beside` are tasks that look after the wire, by name.
    """

    def __init__(
        self, name: str, model: Net, wire: Wire, ends: Ends, *, poll_ns: int, on_failed: Callable[[str], None]
    ) -> None:
        self._model = model
        self._ends = ends
        self.beside: dict[str, Callable[[], Awaitable[None]]] = {}
        self.rings = [Vring(ends.memory) for _ in model.queue_sizes]
        self._calls = [CALL_PYTHON] * len(self.rings)
        self._features = 0
        self._places: dict[int, tuple[int, int]] = {}
        self._pairs = [NetPair(fd, poll_ns, stream=wire.is_stream) for fd in wire.fds[: model.settings.pairs]]
        self.wire = PluggedWire(wire, self._pairs, model, ends.bus_lock, on_failed)
        self._orders = Orders(model, ends.bus_lock, self.wire.fulfil)
        self._servers = [PairServer(self, pair) for pair in self._pairs]
        self._threads = [
            ServerThread(f"{name}/{number}", server.pair.waker, server) for number, server in enumerate(self._servers)
        ]
        self._limiter = Limiter()
        self.set_limits(NO_LIMITS)
        if not model.link_up:
            self._threads[0].post(lambda: self.wire.show_carrier(False))

    # -- life, under the bus lock ----------------------------------------------------------------------------

    def activate(self, activation: Activation) -> None:
        """Serve what is ready; pairs that the driver has not asked for yet have no frames."""
        self._assign(activation.features)
        wishes = wishes_of(self._model)
        self._threads[0].post(lambda: self.wire.begin(wishes))
        for setup in activation.queues:
            if setup.ready:
                self.start_queue(setup)

    def _assign(self, features: int) -> None:
        """Which pair serves which queue."""
        model = self._model
        self._features = features
        self._places = {index: divmod(index, 2) for index in range(2 * model.usable_pairs)}
        if model.control_queue is not None:
            self._places[model.control_queue] = (0, CONTROL)

    def reset(self, done: Callable[[], None]) -> None:
        """One thread after the other lets go; `done` comes from pair 0's."""
        self._places = {}

        def let_go(number: int) -> None:
            server = self._servers[number]
            for local in list(server.indices):
                self._stop(server, local)
            if number:
                self._threads[number - 1].post(lambda: let_go(number - 1))
                return
            self.wire.end()
            with self._ends.bus_lock:
                done()

        self._threads[-1].post(lambda: let_go(len(self._threads) - 1))

    def start_queue(self, setup: QueueSetup) -> None:
        """A queue that the negotiated features do not have is never looked at."""
        place = self._places.get(setup.queue)
        if place is not None:
            number, local = place
            config = ring_config(setup, self._features)
            self._threads[number].post(lambda: self._start(self._servers[number], local, setup.queue, config))

    def stop_queue(self, index: int, done: Callable[[], None]) -> None:
        """The others go on."""
        number, local = self._places.get(index, (0, None))

        def let_go() -> None:
            if local is not None:
                self._stop(self._servers[number], local)
            with self._ends.bus_lock:
                done()

        self._threads[number].post(let_go)

    def notify(self, index: int) -> None:
        """As if it had come by the eventfd."""
        os.eventfd_write(self._ends.kick_fds[index], 1)

    def set_call(self, index: int, fd: int) -> None:
        """Remembered for later too: vectors are chosen before the device is live."""
        self._calls[index] = fd
        place = self._places.get(index)
        if place is not None:
            self._pairs[place[0]].set_call(place[1], fd)

    def set_link(self, up: bool) -> None:
        """Plug the cable in or out. A wire that is gone has none to plug in."""
        shown = self.wire.plug(up)
        self._threads[0].post(lambda: self.wire.show_carrier(shown))

    def set_limits(self, limits: Limits) -> None:
        """For all frames from now on."""
        self.limits = limits
        on = self._limiter.set(limits.rates, limits.size)
        for pair in self._pairs:
            pair.set_limit(self._limiter, on=on)

    @property
    def limit_waits(self) -> int:
        """How often a queue has had to wait for the limits."""
        return sum(self._limiter.waits)

    def announce(self) -> bool:
        """Have the guest tell the network where it is now; False if it cannot."""
        return self._model.ask_to_announce()

    def inject(self, frame: bytes) -> None:
        """Have the wire carry a frame as if the driver had sent it. One that it does not take is lost."""
        self._pairs[0].inject(frame)

    def turns(self) -> tuple[tuple[Times, Times], ...]:
        """How long turns took that moved frames: for each pair those that received, and those that sent."""
        return tuple(pair.turns for pair in self._pairs)

    def info(self) -> NetInfo:
        """As it is."""
        model = self._model
        return NetInfo(
            self.wire.name,
            model.mac,
            model.link_up,
            model.pairs,
            model.accepted,
            model.offloads,
            self.wire.failure,
            tuple(pair.counters for pair in self._pairs),
            tuple(pair.spin for pair in self._pairs),
        )

    # -- tasks -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """A thread for each pair, until cancelled."""
        limiter = trio.CapacityLimiter(len(self._threads))
        async with trio.open_nursery() as nursery:
            for thread in self._threads:
                nursery.start_soon(thread.run, limiter, name=thread.name)
            for name, task in self.beside.items():
                nursery.start_soon(task, name=name)

    def suspend(self) -> None:
        """As `hold`, without waiting."""
        for thread in self._threads:
            thread.suspend()

    async def hold(self) -> None:
        """Frames that come meanwhile wait in the host's queue."""
        await hold_all(self._threads)

    def release(self) -> None:
        """Go on after `hold`."""
        for thread in self._threads:
            thread.release()

    def close(self) -> None:
        """The threads have ended; the wire is not ours."""
        for pair in self._pairs:
            pair.close()

    # -- saving, held ----------------------------------------------------------------------------------------

    def save(self) -> NetRun:
        """See `Runner`."""
        served = {index for server in self._servers for index in server.indices.values()}
        given_up = sum(
            1 << index
            for server in self._servers
            for local, index in server.indices.items()
            if server.pair.raw.stopped >> local & 1
        )
        return NetRun(
            tuple(QueueRun(ring.state(), index in served) for index, ring in enumerate(self.rings)),
            given_up,
            self.wire.lost,
        )

    async def restore(self, activation: Activation, state: NetRun) -> None:
        """See `Runner`. The wire is set up as the driver wants it, which takes the host some time."""
        check_record(state, NetRun)
        runs = check_runs(state.queues, activation)
        check_flag("lost", state.lost)
        check_bits("given_up", state.given_up, sum(1 << index for index, run in enumerate(runs) if run.served))
        with self._ends.bus_lock:
            self._assign(activation.features)
            up = self.wire.restore(state.lost)
            wishes = wishes_of(self._model)
        if any(run.served and (index not in self._places or run.ring.in_flight) for index, run in enumerate(runs)):
            raise ValueError("queues: in_flight is not empty, or a queue is served that the driver does not have")
        await self._threads[0].call(lambda: self.wire.set_up(wishes if activation.features else None, up))
        for index, run in enumerate(runs):
            number = self._places.get(index, (0, 0))[0]
            given_up = bool(state.given_up >> index & 1)
            await self._threads[number].call(partial(self._go_on, index, run, given_up))

    def _go_on(self, index: int, run: QueueRun, given_up: bool) -> None:
        try:
            self.rings[index].restore(run.ring)
        except ValueError as error:
            raise ValueError(f"queues: ring {index}: {error}") from None
        if not run.served:
            return
        number, local = self._places[index]
        server = self._servers[number]
        if local == RX:
            server.pair.set_mergeable(bool(self._features & Feature.MRG_RXBUF))
        server.indices[local] = index
        with self._ends.bus_lock:
            server.pair.start(local, self.rings[index], self._ends.kick_fds[index], self._calls[index])
        if given_up:
            server.pair.raw.stopped |= 1 << local

    def arrived(self) -> None:
        """Nothing to tell."""

    # -- on the servers' threads ---------------------------------------------------------------------------------

    def _start(self, server: PairServer, local: int, index: int, config: VringConfig) -> None:
        self._stop(server, local)
        ring = self.rings[index]
        try:
            wrong = ring.error_sentence if ring.configure(config) else ""
        except HostError as error:
            wrong = str(error)
        if wrong:
            self.give_up(index, wrong)
            return
        if local == RX:
            server.pair.set_mergeable(bool(self._features & Feature.MRG_RXBUF))
        server.indices[local] = index
        with self._ends.bus_lock:
            server.pair.start(local, ring, self._ends.kick_fds[index], self._calls[index])

    def _stop(self, server: PairServer, local: int) -> None:
        if local in server.indices:
            server.pair.stop(local)
            self.rings[server.indices.pop(local)].reset()

    def obey(self, server: PairServer) -> None:
        """A command is in the control queue."""
        ring = server.pair.ring(CONTROL)
        assert ring is not None
        wrong = self._orders.serve_one(ring)
        index = server.indices[CONTROL]
        if wrong:
            self._stop(server, CONTROL)
            self.give_up(index, wrong)
        elif server.pair.call(CONTROL):
            self.interrupt(index)

    def interrupt(self, index: int) -> None:
        """By way of the transport."""
        with self._ends.bus_lock:
            self._ends.used(index)

    def give_up(self, index: int, reason: str) -> None:
        """The driver broke the rules in this queue."""
        with self._ends.bus_lock:
            self._ends.needs_reset(f"queue {index}: {reason}")

    def reconnect(self, fd: int, done: Callable[[], None]) -> None:
        """From any thread: a stream that failed goes on with the connection `fd`. `done` is called on a server's thread
        when the old one is not used any more; the link is as it was wanted last.
        """

        def swap() -> None:
            self.wire.connect(fd)
            done()

        self._threads[0].post(swap)


assert (RX, TX) == (0, 1), "the device's own order of a pair's queues"
