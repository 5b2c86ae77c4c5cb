"""How late a task of the event loop is in both processes of a migration, and what the loop does at a stretch.

    python -m bench.late_moves [--runs N] [--case WORD] [--option WORD]...

A task in either process wakes every millisecond while 1 GiB moves between them over loopback TCP, flat out by default,
and notes how late it was. Its lateness includes what the host's other processes take. What does not is the processor
time of each step of a task, also given: that much the loop was kept by tvmm itself. `--option` is for `tvmm migrate`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import trio

from bench.migrate import BASE_SECONDS, CASES, MIGRATE_SECONDS, mark, touch
from bench.peers import Tvmm

PERIOD = 0.001
LONG_NS = 1_000_000
"""Steps that are told one by one."""


class Watch(trio.abc.Instrument):
    """Notes (time, seconds late) of a task of its own, and (time, processor ns, task) of each step of any."""

    def __init__(self) -> None:
        self.late: list[tuple[float, float]] = []
        self.steps: list[tuple[float, int, str]] = []
        self._begun = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        self._begun = time.thread_time_ns()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        self.steps.append((time.monotonic(), time.thread_time_ns() - self._begun, task.name))

    async def wake(self) -> None:
        """Until cancelled."""
        while True:
            due = time.monotonic() + PERIOD
            await trio.sleep(PERIOD)
            self.late.append((time.monotonic(), time.monotonic() - due))


def watched(path: str, words: list[str]) -> int:
    """`tvmm` with `words`; what was noted is in `path` at the end."""
    from tvmm.cli import main as tvmm

    watch, run = Watch(), trio.run

    def run_watched(function: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        async def both() -> Any:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch.wake)
                result = await function(*args)
                nursery.cancel_scope.cancel()
            return result

        return run(both, instruments=[*options.pop("instruments", ()), watch], **options)

    trio.run = run_watched  # type: ignore[assignment]  # it takes all that is used
    try:
        return tvmm(words)
    finally:
        Path(path).write_text(json.dumps([watch.late, watch.steps]))


class WatchedTvmm(Tvmm):
    """Both sides are watched."""

    def command(self, folder: Path, side: str, serial: Path) -> Sequence[str]:
        _, *words = super().command(folder, side, serial)
        return [sys.executable, "-m", "bench.late_moves", "--watch", str(folder / f"{side}.json"), *words]


class Window(NamedTuple):
    """What one process noted while the guest moved."""

    late_ms: list[float]
    steps_ms: list[float]
    long: list[str]


def window(path: Path, begun: float, ended: float) -> Window:
    """Of a process that has ended."""
    late, steps = json.loads(path.read_text())
    inside = [(ns / 1e6, name, at) for at, ns, name in steps if begun <= at <= ended]
    return Window(
        [seconds * 1e3 for at, seconds in late if begun <= at <= ended],
        [ms for ms, _, _ in inside],
        [f"{ms:.1f} ms {name}, at {(at - begun) * 1e3:.0f} ms" for ms, name, at in inside if ms * 1e6 >= LONG_NS],
    )


def move(monitor: WatchedTvmm, case: str, folder: Path) -> list[Window]:
    """One migration: source, destination."""
    with monitor.pair(folder) as (source, target):
        touch(source)
        source.send(f"dirty {CASES[case].rate} {CASES[case].size}\n")
        mark(source)
        time.sleep(BASE_SECONDS)
        begun = time.monotonic()
        monitor.migrate(MIGRATE_SECONDS)
        ended = time.monotonic()
        mark(target)
    return [window(folder / f"{side}.json", begun, ended) for side in ("source", "destination")]


def show(what: str, values: list[float]) -> None:
    """One line."""
    values = sorted(values)
    at = [values[min(int(len(values) * share), len(values) - 1)] for share in (0.5, 0.99, 1.0)]
    print(f"  {what:44} median {at[0]:6.3f}  99% {at[1]:6.3f}  most {at[2]:6.3f} ms ({len(values)})")


def main() -> int:
    """Measure and print."""
    if sys.argv[1:2] == ["--watch"]:
        return watched(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(prog="bench.late_moves", description="the event loop while a guest moves")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--case", choices=tuple(CASES), default="flat")
    parser.add_argument("--option", action="append", default=[], help="of tvmm migrate, as --option=--connections=2")
    options = parser.parse_args()
    load, runs = os.getloadavg()[0], []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory(prefix="tvmm-bench-") as scratch:
            runs.append(move(WatchedTvmm(options.option), options.case, Path(scratch)))
    print(f"{CASES[options.case].name}; load average {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    for side, name in enumerate(("source", "destination")):
        print(name)
        show("late, of 1 ms, other processes included", [value for run in runs for value in run[side].late_ms])
        show("a step's processor time", [value for run in runs for value in run[side].steps_ms])
        for number, run in enumerate(runs):
            for line in run[side].long:
                print(f"    run {number + 1}: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
