"""What the long runs share: their options, and the figures that they print and judge."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from tests.support.vitals import own_vitals, vcpu_threads, vitals

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.vitals import Vitals

__all__ = ["GROWTH_LIMIT_KIB", "Watch", "fail", "hostile_runs", "options"]

GROWTH_LIMIT_KIB = 24 << 10
"""What a process may gain between the end of its warm-up and the end of a run. Python's allocator keeps some of what it
had at the peak; a leak of one machine's worth a run is far above."""
THREAD_LIMIT = 8
"""Threads that Trio may keep for the next one who needs any."""


def options(text: str, arguments: Sequence[tuple[str, int, str]]) -> argparse.Namespace:
    """Integer options as (name, default, help), under the script's own docstring."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, meaning in arguments:
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default {default})")
    return parser.parse_args()


def fail(text: str) -> None:
    """End the run: it found something."""
    sys.exit(f"FAILED: {text}")


class Watch:
    """A process's figures over the run, this process's unless `pid` names another."""

    def __init__(self, pid: int = 0) -> None:
        self._pid = pid
        self._started = time.monotonic()
        self.first = self.look()
        self.highest_kib = self.first.anonymous_kib

    def look(self) -> Vitals:
        """The figures now."""
        now = vitals(self._pid) if self._pid else own_vitals()
        self.highest_kib = max(getattr(self, "highest_kib", 0), now.anonymous_kib)
        return now

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started

    def line(self) -> str:
        """The figures as one line."""
        now = self.look()
        return (
            f"{self.seconds:6.1f} s  {now.anonymous_kib / 1024:6.1f} MiB (from {self.first.anonymous_kib / 1024:.1f}, "
            f"at most {self.highest_kib / 1024:.1f})  {len(now.descriptors)} descriptors  {now.threads} threads"
        )

    def judge(self, *, running: bool = False) -> None:
        """Fail if anything has grown since the beginning that should not; `running`: a machine is alive here."""
        now = self.look()
        if now.anonymous_kib - self.first.anonymous_kib > GROWTH_LIMIT_KIB:
            fail(f"memory grew: {self.line()}")
        if len(now.descriptors) > len(self.first.descriptors):
            fail(f"descriptors leaked: {sorted(set(now.descriptors) - set(self.first.descriptors))}")
        if now.threads > self.first.threads + THREAD_LIMIT or (not running and vcpu_threads()):
            fail(f"threads leaked: {self.line()} {vcpu_threads()}")


def hostile_runs(
    text: str, run: Callable[[int], str], runs: int = 5_000, *, warm_up: int = 50, report: int = 500
) -> None:
    """The whole of a script whose `run`, by a seed, says how it ended: its options with `runs` by default, a line each
    `report` runs, how often each end came, and the figures since `warm_up` runs before.
    """
    chosen = options(text, (("runs", runs, "how many"), ("seed", 1, "the first run's")))
    for seed in range(warm_up):
        run(seed)
    watch = Watch()
    endings: Counter[str] = Counter()
    for number in range(chosen.runs):
        seed = chosen.seed + number
        try:
            endings[run(seed)] += 1
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        if not endings.total() % report:
            print(f"{endings.total():6} runs  {watch.line()}", flush=True)
    for ending, count in endings.most_common():
        print(f"{count:6} times {ending!r}")
    if chosen.runs >= 100 and len(endings) < 4:
        fail("the runs did not end in different ways: this shows nothing")
    watch.judge()
    print(watch.line())
