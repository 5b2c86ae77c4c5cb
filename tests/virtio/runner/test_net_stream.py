"""A network device on a stream socket: framing against a plain twin, hostile peers, connections that come back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.net_rig import HEADER, MAC, PATIENCE_S, NetRig, frame, net_rig
from tests.support.plain_stream import StreamPeer, framed
from tests.virtio.ring_parts import FEATURES
from tvmm.kvm.net import FRAME_MAX, FRAME_MIN, STREAM_FRAME_MAX
from tvmm.virtio.features import Net as Feature

MERGEABLE = Feature.MRG_RXBUF
RING = 64
LENGTHS = st.integers(1, 3000) | st.sampled_from([1, 2, 30_000, FRAME_MAX - FRAME_MIN])
SENT_LENGTHS = st.integers(1, 2000) | st.sampled_from([1514 + 12, FRAME_MAX, FRAME_MAX + 1, 100_000])

soon = settings(max_examples=40, deadline=None)


@asynccontextmanager
async def streaming(*, poll_ns: int = 0, send_buffer: int = 0) -> AsyncIterator[tuple[NetRig, StreamPeer]]:
    """A rig with a stream for a wire."""
    peer = StreamPeer(send_buffer=send_buffer)
    try:
        async with net_rig(poll_ns=poll_ns, wire=peer) as rig:
            yield rig, peer
    finally:
        peer.close()


def body(payload: bytes) -> bytes:
    """A frame as it is on the wire."""
    return frame(payload)[len(HEADER) :]


@soon
@given(
    features=st.sampled_from(FEATURES),
    mergeable=st.booleans(),
    lengths=st.lists(LENGTHS, max_size=20),
    cuts=st.lists(st.integers(1, 200_000), max_size=6),
    poll_ns=st.sampled_from([0, 20_000]),
)
async def test_received_frames(
    features: int, mergeable: bool, lengths: list[int], cuts: list[int], poll_ns: int
) -> None:
    """In whatever pieces the peer's bytes come."""
    frames = [frame(bytes([number + 1]) * length) for number, length in enumerate(lengths)]
    data = framed(*(one[len(HEADER) :] for one in frames))
    async with streaming(poll_ns=poll_ns) as (rig, peer), trio.open_nursery() as nursery:
        await rig.activate(features | (MERGEABLE if mergeable else 0), RING)
        rig.fill(20_000 if mergeable else 66_000)

        async def send() -> None:
            edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
            for start, end in pairwise(edges):
                await peer.send(data[start:end])
                await rig.settle()

        nursery.start_soon(send)
        found = await rig.receive(len(frames))
        assert [one.data for one in found] == frames
        assert rig.resets == []


@soon
@given(
    features=st.sampled_from(FEATURES),
    frames=st.lists(st.tuples(SENT_LENGTHS, st.lists(st.integers(1, 1999), max_size=5)), max_size=20),
    send_buffer=st.sampled_from([0, 4608, 20_000]),
)
async def test_sent_frames(features: int, frames: list[tuple[int, list[int]]], send_buffer: int) -> None:
    """Those of a possible length, whole and in order, also where the socket takes a part of one; all are given back."""
    async with streaming(send_buffer=send_buffer) as (rig, peer):
        await rig.activate(features, RING)
        sent = []
        for number, (length, cuts) in enumerate(frames):
            data = HEADER + number.to_bytes(1, "little") * length
            assert rig.send(data, number * 0x2_0000, tuple(cut for cut in cuts if cut < len(data)))
            if FRAME_MIN <= len(data) <= FRAME_MAX:
                sent.append(data)
        rig.kick(1)
        assert await peer.take(len(sent)) == sent
        assert len(await rig.wait_used(1, len(frames))) == len(frames)
        counters = rig.runner.info().counters[0]
        assert (counters.tx_frames, counters.tx_bytes) == (len(sent), sum(map(len, sent)) - len(HEADER) * len(sent))
        assert counters.tx_too_short + counters.tx_too_long == len(frames) - len(sent)


async def test_a_header_of_the_driver_stays_here() -> None:
    """Nothing was negotiated that it could ask for."""
    async with streaming() as (rig, peer):
        await rig.activate(MERGEABLE)
        rig.send(frame(b"out", header=b"\xff" * 12), cuts=(5, 14, 20))
        rig.kick(1)
        assert await peer.take(1) == [frame(b"out")]


async def test_a_frame_in_more_pieces_than_a_system_call_takes() -> None:
    """It is sent all the same."""
    async with streaming() as (rig, peer):
        await rig.activate(0, 2048)
        data = frame(bytes(range(256)) * 6)
        assert rig.send(data, cuts=tuple(range(1, 1500)))
        rig.kick(1)
        assert await peer.take(1) == [data]


async def test_long_frame_for_short_buffers() -> None:
    """It waits until the driver has given enough of them."""
    async with streaming() as (rig, peer):
        await rig.activate(MERGEABLE, RING)
        for _ in range(3):
            rig.offer(1000)
        rig.kick(0)
        await peer.send(framed(body(b"x" * 5000)))
        await peer.send(framed(body(b"next")))
        while not rig.runner.info().counters[0].rx_held:
            await rig.settle()
        rig.fill(1000)
        assert [one.data for one in await rig.receive(2)] == [frame(b"x" * 5000), frame(b"next")]


async def test_filter_and_runts() -> None:
    """Frames for others, and those too short to be one, are counted and passed over."""
    async with streaming() as (rig, peer):
        await rig.activate(MERGEABLE | Feature.CTRL_VQ | Feature.CTRL_RX)
        rig.fill(2000)
        assert await rig.command(b"\1\0" + bytes(8)) == 0  # none but its own
        other = frame(b"other", destination=bytes.fromhex("525400000002"))[len(HEADER) :]
        await peer.send(framed(other, b"", b"short", body(b"mine")))
        assert await rig.receive(1) == [(1, frame(b"mine"))]
        counters = rig.runner.info().counters[0]
        assert (counters.rx_filtered, counters.rx_errors, rig.failures) == (1, 2, [])


@pytest.mark.parametrize("length", [STREAM_FRAME_MAX + 1, 0x7FFF_FFFF, 0xFFFF_FFFF])
async def test_a_length_that_no_frame_has(length: int) -> None:
    """The connection is given up with a clear reason, after what came before; the link is down."""
    async with streaming() as (rig, peer):
        await rig.activate(MERGEABLE)
        rig.fill(2000)
        await peer.send(framed(body(b"good")) + length.to_bytes(4, "big") + b"junk")
        assert await rig.receive(1) == [(1, frame(b"good"))]
        await rig.until(lambda: bool(rig.failures))
        assert f"peer: the peer sent a frame of {length} bytes, {STREAM_FRAME_MAX} are possible" in rig.failures
        assert not rig.model.link_up
        # What the driver sends meanwhile is lost, and given back.
        rig.send(frame(b"lost"))
        rig.kick(1)
        await rig.wait_used(1)
        assert rig.runner.info().counters[0].tx_link_down == 1
        assert rig.resets == []


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\0\0\5\0" + b"x" * 100], ids=["between", "in a length", "in a frame"])
@pytest.mark.parametrize("with_room", [False, True])
async def test_peer_that_closes(data: bytes, with_room: bool) -> None:
    """Wherever it does, and whether the driver has room or not."""
    async with streaming() as (rig, peer):
        await rig.activate(MERGEABLE)
        if with_room:
            rig.fill(2000)
        await peer.send(data)
        await peer.far.aclose()
        await rig.until(lambda: bool(rig.failures))
        assert rig.failures == ["peer: the peer closed the connection"]
        assert not rig.model.link_up


async def test_endless_nothings_leave_time_for_the_rest() -> None:
    """A flood of frames of no length does not keep the device from being reset."""
    async with streaming() as (rig, peer), trio.open_nursery() as nursery:
        await rig.activate(MERGEABLE)
        rig.fill(2000)

        async def flood() -> None:
            while True:
                await peer.far.send_all(bytes(1 << 16))

        nursery.start_soon(flood)
        rig.send(frame(b"out"))
        rig.kick(1)
        assert await peer.take(1) == [frame(b"out")]
        with trio.fail_after(PATIENCE_S):
            await rig.reset()
        nursery.cancel_scope.cancel()


async def test_peer_that_takes_nothing() -> None:
    """Frames wait in the ring; the device can be held and reset; then they go out whole."""
    async with streaming(send_buffer=4608) as (rig, peer):
        await rig.activate(MERGEABLE, RING)
        rig.fill(2000)
        frames = [frame(bytes([number]) * 3000) for number in range(RING)]
        for number, one in enumerate(frames):
            assert rig.send(one, number * 0x1000)
        rig.kick(1)
        await rig.wait_used(1)
        await peer.send(framed(body(b"in")))
        assert await rig.receive(1) == [(1, frame(b"in"))]
        await rig.runner.hold()
        rig.runner.release()
        assert await peer.take(RING) == frames
        assert rig.runner.info().counters[0].tx_waits > 0


async def test_the_count_is_kept_over_a_reset() -> None:
    """In the middle of frames in both directions: the peer knows nothing of a driver's reset."""
    async with streaming(send_buffer=4608) as (rig, peer):
        await rig.activate(MERGEABLE)
        rig.fill(2000)
        for number in range(8):
            rig.send(frame(b"a" * 3000), number * 0x1000)
        rig.kick(1)
        await rig.wait_used(1)
        late = framed(body(b"late" * 50))
        await peer.send(late[:30])
        await rig.reset()
        await rig.activate(MERGEABLE)
        rig.fill(2000)
        await peer.send(late[30:] + framed(body(b"fresh")))
        assert [one.data for one in await rig.receive(2)] == [frame(b"late" * 50), frame(b"fresh")]
        rig.send(frame(b"last"))
        rig.kick(1)
        found = await peer.take(1)
        while found[-1] != frame(b"last"):
            found += await peer.take(1)
        assert all(one == frame(b"a" * 3000) for one in found[:-1])


async def test_connection_that_comes_back() -> None:
    """Nothing of the old one is left, and the link is as it was wanted."""
    async with streaming(send_buffer=4608) as (rig, peer):
        await rig.activate(MERGEABLE | Feature.STATUS)
        rig.fill(2000)
        for round_ in range(3):
            for number in range(8):
                rig.send(frame(b"old" * 1000), number * 0x1000)
            rig.kick(1)
            await rig.wait_used(1)
            await peer.send(framed(body(b"half"))[:10])
            await peer.far.aclose()
            await rig.until(lambda: len(rig.failures) == round_ + 1)  # noqa: B023
            assert not rig.model.link_up
            if round_ == 1:
                with rig.bus_lock:
                    rig.runner.set_link(False)
                    rig.runner.set_link(True)
                    assert not rig.model.link_up
            await rig.settle()
            swapped = trio.Event()
            token = trio.lowlevel.current_trio_token()
            rig.runner.reconnect(peer.connect(), lambda: token.run_sync_soon(swapped.set))  # noqa: B023
            await rig.patiently(swapped)
            assert rig.model.link_up
            rig.drivers[1].collect()
            rig.send(frame(b"new"))
            rig.kick(1)
            assert (await peer.take(1))[-1] == frame(b"new")
            await peer.send(framed(body(b"in")))
            assert (await rig.receive(1))[-1] == (1, frame(b"in"))


async def test_cable_out_while_the_connection_comes_back() -> None:
    """It stays out."""
    async with streaming() as (rig, peer):
        await rig.activate(MERGEABLE)
        rig.fill(2000)
        await peer.far.aclose()
        await rig.until(lambda: bool(rig.failures))
        with rig.bus_lock:
            rig.runner.set_link(False)
        rig.runner.reconnect(peer.connect(), lambda: None)
        await rig.settle()
        assert not rig.model.link_up
        assert rig.runner.info().failure == ""
        with rig.bus_lock:
            rig.runner.set_link(True)
        assert rig.model.link_up


async def test_a_cable_that_only_seems_out_is_in_where_the_guest_arrives() -> None:
    """The peer's absence stays behind; a cable that was pulled does not."""
    for pulled in (False, True):
        async with streaming() as (rig, peer):
            await rig.activate(MERGEABLE)
            rig.fill(2000)
            await peer.far.aclose()
            await rig.until(lambda: bool(rig.failures))
            if pulled:
                with rig.bus_lock:
                    rig.runner.set_link(False)
            await rig.runner.hold()
            assert rig.runner.save().lost is not pulled
            rig.runner.release()


async def test_frames_that_are_not_the_drivers() -> None:
    """An announcement comes between whole frames, or is lost."""
    async with streaming(send_buffer=4608) as (rig, peer):
        await rig.activate(0, RING)
        announcement = b"\xff" * 6 + MAC + bytes(48)
        rig.runner.inject(announcement)
        assert await peer.take(1) == [HEADER + announcement]
        for number in range(20):
            rig.send(frame(b"a" * 3000), number * 0x1000)
        rig.kick(1)
        await rig.wait_used(1)
        rig.runner.inject(announcement)
        found = await peer.take(20)
        assert set(found) <= {frame(b"a" * 3000), HEADER + announcement}


async def test_kicks_are_not_needed_to_notice_a_closed_peer_later() -> None:
    """A peer that is gone before there is a driver is noticed when there is one."""
    async with streaming() as (rig, peer):
        await peer.far.aclose()
        await rig.activate(MERGEABLE)
        await rig.until(lambda: bool(rig.failures))
        os.eventfd_write(rig.kicks[1], 1)
        await rig.settle()
        assert rig.failures == ["peer: the peer closed the connection"]
