"""A machine's name in the runtime directory, for as long as an `async with` block.

Another process may hold the directory's lock for a while, so both ends run in a thread.
"""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tvmm.control.registry import register

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tvmm.control.registry import MachinePaths

__all__ = ["registered"]


@asynccontextmanager
async def registered(base: Path, name: str) -> AsyncIterator[MachinePaths]:
    """`registry.register`, off the event loop. Raises as that does."""
    registration = register(base, name)
    paths = await trio.to_thread.run_sync(registration.__enter__)
    try:
        yield paths
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(registration.__exit__, *sys.exc_info())
