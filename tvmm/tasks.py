"""What the tasks of a machine do: how often each ran, for how long, and what it waits for now.

A `TaskMeter` is a Trio instrument. Trio calls it for every step of every task of the run, so a step of a task
of another machine costs a dictionary look-up that misses, and one of this machine a look-up and two readings
of the clock. Where a task waits is not recorded at all but read off its suspended coroutines when someone
asks.

Worker threads are not tasks: a vCPU shows as the task that waits for its thread.
"""

from __future__ import annotations

from contextlib import suppress
from time import perf_counter_ns
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from trio.lowlevel import Task

    from tvmm.control.target import TaskInfo

__all__ = ["MAX_TASKS", "TaskMeter"]

MAX_TASKS = 4096
"""Tasks that are measured at a time. Servers limit their clients; this holds also if one of them forgets
to."""

PLUMBING = frozenset({"contextlib", "outcome", "trio"})
"""Top-level packages whose functions are a way to wait and not a reason."""

NAMES = {"NurseryManager.__aexit__": "child tasks", "to_thread_run_sync": "a thread"}
"""Calls of Trio that have a plainer name."""


class _Record:
    """What is known of one task. Changed at each of its steps."""

    __slots__ = ("born_ns", "spent_ns", "wakeups")

    def __init__(self) -> None:
        self.born_ns = perf_counter_ns()
        self.spent_ns = 0
        self.wakeups = 0


class TaskMeter(trio.abc.Instrument):
    """Measures the tasks below `root`, a nursery or a task, those that run already included.

    A task counts as below the nursery that it will end up in, however it got there (`Nursery.start`). With a
    task as root, the task itself is measured too. Measures between `start` and `stop`, or in a `with` block,
    in the Trio thread.
    """

    __slots__ = ("_current", "_new", "_records", "_root", "_since_ns")

    def __init__(self, root: trio.Nursery | Task) -> None:
        self._root = root
        self._records: dict[Task, _Record] = {}
        self._new: set[Task] = set()
        self._current: _Record | None = None
        self._since_ns = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to measure. The ages of tasks that run already begin here too."""
        root = self._root
        tasks = list(root.child_tasks) if isinstance(root, trio.Nursery) else [root]
        while tasks:
            task = tasks.pop()
            self._add(task)
            tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        trio.lowlevel.add_instrument(self)

    def stop(self) -> None:
        """Measure no more; the figures so far are forgotten."""
        with suppress(KeyError):
            trio.lowlevel.remove_instrument(self)
        self._records.clear()
        self._new.clear()
        self._current = None

    def snapshot(self) -> list[TaskInfo]:
        """The tasks there are, oldest first."""
        from tvmm.control.target import TaskInfo

        now_ns = perf_counter_ns()
        found = []
        for task, record in self._records.items():
            running = record is self._current
            spent_ns = record.spent_ns + (now_ns - self._since_ns if running else 0)
            waits_for = "running" if running else _waits_for(task)
            age_ns = now_ns - record.born_ns
            found.append(TaskInfo(task.name, waits_for, record.wakeups, spent_ns / 1e9, age_ns / 1e9))
        return found

    def task_spawned(self, task: Task) -> None:
        """Trio: a task was created. Which nursery `Nursery.start` means it for is known by its first step."""
        self._new.add(task)

    def before_task_step(self, task: Task) -> None:
        """Trio: a task is about to run."""
        if self._new and task in self._new:
            self._new.remove(task)
            if self._is_below_root(task):
                self._add(task)
        record = self._records.get(task)
        if record is not None:
            record.wakeups += 1
            self._current = record
            self._since_ns = perf_counter_ns()

    def after_task_step(self, task: Task) -> None:
        """Trio: a task is suspended."""
        if self._current is not None:
            self._current.spent_ns += perf_counter_ns() - self._since_ns
            self._current = None

    def task_exited(self, task: Task) -> None:
        """Trio: a task is finished."""
        self._records.pop(task, None)

    def _is_below_root(self, task: Task) -> bool:
        nursery = task.eventual_parent_nursery or task.parent_nursery
        if nursery is None:
            return False
        parent = nursery.parent_task
        return nursery is self._root or parent is self._root or parent in self._records

    def _add(self, task: Task) -> None:
        if len(self._records) < MAX_TASKS:
            self._records[task] = _Record()


def _waits_for(task: Task) -> str:
    """The call that a suspended task waits in, and the function that made it: `sleep in Pump.run`."""
    function = call = ""
    for package, name in _await_chain(task):
        if package not in PLUMBING:
            function, call = name, ""
        elif not call:
            call = NAMES.get(name, name)
    if not function:
        return call or "its first step"
    return f"{call} in {function}" if call else f"its first step in {function}"


def _await_chain(task: Task) -> Iterator[tuple[str, str]]:
    """The functions that wait for one another, outermost first: top-level package and qualified name."""
    for frame, _line in task.iter_await_frames():
        module = frame.f_globals.get("__name__", "")
        yield module.partition(".")[0], frame.f_code.co_qualname
