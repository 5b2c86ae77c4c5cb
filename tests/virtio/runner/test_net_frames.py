"""Frames between a driver's rings and a wire, through the server in C."""

from __future__ import annotations

import random

import pytest

from tests.support.net_rig import frame, net_rig
from tests.virtio.ring_parts import FEATURES, feature_names
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
        assert rig.resets == []
