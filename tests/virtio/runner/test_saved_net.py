"""A network device's runner is saved, and another one goes on with its record, on another wire."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.net_rig import EVERYTHING, MAC, NetRig, SocketWire, frame, net_rig
from tests.virtio.ring_parts import FEATURES, feature_names
from tvmm.kvm.vring_records import InFlight, VringConfig, VringState
from tvmm.state import decode, encode
from tvmm.virtio.device import Activation, QueueSetup
from tvmm.virtio.features import Net as Feature
from tvmm.virtio.net import Net, NetSettings
from tvmm.virtio.runner.base import QueueRun
from tvmm.virtio.runner.net import NetRun, NetRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(60)

TYPES = (NetRun, QueueRun, VringState, VringConfig, InFlight)
ALL = Feature.MRG_RXBUF | Feature.CTRL_VQ | Feature.CTRL_RX | Feature.MQ | Feature.CSUM | Feature.GUEST_CSUM
PROMISCUOUS, TWO_PAIRS = bytes([0, 0, 1]), bytes([4, 0, 2, 0])
OTHER = bytes.fromhex("525400000077")


def activation(features: int, state: NetRun) -> Activation:
    """What the driver has set up, as the rings say."""
    setups = []
    for index, run in enumerate(state.queues):
        config = run.ring.config
        areas = config[1:4] if config else (0, 0, 0)
        setups.append(QueueSetup(index, config.size if config else 16, *areas, config is not None))
    return Activation(features, tuple(setups))


@asynccontextmanager
async def another(rig: NetRig) -> AsyncIterator[NetRunner]:
    """A new runner on a new wire, held, with the rig's driver; the rig's helpers then mean these."""
    model, wire = Net(NetSettings(MAC, EVERYTHING, 2)), SocketWire(2, EVERYTHING)
    model.restore(rig.model.state(), rig.features)
    runner = NetRunner("net0", model, wire, rig.runner._ends, poll_ns=0, on_failed=rig.failures.append)
    before = rig.model, rig.runner, rig.wire
    rig.model, rig.runner, rig.wire = model, runner, wire
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.run)
            for index, fd in enumerate(rig.calls):
                runner.set_call(index, fd)
            await runner.hold()
            yield runner
            nursery.cancel_scope.cancel()
    finally:
        rig.model, rig.runner, rig.wire = before
        runner.close()
        wire.close()


@pytest.mark.parametrize("features", FEATURES, ids=feature_names)
async def test_frames_go_on_over_another_wire(features: int) -> None:
    """Rings, pairs, offloads and filter are as the driver left them; what it sent while nothing ran is sent."""
    async with net_rig(pairs=2) as rig:
        await rig.activate(features | ALL)
        for index in (0, 2):
            rig.fill(200, index)
        assert await rig.command(PROMISCUOUS) == 0
        assert await rig.command(TWO_PAIRS) == 0
        await rig.arrive(frame(b"before"))
        assert await rig.receive(1) == [(1, frame(b"before"))]
        await rig.runner.hold()
        state = rig.runner.save()
        assert not any(run.ring.in_flight for run in state.queues)
        assert decode(encode(state), TYPES) == state
        rig.send(frame(b"meanwhile"))
        rig.drivers[1].publish()
        async with another(rig) as runner:
            await runner.restore(activation(rig.features, state), state)
            assert runner.save() == state
            assert (runner.info().pairs, runner.info().offloads) == (2, Feature.GUEST_CSUM)
            runner.release()
            assert await rig.take(1) == [frame(b"meanwhile")]
            await rig.arrive(frame(b"to another", OTHER), pair=1)
            assert await rig.receive(1, 2) == [(1, frame(b"to another", OTHER))]
            rig.send(frame(b"second pair"), index=3)
            rig.kick(3)
            assert await rig.take(1, 1) == [frame(b"second pair")]
            assert await rig.command(bytes([0, 0, 0])) == 0
        assert rig.resets == []


async def test_a_queue_that_was_given_up_stays_so() -> None:
    """Its driver has been told, and is not told again; the others go on."""
    async with net_rig(pairs=2) as rig:
        await rig.activate(ALL)
        rig.fill(8)
        await rig.arrive(frame(b"no room for a header"))
        await rig.until(lambda: bool(rig.resets))
        await rig.runner.hold()
        state = rig.runner.save()
        assert state.given_up == 1
        async with another(rig) as runner:
            await runner.restore(activation(rig.features, state), state)
            assert runner.save() == state
            runner.release()
            rig.send(frame(b"out"))
            rig.kick(1)
            assert await rig.take(1) == [frame(b"out")]
        assert len(rig.resets) == 1


async def test_a_device_without_a_driver() -> None:
    """Nothing is served, and the wire's other pairs stay off until a driver asks."""
    async with net_rig(pairs=2) as rig:
        await rig.runner.hold()
        state = rig.runner.save()
        async with another(rig) as runner:
            await runner.restore(activation(0, state), state)
            assert runner.save() == state
            runner.release()
            await rig.activate(ALL)
            rig.fill(200)
            await rig.arrive(frame(b"first"))
            assert await rig.receive(1) == [(1, frame(b"first"))]


async def test_records_that_do_not_fit_are_refused() -> None:
    """Queues that the driver does not have, chains that nobody would bring back, bits of no queue."""
    async with net_rig(pairs=2) as rig:
        await rig.activate(Feature.MRG_RXBUF)
        rig.fill(200)
        await rig.runner.hold()
        state = rig.runner.save()
        good = activation(rig.features, state)
        first = state.queues[0]
        lost = first._replace(ring=first.ring._replace(next_avail=1, in_flight=(InFlight(1, writable=4),)))
        for wrong, word in (
            (state._replace(given_up=1 << 4), "given_up"),
            (state._replace(given_up=-1), "given_up"),
            (state._replace(queues=state.queues[:3]), "queues"),
            (state._replace(queues=(lost, *state.queues[1:])), "in_flight"),
            (state._replace(queues=(QueueRun(VringState(), True), *state.queues[1:])), "served"),
        ):
            async with another(rig) as runner:
                with pytest.raises(ValueError, match=word):
                    await runner.restore(good, wrong)
        more = state._replace(queues=(*state.queues[:2], *state.queues[:2], state.queues[4]))
        async with another(rig) as runner:
            with pytest.raises(ValueError, match="the driver does not have"):
                await runner.restore(activation(rig.features, more), more)
