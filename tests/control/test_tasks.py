"""What the task meter says of a machine's tasks."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from time import perf_counter_ns
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tvmm import tasks
from tvmm.tasks import TaskMeter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tvmm.control.target import TaskInfo


class Pump:
    """Something with tasks to look at."""

    def __init__(self) -> None:
        self.tick = trio.Event()

    async def run(self) -> None:
        """Wait for something that does not come."""
        await self.tick.wait()

    async def deeper(self) -> None:
        """Wait in a function of one's own."""
        await self.run()

    async def read(self, stream: trio.SocketStream) -> None:
        """Wait for data."""
        await stream.receive_some()

    async def in_thread(self, release: threading.Event) -> None:
        """Wait for a worker thread."""
        await trio.to_thread.run_sync(release.wait, 10)

    async def with_children(self) -> None:
        """Wait for one's children."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run, name="child")

    async def in_context(self) -> None:
        """Wait inside of a context manager's own function."""
        async with self._context():
            pass

    @asynccontextmanager
    async def _context(self) -> AsyncIterator[None]:
        yield
        await self.tick.wait()


def named(meter: TaskMeter, name: str) -> TaskInfo:
    """The one task of that name."""
    [info] = [info for info in meter.snapshot() if info.name == name]
    return info


async def test_what_tasks_wait_for() -> None:
    """Each task shows the call it waits in and the function of ours that made it."""
    pump = Pump()
    release = threading.Event()
    ours, theirs = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        with TaskMeter(nursery) as meter:
            nursery.start_soon(pump.run, name="event")
            nursery.start_soon(pump.deeper, name="deeper")
            nursery.start_soon(pump.read, trio.SocketStream(ours), name="read")
            nursery.start_soon(pump.in_thread, release, name="thread")
            nursery.start_soon(pump.with_children, name="parent")
            nursery.start_soon(pump.in_context, name="context")
            nursery.start_soon(trio.sleep_forever, name="bare")
            await wait_all_tasks_blocked()
            waits = {info.name: info.waits_for for info in meter.snapshot()}
            assert waits == {
                "event": "Event.wait in Pump.run",
                "deeper": "Event.wait in Pump.run",
                "read": "SocketStream.receive_some in Pump.read",
                "thread": "a thread in Pump.in_thread",
                "parent": "child tasks in Pump.with_children",
                "child": "Event.wait in Pump.run",
                "context": "Event.wait in Pump._context",
                "bare": "sleep_forever",
            }
            release.set()
            nursery.cancel_scope.cancel()
    theirs.close()
    ours.close()


async def test_wakeups_and_time() -> None:
    """A wake-up is a step of the task; the time is that of its steps and not of its waits."""
    spent = 0

    async def worker(count: int) -> None:
        nonlocal spent
        for _ in range(count):
            start = perf_counter_ns()
            while perf_counter_ns() - start < 1_000_000:
                pass
            spent += perf_counter_ns() - start
            await trio.lowlevel.checkpoint()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with TaskMeter(nursery) as meter:
            begin = perf_counter_ns()
            nursery.start_soon(worker, 5, name="worker")
            await wait_all_tasks_blocked(0.01)
            info = named(meter, "worker")
            assert info.wakeups == 6
            assert spent / 1e9 <= info.seconds < info.age_seconds
            assert info.age_seconds <= (perf_counter_ns() - begin) / 1e9
            nursery.cancel_scope.cancel()


async def test_time_asleep_is_not_spent(autojump_clock: MockClock) -> None:
    """A task that sleeps costs nothing while it does."""
    async with trio.open_nursery() as nursery:
        with TaskMeter(nursery) as meter:
            nursery.start_soon(trio.sleep_forever, name="sleeper")
            await wait_all_tasks_blocked()
            before = named(meter, "sleeper")
            await trio.sleep(3600)
            after = named(meter, "sleeper")
            assert (after.wakeups, after.seconds) == (before.wakeups, before.seconds)
            nursery.cancel_scope.cancel()


async def test_a_task_that_looks_at_itself_runs() -> None:
    """The task that takes the snapshot is shown running."""
    seen: list[TaskInfo] = []

    async def look(meter: TaskMeter) -> None:
        seen.append(named(meter, "looker"))

    async with trio.open_nursery() as nursery:
        with TaskMeter(nursery) as meter:
            nursery.start_soon(look, meter, name="looker")
            await wait_all_tasks_blocked()
            assert seen[0].waits_for == "running"
            assert seen[0].wakeups == 1
            assert meter.snapshot() == []


async def test_finished_tasks_are_forgotten() -> None:
    """Only tasks that are still there are listed, however many there were."""
    async with trio.open_nursery() as nursery:
        with TaskMeter(nursery) as meter:
            for _ in range(100):
                nursery.start_soon(trio.lowlevel.checkpoint)
            nursery.start_soon(trio.sleep_forever, name="stays")
            await wait_all_tasks_blocked()
            assert [info.name for info in meter.snapshot()] == ["stays"]
            nursery.cancel_scope.cancel()


async def test_two_machines_see_their_own() -> None:
    """Two meters in one run list the tasks below their own nurseries, children of children included."""
    pump = Pump()
    async with trio.open_nursery() as one, trio.open_nursery() as two:
        with TaskMeter(one) as first, TaskMeter(two) as second:
            one.start_soon(pump.with_children, name="a")
            two.start_soon(pump.run, name="b")
            await wait_all_tasks_blocked()
            assert sorted(info.name for info in first.snapshot()) == ["a", "child"]
            assert [info.name for info in second.snapshot()] == ["b"]
            one.cancel_scope.cancel()
            two.cancel_scope.cancel()


async def test_tasks_that_were_there_before() -> None:
    """A meter that starts late knows the tasks that run already, below the nursery at any depth."""
    pump = Pump()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.with_children, name="parent")
        await wait_all_tasks_blocked()
        with TaskMeter(nursery) as meter:
            assert {info.name for info in meter.snapshot()} == {"parent", "child"}
            pump.tick.set()
            await wait_all_tasks_blocked()
            assert meter.snapshot() == []


async def test_tasks_begun_with_start() -> None:
    """A task that goes through Nursery.start counts for the nursery it ends up in, whoever called."""

    async def service(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.lowlevel.checkpoint()
        task_status.started()
        await trio.sleep_forever()

    async def starter(elsewhere: trio.Nursery) -> None:
        await elsewhere.start(service)
        await trio.sleep_forever()

    async with trio.open_nursery() as outside, trio.open_nursery() as nursery:
        with TaskMeter(nursery) as meter:
            await nursery.start(service, name="ours")
            nursery.start_soon(starter, outside, name="starter")
            await wait_all_tasks_blocked()
            assert [info.name for info in meter.snapshot()] == ["ours", "starter"]
        nursery.cancel_scope.cancel()
        outside.cancel_scope.cancel()


async def test_a_task_as_root() -> None:
    """With a task as root that task and all below it are measured."""
    async with trio.open_nursery() as nursery:
        with TaskMeter(trio.lowlevel.current_task()) as meter:
            nursery.start_soon(trio.sleep_forever, name="below")
            await wait_all_tasks_blocked()
            infos = {info.name: info for info in meter.snapshot()}
            assert infos.keys() == {trio.lowlevel.current_task().name, "below"}
            assert infos[trio.lowlevel.current_task().name].waits_for == "running"
        nursery.cancel_scope.cancel()


async def test_task_that_has_not_run() -> None:
    """A task that was made in this step shows that it waits for its first."""
    pump = Pump()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run, name="new")
        with TaskMeter(nursery) as meter:
            assert named(meter, "new").waits_for == "its first step in Pump.run"
            assert named(meter, "new").wakeups == 0
        nursery.cancel_scope.cancel()


async def test_stopped_meter_is_off() -> None:
    """After its block a meter holds no task and hears of none; it can be stopped twice."""
    async with trio.open_nursery() as nursery:
        meter = TaskMeter(nursery)
        with meter:
            nursery.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            assert len(meter.snapshot()) == 1
        nursery.start_soon(trio.sleep_forever)
        await wait_all_tasks_blocked()
        assert meter.snapshot() == []
        meter.stop()
        nursery.cancel_scope.cancel()


async def test_number_of_tasks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit tasks are not measured, and run all the same."""
    monkeypatch.setattr(tasks, "MAX_TASKS", 3)
    ran = 0

    async def task() -> None:
        nonlocal ran
        ran += 1
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with TaskMeter(nursery) as meter:
            for _ in range(5):
                nursery.start_soon(task)
            await wait_all_tasks_blocked()
            assert len(meter.snapshot()) == 3
            assert ran == 5
            nursery.cancel_scope.cancel()
