"""A source written by hand: it says what it likes, on as many connections as it likes, in any order."""

from __future__ import annotations

import os
import tempfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from tests.support.moving_guests import PAGE, RAM_BYTES
from tests.support.plain_lanes import ROUND_END, Frame, encode
from tvmm.config.incoming import MigrationAddress
from tvmm.errors import IncomingFailed
from tvmm.migration.incoming import Incoming
from tvmm.migration.link import Link, listen
from tvmm.migration.messages import (
    FROM_DESTINATION,
    Block,
    Commit,
    Goodbye,
    Hello,
    Ready,
    Running,
    State,
    Welcome,
)
from tvmm.migration.receivers import LAST_ROUND
from tvmm.migration.secure import Insecure
from tvmm.migration.wire import REPLY_BYTES, Kind, Opening, Reply
from tvmm.state import Section

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.moving_guests import World
    from tvmm.migration.secure import Securer

__all__ = ["HELLO", "STATE", "HostileSource", "given_up", "round_end", "waiting_for"]

HELLO = Hello(
    b"s" * 16, "hostile", (("ram", "2M"),), b"cpu", (Block("pc.ram", RAM_BYTES // PAGE),), 1
)
STATE = State((Section("serial0", 1, 1, b"state"),), True, 0)
"""For a guest that comes in one round."""


def round_end(number: int, *, last: bool = True) -> bytes:
    """What a lane says at the end of a round."""
    return encode(Frame(ROUND_END, number=number | (LAST_ROUND if last else 0)))


class HostileSource:
    """Its connections; all are closed at the end of `waiting_for`."""

    def __init__(self, path: str, incoming: Incoming, said: list[str]) -> None:
        self.incoming = incoming
        self.said = said
        """What the destination's user has read."""
        self.errors: list[IncomingFailed] = []
        self.streams: list[trio.SocketStream] = []
        self.over = trio.Event()
        """The destination does not serve any more."""
        self._path = path

    async def connect(self) -> trio.SocketStream:
        """Say nothing yet."""
        stream = await trio.open_unix_socket(self._path)
        assert isinstance(stream, trio.SocketStream)
        self.streams.append(stream)
        return stream

    async def open(self, opening: Opening) -> tuple[trio.SocketStream, Reply]:
        """With what the destination replied."""
        stream = await self.connect()
        await stream.send_all(opening.to_bytes())
        return stream, Reply((await read(stream, REPLY_BYTES))[-1])

    async def control(self, kind: Kind = Kind.CONTROL) -> Link:
        """A connection for messages."""
        stream, reply = await self.open(Opening(kind))
        assert reply is Reply.GO
        return Link(stream, FROM_DESTINATION)

    async def lane(self, token: bytes, number: int) -> tuple[trio.SocketStream, Reply]:
        """One for pages."""
        return await self.open(Opening(Kind.LANE, token=token, lane=number))

    async def greeted(self, **fields: Any) -> tuple[Link, bytes]:
        """A control connection on which the destination has said welcome, and the token."""
        link = await self.control()
        await link.send(HELLO._replace(**fields))
        welcome = await link.receive()
        assert isinstance(welcome, Welcome)
        return link, welcome.token

    async def ready(self) -> tuple[Link, bytes]:
        """`greeted`, and all of a guest has come over one lane."""
        link, token = await self.greeted()
        stream, _ = await self.lane(token, 0)
        await stream.send_all(round_end(0))
        await link.send(STATE)
        assert isinstance(await link.receive(), Ready)
        return link, token

    async def arrived(self) -> tuple[Link, bytes]:
        """`ready`, and the guest runs there."""
        link, token = await self.ready()
        await link.send(Commit())
        assert isinstance(await link.receive(), Running)
        return link, token

    async def arrive(self, link: Link) -> None:
        """What follows all pages: state, the word, and the last word."""
        await link.send(STATE)
        assert isinstance(await link.receive(), Ready)
        await link.send(Commit())
        assert isinstance(await link.receive(), Running)
        await link.send(Goodbye())
        await self.over.wait()
        assert not self.errors

    async def until_over(self) -> str:
        """What the destination's user is told in the end."""
        await self.over.wait()
        (error,) = self.errors
        return error.message


async def given_up(world: World) -> None:
    """The source of `world` has let go of its guest."""
    world.pause(world.source)
    world.source.release_disks()


async def read(stream: trio.SocketStream, count: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        assert part, "the destination has hung up"
        data += part
    return data


@asynccontextmanager
async def waiting_for(
    world: World, security: Securer | None = None, random: Callable[[int], bytes] = os.urandom
) -> AsyncIterator[HostileSource]:
    """A destination, and somebody who comes in place of its source."""
    with tempfile.TemporaryDirectory(prefix="tvmm-") as directory, trio.fail_after(60):
        path = f"{directory}/there"
        said: list[str] = []
        incoming = Incoming(world.destination, security or Insecure(), lambda status: None, said.append, random=random)
        source = HostileSource(path, incoming, said)

        async def arrive() -> None:
            try:
                await incoming.run(listeners)
            except IncomingFailed as error:
                source.errors.append(error)
            finally:
                source.over.set()

        async with listen(MigrationAddress("unix", path=path)) as listeners, trio.open_nursery() as nursery:
            nursery.start_soon(arrive)
            try:
                yield source
            finally:
                for stream in source.streams:
                    stream.socket.close()
                nursery.cancel_scope.cancel()
