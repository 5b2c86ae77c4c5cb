"""The feed: who holds waits, who does not is told what it missed."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.chardev.fakes import odd_bytes
from tvmm.chardev.feed import Feed, Follower


async def take_all(follower: Follower, into: bytearray, limit: int) -> None:
    """Take everything, at most `limit` bytes at a time."""
    while (piece := await follower.wait(limit)) is not None:
        assert piece.missed == 0
        into += piece.data
        follower.took(piece)


async def test_nobody_holds_the_writer() -> None:
    """Without a holding follower any amount goes in at once, and the latest is kept."""
    feed = Feed(100)
    data = odd_bytes(1000)
    with feed.follow(holding=False) as follower:
        await feed.put(data)
        piece = await follower.wait()
    assert piece is not None
    assert (piece.missed, piece.data) == (900, data[-100:])


async def test_holder_gets_everything_through_a_small_history() -> None:
    """A holding follower loses nothing, even of one put that is larger than the history."""
    feed = Feed(100)
    data = odd_bytes(5000)
    taken = bytearray()
    async with trio.open_nursery() as nursery:
        with feed.follow(holding=True) as follower:
            nursery.start_soon(take_all, follower, taken, 7)
            for start in range(0, len(data), 333):
                await feed.put(data[start : start + 333])
                assert taken == data[: start + 333]
            feed.finish()
            await trio.testing.wait_all_tasks_blocked()
    assert taken == data


@pytest.mark.parametrize("release", ["leave", "let go", "pause"])
async def test_writer_goes_on_when_the_holder_releases_it(release: str) -> None:
    """A holder that leaves, lets go or pauses frees a writer that waits for it."""
    feed = Feed(10)
    done = trio.Event()

    async def write() -> None:
        await feed.put(b"x" * 50)
        done.set()

    async with trio.open_nursery() as nursery:
        with feed.follow(holding=True) as follower:
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            assert not done.is_set()
            if release == "let go":
                follower.holding = False
            elif release == "pause":
                follower.paused = True
            if release != "leave":
                await done.wait()
        await done.wait()


async def test_partial_take() -> None:
    """A follower that took part of a piece gets the rest next, and holds for it."""
    feed = Feed()
    async with trio.open_nursery() as nursery:
        with feed.follow(holding=True) as follower:
            nursery.start_soon(feed.put, b"abcdef")
            piece = await follower.wait()
            assert piece is not None
            follower.took(piece, 2)
            piece = await follower.wait()
            assert piece is not None
            assert piece.data == b"cdef"
            follower.took(piece)


async def test_pause_keeps_bytes_back_until_resumed() -> None:
    """A paused follower waits though there are bytes, and gets them when resumed."""
    feed = Feed()
    got: list[bytes] = []

    async def take() -> None:
        piece = await follower.wait()
        assert piece is not None
        got.append(piece.data)

    with feed.follow(holding=True) as follower:
        follower.paused = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await feed.put(b"abc")
            await trio.testing.wait_all_tasks_blocked()
            assert not got
            follower.paused = False
    assert got == [b"abc"]


async def test_finish_overrides_pause() -> None:
    """At the end a paused follower gets what is left, and then None."""
    feed = Feed()
    with feed.follow(holding=True) as follower:
        follower.paused = True
        await feed.put(b"last words")
        feed.finish()
        piece = await follower.wait()
        assert piece is not None
        assert piece.data == b"last words"
        follower.took(piece)
        assert await follower.wait() is None


async def test_follower_may_begin_anywhere_that_was() -> None:
    """A follower begins at the oldest byte or at a given position, but not ahead of the end."""
    feed = Feed(4)
    await feed.put(b"abcdef")
    assert feed.follow(holding=False).position == 2
    assert feed.follow(holding=False, start=5).position == 5
    with pytest.raises(ValueError, match="not within"):
        feed.follow(holding=False, start=7)


async def test_wait_can_be_cancelled() -> None:
    """A cancelled wait leaves the follower as it was."""
    feed = Feed()
    with feed.follow(holding=False) as follower:
        with trio.CancelScope() as scope:
            scope.cancel()
            await follower.wait()
        assert scope.cancelled_caught
        await feed.put(b"a")
        assert (await follower.wait()) is not None


async def test_who_holds_is_told() -> None:
    """The first that holds and the last that lets go: by coming, leaving, a change of mind, a pause."""
    feed, told = Feed(), list[bool]()
    feed.on_held = told.append
    with feed.follow(holding=False) as one:
        assert told == []
        with feed.follow(holding=True) as two:
            one.holding = True
            assert told == [True]
            two.paused = True
            one.holding = False
            assert told == [True, False]
            two.paused = False
        assert told == [True, False, True, False]
    assert not feed.held
