"""Turns of runners that are tasks are timed."""

from __future__ import annotations

import trio
import trio.testing

from tests.support.task_slot import TaskSlot
from tests.virtio.devices import make_rng
from tvmm.virtio.runner.task import TaskRunner


class Idle(TaskRunner):
    """Has nothing to do."""

    def __init__(self, slot: TaskSlot) -> None:
        super().__init__("idle", slot.ends, 1)
        self.attended = trio.Event()

    async def attend(self, index: int) -> bool:
        self.attended.set()
        return False


async def test_each_turn_is_counted() -> None:
    """One value for each call of `attend`, by queue."""
    slot = TaskSlot(make_rng())
    runner = Idle(slot)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.run)
        for count in (1, 2, 3):
            runner.attended = trio.Event()
            runner.look(0)
            await runner.attended.wait()
            await trio.testing.wait_all_tasks_blocked()
            times = runner.turns[0].read()
            assert times.count == count
            assert times.sum_ns > 0
        nursery.cancel_scope.cancel()
    runner.close()
