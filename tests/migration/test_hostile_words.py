"""What a source says to a destination that has let it in, in another order, too much of it, or too late."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress

import pytest
import trio

from tests.support.hostile_source import HELLO, STATE, given_up, round_end, waiting_for
from tests.support.moving_guests import World
from tests.support.plain_lanes import ZEROS, Frame, encode
from tvmm.errors import ProtocolError
from tvmm.migration import incoming
from tvmm.migration.destination import DestinationState
from tvmm.migration.link import LinkLost
from tvmm.migration.messages import (
    Answer,
    Cancel,
    Commit,
    Failure,
    Goodbye,
    Query,
    Ready,
    Refuse,
    Running,
    Watched,
)
from tvmm.migration.receivers import LAST_ROUND
from tvmm.migration.secure import Insecure
from tvmm.migration.wire import MAX_MESSAGE, Kind, Opening, Reply, pack
from tvmm.state import Section

MEMORY_LIMIT = 4 << 20
"""What a stranger can have a destination keep: four times the longest greeting."""


async def test_the_state_before_the_pages(world: World) -> None:
    """It waits for them."""
    await given_up(world)
    async with waiting_for(world) as source:
        link, token = await source.greeted()
        stream, _ = await source.lane(token, 0)
        await link.send(STATE)
        await stream.send_all(encode(Frame(ZEROS, 0, (0, 1))) + round_end(0))
        assert isinstance(await link.receive(), Ready)
        await link.send(Commit())
        assert isinstance(await link.receive(), Running)
        assert world.running == {"destination"}


@pytest.mark.parametrize("message", [Commit(), Goodbye(), Query(b"s" * 16), HELLO, STATE.sections[0], Running()])
async def test_a_word_out_of_place(world: World, message: object) -> None:
    """While pages come. A destination that abandons the guest says so."""
    await given_up(world)
    async with waiting_for(world) as source:
        link, token = await source.greeted()
        await source.lane(token, 0)
        await link.send(message)
        assert await source.until_over()
        assert isinstance(await link.receive(), Failure)
        assert world.running == set()
        assert world.disk.holder is None


@pytest.mark.parametrize("message", [Commit(), STATE, Goodbye()])
async def test_a_word_before_ready(world: World, message: object) -> None:
    """COMMIT in one piece with the state, and others."""
    await given_up(world)
    async with waiting_for(world) as source:
        link, token = await source.greeted()
        await source.lane(token, 0)
        await link.send(STATE)
        await link.send(message)
        assert await source.until_over()
        assert world.running == set()


@pytest.mark.parametrize("last_round", [-1, 1, 1 << 40, LAST_ROUND])
async def test_a_state_of_another_round(world: World, last_round: int) -> None:
    """It may belong to other pages."""
    async with waiting_for(world) as source:
        link, token = await source.greeted()
        stream, _ = await source.lane(token, 0)
        await stream.send_all(round_end(0))
        await link.send(STATE._replace(last_round=last_round))
        assert "last round" in await source.until_over()


@pytest.mark.parametrize("hashes", [(), (b"",), (b"x" * 32,), (b"x",) * 100])
async def test_hashes_that_are_none(world: World, hashes: tuple[bytes, ...]) -> None:
    """Asked for and not there, or others."""
    async with waiting_for(world) as source:
        link, token = await source.greeted(verify=True)
        stream, _ = await source.lane(token, 0)
        await stream.send_all(round_end(0))
        await link.send(STATE._replace(hashes=hashes))
        assert "differs" in await source.until_over()


async def test_a_guest_that_is_not_given_up(world: World) -> None:
    """COMMIT of a source that keeps the disk, and runs: the destination cannot have it, and says so."""
    async with waiting_for(world) as source:
        link, _ = await source.ready()
        await link.send(Commit())
        failure = await link.receive()
        assert isinstance(failure, Failure)
        assert "in use" in failure.reason
        assert world.running == {"source"}


async def test_a_second_machine(world: World) -> None:
    """While one arrives: it is refused, and the first one is not disturbed."""
    await given_up(world)
    async with waiting_for(world) as source:
        link, token = await source.greeted()
        other = await source.control()
        await other.send(HELLO._replace(session=b"t" * 16))
        refusal = await other.receive()
        assert isinstance(refusal, Refuse)
        stream, _ = await source.lane(token, 0)
        await stream.send_all(round_end(0))
        await source.arrive(link)


async def test_questions_of_strangers(world: World) -> None:
    """Nobody who does not know the session learns anything, or changes anything."""
    await given_up(world)
    async with waiting_for(world) as source:
        for session in (b"", b"s" * 16, b"s" * 100_000):
            link = await source.control(Kind.QUERY)
            await link.send(Query(session))
            assert await link.receive() == Answer("unknown")
        link, token = await source.greeted()
        for session in (b"", b"s" * 15, b"t" * 16):
            asking = await source.control(Kind.QUERY)
            await asking.send(Query(session))
            assert await asking.receive() == Answer("unknown")
        stream, _ = await source.lane(token, 0)
        await stream.send_all(round_end(0))
        await source.arrive(link)


async def test_a_question_takes_the_guest_back(world: World) -> None:
    """Of the source itself, at a destination that has everything: from then on COMMIT comes too late."""
    await given_up(world)
    async with waiting_for(world) as source:
        link, _ = await source.ready()
        asking = await source.control(Kind.QUERY)
        await asking.send(Query(HELLO.session))
        assert await asking.receive() == Answer("abandoned")
        with suppress(LinkLost):
            await link.send(Commit())
        await source.over.wait()
        assert world.running == set()
        assert world.disk.holder is None


@pytest.mark.usefixtures("hurried")
async def test_a_state_that_does_not_end(world: World) -> None:
    """Of the length that it may have: no more is kept than what came, and that not for ever."""
    async with waiting_for(world) as source:
        link, token = await source.greeted()
        stream, _ = await source.lane(token, 0)
        await stream.send_all(round_end(0))
        tracemalloc.start()
        try:
            await link.stream.send_all(struct.pack("<I", MAX_MESSAGE) + bytes(100_000))
            assert await source.until_over()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MEMORY_LIMIT


async def test_a_state_as_large_as_it_may_be(world: World) -> None:
    """Costs what the documents say at most."""
    data = pack(STATE._replace(sections=(Section("x", 1, 1, bytes(MAX_MESSAGE // 2 - 1000)),) * 2))
    async with waiting_for(world) as source:
        link, token = await source.greeted()
        stream, _ = await source.lane(token, 0)
        tracemalloc.start()
        try:
            await link.stream.send_all(data)
            await stream.send_all(round_end(0))
            assert isinstance(await link.receive(), Ready)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 64 << 20


@pytest.mark.parametrize("message", [Commit(), STATE, Cancel(), HELLO, Query(b"s" * 16), Goodbye()])
async def test_words_after_it_has_arrived(world: World, message: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on; the source has its answer."""
    monkeypatch.setattr(incoming, "ANSWER_SECONDS", 0.5)
    await given_up(world)
    async with waiting_for(world) as source:
        link, _ = await source.arrived()
        with suppress(LinkLost):
            for _ in range(1000):
                await link.send(message)
        await source.over.wait()
        assert not source.errors
        assert world.running == {"destination"}


async def test_screens_of_strangers(world: World) -> None:
    """Nobody gets one without the token, before the guest is here, or after another has it."""
    await given_up(world)
    async with waiting_for(world) as source:
        _, reply = await source.open(Opening(Kind.SCREEN))
        assert reply is Reply.NO_SUCH_TOKEN
        link, token = await source.greeted()
        for wrong in (bytes(16), b"s" * 16):
            _, reply = await source.open(Opening(Kind.SCREEN, token=wrong))
            assert reply is Reply.NO_SUCH_TOKEN
        early, _ = await source.open(Opening(Kind.SCREEN, token=token))
        assert await early.receive_some(1) == b""
        stream, _ = await source.lane(token, 0)
        await stream.send_all(round_end(0))
        await link.send(STATE)
        assert isinstance(await link.receive(), Ready)
        await link.send(Commit())
        assert isinstance(await link.receive(), Running)
        await source.open(Opening(Kind.SCREEN, token=token))
        late, _ = await source.open(Opening(Kind.SCREEN, token=token))
        assert await late.receive_some(1) == b""
        await link.send(Watched(-1))
        await link.send(Goodbye())
        await source.over.wait()
        assert len(world.destination.screens) == 1
        assert not source.errors
        await trio.aclose_forcefully(world.destination.screens[0])


async def test_a_screen_for_which_there_is_none(world: World) -> None:
    """The connection is refused, in words for the destination's user."""
    await given_up(world)
    world.destination.has_screen = False
    async with waiting_for(world) as source:
        link, token = await source.arrived()
        screen, _ = await source.open(Opening(Kind.SCREEN, token=token))
        assert await screen.receive_some(1) == b""
        assert any("no screen" in line for line in source.said)
        await link.send(Goodbye())
        await source.over.wait()


class Eager(Insecure):
    """COMMIT comes while READY is being sent, and the connection breaks then."""

    async def wrap(self, stream: trio.SocketStream) -> trio.abc.Stream:
        """See `Securer`."""
        return _EagerStream(stream)


class _EagerStream(trio.abc.Stream):
    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._committed = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)
        if b"Ready" in data:
            await self._committed.wait()
            raise trio.BrokenResourceError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self._stream.receive_some(max_bytes))
        if b"Commit" in data:
            self._committed.set()
        return data

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_commit_counts_once_it_has_come(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the connection breaks before READY is wholly out: the guest is nobody else's."""
    monkeypatch.setattr(incoming, "ANSWER_SECONDS", 0.5)
    await given_up(world)
    async with waiting_for(world, Eager()) as source:
        link, _ = await source.ready()
        await link.send(Commit())
        with suppress(ProtocolError, LinkLost):
            await link.receive()
        await source.over.wait()
        assert source.incoming.state is DestinationState.RUNNING
        assert world.running == {"destination"}
