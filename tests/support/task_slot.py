"""A slot and a driver around a runner that is a task: guest memory, eventfds, and what was asked for."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tests.support.driver_ring import Buffer, Driver, lay_out, make_driver
from tvmm.config.memory import MemoryConfig
from tvmm.kvm.bus_lock import BusLock
from tvmm.kvm.device_log import DeviceLog
from tvmm.kvm.memory_map import MemoryMap
from tvmm.memory.ram import GuestRam
from tvmm.virtio.device import Activation, QueueSetup
from tvmm.virtio.features import Ring
from tvmm.virtio.runner.base import Ends

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tvmm.virtio.device import VirtioDevice
    from tvmm.virtio.runner.task import TaskRunner

__all__ = ["TaskSlot", "serving"]

QUEUE_SIZE = 8
QUEUE_ROOM = 0x1_0000
"""For a queue and its tables; the buffers of all queues are above."""


class TaskSlot:
    """Guest RAM with a driver for each queue of `model`. `calls` are where interrupts go, one eventfd a queue."""

    def __init__(self, model: VirtioDevice) -> None:
        self.model = model
        count = len(model.queue_sizes)
        self.ram = GuestRam(MemoryConfig(8 << 20))
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
        self._buffers = (count + 1) * QUEUE_ROOM
        self.ends = Ends(self.memory, self.bus_lock, self.kicks, self.used.append, self._needs_reset)

    def close(self) -> None:
        """Give all of it back."""
        self.memory.close()
        self.log.close()
        self.ram.close()
        for fd in (*self.kicks, *self.calls):
            os.close(fd)

    def _needs_reset(self, reason: str) -> None:
        self.reasons.append(reason)
        self.broken.set()

    def activate(self, runner: TaskRunner, features: int = Ring.VERSION_1) -> None:
        """What a driver does up to DRIVER_OK, with features of its choice, and rings that are empty."""
        self.setups.clear()
        self.drivers.clear()
        for index in range(len(self.kicks)):
            base = (index + 1) * QUEUE_ROOM
            self.ram.write(base, bytes(QUEUE_ROOM))
            config, tables = lay_out(QUEUE_SIZE, features, base)
            self.drivers.append(make_driver(self.ram, config, tables))
            areas = config.descriptor_area, config.driver_area, config.device_area
            self.setups.append(QueueSetup(index, QUEUE_SIZE, *areas, True))
            runner.set_call(index, self.calls[index])
        with self.bus_lock:
            self.model.negotiated(features)
            runner.activate(Activation(features, tuple(self.setups)))

    def reset(self, runner: TaskRunner) -> None:
        """The driver writes 0 into its status."""
        with self.bus_lock:
            runner.reset(self.model.reset)

    def restart(self, runner: TaskRunner) -> None:
        """Reset, and up again with the same features."""
        features = self.model.accepted
        self.reset(runner)
        self.activate(runner, features)

    def place(self, length: int) -> int:
        """Guest memory that nobody has yet."""
        gpa = self._buffers
        self._buffers += length
        return gpa

    def add(self, index: int, *buffers: Buffer) -> int:
        """Offer one chain and kick, if the device wants to be kicked. Its id."""
        number = self.drivers[index].add(list(buffers))
        assert number is not None
        self.publish(index)
        return number

    def publish(self, index: int) -> None:
        """Show what was added, and kick if the device wants it."""
        if self.drivers[index].publish():
            os.eventfd_write(self.kicks[index], 1)

    def offer(self, index: int, data: bytes) -> int:
        """A chain of one buffer with `data` for the device. Its id."""
        gpa = self.place(len(data))
        self.ram.write(gpa, data)
        return self.add(index, Buffer(gpa, len(data)))

    def post(self, index: int, length: int) -> Buffer:
        """A buffer for the device to fill."""
        buffer = Buffer(self.place(length), length, True)
        self.add(index, buffer)
        return buffer

    async def wait_used(self, index: int) -> list[tuple[int, int]]:
        """What the device gave back, at least one: (id, bytes written). Waits for the interrupt."""
        driver = self.drivers[index]
        while not (back := driver.collect()):
            driver.ask_for_interrupt()
            if back := driver.collect():
                return back
            await trio.lowlevel.wait_readable(self.calls[index])
            os.eventfd_read(self.calls[index])
        return back

    async def get(self, index: int, length: int) -> bytes:
        """Post one buffer and wait for what comes in it."""
        buffer = self.post(index, length)
        [(_, count)] = await self.wait_used(index)
        return self.ram.read(buffer.gpa, count)


@asynccontextmanager
async def serving(slot: TaskSlot, runner: TaskRunner) -> AsyncIterator[trio.Nursery]:
    """The runner's task inside of the block, and a nursery for more; afterwards all of it is closed."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.run)
            yield nursery
            nursery.cancel_scope.cancel()
    finally:
        runner.close()
        slot.close()
