"""The input device's runner: events go out where they happen, without a hop to the task; lights come in by it."""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, NamedTuple

import trio

from tvmm.records import check_record
from tvmm.virtio.input import EVENT_BYTES
from tvmm.virtio.runner.base import QueueRun
from tvmm.virtio.runner.task import TaskRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.virtio.device import Activation, QueueSetup
    from tvmm.virtio.input import Group, Input
    from tvmm.virtio.runner.base import Ends

__all__ = ["InputRun", "InputRunner"]

EVENTS, STATUS = range(2)

RETRY_SECONDS = (0.01, 1.0)
"""When to look again for the rest of the buffers that a group takes: at first, and at most.

The driver is asked for a kick only while it offers none at all. One that offers some and then no more is broken."""


class InputRun(NamedTuple):
    """What is saved; events that wait are in the model's record."""

    queues: tuple[QueueRun, ...]


class InputRunner(TaskRunner):
    """Serves `model`."""

    def __init__(self, model: Input, ends: Ends, name: str = "input") -> None:
        super().__init__(name, ends, len(model.queue_sizes))
        self.model = model
        self.on_ready: Callable[[], None] = _nobody_waits
        """Called under the bus lock when `ready` may have changed."""
        self._retry = RETRY_SECONDS[0]

    @property
    def ready(self) -> bool:
        """Whether a driver has set up the queue of events."""
        return EVENTS in self._serving

    def activate(self, activation: Activation) -> None:
        """See `Runner`."""
        super().activate(activation)
        self.on_ready()

    def reset(self, done: Callable[[], None]) -> None:
        """See `Runner`."""
        super().reset(done)
        self.on_ready()

    def start_queue(self, setup: QueueSetup) -> None:
        """See `Runner`."""
        super().start_queue(setup)
        self.on_ready()

    def stop_queue(self, index: int, done: Callable[[], None]) -> None:
        """See `Runner`."""
        super().stop_queue(index, done)
        self.on_ready()

    async def attend(self, index: int) -> bool:
        """Send what waits for buffers, or take lights in."""
        if index == STATUS:
            with self.ends.bus_lock:
                return self._take_status()
        with self.ends.bus_lock:
            short = self.deliver()
        if not short:
            self._retry = RETRY_SECONDS[0]
            return False
        await trio.sleep(self._retry)
        self._retry = min(2 * self._retry, RETRY_SECONDS[1])
        return True

    # -- rings, under the bus lock -----------------------------------------------------------------------

    def deliver(self) -> bool:
        """Give the driver the groups that it has buffers for. Under the bus lock, on any thread.

        True: there are some, and not enough for the next group. The task looks again.
        """
        while group := self.model.next_group():
            taken = self._send(group)
            if taken is None:
                return False
            if not taken:
                self.look(EVENTS)
                return True
        return False

    def _send(self, group: Group) -> bool | None:
        """Whether the whole group went out; None if there is no buffer at all, and a kick will come."""
        chains = self.offers(EVENTS)
        if any(chain.readable_bytes or chain.writable_bytes < EVENT_BYTES for chain in chains):
            self.refuse(EVENTS, "a buffer for events that is not 8 bytes to be written")
            self.on_ready()
            return None
        if not chains:
            return None
        if len(chains) < len(group):
            self.put_back(EVENTS, len(chains))
            return False
        used = []
        for chain, (kind, code, value) in zip(chains, group, strict=False):
            self.scatter(chain, pack("<HHI", kind, code, value & 0xFFFF_FFFF))
            used.append((chain.id, EVENT_BYTES))
        self.put_back(EVENTS, len(chains) - len(used))
        self.push(EVENTS, used)
        self.model.group_taken(group)
        return True

    def _take_status(self) -> bool:
        chains = self.offers(STATUS)
        if any(chain.writable_bytes or chain.readable_bytes < EVENT_BYTES for chain in chains):
            self.refuse(STATUS, "a status event that is not 8 bytes to be read")
            return False
        for chain in chains:
            self.model.status(self.gather(chain, 0, EVENT_BYTES))
        self.push(STATUS, [(chain.id, 0) for chain in chains])
        return bool(chains)

    # -- saving, held ------------------------------------------------------------------------------------

    def save(self) -> InputRun:
        """See `Runner`."""
        return InputRun(self.save_queues())

    async def restore(self, activation: Activation, state: InputRun) -> None:
        """See `Runner`."""
        check_record(state, InputRun)
        with self.ends.bus_lock:
            self.restore_queues(activation, state.queues)
            self.on_ready()
        await trio.lowlevel.checkpoint()


def _nobody_waits() -> None:
    """Before there is a hub."""
