"""A network device through resets, holds, a wire that goes away, and drivers that mean ill."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import trio
import trio.testing

from tests.support.driver_ring import Buffer, SplitDriver
from tests.support.net_rig import PATIENCE_S, NetRig, frame, net_rig
from tests.virtio.ring_parts import FEATURES, feature_names
from tvmm.kvm.vring_records import F_RING_PACKED, RingError
from tvmm.virtio.device import QueueSetup
from tvmm.virtio.features import Net as Feature
from tvmm.virtio.runner.net import BAD_BUFFER

MERGEABLE = Feature.MRG_RXBUF
CONTROL = Feature.CTRL_VQ | Feature.CTRL_RX

each_features = pytest.mark.parametrize("features", FEATURES, ids=feature_names)


@each_features
async def test_reset_in_the_middle_of_traffic(features: int) -> None:
    """Nothing is written into the driver's memory after `done`, and the next driver has a device as new."""
    async with net_rig(poll_ns=50_000) as rig, trio.open_nursery() as nursery:

        async def flood() -> None:
            while True:
                await rig.arrive(frame(b"flood" * 100))

        nursery.start_soon(flood)
        for _ in range(4):
            await rig.activate(features | MERGEABLE | CONTROL)
            rig.fill(100)
            for number in range(10):
                rig.send(frame(b"out"), 0x1000 * number)
            rig.kick(1)
            await rig.receive(1)
            await rig.reset()
            assert all(not ring.raw.in_flight_count and not ring.raw.size for ring in rig.runner.rings)
            before = rig.ram.read(0, 32 << 20)
            await rig.settle()
            assert rig.ram.read(0, 32 << 20) == before
        assert rig.resets == []
        nursery.cancel_scope.cancel()


async def test_frames_of_the_time_before_are_thrown_away() -> None:
    """They may be in a form that this driver has not agreed to."""
    async with net_rig() as rig:
        for _ in range(2):
            await rig.arrive(frame(b"stale"))
            await rig.activate(MERGEABLE)
            rig.fill(100)
            await rig.arrive(frame(b"fresh"))
            assert await rig.receive(1) == [(1, frame(b"fresh"))]
            await rig.reset()
        assert rig.runner.info().counters[0].rx_stale == 2


@each_features
async def test_a_hold_gives_everything_back(features: int) -> None:
    """While it is held nothing is in flight; frames wait, both ways; after the release all go on in order."""
    async with net_rig() as rig:
        await rig.activate(features | MERGEABLE)
        rig.fill(100)
        await rig.arrive(frame(b"before"))
        assert await rig.receive(1) == [(1, frame(b"before"))]
        await rig.runner.hold()
        assert rig.runner.rings[0].raw.in_flight_count == 0
        await rig.arrive(frame(b"during"))
        rig.send(frame(b"out"))
        rig.drivers[1].publish()
        os.eventfd_write(rig.kicks[1], 1)
        await rig.runner.hold()
        rig.runner.release()
        await trio.testing.wait_all_tasks_blocked()
        assert rig.drivers[0].collect() == []
        rig.runner.release()
        assert await rig.receive(1) == [(1, frame(b"during"))]
        assert await rig.take(1) == [frame(b"out")]


async def test_a_queue_alone_is_reset() -> None:
    """The other goes on; then the queue is set up anew, in another size."""
    async with net_rig() as rig:
        await rig.activate(MERGEABLE)
        rig.fill(100)
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        with rig.bus_lock:
            rig.runner.stop_queue(0, lambda: token.run_sync_soon(done.set))
        await rig.patiently(done)
        rig.send(frame(b"out"))
        rig.kick(1)
        assert await rig.take(1) == [frame(b"out")]
        await rig.arrive(frame(b"in"))
        config = rig.set_up_queue(0, 8)
        with rig.bus_lock:
            rig.runner.start_queue(QueueSetup(0, 8, *config[1:4], True))
        rig.fill(100)
        assert await rig.receive(1) == [(1, frame(b"in"))]


async def test_kicks_by_the_transport() -> None:
    """A kick that was no eventfd write does the same."""
    async with net_rig() as rig:
        await rig.activate(0)
        await rig.settle()
        rig.send(frame(b"out"))
        rig.drivers[1].publish()
        with rig.bus_lock:
            rig.runner.notify(1)
        assert await rig.take(1) == [frame(b"out")]


async def test_cable_out_and_in() -> None:
    """With the cable out frames are lost, both ways, and the driver and the host can see it."""
    async with net_rig() as rig:
        await rig.activate(MERGEABLE | Feature.STATUS)
        rig.fill(100)
        with rig.bus_lock:
            rig.runner.set_link(False)
            assert rig.model.read_config(6, 2) == 0
        await rig.arrive(frame(b"lost"))
        rig.send(frame(b"lost"))
        rig.kick(1)
        await rig.wait_used(1)
        while not rig.runner.info().counters[0].rx_link_down:
            await rig.settle()
        with rig.bus_lock:
            rig.runner.set_link(True)
        await rig.arrive(frame(b"in"))
        rig.send(frame(b"out"))
        rig.kick(1)
        assert await rig.receive(1) == [(1, frame(b"in"))]
        assert await rig.take(1) == [frame(b"out")]
        assert [order for order in rig.wire.orders if order[0] == "carrier"] == [
            ("carrier", 0, False), ("carrier", 0, True),
        ]  # fmt: skip
        counters = rig.runner.info().counters[0]
        assert (counters.tx_link_down, counters.rx_link_down) == (1, 1)


@pytest.mark.parametrize("poll_ns", [0, 50_000])
@pytest.mark.parametrize("sending", [False, True])
async def test_the_wire_goes_away(poll_ns: int, sending: bool) -> None:
    """Told once; the link is down; what the driver sends is given back; a reset works; nothing spins."""
    async with net_rig(poll_ns=poll_ns) as rig:
        await rig.activate(MERGEABLE | Feature.STATUS)
        if not sending:
            rig.fill(100)
        await rig.settle()
        rig.wire.far[0].close()
        if sending:
            rig.send(frame())
            rig.kick(1)
        await rig.until(lambda: len(rig.failures) == 1)
        assert rig.failures[0].startswith("wire: ")
        for _ in range(3):
            rig.send(frame())
            rig.kick(1)
            await rig.wait_used(1)
        info = rig.runner.info()
        assert (info.link_up, info.failure) == (False, rig.failures[0])
        await rig.settle()
        sleeps = rig.runner.info().spins[0].sleeps
        await rig.settle()
        assert rig.runner.info().spins[0].sleeps <= sleeps + 3
        with rig.bus_lock:
            rig.runner.set_link(True)
        assert not rig.runner.info().link_up
        await rig.reset()
        await rig.activate(MERGEABLE)
        rig.send(frame())
        rig.kick(1)
        await rig.wait_used(1)
        assert len(rig.failures) == 1
        assert rig.resets == []


Break = Callable[[NetRig], None]


def _readable_receive_buffer(rig: NetRig) -> None:
    rig.drivers[0].add([Buffer(0x80_0000, 10), Buffer(0x80_1000, 1000, True)])
    rig.kick(0)


def _tiny_receive_buffer(rig: NetRig) -> None:
    rig.offer(11)
    rig.kick(0)


def _index_jump(rig: NetRig) -> None:
    driver = rig.drivers[1]
    assert isinstance(driver, SplitDriver)
    driver.set_index(30000)
    os.eventfd_write(rig.kicks[1], 1)


def _address_outside(rig: NetRig) -> None:
    rig.send(frame())
    rig.drivers[1].add([Buffer(1 << 40, 64)])
    rig.kick(1)


def _receive_into_nowhere(rig: NetRig) -> None:
    rig.drivers[0].add([Buffer(1 << 40, 2000, True)])
    rig.kick(0)


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (_readable_receive_buffer, f"queue 0: {BAD_BUFFER}"),
        (_tiny_receive_buffer, f"queue 0: {BAD_BUFFER}"),
        (_index_jump, "queue 1: the available index jumped"),
        (_address_outside, "queue 1: a buffer has address 0x10000000000, which is not RAM"),
        (_receive_into_nowhere, "queue 0: a buffer has address 0x10000000000, which is not RAM"),
    ],
)
@pytest.mark.parametrize("poll_ns", [0, 50_000])
async def test_broken_rules(breaks: Break, reason: str, poll_ns: int) -> None:
    """The device needs a reset, told once; the thread sleeps; after the reset all works."""
    async with net_rig(poll_ns=poll_ns) as rig:
        await rig.activate(MERGEABLE)
        breaks(rig)
        await rig.arrive(frame())
        await rig.until(lambda: len(rig.resets) == 1)
        assert rig.resets[0].startswith(reason)
        for index in (0, 1):
            os.eventfd_write(rig.kicks[index], 1)
        await rig.settle()
        await rig.settle()
        assert len(rig.resets) == 1
        await rig.reset()
        await rig.activate(MERGEABLE)
        rig.fill(100)
        await rig.arrive(frame(b"in"))
        assert await rig.receive(1) == [(1, frame(b"in"))]
        rig.send(frame(b"out"))
        rig.kick(1)
        assert frame(b"out") in await rig.take(2 if breaks is _address_outside else 1)


async def test_a_queue_that_cannot_be() -> None:
    """Its place is not RAM: the device needs a reset, and the other queue is served meanwhile."""
    async with net_rig() as rig:
        await rig.activate(F_RING_PACKED)
        with rig.bus_lock:
            rig.runner.start_queue(QueueSetup(0, 16, 1 << 40, 1 << 41, 1 << 42, True))
        await rig.until(lambda: bool(rig.resets))
        error = RingError.AREA_OUTSIDE_RAM.sentence(1 << 40)
        assert rig.resets == [f"queue 0: {error}"]
        rig.send(frame(b"out"))
        rig.kick(1)
        assert await rig.take(1) == [frame(b"out")]


async def test_queues_that_were_not_negotiated_are_not_looked_at() -> None:
    """A control queue without the feature, and pairs without MQ: rings full of nonsense harm nobody."""
    async with net_rig(pairs=2) as rig:
        await rig.activate(MERGEABLE)
        with rig.bus_lock:
            for index in (2, 3, 4):
                rig.runner.start_queue(QueueSetup(index, 16, 1 << 40, 1 << 41, 1 << 42, True))
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        with rig.bus_lock:
            rig.runner.stop_queue(4, lambda: token.run_sync_soon(done.set))
        await rig.patiently(done)
        assert rig.resets == []


@pytest.mark.parametrize("poll_ns", [0, 1_000_000])
async def test_cancelling_ends_the_threads(poll_ns: int) -> None:
    """In the middle of traffic, at once."""
    with trio.fail_after(PATIENCE_S):
        async with net_rig(pairs=2, poll_ns=poll_ns) as rig:
            await rig.activate(MERGEABLE)
            rig.fill(100)
            await rig.arrive(frame())
            await rig.receive(1)


async def test_a_hold_that_is_given_up() -> None:
    """Cancelled while it waits for a thread that never comes: nothing stays held."""
    rig = NetRig(pairs=2)
    with trio.move_on_after(0.01) as scope:
        await rig.runner.hold()
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.runner.run)
        await rig.activate(0)
        rig.send(frame(b"out"))
        rig.kick(1)
        assert await rig.take(1) == [frame(b"out")]
        nursery.cancel_scope.cancel()
    rig.close()
