"""Calls on a server's thread: order, results, errors, and a caller that is cancelled."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tvmm.kvm.serve import SERVE_CONTROL, Waker
from tvmm.virtio.runner.thread import ServerThread

pytestmark = pytest.mark.timeout(30)


class IdleServer:
    """Has nothing to serve."""

    def active(self) -> bool:
        """Never."""
        return False

    def serve(self) -> int:
        """Not called."""
        return SERVE_CONTROL

    def react(self, word: int) -> None:
        """Not called."""

    def drain(self) -> None:
        """Nothing is in flight."""


@asynccontextmanager
async def server_thread() -> AsyncIterator[ServerThread]:
    """A thread that takes commands."""
    waker = Waker()
    thread = ServerThread("a test", waker, IdleServer())
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.run, trio.CapacityLimiter(1))
            yield thread
            nursery.cancel_scope.cancel()
    finally:
        waker.close()


@pytest.mark.parametrize("held", [False, True])
async def test_a_call_comes_after_what_was_posted(held: bool) -> None:
    """It runs on the thread, in its turn, and its result comes back; also while the thread is held."""
    async with server_thread() as thread:
        if held:
            await thread.hold()
        order: list[str] = []
        thread.post(lambda: order.append("posted"))

        def called() -> str:
            order.append("called")
            return threading.current_thread().name

        name = await thread.call(called)
        assert order == ["posted", "called"]
        assert name != threading.current_thread().name


async def test_what_a_call_raises_is_raised() -> None:
    """And the thread goes on."""
    async with server_thread() as thread:

        def fails() -> None:
            raise ValueError("a field")

        with pytest.raises(ValueError, match="a field"):
            await thread.call(fails)
        assert await thread.call(lambda: 5) == 5


async def test_a_call_is_not_cut_short() -> None:
    """Who is cancelled meanwhile still has the result: what was asked for has happened."""
    async with server_thread() as thread:
        done: list[int] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            await thread.call(lambda: done.append(1))
            assert done == [1]
