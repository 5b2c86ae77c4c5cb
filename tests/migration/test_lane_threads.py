"""Lanes through buffers: `BufferedSender`, `BufferedReceiver` and the plain stream that they may use."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from random import Random

import pytest
import trio

from tests.kvm.lane_rig import Ram
from tests.support.plain_lanes import PAGE, ROUND_END, ZEROS, Frame, encode
from tvmm.errors import ProtocolError
from tvmm.kvm.lanes import LaneGroup
from tvmm.kvm.pages import PageBitmap
from tvmm.kvm.serve import Waker
from tvmm.migration import plain_thread
from tvmm.migration.link import LinkLost
from tvmm.migration.plain_thread import PlainThreadStream
from tvmm.migration.receivers import BufferedReceiver
from tvmm.migration.senders import BufferedSender
from tvmm.migration.zstd import Compressor, Decompressor

PAGES = 1500
"""More than fits into one buffer."""
SIZES = (("pc.ram", PAGES), ("vga.vram", 3))


class Rig:
    """A source and a destination, and a stream between them."""

    def __init__(self, stack: ExitStack) -> None:
        self.source, self.target = Ram(stack, SIZES), Ram(stack, SIZES)
        self.bitmap = PageBitmap.of(self.source.pages)
        self.group = LaneGroup(self.source.pages, self.bitmap)
        self.wakers = Waker(), Waker()
        for waker in self.wakers:
            stack.callback(waker.close)
        sockets = socket.socketpair()
        for each in sockets:
            each.setblocking(False)
            stack.callback(each.close)
        self.streams = tuple(trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in sockets)
        self.threads = tuple(map(PlainThreadStream, sockets, self.wakers))

    def fill(self) -> None:
        """Every other page with something, all to be sent."""
        random = Random(3)
        for page in range(0, PAGES, 2):
            self.source.write(0, page, random.randbytes(PAGE))
        self.bitmap.fill()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """See `Rig`."""
    with ExitStack() as stack:
        yield Rig(stack)


@pytest.mark.parametrize("compress", [False, True])
async def test_rounds(rig: Rig, compress: bool) -> None:
    """Two of them, of which the second has one page."""
    sender = BufferedSender(rig.threads[0], rig.group, rig.wakers[0], Compressor() if compress else None)
    receiver = BufferedReceiver(rig.threads[1], rig.target.pages, Decompressor() if compress else None)
    assert not sender.send_at_once(0)
    for number in range(2):
        if number:
            rig.source.write(0, 7, b"new")
            rig.bitmap.mark("pc.ram", 7)
        else:
            rig.fill()
        rig.group.begin_round()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, partial(sender.send_round, number))
            nursery.start_soon(trio.to_thread.run_sync, receiver.receive_round)
        assert receiver.round == number
        assert rig.target.contents() == rig.source.contents()
    assert sender.counters.normal == PAGES // 2 + 1
    received = receiver.counters
    assert (received.normal, received.zero) == (PAGES // 2 + 1, PAGES // 2 + 3)
    # The sender counts what goes over the wire, the receiver what came out of it.
    assert (sender.counters.bytes == received.bytes) == (not compress)


async def test_a_sender_is_woken(rig: Rig) -> None:
    """Out of a connection that takes no more."""
    rig.fill()
    sender = BufferedSender(rig.threads[0], rig.group, rig.wakers[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, partial(sender.send_round, 0))
        assert await rig.streams[1].receive_some()
        rig.wakers[0].wake()


async def test_a_receiver_is_woken(rig: Rig) -> None:
    """Out of a connection that says nothing, where it has no limit."""
    receiver = BufferedReceiver(rig.threads[1], rig.target.pages)
    rig.wakers[1].wake()
    await trio.to_thread.run_sync(receiver.receive_round)
    assert receiver.round == 0


async def test_a_destination_that_takes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is gone after a while."""
    monkeypatch.setattr(plain_thread, "STALL_MS", 10)
    rig.fill()
    sender = BufferedSender(rig.threads[0], rig.group, rig.wakers[0])
    with pytest.raises(LinkLost, match="taken no pages"):
        await trio.to_thread.run_sync(sender.send_round, 0)


async def test_a_destination_that_is_gone(rig: Rig) -> None:
    """The reason is the system's."""
    rig.fill()
    rig.threads[1].close()
    with pytest.raises(LinkLost, match="a connection for pages broke: Broken pipe"):
        await trio.to_thread.run_sync(BufferedSender(rig.threads[0], rig.group, rig.wakers[0]).send_round, 0)


@pytest.mark.parametrize(
    ("data", "error", "why"),
    [
        (b"", LinkLost, "has closed"),
        (encode(Frame(ZEROS, 0, (1,))), LinkLost, "has closed"),
        (encode(Frame(ZEROS, 0, (1,)))[:-1], ProtocolError, "within a frame"),
        (b"x" * 24, ProtocolError, "starts with"),
    ],
    ids=range(4),
)
async def test_a_source_that_goes(rig: Rig, data: bytes, error: type[Exception], why: str) -> None:
    """Between frames, within one, and with something else."""
    await rig.streams[0].send_all(data)
    rig.streams[0].socket.close()
    with pytest.raises(error, match=why):
        await trio.to_thread.run_sync(BufferedReceiver(rig.threads[1], rig.target.pages).receive_round)


async def test_what_is_behind_a_round_is_for_the_next(rig: Rig) -> None:
    """Both came in one piece."""
    ends = [encode(Frame(ROUND_END, number=number)) for number in (4, 5)]
    await rig.streams[0].send_all(b"".join(ends))
    receiver = BufferedReceiver(rig.threads[1], rig.target.pages)
    for number in (4, 5):
        await trio.to_thread.run_sync(receiver.receive_round)
        assert receiver.round == number


async def test_a_plain_stream_waits(rig: Rig) -> None:
    """For room and for bytes: all of a block larger than any buffer comes through."""
    data = Random(5).randbytes(5 << 20)
    got = bytearray()

    def receive() -> None:
        buffer = memoryview(bytearray(1 << 18))
        while len(got) < len(data):
            got.extend(buffer[: rig.threads[1].recv_into(buffer)])

    thread = threading.Thread(target=receive)
    thread.start()
    await trio.to_thread.run_sync(rig.threads[0].send_all, memoryview(data))
    await trio.to_thread.run_sync(thread.join)
    assert got == data
