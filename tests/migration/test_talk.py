"""What a source hears from its destination, and what it makes of a bad one; and the link below."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.migration.streams import stream_pair
from tests.support.hostile_source import HELLO
from tvmm.config.incoming import MigrationAddress
from tvmm.errors import HostError, ProtocolError, UserError
from tvmm.migration import link, talk
from tvmm.migration.link import Link, LinkLost, listen, open_connection, peer_name, read_opening
from tvmm.migration.messages import (
    FROM_DESTINATION,
    FROM_SOURCE,
    Answer,
    Cancel,
    Failure,
    Query,
    Ready,
    Refuse,
    RoundDone,
    Running,
    Welcome,
)
from tvmm.migration.secure import Insecure
from tvmm.migration.source import SourceEvent
from tvmm.migration.talk import REASONS_MAX, UNASKED_MAX, Ended, Talk, ask, say_if_possible
from tvmm.migration.wire import MAX_GREETING, Kind, Opening, Reply, pack

WELCOME = Welcome(1, b"t" * 16)


@asynccontextmanager
async def talking() -> AsyncIterator[tuple[Talk, Link]]:
    """A source's end, and the destination's."""
    with stream_pair() as (here, there):
        yield Talk(Link(here, FROM_DESTINATION)), Link(there, FROM_SOURCE)


async def test_a_welcome() -> None:
    """Has the token."""
    async with talking() as (source, destination):
        await destination.send(WELCOME)
        assert await source.greet(HELLO) == WELCOME.token
        assert await destination.receive() == HELLO


@pytest.mark.parametrize(
    "answer",
    [Ready(), Answer("running"), Failure("no"), Welcome(2, b"t" * 16), Welcome(0, b"t" * 16), Welcome(1, b"t" * 15)],
)
async def test_no_welcome(answer: Any) -> None:
    """Another word, version or length breaks the protocol."""
    async with talking() as (source, destination):
        await destination.send(answer)
        with pytest.raises(ProtocolError, match=r"greeting|token"):
            await source.greet(HELLO)


async def test_a_refusal() -> None:
    """In the destination's words, made harmless, and not all of them if there are very many."""
    refusal = Refuse(("no\x1b[2J", "x" * 10_000) * 50, "try\nthat")
    async with talking() as (source, destination), trio.open_nursery() as nursery:
        nursery.start_soon(destination.send, refusal)
        with pytest.raises(Ended) as ended:
            await source.greet(HELLO)
        assert ended.value.event is SourceEvent.REFUSE
        assert "no?[2J" in ended.value.reason
        assert ended.value.reason.isprintable()
        assert len(ended.value.reason) < REASONS_MAX * 450
        assert ended.value.hint == "try?that"


async def test_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the greeting, and later: an event of its own, not an error of the connection."""
    monkeypatch.setattr(talk, "GREETING_SECONDS", 0.01)
    async with talking() as (source, _):
        with pytest.raises(Ended, match="said nothing") as ended:
            await source.greet(HELLO)
        assert ended.value.event is SourceEvent.OVERDUE
        with pytest.raises(Ended, match="did not load the state within") as ended:
            await source.expect(Ready, 0.01, "load the state")
        assert ended.value.event is SourceEvent.OVERDUE


async def test_expected_words() -> None:
    """In order, whether they were there before or come later; another one breaks the protocol."""
    async with talking() as (source, destination), trio.open_nursery() as nursery:
        nursery.start_soon(source.listen)
        await destination.send(RoundDone(0))
        assert (await source.expect(RoundDone, 5, "go on")).number == 0
        nursery.start_soon(destination.send, RoundDone(1))
        assert (await source.expect(RoundDone, 5, "go on")).number == 1
        await destination.send(Running())
        with pytest.raises(ProtocolError, match="sent Running in place of Ready"):
            await source.expect(Ready, 5, "go on")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("say", "kind", "why"),
    [
        (lambda peer: peer.send(Failure("bro\x1bken")), Ended, "bro.ken"),
        (lambda peer: peer.stream.send_all(struct.pack("<I", MAX_GREETING + 1)), ProtocolError, "announces"),
        (lambda peer: peer.stream.send_all(pack(Cancel())), ProtocolError, "not known here"),
        (lambda peer: peer.close(), LinkLost, "closed|broke"),
    ],
)
async def test_bad_news(say: Callable[[Link], Awaitable[None]], kind: type[Exception], why: str) -> None:
    """Are raised where they are heard, and wherever somebody waits for a word, now and later."""
    heard: list[Exception] = []
    async with talking() as (source, destination), trio.open_nursery() as nursery:

        async def listen_there() -> None:
            try:
                await source.listen()
            except (Ended, ProtocolError, LinkLost) as error:
                heard.append(error)

        nursery.start_soon(listen_there)
        await say(destination)
        for _ in range(2):
            with pytest.raises(kind, match=why):
                await source.expect(Ready, 5, "load the state")
    assert isinstance(heard[0], kind)


async def test_a_flood() -> None:
    """What nobody waits for fills no memory."""
    async with talking() as (source, destination), trio.open_nursery() as nursery:

        async def flood() -> None:
            for number in range(UNASKED_MAX + 1):
                await destination.send(RoundDone(number))

        nursery.start_soon(flood)
        with pytest.raises(ProtocolError, match="nobody has asked for"):
            await source.listen()


async def test_a_last_word_that_cannot_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a destination that is gone, or that takes nothing: nobody waits for long, whoever has cancelled what."""
    monkeypatch.setattr(talk, "FAREWELL_SECONDS", 0.05)
    async with talking() as (source, destination):
        with trio.CancelScope() as scope:
            scope.cancel()
            await say_if_possible(source.link, Cancel("x" * 1_000_000))
        await destination.close()
        await say_if_possible(source.link, Cancel())
        await source.close()


@asynccontextmanager
async def answering(path: Path, reply: bytes, say: bytes = b"") -> AsyncIterator[MigrationAddress]:
    """Somebody at `path` who reads an opening, and answers with these bytes."""
    address = MigrationAddress("unix", path=str(path / "there"))

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await read_opening(stream)
            await stream.send_all(reply)
            if say:
                await Link(stream, FROM_SOURCE).receive()
                await stream.send_all(say)
        except LinkLost:
            return

    async with listen(address) as listeners, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield address
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("outcome", "event"),
    [
        ("running", SourceEvent.ANSWER_RUNNING),
        ("abandoned", SourceEvent.ANSWER_ABANDONED),
        ("unknown", SourceEvent.ANSWER_UNKNOWN),
        ("nonsense", SourceEvent.ANSWER_UNKNOWN),
    ],
)
async def test_questions(tmp_path: Path, outcome: str, event: SourceEvent) -> None:
    """What is no known answer is none."""
    async with answering(tmp_path, Reply.GO.to_bytes(), pack(Answer(outcome))) as address:
        assert await ask(address, Insecure(), b"s" * 16) is event


@pytest.mark.parametrize(
    ("reply", "say", "error"),
    [
        (Reply.GO.to_bytes(), pack(Running()), ProtocolError),
        (Reply.GO.to_bytes(), pack(Query(b"")), ProtocolError),
        (Reply.GO.to_bytes(), b"\0\0", LinkLost),
        (Reply.TOO_MANY.to_bytes(), b"", UserError),
        (b"HTTP/1.1 ", b"", ProtocolError),
        (b"tvmm-rep", b"", LinkLost),
        (b"", b"", LinkLost),
    ],
)
async def test_no_answer(tmp_path: Path, reply: bytes, say: bytes, error: type[Exception]) -> None:
    """Each for its reason, and no connection stays open."""
    async with answering(tmp_path, reply, say) as address:
        with pytest.raises(error):
            await ask(address, Insecure(), b"s" * 16)


async def test_somebody_who_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is no tvmm that waits for a machine."""
    monkeypatch.setattr(link, "CONNECT_SECONDS", 0.05)
    address = MigrationAddress("unix", path=str(tmp_path / "there"))
    async with listen(address):
        with pytest.raises(LinkLost, match="does not answer"):
            await open_connection(address, Opening(Kind.CONTROL))


async def test_nobody_listens() -> None:
    """The system's reason, and what to do; a name that is none."""
    async with listen(MigrationAddress("tcp", "127.0.0.1", 0)) as (listener,):
        port = listener.socket.getsockname()[1]
        with pytest.raises(HostError, match="cannot listen"):
            async with listen(MigrationAddress("tcp", "127.0.0.1", port)):
                pass
    with pytest.raises(UserError, match="cannot be reached") as raised:
        await open_connection(MigrationAddress("tcp", "127.0.0.1", port), Opening(Kind.CONTROL))
    assert "--incoming" in raised.value.hint


def test_names() -> None:
    """As the user would write them."""
    assert peer_name(MigrationAddress("unix", path="/a/b")) == "unix:/a/b"
    assert peer_name(MigrationAddress("tcp", "::1", 44)) == "tcp:[::1]:44"
    assert peer_name(MigrationAddress("tcp", "host", 44)) == "tcp:host:44"


async def test_a_link_that_breaks() -> None:
    """While it sends, and while it receives; messages that came before are still there."""
    with stream_pair() as (here, there):
        near, far = Link(here, FROM_SOURCE), Link(there, FROM_SOURCE)
        await far.send(Cancel("one"))
        await far.send(Cancel("two"))
        await far.close()
        assert [await near.receive(), await near.receive()] == [Cancel("one"), Cancel("two")]
        with pytest.raises(LinkLost, match="closed"):
            await near.receive()
        with pytest.raises(LinkLost, match="broke: Broken pipe"):
            await near.send(Cancel())
        await near.close()
        with pytest.raises(LinkLost, match="broke"):
            await near.receive()
