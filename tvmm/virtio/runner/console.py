"""The console's runner: each port is a line like a serial port, for a `SerialHub` and its backend.

What the guest writes stays in its ring until somebody asks for more than was handed out: no more than `CHUNK` bytes of
a port are ever here, and a guest whose reader is slow gets its buffers back slowly. What the guest is to read is with
the sender until the guest has posted buffers and, with MULTIPORT, opened the port: Linux drops what comes earlier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import trio

from tvmm.records import check_bytes, check_record, check_uint
from tvmm.virtio.console_control import ABSENT, MESSAGE_LENGTH
from tvmm.virtio.runner.base import QueueRun
from tvmm.virtio.runner.task import TaskRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.virtio.console import Console
    from tvmm.virtio.device import Activation, QueueSetup
    from tvmm.virtio.runner.base import Ends

__all__ = ["ConsoleRun", "ConsoleRunner", "PortEnd", "PortRun"]

CHUNK = 64 << 10
"""Bytes of one port's output that wait for its reader. A chain may be longer: it is taken in parts."""

EMERGENCY_BYTES = 4096
"""Emergency output that waits: a guest may write it a byte at a time without end. What is more is dropped, counted."""


MAX_WAITING = 1 << 20
"""Bytes of input in a record: more than queues here take, and a peer is not to have this side keep without end."""

CHAIN_LIMIT = 1 << 32
"""Bytes of a chain (2.7.5)."""


class PortRun(NamedTuple):
    """A port that is there. `taken` bytes of the first chain of output have been passed on, the rest is to come.

    `emergency` is output past the queues that nobody has taken. What was taken out of a chain that the driver has back
    is with this host's reader. `waiting` is input that the guest has posted no buffers for.
    """

    number: int
    taken: int = 0
    emergency: bytes = b""
    waiting: bytes = b""


class ConsoleRun(NamedTuple):
    """What is saved."""

    queues: tuple[QueueRun, ...]
    ports: tuple[PortRun, ...]


class ConsoleRunner(TaskRunner):
    """Serves `model`; `ports` are the ends of its ports by number, open on the host's side until told otherwise."""

    def __init__(self, model: Console, ends: Ends, name: str = "console") -> None:
        super().__init__(name, ends, len(model.queue_sizes))
        self.model = model
        self.saved = False
        self._size: tuple[int, int] | None = None
        self.ports = {
            number: PortEnd(self, number) for number in range(model.max_ports) if model.ports[number].stage != ABSENT
        }
        self._port_of: dict[int, tuple[PortEnd, bool]] = {}
        for number, port in self.ports.items():
            receive, transmit = model.queues_of(number)
            self._port_of |= {receive: (port, True), transmit: (port, False)}
            model.ports.set_open(number, True)
        model.on_emergency = self._emergency

    def resize(self, columns: int, rows: int) -> None:
        """The terminal's window has another size."""
        self._size = columns, rows
        with self.ends.bus_lock:
            self.model.resize(columns, rows)
        self.look_at_control()

    def look_at_control(self) -> None:
        """There may be messages for the driver."""
        if self.model.control_queues:
            self.look(self.model.control_queues[0])

    async def attend(self, index: int) -> bool:
        """Tell the port's reader or sender; carry out and send control messages."""
        if self.model.control_queues and index in self.model.control_queues:
            to_driver, from_driver = self.model.control_queues
            with self.ends.bus_lock:
                more = index == from_driver and self._receive(from_driver)
                return self._send(to_driver) or more
        if index in self._port_of:
            port, receives = self._port_of[index]
            (port.on_input_room if receives else port.on_output)()
        return False

    def stop_queue(self, index: int, done: Callable[[], None]) -> None:
        """Let go of one queue, and call `done` at once."""
        if index in self._port_of:
            self._port_of[index][0].restart()
        super().stop_queue(index, done)

    def reset(self, done: Callable[[], None]) -> None:
        """Let go of all queues, and call `done` at once."""
        for port in self.ports.values():
            port.restart()
        super().reset(done)

    def start_queue(self, setup: QueueSetup) -> None:
        """Serve this queue too; control messages may wait for it."""
        super().start_queue(setup)
        self.look_at_control()

    # -- saving, held ------------------------------------------------------------------------------------

    def save(self) -> ConsoleRun:
        """See `Runner`. From here to the next `release` nothing more is passed on: it is in the record."""
        self.saved = True
        return ConsoleRun(self.save_queues(), tuple(port.save() for port in self.ports.values()))

    async def restore(self, activation: Activation, state: ConsoleRun) -> None:
        """See `Runner`."""
        check_record(state, ConsoleRun)
        if type(state.ports) is not tuple or len(state.ports) != len(self.ports):
            raise ValueError("ports is not a tuple of as many records as there are ports")
        for run, end in zip(state.ports, self.ports.values(), strict=True):
            end.check(run)
        with self.ends.bus_lock:
            self.restore_queues(activation, state.queues)
            for run, end in zip(state.ports, self.ports.values(), strict=True):
                end.load(run)
            self.saved = True
        await trio.lowlevel.checkpoint()

    def arrived(self) -> None:
        """Which ports are open on the host's side, and the terminal's size, are those of this side."""
        for number, port in self.ports.items():
            self.model.ports.set_open(number, port.is_open)
        if self._size is not None:
            self.model.resize(*self._size)

    def release(self) -> None:
        """See `Runner`. Who goes on has not gone away."""
        self.saved = False
        super().release()

    # -- under the bus lock ------------------------------------------------------------------------------

    def _receive(self, index: int) -> bool:
        """Messages of the driver's; whether there may be more."""
        chains = self.offers(index)
        if any(chain.writable_count for chain in chains):
            self.refuse(index, "a message to the console with room for an answer")
            return False
        for chain in chains:
            event = self.model.ports.receive(self.gather(chain, 0, MESSAGE_LENGTH))
            if event and event.port in self.ports:
                self.look(*self.model.queues_of(event.port))
        self.push(index, [(chain.id, 0) for chain in chains])
        return bool(chains)

    def _send(self, index: int) -> bool:
        """Messages to the driver, as far as there are buffers; whether one more turn may send more."""
        pending = self.model.ports.pending
        chains = self.offers(index) if pending else []
        used: list[tuple[int, int]] = []
        for chain in chains[: len(pending)]:
            message = pending[len(used)]
            if chain.readable_count or chain.writable_bytes < len(message):
                self.refuse(index, f"a buffer that does not hold a message of {len(message)} bytes")
                return False
            self.scatter(chain, message)
            used.append((chain.id, len(message)))
        del pending[: len(used)]
        self.put_back(index, len(chains) - len(used))
        self.push(index, used)
        return bool(used and pending)

    def _emergency(self, byte: int) -> None:
        self.ports[0].emergency(byte)


class PortEnd:
    """The guest's end of one port for Trio tasks: a `GuestEnd`. One reader, any number of senders."""

    def __init__(self, runner: ConsoleRunner, number: int) -> None:
        self.number = number
        self.is_open = True
        """Whether somebody on this side has the port open."""
        self.dropped_bytes = 0
        self.queued_input: Callable[[], bytes] = lambda: b""
        """Input that waits behind what is being sent; `put_back_input` has it sent on the side it was saved for."""
        self.put_back_input: Callable[[bytes], None] = lambda data: None
        self._sends: list[list[bytes]] = []
        self._runner = runner
        self._receive, self._transmit = runner.model.queues_of(number)
        self._emergency_bytes = bytearray()
        self._handed_out = 0
        self._taken_of_first = 0
        self._finished = False
        self._output = trio.Event()
        self._input_room = trio.Event()
        self._sending = trio.Lock()

    @property
    def guest_open(self) -> bool:
        """Whether somebody in the guest has the port open; one console alone always is, once there is a driver."""
        model = self._runner.model
        return bool(model.ports[self.number].guest_open if model.control_queues else model.accepted)

    def set_open(self, is_open: bool) -> None:
        """Somebody on the host has the other end open, or nobody any more; the driver is told."""
        self.is_open = is_open
        with self._runner.ends.bus_lock:
            self._runner.model.ports.set_open(self.number, is_open)
        self._runner.look_at_control()

    # -- output ------------------------------------------------------------------------------------------

    async def receive_some(self) -> bytes:
        """Bytes that the guest wrote, up to `CHUNK`. Empty after `finish`, once all is passed on."""
        if self._handed_out:
            raise RuntimeError("consume what was received before waiting for more")
        await trio.lowlevel.checkpoint()
        while True:
            self._output = trio.Event()
            with self._runner.ends.bus_lock:
                data = self._pull()
            self._handed_out = len(data)
            if data or self._finished:
                return data
            await self._output.wait()

    def consumed(self, count: int) -> None:
        """The first `count` bytes handed out are safe."""
        self._handed_out -= count

    def finish(self) -> None:
        """The guest writes no more: `receive_some` returns what is left, and then nothing."""
        self._finished = True
        self._output.set()

    def on_output(self) -> None:
        """The guest may have written something."""
        self._output.set()

    def emergency(self, byte: int) -> None:
        """A byte past the queues, under the bus lock, from any thread."""
        if len(self._emergency_bytes) < EMERGENCY_BYTES:
            self._emergency_bytes.append(byte)
            self._runner.look(self._transmit)
        else:
            self.dropped_bytes += 1

    def restart(self) -> None:
        """The driver has taken a queue back: what is left of a chain is not to come."""
        self._taken_of_first = 0

    def save(self) -> PortRun:
        """As a record. Held."""
        waiting = b"".join(left for (left,) in self._sends) + self.queued_input()
        return PortRun(self.number, self._taken_of_first, bytes(self._emergency_bytes), waiting[:MAX_WAITING])

    def check(self, state: PortRun) -> None:
        """Raise `ValueError` with the name of a bad field for what `load` would not take."""
        check_record(state, PortRun)
        if check_uint("ports: number", state.number, 0xFFFF) != self.number:
            raise ValueError("ports: number is not that of a port here")
        check_uint("ports: taken", state.taken, CHAIN_LIMIT - 1)
        check_bytes("ports: emergency", state.emergency, 0, EMERGENCY_BYTES)
        check_bytes("ports: waiting", state.waiting, 0, MAX_WAITING)

    def load(self, state: PortRun) -> None:
        """Take over a record that was checked."""
        self._taken_of_first = state.taken
        self._emergency_bytes[:] = state.emergency
        self.put_back_input(state.waiting)

    def _pull(self) -> bytes:
        if self._runner.saved:
            return b""
        parts = [bytes(self._emergency_bytes)]
        self._emergency_bytes.clear()
        room = CHUNK - len(parts[0])
        chains = self._runner.offers(self._transmit)
        done = 0
        for chain in chains:
            if chain.writable_count:
                self._runner.refuse(self._transmit, "output of the guest's in a buffer that the device may write")
                return b"".join(parts)
            parts.append(self._runner.gather(chain, self._taken_of_first, room))
            room -= len(parts[-1])
            if self._taken_of_first + len(parts[-1]) < chain.readable_bytes:
                self._taken_of_first += len(parts[-1])
                break
            self._taken_of_first = 0
            done += 1
        self._runner.put_back(self._transmit, len(chains) - done)
        self._runner.push(self._transmit, [(chain.id, 0) for chain in chains[:done]])
        return b"".join(parts)

    # -- input -------------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Give `data` to the guest, as fast as it reads. Several senders take turns, each with all of its bytes."""
        left = [data]
        self._sends.append(left)
        try:
            await trio.lowlevel.checkpoint()
            async with self._sending:
                while left[0]:
                    self._input_room = trio.Event()
                    with self._runner.ends.bus_lock:
                        count = self._give(left[0])
                    left[0] = left[0][count:]
                    if not count:
                        await self._input_room.wait()
        finally:
            self._sends.remove(left)

    async def send_break(self) -> None:
        """Nothing: a virtio port has no break condition."""
        await trio.lowlevel.checkpoint()

    def on_input_room(self) -> None:
        """The guest may have posted buffers, or opened the port."""
        self._input_room.set()

    def _give(self, data: bytes) -> int:
        """Fill the guest's buffers; how many bytes went there."""
        if not self.guest_open:
            return 0
        chains = self._runner.offers(self._receive)
        used: list[tuple[int, int]] = []
        at = 0
        for chain in chains:
            if at == len(data):
                break
            if chain.readable_count:
                self._runner.refuse(self._receive, "a buffer for input that is not only writable")
                return 0
            part = data[at : at + chain.writable_bytes]
            self._runner.scatter(chain, part)
            used.append((chain.id, len(part)))
            at += len(part)
        self._runner.put_back(self._receive, len(chains) - len(used))
        self._runner.push(self._receive, used)
        return at
