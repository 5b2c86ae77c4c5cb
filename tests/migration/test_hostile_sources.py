"""Whoever comes to a destination in place of its source: it waits on, or ends, and the guest never runs twice."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress

import pytest
import trio

from tests.support.hostile_source import HELLO, STATE, HostileSource, round_end, waiting_for
from tests.support.moving_guests import World
from tests.support.patience import hurry
from tests.support.plain_lanes import HEADER, MAGIC, PAGES, ZEROS, Frame, encode
from tvmm.errors import ProtocolError
from tvmm.migration import incoming
from tvmm.migration.destination import DestinationState
from tvmm.migration.link import Link, LinkLost
from tvmm.migration.messages import (
    Answer,
    Cancel,
    Commit,
    Failure,
    Goodbye,
    Query,
    Ready,
    Refuse,
    RoundDone,
    Running,
    Watched,
)
from tvmm.migration.receivers import LAST_ROUND
from tvmm.migration.reception import MAX_STRANGERS
from tvmm.migration.secure import Insecure
from tvmm.migration.wire import MAX_GREETING, MAX_LANES, MAX_MESSAGE, Kind, Opening, Reply, Security, pack
from tvmm.state import Section

pytestmark = pytest.mark.usefixtures("hurried")

MEMORY_LIMIT = 4 << 20
"""What a stranger can have a destination keep: four times the longest greeting."""


async def still_waits(source: HostileSource) -> None:
    """A machine that is the right one would be welcome."""
    assert source.incoming.status.state == "none"
    await source.greeted()
    assert source.incoming.status.state == "active"


async def given_up(world: World) -> None:
    """The source of `world` has let go of its guest."""
    world.pause(world.source)
    world.source.release_disks()


# --- before a guest is on its way ---


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


async def test_dozens_that_say_nothing(world: World) -> None:
    """Without an opening, and with one: no more than there are places, which are free again after a while."""
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


# --- lanes ---


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
        await arrives(source, link)
        assert world.running == {"destination"}


async def test_as_many_lanes_as_there_may_be(world: World) -> None:
    """Each with a thread, all in one round."""
    await given_up(world)
    async with waiting_for(world) as source:
        link, token = await source.greeted(lanes=MAX_LANES)
        for number in range(MAX_LANES):
            stream, _ = await source.lane(token, number)
            await stream.send_all(round_end(0))
        await arrives(source, link)


async def arrives(source: HostileSource, link: Link) -> None:
    """The rest of a migration: state, the word, and the last word."""
    await link.send(STATE)
    assert isinstance(await link.receive(), Ready)
    await link.send(Commit())
    assert isinstance(await link.receive(), Running)
    await link.send(Goodbye())
    await source.over.wait()
    assert not source.errors


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


async def test_rounds_without_end(world: World) -> None:
    """As many as the source likes, for as long as it takes the answers: when it does not, it is gone."""
    async with waiting_for(world) as source:
        _, token = await source.greeted()
        stream, _ = await source.lane(token, 0)
        with suppress(trio.BrokenResourceError):
            for number in range(100_000):
                await stream.send_all(round_end(number, last=False))
        assert await source.until_over()


# --- words in another order ---


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
        link, token = await source.greeted()
        stream, _ = await source.lane(token, 0)
        await stream.send_all(round_end(0))
        await link.send(STATE)
        assert isinstance(await link.receive(), Ready)
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
        await arrives(source, link)


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
        await arrives(source, link)


async def test_a_question_takes_the_guest_back(world: World) -> None:
    """Of the source itself, at a destination that has everything: from then on COMMIT comes too late."""
    await given_up(world)
    async with waiting_for(world) as source:
        link, token = await source.greeted()
        stream, _ = await source.lane(token, 0)
        await stream.send_all(round_end(0))
        await link.send(STATE)
        assert isinstance(await link.receive(), Ready)
        asking = await source.control(Kind.QUERY)
        await asking.send(Query(HELLO.session))
        assert await asking.receive() == Answer("abandoned")
        with suppress(LinkLost):
            await link.send(Commit())
        await source.over.wait()
        assert world.running == set()
        assert world.disk.holder is None


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


async def test_a_state_as_large_as_it_may_be(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs what the documents say at most."""
    # While memory is counted all of this is slow.
    hurry(monkeypatch.setattr, wait_s=60)
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
async def test_words_after_it_has_arrived(world: World, message: object) -> None:
    """It runs on; the source has its answer."""
    await given_up(world)
    async with waiting_for(world) as source:
        link, token = await source.greeted()
        stream, _ = await source.lane(token, 0)
        await stream.send_all(round_end(0))
        await link.send(STATE)
        assert isinstance(await link.receive(), Ready)
        await link.send(Commit())
        assert isinstance(await link.receive(), Running)
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
        link, token = await source.greeted()
        stream, _ = await source.lane(token, 0)
        await stream.send_all(round_end(0))
        await link.send(STATE)
        assert isinstance(await link.receive(), Ready)
        await link.send(Commit())
        assert isinstance(await link.receive(), Running)
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


async def test_commit_counts_once_it_has_come(world: World) -> None:
    """Also if the connection breaks before READY is wholly out: the guest is nobody else's."""
    await given_up(world)
    async with waiting_for(world, Eager()) as source:
        link, token = await source.greeted()
        stream, _ = await source.lane(token, 0)
        await stream.send_all(round_end(0))
        await link.send(STATE)
        assert isinstance(await link.receive(), Ready)
        await link.send(Commit())
        with suppress(ProtocolError, LinkLost):
            await link.receive()
        await source.over.wait()
        assert source.incoming.state is DestinationState.RUNNING
        assert world.running == {"destination"}




class Void(Insecure):
    """Of a pairing code that nobody can use any more."""

    is_void = True


async def test_a_code_that_is_void(world: World) -> None:
    """Is the end of it: the user is told, and starts anew."""
    async with waiting_for(world, Void()) as source:
        assert "pairing code" in await source.until_over()
