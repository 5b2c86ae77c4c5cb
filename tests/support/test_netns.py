"""Tests of what tests use: a namespace is left by all who were in it."""

from __future__ import annotations

import os

import trio

from tests.support.netns import network_namespace


def where() -> str:
    """The network namespace of this thread."""
    return os.readlink("/proc/thread-self/ns/net")


async def test_no_thread_stays_behind() -> None:
    """Those that Trio keeps for later are where they were."""
    home = where()
    with network_namespace():
        assert where() != home
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(trio.to_thread.run_sync, where)
    seen = set()

    async def look() -> None:
        seen.add(await trio.to_thread.run_sync(where))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(look)
    assert seen == {home}
