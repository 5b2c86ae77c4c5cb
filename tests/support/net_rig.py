"""A network device on its runner, with a driver on one side and datagram sockets for a TAP on the other.

The slot is a fake: eventfds for kicks and calls, lists of what was asked of it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from typing import NamedTuple

import trio

from tests.support.driver_ring import Buffer, Driver, lay_out, make_driver
from tvmm.config.memory import MemoryConfig
from tvmm.errors import HostError
from tvmm.kvm.bus_lock import BusLock
from tvmm.kvm.device_log import DeviceLog
from tvmm.kvm.memory_map import MemoryMap
from tvmm.kvm.serve import CALL_PYTHON
from tvmm.kvm.vring_records import RING_FEATURES, VringConfig
from tvmm.memory.ram import GuestRam
from tvmm.virtio.device import Activation, QueueSetup
from tvmm.virtio.net import Net, NetBackend, NetSettings
from tvmm.virtio.runner.base import Ends
from tvmm.virtio.runner.net import NetRunner
from tvmm.virtio.runner.wire import Wire

__all__ = [
    "BUFFERS",
    "EVERYTHING",
    "HEADER",
    "MAC",
    "PATIENCE_S",
    "QUEUE_STRIDE",
    "RX_PLACES",
    "NetRig",
    "Received",
    "SocketWire",
    "frame",
    "net_rig",
]

PATIENCE_S = 20
MAC = bytes.fromhex("525400000001")
HEADER = bytes(12)
EVERYTHING = NetBackend(True, True, True, True, True)

QUEUE_STRIDE = 0x4_0000
BUFFERS = 0x80_0000
RX_PLACES = 0x100_0000
PLACE = 0x1_1000
RAM_BYTES = 32 << 20


def frame(payload: bytes = b"", destination: bytes = MAC, header: bytes = HEADER) -> bytes:
    """Header, addresses, a type that nobody knows, and at least one byte."""
    return header + destination + bytes.fromhex("525400000099") + b"\x88\xb5" + (payload or b"\0")


class SocketWire:
    """A socket pair for each pair of queues: `far` are the ends that the test has. `orders` is what was asked."""

    def __init__(self, pairs: int = 1, backend: NetBackend = EVERYTHING) -> None:
        self.name = "wire"
        self.is_stream = False
        self.backend = backend
        self.orders: list[tuple[str, int, bool]] = []
        self.refuses = False
        self._ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(pairs)]
        for pair in self._ends:
            for end in pair:
                end.setblocking(False)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.fds = [near.fileno() for near, _ in self._ends]
        self.far = [far for _, far in self._ends]

    def _order(self, what: str, number: int, on: bool) -> None:
        if self.refuses:
            raise HostError("wire: refused")
        self.orders.append((what, number, on))

    def set_offload(self, features: int) -> None:
        """As ordered."""
        self._order("offload", features, True)

    def attach(self, pair: int, on: bool) -> None:
        """As ordered."""
        self._order("attach", pair, on)

    def set_carrier(self, up: bool) -> None:
        """As ordered."""
        self._order("carrier", 0, up)

    def close(self) -> None:
        """Both ends."""
        for near, far in self._ends:
            near.close()
            far.close()


class Received(NamedTuple):
    """A frame as the driver has it: the buffers it came in, with header."""

    buffers: int
    data: bytes


class NetRig:
    """See the module. `resets` has the reasons of NEEDS_RESET, `used` the queues interrupted through Python."""

    def __init__(
        self, *, pairs: int = 1, poll_ns: int = 0, backend: NetBackend = EVERYTHING, wire: Wire | None = None
    ) -> None:
        """With a `wire`, such as a tap, that one is used, and `far` ends lead nowhere."""
        self.ram = GuestRam(MemoryConfig(RAM_BYTES))
        self.log = DeviceLog(self.ram)
        self.memory = MemoryMap(self.ram, self.log)
        self.wire = SocketWire(pairs, backend)
        self.model = Net(NetSettings(MAC, backend, pairs))
        count = len(self.model.queue_sizes)
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]
        self.bus_lock = BusLock()
        self.resets: list[str] = []
        self.failures: list[str] = []
        self.used: list[int] = []
        self.told = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        ends = Ends(self.memory, self.bus_lock, self.kicks, self._on_used, self._on_needs_reset)
        self.runner = NetRunner(
            "net0", self.model, wire or self.wire, ends, poll_ns=poll_ns, on_failed=self._on_failed
        )
        self.drivers: dict[int, Driver] = {}
        self.features = 0
        self._places = list(range(RX_PLACES, RAM_BYTES - PLACE, PLACE))
        self._rx_places: dict[tuple[int, int], int] = {}

    def _tell(self, where: list[str], what: str) -> None:
        where.append(what)
        self._token.run_sync_soon(self._wake)

    def _wake(self) -> None:
        self.told.set()
        self.told = trio.Event()

    def _on_used(self, index: int) -> None:
        self.used.append(index)
        self._token.run_sync_soon(self._wake)

    def _on_needs_reset(self, reason: str) -> None:
        self._tell(self.resets, reason)

    def close(self) -> None:
        """Nothing runs any more."""
        self.runner.close()
        for fd in self.kicks + self.calls:
            os.close(fd)
        self.wire.close()
        self.memory.close()
        self.log.close()
        self.ram.close()

    def _on_failed(self, reason: str) -> None:
        self._tell(self.failures, reason)

    # -- life ------------------------------------------------------------------------------------------------

    async def activate(self, features: int, size: int = 16, *, python_calls: bool = False) -> None:
        """DRIVER_OK with all queues that these features have, each of `size` entries."""
        self.features = features
        control_only = 2 * self.model.settings.pairs + 1
        with self.bus_lock:
            self.model.negotiated(features)
            control = self.model.control_queue
            indices = [*range(2 * self.model.usable_pairs), *([control] if control is not None else [])]
            setups = [QueueSetup(index, size, 0, 0, 0, False) for index in range(control_only)]
            for index in indices:
                config = self.set_up_queue(index, size)
                setups[index] = QueueSetup(index, size, *config[1:4], True)
                self.runner.set_call(index, CALL_PYTHON if python_calls else self.calls[index])
            activation = Activation(features, tuple(setups))
            self.model.activate(activation)
            self.runner.activate(activation)
        # What arrives before is thrown away.
        await self.settle()

    def set_up_queue(self, index: int, size: int) -> VringConfig:
        """A queue without anything in it, and its driver."""
        base = 0x1_0000 + index * QUEUE_STRIDE
        self.ram.write(base, bytes(QUEUE_STRIDE))
        config, tables = lay_out(size, self.features & RING_FEATURES, base)
        self.drivers[index] = make_driver(self.ram, config, tables, first_id=0xFFFD)
        self.drivers[index].ask_for_interrupt()
        return config

    async def settle(self) -> None:
        """Return when every thread has done what it was told before."""
        await self.runner.hold()
        self.runner.release()

    async def reset(self) -> None:
        """By the driver, as a transport does it."""
        done = trio.Event()
        with self.bus_lock:
            self.runner.reset(lambda: self._token.run_sync_soon(done.set))
        await self.patiently(done)
        with self.bus_lock:
            self.model.reset()

    async def patiently(self, event: trio.Event) -> None:
        """Wait for it, not for ever."""
        with trio.fail_after(PATIENCE_S):
            await event.wait()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until it is true: looked at whenever the slot was told something."""
        with trio.fail_after(PATIENCE_S):
            while True:
                told = self.told
                if condition():
                    return
                await told.wait()

    # -- the driver --------------------------------------------------------------------------------------------

    def kick(self, index: int) -> None:
        """Publish, and kick if the device wants it."""
        if self.drivers[index].publish():
            os.eventfd_write(self.kicks[index], 1)

    def direct(self) -> int | None:
        """How chains are put into rings: with the feature, into a table."""
        return 0 if self.features & (1 << 28) else None

    def send(self, data: bytes, at: int = 0, cuts: tuple[int, ...] = (), index: int = 1) -> bool:
        """A frame at an offset into the buffers' memory, in pieces; not published. False if the ring is full."""
        gpa = BUFFERS + at
        self.ram.write(gpa, data)
        edges = [0, *sorted(cuts), len(data)]
        pieces = [Buffer(gpa + a, b - a) for a, b in pairwise(edges) if b > a]
        return self.drivers[index].add(pieces, self.direct()) is not None

    def offer(self, length: int, index: int = 0, pieces: int = 1, place: int | None = None) -> bool:
        """A receive buffer; not published. False if the ring is full. With a `place` it is not for `receive`."""
        if not self._places:
            return False
        gpa, part = self._places[-1] if place is None else place, length // pieces
        buffers = [Buffer(gpa + piece * part, part, True) for piece in range(pieces - 1)]
        buffers.append(Buffer(gpa + (pieces - 1) * part, length - (pieces - 1) * part, True))
        number = self.drivers[index].add(buffers, self.direct())
        if number is not None and place is None:
            self._rx_places[index, number] = self._places.pop()
        return number is not None

    def fill(self, length: int, index: int = 0, pieces: int = 1) -> None:
        """As many receive buffers as the ring has room for, published."""
        while self.offer(length, index, pieces):
            pass
        self.kick(index)

    async def wait_used(self, index: int, count: int = 1) -> list[tuple[int, int]]:
        """What the device gives back of a queue, at least `count` chains."""
        driver, found = self.drivers[index], []
        with trio.fail_after(PATIENCE_S):
            while True:
                found += driver.collect()
                if len(found) >= count:
                    return found
                driver.ask_for_interrupt()
                found += driver.collect()
                if len(found) < count:
                    await trio.lowlevel.wait_readable(self.calls[index])
                    os.eventfd_read(self.calls[index])

    async def receive(self, count: int, index: int = 0) -> list[Received]:
        """That many frames from the device, put together from their buffers."""
        frames: list[Received] = []
        parts: list[bytes] = []
        while True:
            while parts:
                wanted = int.from_bytes(parts[0][10:12], "little")
                if len(parts) < wanted:
                    break
                data = b"".join(parts[:wanted])
                del parts[:wanted]
                frames.append(Received(wanted, data[:10] + b"\0\0" + data[12:]))
            if len(frames) >= count:
                assert not parts
                return frames
            parts += [self._rx_data(index, *used) for used in await self.wait_used(index)]

    def _rx_data(self, index: int, number: int, length: int) -> bytes:
        place = self._rx_places.pop((index, number))
        self._places.append(place)
        return self.ram.read(place, length)

    async def command(self, data: bytes) -> int:
        """A control command's answer."""
        index = self.model.control_queue
        assert index is not None
        gpa = BUFFERS + (7 << 20)
        self.ram.write(gpa, data + b"\xee")
        driver = self.drivers[index]
        assert driver.add([Buffer(gpa, len(data)), Buffer(gpa + len(data), 1, True)], self.direct()) is not None
        self.kick(index)
        [(_, length)] = await self.wait_used(index)
        assert length == 1
        return self.ram.read(gpa + len(data), 1)[0]

    # -- the far end -------------------------------------------------------------------------------------------

    async def take(self, count: int, pair: int = 0) -> list[bytes]:
        """Frames that the device sent."""
        frames: list[bytes] = []
        with trio.fail_after(PATIENCE_S):
            while len(frames) < count:
                await trio.lowlevel.wait_readable(self.wire.far[pair])
                frames.append(self.wire.far[pair].recv(1 << 17))
        return frames

    async def arrive(self, data: bytes, pair: int = 0) -> None:
        """A frame for the device; waits while the wire is full."""
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    self.wire.far[pair].send(data)
                    return
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self.wire.far[pair])


@contextmanager
def _closing(rig: NetRig) -> Iterator[NetRig]:
    try:
        yield rig
    finally:
        rig.close()


@asynccontextmanager
async def net_rig(
    *, pairs: int = 1, poll_ns: int = 0, backend: NetBackend = EVERYTHING, wire: Wire | None = None
) -> AsyncIterator[NetRig]:
    """A rig whose runner runs."""
    with _closing(NetRig(pairs=pairs, poll_ns=poll_ns, backend=backend, wire=wire)) as rig:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.runner.run)
            yield rig
            nursery.cancel_scope.cancel()
