"""Whoever comes to a destination in place of its source: it waits on, or ends, and the guest never runs twice."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress

import pytest
import trio

from tests.support.hostile_source import HELLO, STATE, HostileSource, given_up, waiting_for
from tests.support.moving_guests import World
from tests.support.patience import hurry
from tvmm.migration import incoming
from tvmm.migration.destination import DestinationState
from tvmm.migration.link import Link, LinkLost
from tvmm.migration.messages import (
    Cancel,
    Commit,
    Goodbye,
    Query,
    Ready,
    Refuse,
    Wants,
)
from tvmm.migration.reception import MAX_STRANGERS
from tvmm.migration.secure import Insecure
from tvmm.migration.wire import MAX_GREETING, MAX_LANES, MAX_MESSAGE, Kind, Opening, Reply, Security

MEMORY_LIMIT = 4 << 20
"""What a stranger can have a destination keep: four times the longest greeting."""


async def still_waits(source: HostileSource) -> None:
    """A machine that is the right one would be welcome."""
    assert source.incoming.status.state == "none"
    await source.greeted()
    assert source.incoming.status.state == "active"


@pytest.mark.parametrize(
    "opening",
    [
        b"",
        b"tvmm",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + bytes(60),
        bytes(36),
        Opening(Kind.CONTROL, lowest=1, highest=1).to_bytes()[:-1],
    ],
)
async def test_no_opening(world: World, opening: bytes) -> None:
    """The connection ends, and nothing else."""
    async with waiting_for(world) as source:
        stream = await source.connect()
        await stream.send_all(opening)
        await stream.send_eof()
        with suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
        await still_waits(source)


@pytest.mark.parametrize(
    ("opening", "reply"),
    [
        (Opening(Kind.CONTROL, Security.TLS), Reply.WANTS_PLAIN),
        (Opening(Kind.CONTROL, Security.PAIR), Reply.WANTS_PLAIN),
        (Opening(Kind.CONTROL, lowest=2, highest=0xFFFF), Reply.NO_COMMON_VERSION),
        (Opening(Kind.LANE), Reply.NO_SUCH_TOKEN),
        (Opening(Kind.LANE, token=b"t" * 16, lane=63), Reply.NO_SUCH_TOKEN),
    ],
)
async def test_an_opening_that_is_refused(world: World, opening: Opening, reply: Reply) -> None:
    """Each for its reason. While nobody has a token the empty one is none."""
    async with waiting_for(world) as source:
        assert (await source.open(opening))[1] is reply
        await still_waits(source)


@pytest.mark.parametrize("length", [0, MAX_GREETING + 1, MAX_MESSAGE, (1 << 32) - 1])
async def test_a_greeting_that_is_too_long(world: World, length: int) -> None:
    """Refused by its length, however much of it comes."""
    async with waiting_for(world) as source:
        link = await source.control()
        await link.stream.send_all(struct.pack("<I", length) + b"\x06\xff")
        with pytest.raises(LinkLost):
            await link.receive()
        await still_waits(source)


@pytest.mark.usefixtures("hurried")
async def test_a_greeting_that_does_not_end(world: World) -> None:
    """Of the length it is allowed to have, and a byte short of it: kept for a while, and not longer."""
    async with waiting_for(world) as source:
        tracemalloc.start()
        try:
            link = await source.control()
            await link.stream.send_all(struct.pack("<I", MAX_GREETING) + b"\x06" * (MAX_GREETING - 1))
            with pytest.raises(LinkLost):
                await link.receive()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MEMORY_LIMIT
        await still_waits(source)


async def test_a_greeting_that_is_all_values(world: World) -> None:
    """As many empty tuples as there is room for: refused before there are many."""
    body = b"\x06\x13\xff\xff\x0f" + b"\x06\x80" * ((MAX_GREETING - 5) // 2)
    async with waiting_for(world) as source:
        tracemalloc.start()
        try:
            link = await source.control()
            await link.stream.send_all(struct.pack("<I", len(body)) + body)
            with pytest.raises(LinkLost):
                await link.receive()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 * MEMORY_LIMIT
        await still_waits(source)


@pytest.mark.parametrize(
    "fields",
    [
        {"lanes": 0},
        {"lanes": MAX_LANES + 1},
        {"lanes": -1},
        {"session": b""},
        {"session": b"s" * 17},
        {"name": "x" * 257},
        {"description": (("ram", "2M"),) * 4097},
    ],
)
async def test_a_greeting_out_of_range(world: World, fields: dict[str, object]) -> None:
    """Hung up on; the destination's user reads why."""
    async with waiting_for(world) as source:
        link = await source.control()
        await link.send(HELLO._replace(**fields))  # type: ignore[arg-type]
        with pytest.raises(LinkLost):
            await link.receive()
        assert "greeting" in source.said[0] or "connections for pages" in source.said[0]
        await still_waits(source)


async def test_memory_that_is_compared_before_it_is_there(world: World) -> None:
    """Nobody waits, in a pause, for pages that a liar keeps."""
    async with waiting_for(world) as source:
        link = await source.control()
        await link.send(Wants(("postcopy",)))
        await link.send(HELLO._replace(verify=True))
        with pytest.raises(LinkLost):
            await link.receive()
        assert "wants its memory compared" in source.said[0]
        await still_waits(source)


@pytest.mark.parametrize("fields", [{"compress": "\x1b[2J"}, {"blocks": ()}, {"description": (("ram", "4M"),)}])
async def test_another_machine(world: World, fields: dict[str, object]) -> None:
    """Refused in words, which are harmless for a terminal."""
    async with waiting_for(world) as source:
        link = await source.control()
        await link.send(HELLO._replace(**fields))  # type: ignore[arg-type]
        refusal = await link.receive()
        assert isinstance(refusal, Refuse)
        assert all(reason.isprintable() for reason in refusal.reasons)
        assert source.said[0].isprintable()
        await still_waits(source)


@pytest.mark.parametrize("message", [STATE, Commit(), Cancel(), Goodbye(), Query(b"s" * 16), Ready()])
async def test_no_greeting(world: World, message: object) -> None:
    """Anything else in its place, also what only a destination says."""
    await given_up(world)
    async with waiting_for(world) as source:
        link = await source.control()
        await link.send(message)
        with pytest.raises(LinkLost):
            await link.receive()
        await still_waits(source)
        assert world.running == set()


async def test_dozens_that_say_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an opening, and with one: no more than there are places, which are free again after a while."""
    # Long enough for all of them to be there at a time, on a busy host too.
    hurry(monkeypatch.setattr, wait_s=4)
    async with waiting_for(world) as source:
        for number in range(MAX_STRANGERS):
            await (source.control() if number % 2 else source.connect())
        stream = await source.connect()
        assert Reply((await stream.receive_some())[-1]) is Reply.TOO_MANY
        for silent in source.streams[:MAX_STRANGERS]:
            with suppress(trio.BrokenResourceError):
                assert await silent.receive_some() == b""
        await still_waits(source)


async def test_a_refusal_that_is_not_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger than what fits on the way, for as many as may come at a time: they do not keep others out."""
    monkeypatch.setattr(incoming, "FAREWELL_SECONDS", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(world.destination, "differences", lambda theirs, ours: ["x" * 100_000] * 32)
        async with waiting_for(world) as source:
            for _ in range(MAX_STRANGERS):
                while (answer := await source.open(Opening(Kind.CONTROL)))[1] is Reply.TOO_MANY:
                    await trio.lowlevel.checkpoint()
                await Link(answer[0], ()).send(HELLO)
            patch.undo()
            while source.incoming.state is DestinationState.WAITING:
                with suppress(LinkLost, AssertionError):
                    await source.greeted()


class Void(Insecure):
    """Of a pairing code that nobody can use any more."""

    is_void = True


async def test_a_code_that_is_void(world: World) -> None:
    """Is the end of it: the user is told, and starts anew."""
    async with waiting_for(world, Void()) as source:
        assert "pairing code" in await source.until_over()
