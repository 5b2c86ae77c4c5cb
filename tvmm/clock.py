"""Wakes a board's devices at their time: RTC alarm, update and periodic interrupts, PM timer carry."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from tvmm.board import Board

__all__ = ["DeviceClock"]


class DeviceClock:
    """Made on the event loop's thread, before a device of `board` can want it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._token = trio.lowlevel.current_trio_token()
        self._news = trio.Event()
        board.on_deadline = lambda: self._token.run_sync_soon(self._look_again, idempotent=True)

    async def run(self) -> None:
        """Sleep until the next deadline, let the board act on it, and so on, until cancelled."""
        while True:
            self._news = trio.Event()
            seconds = self._board.seconds_to_deadline()
            with trio.move_on_after(math.inf if seconds is None else seconds) as scope:
                await self._news.wait()
            if scope.cancelled_caught:
                self._board.tick()

    def _look_again(self) -> None:
        self._news.set()
