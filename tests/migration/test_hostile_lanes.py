"""Connections for pages that come in place of those of a guest's source: too few, too many, and what they say."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
import trio

from tests.support.hostile_source import given_up, round_end, waiting_for
from tests.support.moving_guests import World
from tests.support.plain_lanes import HEADER, MAGIC, PAGES, ZEROS, Frame, encode
from tvmm.migration.messages import (
    Failure,
    RoundDone,
)
from tvmm.migration.wire import MAX_LANES, Reply


@pytest.mark.usefixtures("hurried")
async def test_lanes_that_do_not_come(world: World) -> None:
    """All but one of them."""
    async with waiting_for(world) as source:
        link, token = await source.greeted(lanes=3)
        for number in (0, 2):
            assert (await source.lane(token, number))[1] is Reply.GO
        assert "did not come" in await source.until_over()
        failure = await link.receive()
        assert isinstance(failure, Failure)
        assert "did not come" in failure.reason


async def test_a_lane_that_comes_twice(world: World) -> None:
    """And one that has a number too high, and one with another token: the migration succeeds beside them."""
    await given_up(world)
    async with waiting_for(world) as source:
        link, token = await source.greeted(lanes=2)
        first, _ = await source.lane(token, 0)
        for number in (0, 2, 63):
            stream, _ = await source.lane(token, number)
            with suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
        assert (await source.lane(b"t" * 16, 1))[1] is Reply.NO_SUCH_TOKEN
        assert (await source.lane(bytes(16), 1))[1] is Reply.NO_SUCH_TOKEN
        second, _ = await source.lane(token, 1)
        await first.send_all(round_end(0))
        await second.send_all(round_end(0))
        await source.arrive(link)
        assert world.running == {"destination"}


async def test_as_many_lanes_as_there_may_be(world: World) -> None:
    """Each with a thread, all in one round."""
    await given_up(world)
    async with waiting_for(world) as source:
        link, token = await source.greeted(lanes=MAX_LANES)
        for number in range(MAX_LANES):
            stream, _ = await source.lane(token, number)
            await stream.send_all(round_end(0))
        await source.arrive(link)


HUGE = HEADER.pack(MAGIC, PAGES, 0, 0, 512, 512 * 4100, 0)
"""Of a frame with all pages."""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\0" * 64, "starts with"),
        (encode(Frame(ZEROS, 0, (512,))), "page 512 of a block of 512"),
        (encode(Frame(ZEROS, 1, (0,))), "block 1"),
        (encode(Frame(ZEROS, 0, (5, 5))), "comes behind"),
        (encode(Frame(9)), "kind 9"),
        (HEADER.pack(MAGIC, PAGES, 0, 0, (1 << 32) - 1, (1 << 32) - 1, 0), "pages"),
        (HEADER.pack(MAGIC, ZEROS, 0, 0, 1, 1 << 31, 0), "payload"),
        (HUGE, "within a frame"),
        (round_end(1 << 32), "round"),
        (round_end(0, last=False) + round_end(0), "round 0 comes behind round 0"),
        (round_end(7, last=False) + round_end(3), "round 3 comes behind round 7"),
        (b"", "closed"),
        (round_end(5, last=False), "closed"),
    ],
    ids=range(13),
)
async def test_a_lane_with_nonsense(world: World, data: bytes, why: str) -> None:
    """Then it is closed. The guest is given up, and the source reads why."""
    async with waiting_for(world) as source:
        link, token = await source.greeted()
        stream, _ = await source.lane(token, 0)
        await stream.send_all(data)
        await stream.send_eof()
        assert why in await source.until_over()
        while isinstance(message := await link.receive(), RoundDone):
            pass
        assert isinstance(message, Failure)
        assert why in message.reason
        assert world.running == {"source"}


async def test_lanes_in_different_rounds(world: World) -> None:
    """One is ahead, or says that it is the last where the other does not."""
    for other in (round_end(1), round_end(0, last=False)):
        async with waiting_for(world) as source:
            _, token = await source.greeted(lanes=2)
            await (await source.lane(token, 0))[0].send_all(round_end(0))
            await (await source.lane(token, 1))[0].send_all(other)
            assert "different rounds" in await source.until_over()


async def test_a_lane_that_closes_in_the_middle(world: World) -> None:
    """Of two, while the other one says nothing: nobody waits for that."""
    async with waiting_for(world) as source:
        _, token = await source.greeted(lanes=2)
        await source.lane(token, 0)
        stream, _ = await source.lane(token, 1)
        await stream.send_all(HUGE + struct.pack("<512I", *range(512)) + bytes(10_000))
        await stream.aclose()
        assert "within a frame" in await source.until_over()


@pytest.mark.usefixtures("hurried")
async def test_rounds_without_end(world: World) -> None:
    """As many as the source likes, for as long as it takes the answers: when it does not, it is gone."""
    async with waiting_for(world) as source:
        _, token = await source.greeted()
        stream, _ = await source.lane(token, 0)
        with suppress(trio.BrokenResourceError):
            for number in range(100_000):
                await stream.send_all(round_end(number, last=False))
        assert await source.until_over()
