"""A network device within its limits: what waits, where it waits, and that nobody waits for a limit but the frames."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
import trio

from tests.support.net_rig import PATIENCE_S, NetRig, frame, net_rig
from tests.virtio.ring_parts import FEATURES, feature_names
from tvmm.config.limits import NO_LIMITS, Limits, Rate
from tvmm.virtio.features import Net as Feature

each_features = pytest.mark.parametrize("features", FEATURES, ids=feature_names)
each_poll = pytest.mark.parametrize("poll_ns", [0, 50_000])
MERGEABLE = Feature.MRG_RXBUF
BOTH, RX, TX = Limits(operations=Rate(1)), Limits(operations_in=Rate(1)), Limits(operations_out=Rate(1))
DATA = frame(bytes(1000))
USE_TWO_PAIRS = bytes([4, 0, 2, 0])


async def until(condition: Callable[[], bool]) -> None:
    """Return when it holds."""
    with trio.fail_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0)


def waits(rig: NetRig) -> bool:
    """Whether somebody has had to."""
    return rig.runner.limit_waits > 0


def send(rig: NetRig, count: int, index: int = 1) -> None:
    """So many frames, shown to the device."""
    for number in range(count):
        assert rig.send(DATA, 0x800 * number, index=index)
    rig.kick(index)


async def arrive(rig: NetRig, count: int, pair: int = 0) -> None:
    """So many frames on the wire."""
    for _ in range(count):
        await rig.arrive(DATA, pair)


@each_features
@each_poll
async def test_frames_to_send_wait_in_the_ring(features: int, poll_ns: int) -> None:
    """One passes, the others stay in order; frames come in as before; the driver need not kick for more."""
    async with net_rig(poll_ns=poll_ns) as rig:
        rig.runner.set_limits(TX)
        await rig.activate(features | MERGEABLE)
        sent = [frame(bytes([number])) for number in range(8)]
        for number, data in enumerate(sent):
            assert rig.send(data, 0x800 * number)
        rig.kick(1)
        assert await rig.take(1) == sent[:1]
        await until(lambda: waits(rig))
        rig.fill(2000)
        for _ in range(20):
            await rig.arrive(DATA)
            assert len(await rig.receive(1)) == 1
            rig.fill(2000)
        assert rig.runner.info().counters[0].tx_frames == 1
        rig.runner.set_limits(NO_LIMITS)
        assert await rig.take(7) == sent[1:]
        # And no kick is missed afterwards.
        send(rig, 1)
        assert await rig.take(1) == [DATA]


@each_features
@each_poll
async def test_frames_to_receive_wait_on_the_wire(features: int, poll_ns: int) -> None:
    """One passes, the others stay where they are; the guest sends as before."""
    async with net_rig(poll_ns=poll_ns) as rig:
        rig.runner.set_limits(RX)
        await rig.activate(features | MERGEABLE)
        rig.fill(2000)
        await arrive(rig, 8)
        assert len(await rig.receive(1)) == 1
        await until(lambda: waits(rig))
        for _ in range(20):
            send(rig, 1)
            assert await rig.take(1) == [DATA]
            await rig.wait_used(1)
        assert rig.runner.info().counters[0].rx_frames == 1
        rig.runner.set_limits(Limits(bytes_in=Rate(1 << 30)))
        assert len(await rig.receive(7)) == 7
        rig.runner.set_limits(NO_LIMITS)
        rig.fill(2000)
        await arrive(rig, 1)
        assert len(await rig.receive(1)) == 1


async def test_both_directions_have_one_bucket() -> None:
    """What is sent is paid for by what would come in."""
    async with net_rig() as rig:
        rig.runner.set_limits(BOTH)
        await rig.activate(MERGEABLE)
        send(rig, 1)
        assert await rig.take(1) == [DATA]
        rig.fill(2000)
        await arrive(rig, 1)
        await until(lambda: waits(rig))
        assert rig.runner.info().counters[0].rx_frames == 0
        rig.runner.set_limits(NO_LIMITS)
        assert len(await rig.receive(1)) == 1


async def test_only_what_passes_is_charged() -> None:
    """Frames that are too short, or sent with the cable out, cost nothing. Bytes are those behind the header."""
    full = 1_000_000
    async with net_rig() as rig:
        one = Rate(1, full)
        rig.runner.set_limits(Limits(Rate(), Rate(), one, one, one, one))
        await rig.activate(MERGEABLE)
        assert rig.send(bytes(20))
        rig.kick(1)
        await rig.wait_used(1)
        rig.runner.set_link(False)
        send(rig, 1)
        await rig.wait_used(1)
        rig.runner.set_link(True)
        for _ in range(50):
            send(rig, 1)
            await rig.take(1)
            await rig.wait_used(1)
        rig.fill(2000)
        for _ in range(10):
            await rig.arrive(DATA)
            await rig.receive(1)
            rig.fill(2000)
        # The next look charges the last frame.
        await rig.settle()
        send(rig, 1)
        await rig.take(1)
        await rig.arrive(DATA)
        await rig.receive(1)
        size = len(DATA) - 12
        levels = [level / 10**9 for level in rig.runner._limiter.levels()[4::2]]
        wanted = [full - cost for cost in (11 * size, 11, 51 * size, 51)]
        for level, least, each in zip(levels, wanted, (size, 1, size, 1), strict=True):
            assert least <= level <= least + each + PATIENCE_S


async def test_a_huge_frame_passes() -> None:
    """One byte a second: 60000 at once, and then nothing for a long while."""
    async with net_rig() as rig:
        rig.runner.set_limits(Limits(bytes_out=Rate(1), bytes_in=Rate(1)))
        await rig.activate(MERGEABLE)
        large = frame(bytes(60_000))
        assert rig.send(large)
        rig.kick(1)
        assert await rig.take(1) == [large]
        rig.fill(65_000)
        await rig.arrive(large)
        assert [data for _, data in await rig.receive(1)] == [large]
        send(rig, 1)
        await rig.arrive(DATA)
        await until(lambda: rig.runner.limit_waits >= 2)
        assert rig.runner.info().counters[0].tx_frames == 1
        rig.runner.set_limits(NO_LIMITS)
        assert await rig.take(1) == [DATA]
        rig.fill(2000)
        assert len(await rig.receive(1)) == 1


async def test_pairs_share_one_bucket() -> None:
    """One frame of the first of two pairs passes; then neither sends."""
    async with net_rig(pairs=2) as rig:
        rig.runner.set_limits(TX)
        await rig.activate(Feature.MQ | Feature.CTRL_VQ)
        assert await rig.command(USE_TWO_PAIRS) == 0
        for index in (1, 3):
            assert rig.send(DATA, 0x4000 * index, index=index)
            rig.kick(index)
        await until(lambda: waits(rig))
        assert sum(counters.tx_frames for counters in rig.runner.info().counters) == 1
        rig.runner.set_limits(NO_LIMITS)
        for pair in range(2):
            assert await rig.take(1, pair) == [DATA]


@each_poll
async def test_a_waiting_pair_sleeps(poll_ns: int) -> None:
    """With frames in ring and wire that have to wait, no processor time is used."""
    async with net_rig(poll_ns=poll_ns) as rig:
        rig.runner.set_limits(BOTH)
        await rig.activate(MERGEABLE)
        rig.fill(2000)
        send(rig, 6)
        await arrive(rig, 6)
        before = time.process_time()
        start = rig.runner.info().counters[0]
        # At one a second it takes two.
        while sum(rig.runner.info().counters[0][:1]) + rig.runner.info().counters[0].tx_frames < 3:
            await trio.sleep(0.01)
        assert start.tx_frames + start.rx_frames <= 3
        assert time.process_time() - before < 1


@pytest.mark.parametrize("limits", [BOTH, RX, TX, Limits(Rate(1))])
async def test_nobody_waits_but_frames(limits: Limits) -> None:
    """Hold, reset, control commands, cable, and the end of the machine: all at once, with frames waiting everywhere."""
    async with net_rig() as rig:
        rig.runner.set_limits(limits)
        await rig.activate(MERGEABLE | Feature.CTRL_VQ | Feature.CTRL_RX)
        rig.fill(2000)
        send(rig, 8)
        await arrive(rig, 8)
        await until(lambda: waits(rig))
        with trio.fail_after(PATIENCE_S):
            await rig.runner.hold()
        state = rig.runner.save()
        assert not any(queue.ring.in_flight for queue in state.queues)
        rig.runner.release()
        assert await rig.command(bytes([0, 0, 1])) == 0
        rig.runner.set_link(False)
        rig.runner.set_link(True)
        await rig.reset()
        await rig.activate(MERGEABLE)
        send(rig, 8)
        counters = rig.runner.info().counters[0]
        assert counters.rx_frames + counters.tx_frames < 18
        assert rig.resets == []


@each_poll
async def test_the_rate(poll_ns: int) -> None:
    """4 MB at 4 MB/s, a bucket of 0.4 MB: not in less than 0.85 s, and not in much more."""
    async with net_rig(poll_ns=poll_ns) as rig:
        rig.runner.set_limits(Limits(bytes_out=Rate(4_000_000)))
        await rig.activate(MERGEABLE)
        data = frame(bytes(8000 - 15))
        start, sent = time.monotonic(), 0
        while sent < 500:
            for place in range(16):
                assert rig.send(data, 0x4000 * place)
            rig.kick(1)
            await rig.take(16)
            await rig.wait_used(1, 16)
            sent += 16
        assert 0.85 < time.monotonic() - start < 10


async def test_anything_at_any_time() -> None:
    """Limits, holds and frames of two pairs in any order: all that the guest sends arrives, in order."""
    chance = random.Random(6)
    some = [
        NO_LIMITS, BOTH, Limits(Rate(1 << 20)), Limits(operations=Rate(3000)), Limits(operations_out=Rate(5000)),
        Limits(bytes_in=Rate(4 << 20), bytes_out=Rate(1 << 20)), Limits(Rate(8 << 20, 16 << 20, 2), Rate(2000)),
    ]  # fmt: skip
    async with net_rig(pairs=2, poll_ns=20_000) as rig:
        await rig.activate(MERGEABLE | Feature.MQ | Feature.CTRL_VQ)
        assert await rig.command(USE_TWO_PAIRS) == 0

        async def sender(pair: int) -> None:
            for step in range(60):
                data = frame(bytes([pair, step]) * chance.randrange(1, 500))
                assert rig.send(data, 0x10_0000 * pair, index=2 * pair + 1)
                rig.kick(2 * pair + 1)
                assert await rig.take(1, pair) == [data]
                await rig.wait_used(2 * pair + 1)

        async def receiver(pair: int) -> None:
            for step in range(60):
                rig.fill(1600, 2 * pair)
                data = frame(bytes([pair, step]) * chance.randrange(1, 500))
                await rig.arrive(data, pair)
                assert [found for _, found in await rig.receive(1, 2 * pair)] == [data]

        async def owner() -> None:
            while True:
                rig.runner.set_limits(chance.choice(some))
                if chance.random() < 0.3:
                    await rig.settle()
                for _ in range(chance.randrange(50)):
                    await trio.sleep(0)

        with trio.fail_after(2 * PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(owner)
                async with trio.open_nursery() as drivers:
                    for pair in range(2):
                        drivers.start_soon(sender, pair)
                        drivers.start_soon(receiver, pair)
                nursery.cancel_scope.cancel()
