"""Several blocking calls side by side, that one waker gets out."""

from __future__ import annotations

import gc
import os
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import trio

from tvmm.errors import TvmmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tvmm.kvm.serve import Waker

__all__ = ["attentive", "run_together", "the_cause", "yielding"]


SWITCH_SECONDS = 0.0005
YIELDING_NICE = 5
"""A third of what an ordinary thread gets: enough to get away from a host that has too much to do."""


@contextmanager
def attentive() -> Iterator[None]:
    """Within the block Python collects no garbage and changes threads soon: each may take 5 ms, and a guest waits.

    Both are the whole process's. Of blocks that overlap the first one's end counts.
    """
    if not gc.isenabled():
        yield
        return
    interval = sys.getswitchinterval()
    gc.collect(1)
    gc.disable()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.enable()


def yielding(call: Callable[[], None]) -> None:
    """Do `call` on a thread of its own that leaves the processors to others, such as vCPUs, when they want them."""
    raised: list[BaseException] = []

    def run() -> None:
        # A thread may lower its priority and never raise it again: so this one ends here, and is not used for others.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), YIELDING_NICE)
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="tvmm pages")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


async def run_together(calls: Sequence[Callable[[], None]], waker: Waker) -> None:
    """Each call on a thread of its own. Cancelled, or when one raises, the others are woken and waited for.

    Raises the first `TvmmError` of them as itself.
    """
    limiter = trio.CapacityLimiter(max(len(calls), 1))
    left = len(calls)

    async def run(call: Callable[[], None]) -> None:
        nonlocal left
        await trio.to_thread.run_sync(call, abandon_on_cancel=False, limiter=limiter)
        left -= 1
        if not left:
            nursery.cancel_scope.cancel()

    async def wake_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            if left:
                waker.wake()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wake_when_cancelled)
            for call in calls:
                nursery.start_soon(run, call)
    except BaseExceptionGroup as group:
        raise the_cause(group, (TvmmError,)) from None


def the_cause(group: BaseExceptionGroup[BaseException], expected: tuple[type[Exception], ...]) -> BaseException:
    """The one to raise for a group: of the `expected` types the first there is, or the group if it has others."""
    leaves: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo:
        error = todo.pop(0)
        if isinstance(error, BaseExceptionGroup):
            todo += error.exceptions
        else:
            leaves.append(error)
    if any(not isinstance(error, (*expected, trio.Cancelled)) for error in leaves):
        return group
    for kind in expected:
        for error in leaves:
            if isinstance(error, kind):
                return error
    return group
