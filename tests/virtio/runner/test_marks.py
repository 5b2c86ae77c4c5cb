"""What devices write into guest memory is marked for migration: each device, each engine, each format of rings."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from struct import pack

import pytest
import trio

from tests.support.disk_driver import ALL, FLUSH, GET_ID, IN, IO_ERROR, OK, OUT, UNSUPPORTED, Disk, disk
from tests.support.driver_ring import Buffer
from tests.support.net_rig import BUFFERS, QUEUE_STRIDE, RX_PLACES, NetRig, frame, net_rig
from tests.support.replica import Replica
from tests.support.task_slot import TaskSlot, serving
from tests.support.watch import Page, Watch
from tests.virtio.devices import ALL_RING, make_rng
from tests.virtio.ring_parts import FEATURES, feature_names
from tests.virtio.runner.disks import SIZE, Backend
from tvmm.kvm.device_log import PAGE_SIZE
from tvmm.memory.ram import MAIN_BLOCK
from tvmm.virtio.console import Console, ConsoleSettings
from tvmm.virtio.console_control import PortSettings
from tvmm.virtio.features import Console as ConsoleFeature
from tvmm.virtio.features import Net as NetFeature
from tvmm.virtio.features import Ring
from tvmm.virtio.runner.console import ConsoleRunner
from tvmm.virtio.runner.rng import RngRunner

SOME_FEATURES = [
    Ring.INDIRECT_DESC,
    Ring.RING_PACKED | Ring.EVENT_IDX,
    Ring.RING_PACKED | Ring.INDIRECT_DESC | Ring.IN_ORDER,
]
CONTROL = NetFeature.CTRL_VQ | NetFeature.CTRL_RX | NetFeature.CTRL_MAC_ADDR
pytestmark = pytest.mark.timeout(120)
each_features = pytest.mark.parametrize("features", FEATURES, ids=feature_names)
some_features = pytest.mark.parametrize("features", SOME_FEATURES, ids=feature_names)


def pages(gpa: int, length: int) -> set[Page]:
    """Those that have the bytes, below the PC hole."""
    return {(MAIN_BLOCK, page) for page in range(gpa // PAGE_SIZE, (gpa + length - 1) // PAGE_SIZE + 1)}


# -- disk ------------------------------------------------------------------------------------------------


class WatchedDisk:
    """A disk that rests whenever it is looked at."""

    def __init__(self, one: Disk) -> None:
        self.one = one
        self._watch: Watch | None = None

    async def check(self) -> tuple[set[Page], set[Page]]:
        """See `Watch.check`; the first time it begins."""
        await self.one.runner.hold()
        try:
            if self._watch is None:
                self._watch = Watch(self.one.slot.ram, self.one.slot.log)
            return self._watch.check()
        finally:
            self.one.runner.release()


@pytest.fixture
def content(path: Path) -> bytes:
    """Of the image, which has pages that differ."""
    data = Random(3).randbytes(SIZE)
    path.write_bytes(data)
    return data


@some_features
async def test_disk(backend: Backend, path: Path, content: bytes, features: int) -> None:
    """Reads of every length and place, several at once, beside writes, flushes and what is refused."""
    random = Random(features)
    async with disk(path, serial="disk-7", **backend.options) as one:
        one.activate(ALL | features, 64)
        watched = WatchedDisk(one)
        await watched.check()
        written = 0
        for _ in range(12):
            expected = {}
            for _ in range(random.choice((1, 1, 4, 8))):
                sectors = random.randrange(1, 40)
                sector = random.randrange(SIZE // 512 - sectors)
                cuts = [random.randrange(1, 512 * sectors) for _ in range(random.randrange(4))]
                offset = random.choice((0, 0, 0, 512, 77))
                kind = random.choice((IN, IN, IN, OUT, FLUSH, GET_ID, 77))
                data = content[512 * sector : 512 * (sector + sectors)]
                room = {IN: 512 * sectors, GET_ID: 20}.get(kind, 0)
                pending = one.add(kind, sector, data if kind == OUT else b"", room, cuts=cuts, offset=offset)
                if pending is not None:
                    expected[pending] = data if kind == IN else None
            one.slot.publish(0)
            while not expected.keys() <= one.answers.keys():
                await one.collect()
            for pending, found in expected.items():
                answer = one.answers.pop(pending)
                assert answer.status in (OK, UNSUPPORTED)
                assert found is None or answer.data == found
            changed, _ = await watched.check()
            written += len(changed)
        assert written > 40


async def test_disk_marks_what_it_writes_and_no_more(backend: Backend, path: Path, content: bytes) -> None:
    """A read marks its buffer, its status and the ring; a write only the latter two."""
    async with disk(path, **backend.options) as one:
        one.activate()
        watched = WatchedDisk(one)
        await watched.check()
        ring = pages(one.slot.setups[0].device, 6 + 8 * 256)
        read = one.add(IN, 8, room=5 * PAGE_SIZE)
        assert read is not None
        one.slot.publish(0)
        await one.collect()
        changed, marked = await watched.check()
        assert pages(read.writable, read.writable_length) <= changed <= marked
        assert marked <= pages(read.writable, read.writable_length) | ring
        written = one.add(OUT, 8, content[: 5 * PAGE_SIZE])
        assert written is not None
        one.slot.publish(0)
        await one.collect()
        _, marked = await watched.check()
        assert marked <= pages(written.writable, 1) | ring


async def test_disk_that_says_its_name(backend: Backend, path: Path) -> None:
    """The name is marked too, where it ends on another page than it begins on, away from its status."""
    async with disk(path, serial="disk-7", **backend.options) as one:
        one.activate()
        watched = WatchedDisk(one)
        await watched.check()
        both = 0
        # A request's two memories are of the same length here: an odd sector makes some end at a page's edge.
        one.slot.place(512)
        for misplaced in range(PAGE_SIZE - 10, 0, -512):
            request = one.add(GET_ID, room=20, offset=misplaced)
            assert request is not None
            one.slot.publish(0)
            await one.collect()
            assert one.answers.pop(request).data == b"disk-7".ljust(20, b"\0")
            changed, _ = await watched.check()
            both += len(changed & pages(request.writable, 21)) == 2
        assert both


async def test_disk_read_that_fails_midway(backend: Backend, path: Path, content: bytes) -> None:
    """What came before the end of a file that was cut is in guest memory, and marked, though it failed."""
    async with disk(path, **backend.options) as one:
        one.activate()
        watched = WatchedDisk(one)
        await watched.check()
        end = SIZE // 2 + 6 * 512
        os.truncate(path, end)
        answer = await one.ask(IN, SIZE // 1024, room=8 * PAGE_SIZE)
        assert answer.status == IO_ERROR
        assert answer.data[: 6 * 512] == content[SIZE // 2 : end]
        await watched.check()


@some_features
async def test_disk_while_it_is_copied(backend: Backend, path: Path, content: bytes, features: int) -> None:
    """A copy that follows the marks while the disk works is the same in the end."""
    random = Random(features)
    async with disk(path, **backend.options) as one:
        one.activate(ALL | features, 64)
        replica = Replica(one.slot.ram, one.slot.log)
        with replica.copying():
            for _ in range(150):
                begun = 0
                for _ in range(random.randrange(1, 6)):
                    sectors = random.randrange(1, 40)
                    begun += one.add(IN, random.randrange(SIZE // 512 - sectors), room=512 * sectors) is not None
                one.slot.publish(0)
                while begun > len(one.answers):
                    await one.collect()
                one.answers.clear()
        await one.runner.hold()
        replica.catch_up()
        assert replica.is_equal()
        assert replica.rounds > 1
        assert replica.pages > 100
        one.runner.release()


# -- network ---------------------------------------------------------------------------------------------


async def check_net(rig: NetRig, watch: Watch | None) -> tuple[Watch, set[Page], set[Page]]:
    """See `Watch.check`; without one, begin."""
    await rig.runner.hold()
    try:
        if watch is None:
            watch = Watch(rig.ram, rig.log)
        return watch, *watch.check()
    finally:
        rig.runner.release()


@each_features
@pytest.mark.parametrize("mergeable", [0, NetFeature.MRG_RXBUF], ids=["one buffer", "mergeable"])
async def test_received_frames(features: int, mergeable: int) -> None:
    """Frames of many lengths: those that come at once, those that do not fit, those for others, those that are none."""
    random = Random(features | mergeable)
    async with net_rig() as rig:
        await rig.activate(features | mergeable | CONTROL, 64)
        watch, _, _ = await check_net(rig, None)
        assert await rig.command(b"\1\0" + bytes(8)) == 0  # Nothing but the own address.
        written = 0
        for _ in range(8):
            rig.fill(random.choice((600, 5000, 9000)), pieces=random.choice((1, 3)))
            frames = [frame(random.randbytes(length)) for length in (60, random.randrange(100, 570), 500)]
            for data in frames:
                await rig.arrive(frame(random.randbytes(550), b"\x52\0\0\0\0\1"))
                await rig.arrive(data)
                await rig.arrive(random.randbytes(20))
            received = await rig.receive(3)
            assert [data for _, data in received] == frames
            watch, changed, _ = await check_net(rig, watch)
            written += len(changed)
        counters = rig.runner.info().counters[0]
        assert counters.rx_filtered == 24
        assert counters.rx_errors == 24
        assert written > 24


async def test_a_frame_that_waits_for_room() -> None:
    """What was read into too few buffers is marked, and so is where the whole of it goes in the end."""
    random = Random(9)
    async with net_rig() as rig:
        await rig.activate(NetFeature.MRG_RXBUF, 64)
        watch, _, _ = await check_net(rig, None)
        rig.offer(2048)
        rig.kick(0)
        data = frame(random.randbytes(30_000))
        await rig.arrive(data)
        while rig.runner.info().counters[0].rx_held == 0:
            await rig.settle()
        watch, changed, _ = await check_net(rig, watch)
        assert any(page >= RX_PLACES // PAGE_SIZE for _, page in changed)
        rig.fill(2048)
        [received] = await rig.receive(1)
        assert received.data == data
        watch, changed, _ = await check_net(rig, watch)
        assert len(changed) > 14


async def test_looking_for_frames_marks_nothing() -> None:
    """While none comes no buffer is marked, and what the driver sends is only given back."""
    async with net_rig() as rig:
        await rig.activate(NetFeature.MRG_RXBUF)
        rig.fill(5000)
        watch, _, _ = await check_net(rig, None)
        for _ in range(3):
            assert rig.send(frame(b"x" * 1000))
            rig.kick(1)
            await rig.take(1)
            await rig.settle()
        watch, _, marked = await check_net(rig, watch)
        assert marked <= pages(0x1_0000, 2 * QUEUE_STRIDE)


@each_features
async def test_answers_to_network_commands(features: int) -> None:
    """The one byte that Python writes."""
    async with net_rig() as rig:
        await rig.activate(features | CONTROL)
        watch, _, _ = await check_net(rig, None)
        assert await rig.command(b"\0\0\1") == 0
        _, changed, _ = await check_net(rig, watch)
        assert any(page >= BUFFERS // PAGE_SIZE for _, page in changed)


async def test_network_while_it_is_copied() -> None:
    """A copy that follows the marks while frames arrive is the same in the end."""
    random = Random(4)
    async with net_rig(poll_ns=50_000) as rig:
        await rig.activate(NetFeature.MRG_RXBUF | Ring.EVENT_IDX, 64)
        replica = Replica(rig.ram, rig.log)
        with replica.copying():
            for _ in range(100):
                rig.fill(3000)
                frames = [frame(random.randbytes(random.randrange(60, 9000))) for _ in range(4)]
                for data in frames:
                    await rig.arrive(data)
                assert [data for _, data in await rig.receive(4)] == frames
        await rig.runner.hold()
        replica.catch_up()
        assert replica.is_equal()
        assert replica.pages > 100
        rig.runner.release()


# -- devices in Python -----------------------------------------------------------------------------------


@each_features
async def test_random_bytes(features: int) -> None:
    """Requests in pieces over several pages."""
    with trio.fail_after(20):
        slot = TaskSlot(make_rng())
        runner = RngRunner(slot.model, slot.ends, lambda text: None)  # type: ignore[arg-type]
        async with serving(slot, runner):
            slot.activate(runner, features | Ring.VERSION_1)
            watch = Watch(slot.ram, slot.log)
            for length in (1, 64, 5000, 9000):
                buffers = [Buffer(slot.place(length), length, True), Buffer(slot.place(33), 33, True)]
                slot.add(0, *buffers)
                await slot.wait_used(0)
                changed, _ = watch.check()
                for buffer in buffers[:1] if length > 4000 else buffers:
                    assert changed & pages(buffer.gpa, buffer.length)


@each_features
async def test_console(features: int) -> None:
    """Input of a port, and control messages to the driver."""
    with trio.fail_after(20):
        model = Console(ConsoleSettings((PortSettings("main", console=True), PortSettings("agent")), 2), ring=ALL_RING)
        slot = TaskSlot(model)
        runner = ConsoleRunner(model, slot.ends)
        receive, control, from_driver = 0, 2, 3
        async with serving(slot, runner):
            slot.activate(runner, features | Ring.VERSION_1 | ConsoleFeature.MULTIPORT)
            watch = Watch(slot.ram, slot.log)
            for port, event in ((0xFFFF_FFFF, 0), (0, 3), (0, 6)):
                slot.offer(from_driver, pack("<IHH", port, event, 1))
                await slot.wait_used(from_driver)
                watch.check()
            message = await slot.get(control, PAGE_SIZE)
            assert message
            assert watch.check()[0]
            buffer = slot.post(receive, 3 * PAGE_SIZE)
            await runner.ports[0].send(b"typed" * 2000)
            await slot.wait_used(receive)
            assert watch.check()[0] >= pages(buffer.gpa, 10_000)
