"""Frames between a driver's rings and a wire, through the server in C."""

from __future__ import annotations

import random

import pytest

from tests.support.net_rig import RX_PLACES, Received, frame, net_rig
from tests.virtio.ring_parts import FEATURES, feature_names
from tvmm.kvm.net import FRAME_MAX, TURN
from tvmm.kvm.vring_records import F_EVENT_IDX, F_RING_PACKED
from tvmm.virtio.features import Net as Feature

each_features = pytest.mark.parametrize("features", FEATURES, ids=feature_names)
MERGEABLE = Feature.MRG_RXBUF
POLLS = (0, 50_000)


@each_features
@pytest.mark.parametrize("poll_ns", POLLS)
async def test_frames_are_sent_as_they_are(features: int, poll_ns: int) -> None:
    """Every byte, header included, in order, however the driver cuts a frame into pieces."""
    chance = random.Random(features)
    async with net_rig(poll_ns=poll_ns) as rig:
        await rig.activate(features)
        for turn in range(12):
            sent = []
            for number in range(3):
                data = frame(chance.randbytes(chance.randrange(1, 3000)), header=chance.randbytes(12))
                cuts = tuple(chance.randrange(1, len(data)) for _ in range(chance.randrange(4)))
                assert rig.send(data, 0x4000 * number, cuts)
                sent.append(data)
            rig.kick(1)
            assert await rig.take(3) == sent
            used = await rig.wait_used(1, 3)
            assert [length for _, length in used] == [0, 0, 0], turn
        counters = rig.runner.info().counters[0]
        assert counters.tx_frames == 36
        received, sent_turns = rig.runner.turns()[0]
        assert (received.count, sent_turns.count) == (counters.rx_turns, counters.tx_turns)
        assert sent_turns.sum_ns
        assert rig.resets == []


@each_features
@pytest.mark.parametrize("poll_ns", POLLS)
async def test_mergeable_frames_span_buffers(features: int, poll_ns: int) -> None:
    """A frame takes as many buffers as it needs; its header says how many, and the others stay for the next one."""
    chance = random.Random(features)
    async with net_rig(poll_ns=poll_ns) as rig:
        await rig.activate(features | MERGEABLE)
        for turn in range(12):
            lengths = [chance.choice((60, 500, 1500, 3000)) for _ in range(3)]
            rig.fill(1000)
            frames = [frame(chance.randbytes(length)) for length in lengths]
            for data in frames:
                await rig.arrive(data)
            received = await rig.receive(3)
            assert [data for _, data in received] == frames, turn
            assert [buffers for buffers, _ in received] == [-(-len(data) // 1000) for data in frames]
        counters = rig.runner.info().counters[0]
        assert counters.rx_frames == 36
        assert rig.runner.turns()[0][0].count == counters.rx_turns
        assert rig.resets == []


@pytest.mark.parametrize("packed", [0, F_RING_PACKED])
async def test_long_frames_come_whole(packed: int) -> None:
    """64 KiB over many buffers, short ones between them; what there is too little room for waits, and is not lost."""
    chance = random.Random(5)
    lengths = [FRAME_MAX - 26, 60, 65000, 60, 60, 40000, 1500, FRAME_MAX - 26]
    async with net_rig() as rig:
        await rig.activate(MERGEABLE | packed, 64)
        for length in lengths:
            data = frame(chance.randbytes(length))
            for _ in range(8):
                rig.offer(2048)
            rig.kick(0)
            await rig.arrive(data)
            # Eight buffers are too few for the long ones: the rest comes when the frame is there already.
            await rig.settle()
            rig.fill(2048)
            [received] = await rig.receive(1)
            assert received.data == data
            assert received.buffers == -(-len(data) // 2048)
        counters = rig.runner.info().counters[0]
        assert counters.rx_held > 0
        assert counters.rx_no_room == 0


@each_features
async def test_one_buffer_for_a_frame_without_mergeable(features: int) -> None:
    """The header says one buffer; a frame that does not fit is lost, counted, and the buffer serves the next one."""
    async with net_rig() as rig:
        await rig.activate(features)
        rig.fill(600, pieces=3)
        first, long, last = frame(b"first"), frame(bytes(1000)), frame(b"l" * 574)
        for data in (first, long, last):
            await rig.arrive(data)
        received = await rig.receive(2)
        assert received == [(1, first), (1, last)]
        assert rig.runner.info().counters[0].rx_no_room == 1


async def test_no_buffers_no_reading() -> None:
    """Frames wait in the host's queue until the driver has buffers again."""
    async with net_rig() as rig:
        await rig.activate(MERGEABLE)
        frames = [frame(bytes([number] * 50)) for number in range(20)]
        for data in frames:
            await rig.arrive(data)
        await rig.settle()
        assert rig.runner.info().counters[0].rx_frames == 0
        received: list[Received] = []
        while len(received) < 20:
            rig.offer(100)
            rig.kick(0)
            received += await rig.receive(1)
        assert [data for _, data in received] == frames


async def test_buffers_too_small_for_any_long_frame() -> None:
    """As many buffers as the server looks at, and still no room: the frame is lost, counted, and shorter ones come."""
    async with net_rig() as rig:
        await rig.activate(MERGEABLE, 512)
        for _ in range(300):
            assert rig.offer(16, place=RX_PLACES)
        rig.kick(0)
        short = frame(bytes(6))
        await rig.arrive(frame(bytes(60000)))
        await rig.arrive(short)
        used = await rig.wait_used(0, 2)
        assert [length for _, length in used] == [16, 16]
        assert rig.runner.info().counters[0].rx_no_room == 1


async def test_many_pieces() -> None:
    """A frame in more pieces than a system call takes is sent whole, and received whole."""
    async with net_rig() as rig:
        await rig.activate(MERGEABLE, 2048)
        data = frame(bytes(range(256)) * 6)
        assert len(data) > 1200
        assert rig.send(data, cuts=tuple(range(1, 1200)))
        rig.kick(1)
        assert await rig.take(1) == [data]
        assert rig.offer(2000, pieces=1500)
        rig.kick(0)
        await rig.arrive(data)
        assert await rig.receive(1) == [(1, data)]


@pytest.mark.parametrize("length", [1, 11, 12, 25, FRAME_MAX + 1, 200_000])
async def test_what_is_no_frame_is_dropped(length: int) -> None:
    """Too short or too long: given back, counted, and the next one is sent."""
    async with net_rig() as rig:
        await rig.activate(0)
        data = frame(b"good")
        assert rig.send(bytes(length))
        assert rig.send(data, 0x8_0000)
        rig.kick(1)
        assert await rig.take(1) == [data]
        assert len(await rig.wait_used(1, 2)) == 2
        counters = rig.runner.info().counters[0]
        assert (counters.tx_too_short, counters.tx_too_long) == ((1, 0) if length < 26 else (0, 1))


async def test_a_full_wire_makes_frames_wait() -> None:
    """The wire takes no more: what is left stays in the ring, in order, and goes when there is room."""
    async with net_rig() as rig:
        await rig.activate(0, 256)
        sent = []
        for number in range(200):
            data = frame(bytes([number]) * 20000)
            assert rig.send(data, number * 0x8000)
            sent.append(data)
        rig.kick(1)
        await rig.settle()
        while rig.runner.info().counters[0].tx_waits == 0:
            await rig.settle()
        assert await rig.take(200) == sent
        assert len(await rig.wait_used(1, 200)) == 200


async def test_interrupts_through_python() -> None:
    """Without an eventfd the slot is told which queue has used buffers."""
    async with net_rig() as rig:
        await rig.activate(MERGEABLE, python_calls=True)
        rig.fill(500)
        await rig.arrive(frame())
        await rig.until(lambda: rig.used == [0])
        rig.send(frame())
        rig.kick(1)
        await rig.until(lambda: rig.used == [0, 1])


async def test_kicks_are_rare_under_load() -> None:
    """A server that looks for work needs one kick to begin with, and hardly any while frames keep coming."""
    async with net_rig(poll_ns=20_000_000) as rig:
        await rig.activate(F_EVENT_IDX, 64)
        data = frame()
        got = 0
        for _ in range(300):
            while rig.send(data):
                pass
            rig.kick(1)
            got += len(await rig.take(1))
            rig.drivers[1].collect()
        counters = rig.runner.rings[1].counters
        assert counters.chains >= 300
        assert counters.kicks < 60


async def test_neither_direction_waits_for_the_other() -> None:
    """Where each batch is Python's to tell of, a received frame comes before the last of many that are sent."""
    async with net_rig() as rig:
        await rig.activate(MERGEABLE, 256, python_calls=True)
        await rig.runner.hold()
        rig.offer(100)
        rig.drivers[0].publish()
        await rig.arrive(frame())
        for _ in range(3 * TURN):
            assert rig.send(frame())
        rig.drivers[1].publish()
        rig.runner.release()
        await rig.until(lambda: len(rig.used) == 4)
        assert rig.used.index(0) < 2
        assert len(await rig.take(3 * TURN)) == 3 * TURN
