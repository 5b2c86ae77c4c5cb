"""Which buffers frames come in, and which frames are sent: the servers in C against plain twins, on chosen inputs."""

from __future__ import annotations

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.net_rig import PATIENCE_S, frame, net_rig
from tests.virtio.ring_parts import FEATURES
from tvmm.kvm.net import FRAME_MAX, FRAME_MIN
from tvmm.virtio.features import Net as Feature

SIZES = st.integers(12, 4000) | st.sampled_from([26, 1526, 4096, 65000])
LENGTHS = st.integers(1, 3000) | st.sampled_from([1, 2, 30000, FRAME_MAX - FRAME_MIN])
SENT_LENGTHS = st.integers(1, 2000) | st.sampled_from([FRAME_MAX, FRAME_MAX + 1, 100_000])
STEPS = st.lists(st.tuples(st.just("buffer"), SIZES) | st.tuples(st.just("frame"), LENGTHS), max_size=40)
RING = 64

soon = settings(max_examples=60, deadline=None)


def twin(mergeable: bool, buffers: list[int], frames: list[int]) -> tuple[list[int], int]:
    """Lengths of used buffers, and how many frames are lost for want of a buffer that is large enough."""
    used: list[int] = []
    lost = taken = 0
    for length in frames:
        left, parts = length, list[int]()
        while left and taken + len(parts) < len(buffers) and (mergeable or not parts):
            parts.append(min(left, buffers[taken + len(parts)]))
            left -= parts[-1]
        if not left:
            taken += len(parts)
            used += parts
        elif mergeable or not parts:
            break
        else:
            lost += 1
    return used, lost


@soon
@given(features=st.sampled_from(FEATURES), mergeable=st.booleans(), steps=STEPS, poll_ns=st.sampled_from([0, 20_000]))
async def test_received_frames(features: int, mergeable: bool, steps: list[tuple[str, int]], poll_ns: int) -> None:
    """In whatever order buffers and frames come."""
    buffers: list[int] = []
    frames: list[int] = []
    async with net_rig(poll_ns=poll_ns) as rig:
        await rig.activate(features | (Feature.MRG_RXBUF if mergeable else 0), RING)
        for what, size in steps:
            if what == "buffer":
                assert rig.offer(size)
                rig.kick(0)
                buffers.append(size)
            else:
                await rig.arrive(frame(bytes(size)))
                frames.append(size + FRAME_MIN)
        used, lost = twin(mergeable, buffers, frames)
        found = await rig.wait_used(0, len(used))
        assert [length for _, length in found] == used
        with trio.fail_after(PATIENCE_S):
            while rig.runner.info().counters[0].rx_no_room < lost:
                await rig.settle()
        await rig.settle()
        assert rig.runner.info().counters[0].rx_no_room == lost
        assert rig.drivers[0].collect() == []
        assert rig.resets == []


@soon
@given(
    features=st.sampled_from(FEATURES),
    frames=st.lists(st.tuples(SENT_LENGTHS, st.lists(st.integers(1, 1999), max_size=5)), max_size=12),
)
async def test_sent_frames(features: int, frames: list[tuple[int, list[int]]]) -> None:
    """Those of a possible length, whole and in order; all are given back."""
    async with net_rig() as rig:
        await rig.activate(features, RING)
        sent = []
        for number, (length, cuts) in enumerate(frames):
            data = number.to_bytes(1, "little") * length
            assert rig.send(data, number * 0x2_0000, tuple(cut for cut in cuts if cut < length))
            if FRAME_MIN <= length <= FRAME_MAX:
                sent.append(data)
        rig.kick(1)
        assert await rig.take(len(sent)) == sent
        assert len(await rig.wait_used(1, len(frames))) == len(frames)
        counters = rig.runner.info().counters[0]
        assert counters.tx_too_short == sum(length < FRAME_MIN for length, _ in frames)
        assert counters.tx_too_long == sum(length > FRAME_MAX for length, _ in frames)
