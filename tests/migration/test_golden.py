"""What version 1 of the protocol looks like: bytes that are out there, read and written alike."""

from __future__ import annotations

import hashlib

import pytest
import trio

from tests.golden.control import FOLDER, MESSAGES, OPENINGS, RECORDED, REPLIES, SESSION, TOKEN, golden_bytes
from tests.support.hostile_source import waiting_for
from tests.support.moving_guests import World
from tvmm.errors import UserError
from tvmm.migration.link import Link
from tvmm.migration.messages import (
    FROM_DESTINATION,
    FROM_SOURCE,
    Commit,
    Descriptors,
    Goodbye,
    Hello,
    Ready,
    RoundDone,
    Running,
    State,
    Welcome,
)
from tvmm.migration.wire import OPENING_BYTES, REPLY_BYTES, Inbox, Kind, Opening, Reply, pack, read_reply


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str) -> None:
    """Every field comes out of the bytes, and goes into the same ones."""
    data, message = golden_bytes("message", name), MESSAGES[name]
    inbox = Inbox((*FROM_SOURCE, *FROM_DESTINATION, Descriptors))
    inbox.receive(data)
    assert inbox.next_message() == message
    assert inbox.next_message() is None
    assert pack(message) == data


@pytest.mark.parametrize("name", OPENINGS)
def test_openings(name: str) -> None:
    """Both ways."""
    data = golden_bytes("opening", name)
    assert Opening.from_bytes(data) == OPENINGS[name]
    assert OPENINGS[name].to_bytes() == data


@pytest.mark.parametrize("name", REPLIES)
def test_replies(name: str) -> None:
    """One lets the source go on."""
    data = golden_bytes("reply", name)
    assert REPLIES[name].to_bytes() == data
    if REPLIES[name] is Reply.GO:
        read_reply(data)
    else:
        with pytest.raises(UserError):
            read_reply(data)


def test_nothing_is_left_out() -> None:
    """Each message that there is has a file, with a value in every field; no file stands for nothing."""
    whole = {type(message) for message in MESSAGES.values() if all(message)}
    parts = {"Block", "Image", "Section"}
    kinds = (*FROM_SOURCE, *FROM_DESTINATION, Descriptors)
    assert {kind.__name__ for kind in kinds} - parts == {kind.__name__ for kind in whole}
    names = {f"message-{name}.bin" for name in MESSAGES} | {f"opening-{name}.bin" for name in OPENINGS}
    names |= {f"reply-{name}.bin" for name in REPLIES} | {f"recorded-{name}.bin" for name in RECORDED}
    assert {path.name for path in FOLDER.iterdir()} == names


def recorded_messages() -> list[object]:
    """What the source said on its control connection."""
    data = golden_bytes("recorded", "control")
    assert Opening.from_bytes(data[:OPENING_BYTES]) == Opening(Kind.CONTROL)
    inbox = Inbox(FROM_SOURCE)
    inbox.receive(data[OPENING_BYTES:])
    found = []
    while (message := inbox.next_message()) is not None:
        found.append(message)
    return found


async def test_a_recorded_migration_arrives(world: World) -> None:
    """A source of version 1, word for word and page for page."""
    hello, state, commit, goodbye = recorded_messages()
    assert isinstance(hello, Hello)
    assert isinstance(state, State)
    assert (hello.session, commit, goodbye) == (SESSION, Commit(), Goodbye())
    world.pause(world.source)
    world.source.release_disks()
    async with waiting_for(world, random=lambda count: TOKEN[:count]) as source:
        stream = await source.connect()
        await stream.send_all(golden_bytes("recorded", "control")[:OPENING_BYTES])
        read_reply(bytes(await stream.receive_some(REPLY_BYTES)))
        link = Link(stream, FROM_DESTINATION)
        await link.send(hello)
        assert await link.receive() == Welcome(1, TOKEN)
        async with trio.open_nursery() as nursery:
            for number in range(hello.lanes):
                nursery.start_soon((await source.connect()).send_all, golden_bytes("recorded", f"lane{number}"))
            rounds: list[int] = []
            while len(rounds) < state.last_round:
                done = await link.receive()
                assert isinstance(done, RoundDone)
                rounds.append(done.number)
            assert rounds == list(range(state.last_round))
            await link.send(state)
            assert isinstance(await link.receive(), Ready)
        await link.send(commit)
        assert isinstance(await link.receive(), Running)
        await link.send(goodbye)
        await source.over.wait()
    assert world.running == {"destination"}
    assert world.destination.loaded == state.sections
    ram = bytes(world.destination.ram.blocks["pc.ram"].view)
    assert hashlib.sha256(ram).digest() == golden_bytes("recorded", "ram-sha256")
