"""A slot and drivers around a runner with threads: guest memory, eventfds, and what was asked of the slot."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tests.support.driver_ring import Driver, lay_out, make_driver
from tvmm.config.memory import MemoryConfig
from tvmm.kvm.bus_lock import BusLock
from tvmm.kvm.device_log import DeviceLog
from tvmm.kvm.memory_map import MemoryMap
from tvmm.kvm.serve import CALL_PYTHON
from tvmm.memory.ram import GuestRam
from tvmm.virtio.device import Activation, QueueSetup
from tvmm.virtio.features import Ring
from tvmm.virtio.runner.base import Ends

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tvmm.virtio.device import VirtioDevice
    from tvmm.virtio.runner.base import Runner

__all__ = ["FakeSlot", "serving"]

QUEUE_ROOM = 0x4_0000
"""For a queue of 256 with its indirect tables."""
SECTIONS = 16
PATIENCE_S = 30


class FakeSlot:
    """Guest RAM with a driver for each queue of `model`.

    `calls` are where interrupts go, one eventfd a queue. `used` are the queues that the runner asked to interrupt
    by hand, `reasons` why it wants a reset.
    """

    def __init__(self, model: VirtioDevice, ram_bytes: int = 32 << 20) -> None:
        self.model = model
        count = len(model.queue_sizes)
        assert count < SECTIONS
        self.ram = GuestRam(MemoryConfig(ram_bytes, shared=True))
        self.log = DeviceLog(self.ram)
        self.memory = MemoryMap(self.ram, self.log)
        self.bus_lock = BusLock()
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]
        self.used: list[int] = []
        self.reasons: list[str] = []
        self.broken = trio.Event()
        self.drivers: list[Driver] = []
        self.setups: list[QueueSetup] = []
        self._free: dict[int, list[int]] = {}
        self._next = SECTIONS * QUEUE_ROOM
        self._token: trio.lowlevel.TrioToken | None = None
        self.ends = Ends(self.memory, self.bus_lock, self.kicks, self._used, self._needs_reset)

    def close(self) -> None:
        """Give all of it back."""
        self.memory.close()
        self.log.close()
        self.ram.close()
        for fd in (*self.kicks, *self.calls):
            os.close(fd)

    def _used(self, index: int) -> None:
        self.used.append(index)
        os.eventfd_write(self.calls[index], 1)

    def _needs_reset(self, reason: str) -> None:
        self.reasons.append(reason)
        assert self._token is not None
        self._token.run_sync_soon(self.broken.set)

    # -- the driver's orders -------------------------------------------------------------------------------

    def activate(
        self, runner: Runner, features: int = Ring.VERSION_1, size: int = 256, *, by_python: bool = False
    ) -> None:
        """What a driver does up to DRIVER_OK, with features of its choice, and rings that are empty.

        `by_python`: interrupts are not eventfds but calls of `Ends.used`.
        """
        self._token = trio.lowlevel.current_trio_token()
        self.setups.clear()
        self.drivers.clear()
        with self.bus_lock:
            self.model.negotiated(features)
            for index in range(len(self.kicks)):
                self.setups.append(self.lay_out(index, features, size))
                runner.set_call(index, CALL_PYTHON if by_python else self.calls[index])
            runner.activate(Activation(features, tuple(self.setups)))

    def lay_out(self, index: int, features: int, size: int) -> QueueSetup:
        """A new driver, and its empty ring, for one queue."""
        base = (index + 1) * QUEUE_ROOM
        self.ram.write(base, bytes(QUEUE_ROOM))
        config, tables = lay_out(size, features, base)
        self.drivers[index : index + 1] = [make_driver(self.ram, config, tables)]
        return QueueSetup(index, size, config.descriptor_area, config.driver_area, config.device_area, True)

    async def reset(self, runner: Runner) -> None:
        """The driver writes 0 into its status, and waits for the device."""
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def reset_done() -> None:
            self.model.reset()
            token.run_sync_soon(done.set)

        with self.bus_lock:
            runner.reset(reset_done)
        with trio.fail_after(PATIENCE_S):
            await done.wait()

    # -- buffers and notifications -------------------------------------------------------------------------

    def place(self, length: int) -> int:
        """Guest memory that nobody has."""
        free = self._free.get(length)
        if free:
            return free.pop()
        gpa = self._next
        self._next += length + 511 & ~511
        return gpa

    def give_back(self, gpa: int, length: int) -> None:
        """Undo `place`."""
        self._free.setdefault(length, []).append(gpa)

    def publish(self, index: int) -> None:
        """Show what was added, and kick if the device wants it."""
        if self.drivers[index].publish():
            os.eventfd_write(self.kicks[index], 1)

    async def wait_used(self, index: int) -> list[tuple[int, int]]:
        """What the device gave back, at least one: (id, bytes written). Waits for the interrupt."""
        driver = self.drivers[index]
        with trio.fail_after(PATIENCE_S):
            while not (back := driver.collect()):
                driver.ask_for_interrupt()
                if back := driver.collect():
                    return back
                await trio.lowlevel.wait_readable(self.calls[index])
                os.eventfd_read(self.calls[index])
        return back


@asynccontextmanager
async def serving(slot: FakeSlot, runner: Runner) -> AsyncIterator[trio.Nursery]:
    """The runner's tasks inside of the block, and a nursery for more; afterwards all of it is closed."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.run)
            yield nursery
            nursery.cancel_scope.cancel()
    finally:
        runner.close()
        slot.close()
