"""Who may look at a canvas, and who may change it: many may look at once, one changes it alone."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Turns"]


class Turns:
    """Of one canvas. Whoever wants to change it comes before those who want to begin to look."""

    def __init__(self) -> None:
        self._readers = 0
        self._changing = trio.Lock()
        self._news = trio.Event()

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Within the block nobody changes it."""
        while self._changing.locked():
            await self._news.wait()
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            self._tell()

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Within the block nobody looks at it, and nobody else changes it."""
        try:
            async with self._changing:
                while self._readers:
                    await self._news.wait()
                yield
        finally:
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()
