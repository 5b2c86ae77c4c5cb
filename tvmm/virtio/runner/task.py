"""The base of runners for slow devices: their queues are Trio's, in Python, without a thread.

One task waits for the kicks of all queues and calls `attend` for those that were kicked. Rings are touched under the
bus lock alone, by this task or by others of the device that call `offers`, `push` and so on; never across an `await`.
So a reset has nothing to wait for: it resets the rings right where it is called. What a task found out about a ring
before it let go of the lock may be wrong once it has it again.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from time import perf_counter_ns
from typing import TYPE_CHECKING

import trio

from tvmm.errors import HostError
from tvmm.kvm.serve import CALL_NONE, CALL_PYTHON
from tvmm.kvm.vring import Batch, Vring
from tvmm.metrics.histogram import Histogram
from tvmm.virtio.runner.base import QueueRun, check_runs, ring_config

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvmm.kvm.vring import Chain
    from tvmm.virtio.device import Activation, QueueSetup
    from tvmm.virtio.runner.base import Ends

__all__ = ["BATCH_CHAINS", "TaskRunner"]

BATCH_CHAINS = 32
"""Chains taken in one hold of the bus lock: a guest that fills its queues does not keep its own vCPUs from devices."""


class TaskRunner:
    """Implements `Runner` but for `attend`. A stopped queue is reported once and left alone until it is set up anew."""

    def __init__(self, name: str, ends: Ends, queue_count: int) -> None:
        """As many kick eventfds as queues. Raises `HostError` without descriptors."""
        self.name = name
        self.ends = ends
        self.batch = Batch(BATCH_CHAINS)
        self._rings = tuple(Vring(ends.memory) for _ in range(queue_count))
        self._calls = [CALL_PYTHON] * queue_count
        self._features = 0
        self._serving: set[int] = set()
        self._holds = 0
        self._due: set[int] = set()
        self.turns = tuple(Histogram() for _ in range(queue_count))
        """How long `attend` took for each queue, with all that it has waited for."""
        try:
            self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError as error:
            raise _no_descriptor(error) from None
        try:
            self._epoll = select.epoll()
        except OSError as error:
            os.close(self._waker)
            raise _no_descriptor(error) from None
        self._index_of = {fd: index for index, fd in enumerate(ends.kick_fds)}
        for fd in (self._waker, *ends.kick_fds):
            self._epoll.register(fd, select.EPOLLIN)

    @property
    def rings(self) -> Sequence[Vring]:
        """The ring of each queue, by index; for counters."""
        return self._rings

    async def attend(self, index: int) -> bool:
        """A kick for a queue, or another reason to look at it. True: there is more to do at once.

        Called by `run` without the bus lock, also for queues that are not served.
        """
        raise NotImplementedError

    # -- the slot's side, under the bus lock -------------------------------------------------------------

    def activate(self, activation: Activation) -> None:
        """DRIVER_OK: serve the queues that are ready."""
        self._features = activation.features
        for setup in activation.queues:
            if setup.ready:
                self.start_queue(setup)

    def reset(self, done: Callable[[], None]) -> None:
        """Let go of all queues, and call `done` at once."""
        self._serving.clear()
        for ring in self._rings:
            ring.reset()
        done()

    def start_queue(self, setup: QueueSetup) -> None:
        """Serve this queue too; the features are those of the activation."""
        config = ring_config(setup, self._features)
        ring = self._rings[setup.queue]
        self._serving.add(setup.queue)
        try:
            ring.configure(config)
        except HostError as error:
            self._give_up(setup.queue, str(error))
            return
        if not self._report_error(setup.queue):
            ring.disable_kicks()
            self.look(setup.queue)

    def stop_queue(self, index: int, done: Callable[[], None]) -> None:
        """Let go of one queue, and call `done` at once."""
        self._serving.discard(index)
        self._rings[index].reset()
        done()

    # -- from any thread ---------------------------------------------------------------------------------

    def notify(self, index: int) -> None:
        """A kick that came as an access to the transport and not through the eventfd."""
        _write(self.ends.kick_fds[index])

    def set_call(self, index: int, fd: int) -> None:
        """Where the interrupts of a queue go: an eventfd, or `CALL_PYTHON` or `CALL_NONE` of `tvmm.kvm.serve`."""
        self._calls[index] = fd

    def look(self, *indices: int) -> None:
        """Have `attend` called for these queues."""
        self._due.update(indices)
        _write(self._waker)

    # -- the task ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Attend to queues until cancelled."""
        while True:
            if self._holds or not self._due:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
            else:
                await trio.lowlevel.checkpoint()
            self._take_kicks()
            # Each in turn: a queue that always has more does not keep the others waiting.
            for index in () if self._holds else sorted(self._due):
                self._due.discard(index)
                began_ns = perf_counter_ns()
                if await self.attend(index):
                    self._due.add(index)
                # A device may look at things that are no queues, by numbers beyond them.
                if index < len(self.turns):
                    self.turns[index].add(perf_counter_ns() - began_ns)

    def _take_kicks(self) -> None:
        for fd, _ in self._epoll.poll(0):
            count = _read(fd)
            index = self._index_of.get(fd)
            if index is not None:
                self._rings[index].note_kick(count)
                self._due.add(index)

    def suspend(self) -> None:
        """No ring is touched any more until `release`; nothing is ever in flight."""
        self._holds += 1

    async def hold(self) -> None:
        """As `suspend`, which is at once."""
        self.suspend()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def release(self) -> None:
        """Undo one `hold` or `suspend`; then look at all queues."""
        self._holds -= 1
        self.look(*range(len(self._rings)))

    def close(self) -> None:
        """Give the descriptors back. Nothing runs any more."""
        self._epoll.close()
        os.close(self._waker)

    # -- saving, held ------------------------------------------------------------------------------------

    def save_queues(self) -> tuple[QueueRun, ...]:
        """The queues as records."""
        return tuple(QueueRun(ring.state(), index in self._serving) for index, ring in enumerate(self._rings))

    def restore_queues(self, activation: Activation, runs: object) -> None:
        """Go on from what `save_queues` gave. Raises `ValueError` with the name of a bad field."""
        checked = check_runs(runs, activation)
        if any(run.served and run.ring.in_flight for run in checked):
            raise ValueError("queues: in_flight is not empty, and nothing would ever come back")
        for index, (ring, run) in enumerate(zip(self._rings, checked, strict=True)):
            try:
                ring.restore(run.ring)
            except ValueError as error:
                raise ValueError(f"queues: ring {index}: {error}") from None
        self._features = activation.features
        self._serving = {index for index, run in enumerate(checked) if run.served}

    def arrived(self) -> None:
        """Nothing to tell."""

    # -- for `attend` and other tasks of the device, under the bus lock ----------------------------------

    def serves(self, index: int) -> bool:
        """Whether there is a ring that may be touched now."""
        return index in self._serving and not self._holds

    def offers(self, index: int) -> list[Chain]:
        """The chains that the driver offers, in `batch`; those that are not pushed have to be put back.

        Without any, kicks are on, and `attend` is called once there are some. Kicks are off otherwise.
        """
        if not self.serves(index):
            return []
        ring = self._rings[index]
        if ring.pop(self.batch):
            ring.disable_kicks()
            if self._bring(index):
                self.put_back(index, len(self.batch.chains))
                return []
            return self.batch.chains
        if not self._report_error(index) and not ring.enable_kicks():
            self.look(index)
        return []

    def _bring(self, index: int) -> bool:
        """Whether buffers of the batch are still on their way from where the guest has come from. Then nobody looks at
        them here, under the bus lock: a thread waits for them, and has the queue looked at again.
        """
        memory = self.ends.memory
        missing = self._rings[index].missing(self.batch, self.batch.chains)
        if missing:

            def bring() -> None:
                memory.bring(missing)
                # The machine may have ended meanwhile.
                with suppress(OSError):
                    self.look(index)

            threading.Thread(target=bring, name=f"tvmm {self.name} memory", daemon=True).start()
        return bool(missing)

    def put_back(self, index: int, count: int) -> None:
        """The last `count` chains of `batch` are to be offered again."""
        if count:
            self._rings[index].unpop(self.batch, count)

    def scatter(self, chain: Chain, data: bytes) -> None:
        """Write `data`, no more than there is room for, into a chain of `batch`."""
        self.ends.memory.fill(self.batch.writable(chain), data)

    def gather(self, chain: Chain, start: int, limit: int) -> bytes:
        """Up to `limit` bytes, from byte `start` on, that the driver put into a chain of `batch`."""
        parts = []
        for piece in self.batch.readable(chain):
            part = bytes(piece[start : start + limit])
            start = max(start - len(piece), 0)
            limit -= len(part)
            parts.append(part)
            if not limit:
                break
        return b"".join(parts)

    def push(self, index: int, used: Sequence[tuple[int, int]]) -> None:
        """Give chains back as (id, bytes written), and interrupt the driver if it wants that."""
        if not used:
            return
        ring = self._rings[index]
        ring.push_many(used)
        if ring.should_notify():
            fd = self._calls[index]
            if fd == CALL_PYTHON:
                self.ends.used(index)
            elif fd != CALL_NONE:
                _write(fd)

    def refuse(self, index: int, reason: str) -> None:
        """The driver broke a rule: the queue is not served any more, and the device wants a reset."""
        self._rings[index].note_error()
        self._give_up(index, reason)

    def _report_error(self, index: int) -> bool:
        sentence = self._rings[index].error_sentence
        if sentence:
            self._give_up(index, sentence)
        return bool(sentence)

    def _give_up(self, index: int, reason: str) -> None:
        self._serving.discard(index)
        self.ends.needs_reset(f"queue {index}: {reason}")


def _no_descriptor(error: OSError) -> HostError:
    return HostError(f"no event descriptor: {error.strerror}", "raise the limit with 'ulimit -n'")


def _write(fd: int) -> None:
    """Add one to an eventfd. One that is full says already all that it can."""
    with suppress(BlockingIOError):
        os.eventfd_write(fd, 1)


def _read(fd: int) -> int:
    """Take an eventfd's count; 0 if somebody else was faster."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
