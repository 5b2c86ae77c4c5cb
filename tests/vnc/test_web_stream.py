"""A websocket is a stream like any other."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from tvmm.vnc import web_stream
from tvmm.vnc.web_stream import FRAME_SIZE, PING_SECONDS, WebSocketStream


def over(left: trio.abc.Stream, right: trio.abc.Stream) -> tuple[WebSocketStream, WebSocketStream]:
    """Client and server over two ends of a connection."""
    return (
        WebSocketStream(left, Connection(ConnectionType.CLIENT)),
        WebSocketStream(right, Connection(ConnectionType.SERVER)),
    )


async def make_pair() -> tuple[WebSocketStream, WebSocketStream]:
    """A pair whose transport takes whatever is sent."""
    return over(*trio.testing.memory_stream_pair())


async def make_clogged_pair() -> tuple[WebSocketStream, WebSocketStream]:
    """A pair whose transport takes nothing until somebody reads."""
    return over(*trio.testing.lockstep_stream_pair())


async def test_contract(autojump_clock: trio.testing.MockClock) -> None:
    """Trio's own suite for two-way streams."""
    await trio.testing.check_two_way_stream(make_pair, make_clogged_pair)


class Peer:
    """The other side, frame by frame."""

    def __init__(self, **options: bool) -> None:
        self.wire, server = trio.testing.memory_stream_pair()
        self.frames = Connection(ConnectionType.CLIENT)
        self.stream = WebSocketStream(server, Connection(ConnectionType.SERVER), **options)

    async def send(self, *events: BytesMessage | TextMessage | Ping | CloseConnection) -> None:
        """Frames in one piece."""
        await self.wire.send_all(b"".join(self.frames.send(each) for each in events))

    async def events(self) -> list[object]:
        """What has come by now."""
        self.frames.receive_data(bytes(await self.wire.receive_some()))
        return list(self.frames.events())


async def test_text_is_refused_where_bytes_belong() -> None:
    """With the close code that says so."""
    peer = Peer()
    await peer.send(TextMessage(data="RFB"))
    with pytest.raises(trio.BrokenResourceError, match="text"):
        await peer.stream.receive_some()
    assert [each.code for each in await peer.events() if isinstance(each, CloseConnection)] == [1003]


async def test_text_can_be_ignored() -> None:
    """The panel listens to nothing."""
    peer = Peer(text_ignored=True)
    await peer.send(TextMessage(data="hello"), BytesMessage(data=b"x"))
    assert await peer.stream.receive_some() == b"x"


async def test_long_messages_come_in_pieces() -> None:
    """None waits for its message's end, so there is no message that is too long."""
    peer = Peer()
    frame = peer.frames.send(BytesMessage(data=bytes(1 << 20)))
    await peer.wire.send_all(frame[:5000])
    assert 0 < len(await peer.stream.receive_some()) <= 4096


async def test_long_data_goes_out_in_frames() -> None:
    """So that a browser shows the first part while the rest is on its way."""
    peer = Peer()
    await peer.stream.send_all(memoryview(bytes(2 * FRAME_SIZE + 1)))
    sizes = [len(each.data) for each in await peer.events() if isinstance(each, BytesMessage)]
    assert sum(sizes) == 2 * FRAME_SIZE + 1


@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536, 65537])
async def test_frames_of_every_form(size: int) -> None:
    """Lengths take one, three or nine bytes."""
    peer = Peer()
    data = bytes(each % 251 for each in range(size))
    await peer.stream.send_all(data)
    received = [each for each in await peer.events() if isinstance(each, BytesMessage)]
    assert b"".join(bytes(each.data) for each in received) == data
    assert received[-1].message_finished


async def test_pings_are_answered_and_empty_frames_are_not_the_end() -> None:
    """Only a close is."""
    peer = Peer()
    await peer.send(Ping(payload=b"abc"), BytesMessage(data=b""), BytesMessage(data=b"x"))
    assert await peer.stream.receive_some() == b"x"
    await peer.send(CloseConnection(code=1000))
    assert await peer.stream.receive_some() == b""
    assert await peer.stream.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await peer.stream.send_all(b"y")


async def test_unmasked_frames_break_the_connection() -> None:
    """RFC 6455 5.1: a client masks."""
    peer = Peer()
    await peer.wire.send_all(b"\x82\x01x")
    with pytest.raises(trio.BrokenResourceError, match="protocol"):
        await peer.stream.receive_some()


async def test_a_torn_frame_is_the_end_of_sending() -> None:
    """What would follow it could not be told from its rest."""
    client, server = await make_clogged_pair()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send_all, b"x" * 100)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    with pytest.raises(trio.BrokenResourceError, match="end"):
        await server.send_all(b"y")
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(server)


async def test_a_silent_peer_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    """It answers no ping."""
    peer = Peer()
    start = trio.current_time()
    with trio.fail_after(10 * PING_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.stream.watch)
            with pytest.raises(trio.ClosedResourceError):
                await peer.stream.receive_some()
    assert trio.current_time() - start == 2 * PING_SECONDS
    assert any(isinstance(each, Ping) for each in await peer.events())


async def test_a_peer_that_answers_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    """However little it has to say."""
    peer = Peer()

    async def answer() -> None:
        while True:
            for event in await peer.events():
                assert isinstance(event, Ping)
                await peer.wire.send_all(peer.frames.send(event.response()))

    with trio.move_on_after(5.5 * PING_SECONDS) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.stream.watch)
            nursery.start_soon(answer)
            await peer.stream.receive_some()
    assert scope.cancelled_caught


async def test_closing_waits_for_nobody(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that takes no farewell does not get one."""
    client, server = await make_clogged_pair()
    start = trio.current_time()
    await server.aclose()
    assert trio.current_time() - start <= 2 * web_stream.CLOSE_SECONDS
    await trio.aclose_forcefully(client)


@given(st.lists(st.binary(max_size=200), max_size=6), st.lists(st.integers(0, 600), max_size=8))
def test_bytes_arrive_however_they_are_cut(parts: list[bytes], cuts: list[int]) -> None:
    """Frames may be split and joined on their way."""

    async def main() -> None:
        peer = Peer()
        wire = b"".join(peer.frames.send(BytesMessage(data=each, message_finished=False)) for each in parts)
        wire += peer.frames.send(CloseConnection(code=1000))
        edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
        for start, end in pairwise(edges):
            await peer.wire.send_all(wire[start:end])
        received = bytearray()
        while data := await peer.stream.receive_some():
            received += data
        assert received == b"".join(parts)

    trio.run(main)


@given(st.binary(min_size=1, max_size=400))
def test_hostile_bytes_end_in_words(data: bytes) -> None:
    """Whatever comes is data, the end, or a broken connection."""

    async def main() -> None:
        peer = Peer()
        await peer.wire.send_all(data)
        await peer.wire.send_eof()
        try:
            while await peer.stream.receive_some(100):
                pass
        except trio.BrokenResourceError:
            pass
        await peer.stream.aclose()

    trio.run(main)
