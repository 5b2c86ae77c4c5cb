"""A thread with an event loop of its own, there before it is wanted: starting one takes up to ten milliseconds."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["LoopThread"]


class LoopThread:
    """Runs one task when it is given one, and ends with it."""

    def __init__(self, name: str) -> None:
        self._warm = threading.Event()
        self._loop: trio.lowlevel.TrioToken | None = None
        self._work: Callable[[], Awaitable[None]] | None = None
        self._over: Callable[[], None] = lambda: None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def give(self, work: Callable[[], Awaitable[None]], over: Callable[[], None]) -> None:
        """Once, and not after `close`. `over` is called on the thread when `work` has ended, whichever way."""
        self._work, self._over = work, over
        if not self._warm.is_set():
            await trio.to_thread.run_sync(self._warm.wait)
        self._go_on()

    def close(self) -> None:
        """It is not wanted. Whoever has been given work goes on. Idempotent."""
        self._warm.wait()
        self._go_on()

    def _go_on(self) -> None:
        if self._loop is not None:
            with suppress(trio.RunFinishedError):
                self._loop.run_sync_soon(self._news.set)

    def _run(self) -> None:
        try:
            trio.run(self._main)
        finally:
            self._warm.set()
            self._over()

    async def _main(self) -> None:
        self._news = trio.Event()
        self._loop = trio.lowlevel.current_trio_token()
        self._warm.set()
        await self._news.wait()
        if self._work is not None:
            await self._work()
