"""A disk's runner is saved in the middle of errors, and another one goes on with its record."""

from __future__ import annotations

import struct
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.disk_driver import ALL, DISCARD, FLUSH, IN, OK, OUT, WRITE_ZEROES, Disk, disk, ranges
from tests.virtio.runner.disks import SIZE, new_image
from tests.virtio.runner.test_blk_errors import Owner
from tvmm.config.disk import DiskConfig
from tvmm.kvm.blk_state import KeptRequest, check_kept
from tvmm.kvm.vring_records import InFlight, VringConfig, VringState
from tvmm.state import decode, encode
from tvmm.virtio.blk import Blk
from tvmm.virtio.device import Activation
from tvmm.virtio.features import Ring
from tvmm.virtio.runner.backing import blk_settings
from tvmm.virtio.runner.base import QueueRun
from tvmm.virtio.runner.blk import BlkRun, BlkRunner
from tvmm.virtio.runner.blk_queue import DiskQueueRun
from tvmm.virtio.runner.image import DiskImage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TYPES = (BlkRun, DiskQueueRun, KeptRequest, QueueRun, VringState, VringConfig, InFlight)
PATIENCE_S = 30
RINGS = {
    "split": ALL & ~(Ring.RING_PACKED | Ring.IN_ORDER),
    "split-in-order": ALL & ~Ring.RING_PACKED | Ring.IN_ORDER,
    "packed": ALL & ~Ring.IN_ORDER | Ring.RING_PACKED,
    "packed-in-order": ALL | Ring.RING_PACKED | Ring.IN_ORDER,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An image of `SIZE` bytes."""
    return new_image(tmp_path, SIZE, bytes([0x11]) * SIZE)


def activation(one: Disk) -> Activation:
    """What the driver of a disk has set up."""
    return Activation(one.features, tuple(one.slot.setups))


@asynccontextmanager
async def another(one: Disk, path: Path, **options: object) -> AsyncIterator[BlkRunner]:
    """A new runner, held, for the same driver: its model has the registers of the first one's."""
    config = DiskConfig(str(path), locking=False, **options)  # type: ignore[arg-type]
    image = DiskImage(config.file, locking=False)
    model = Blk(blk_settings(image, config))
    model.restore(one.slot.model.state(), one.features)
    runner = BlkRunner(model, one.slot.ends, image, config, one.warnings.append)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.run)
            for index, fd in enumerate(one.slot.calls):
                runner.set_call(index, fd)
            await runner.hold()
            yield runner
            nursery.cancel_scope.cancel()
    finally:
        runner.close()


@pytest.mark.parametrize("aio", ["threads", "io_uring"])
@pytest.mark.parametrize("ring", RINGS)
async def test_kept_requests_of_every_kind_go_on(path: Path, ring: str, aio: str) -> None:
    """What was kept over errors is done by the next runner, what had completed is not done again; all data is right."""
    async with disk(path, faults=300_000, werror="stop", rerror="stop", aio=aio, locking=False) as one:
        owner = Owner(one)
        one.activate(RINGS[ring])
        many = [64 * number for number in range(1, 32)]
        writes = {number: bytes([number]) * 4096 for number in range(1, 9)}
        wanted = [one.add(OUT, 8 * number, data, cuts=many if number % 2 else ()) for number, data in writes.items()]
        reads = [one.add(IN, 2048 + 8 * number, room=4096) for number in range(8)]
        others = [
            one.add(FLUSH),
            one.add(WRITE_ZEROES, data=ranges((4096, 8, 1), (4200, 16, 0))),
            one.add(DISCARD, data=ranges((5000, 8, 0))),
        ]
        one.slot.publish(0)
        await owner.wait()
        await one.runner.hold()
        state = one.runner.save()
        assert state.queues[0].kept
        assert state.queues[0].stopped
        assert decode(encode(state), TYPES) == state
        async with another(one, path) as runner:
            await runner.restore(activation(one), state)
            assert runner.save() == state
            runner.release()
            with trio.fail_after(PATIENCE_S):
                while len(one.answers) < len(wanted + reads + others):
                    await one.collect()
        assert {answer.status for answer in one.answers.values()} == {OK}
        for pending in reads:
            assert pending is not None
            assert one.answers[pending].data == bytes([0x11]) * 4096
    content = path.read_bytes()
    for number, data in writes.items():
        assert content[4096 * number : 4096 * (number + 1)] == data
    assert content[512 * 4096 : 512 * 4104] == bytes(4096)
    assert content[512 * 4200 : 512 * 4216] == bytes(8192)


@pytest.mark.parametrize("ring", RINGS)
async def test_the_first_runner_may_go_on_instead(path: Path, ring: str) -> None:
    """To be saved changes nothing: the same runner, released, ends what it kept."""
    async with disk(path, faults=300_000, werror="stop", locking=False) as one:
        owner = Owner(one)
        one.activate(RINGS[ring])
        pending = [one.add(OUT, 8 * number, bytes([number]) * 512) for number in range(16)]
        one.slot.publish(0)
        await owner.wait()
        await one.runner.hold()
        assert one.runner.save() == one.runner.save()
        one.runner.release()
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_release_after_errors, owner, one)
                while len(one.answers) < len(pending):
                    await one.collect()
                nursery.cancel_scope.cancel()
        assert {answer.status for answer in one.answers.values()} == {OK}


async def _release_after_errors(owner: Owner, one: Disk) -> None:
    while True:
        await owner.wait()
        await one.runner.hold()
        one.runner.release()


async def test_a_sync_that_failed_is_not_forgotten(path: Path) -> None:
    """What the kernel of the first host has lost, no sync on the second one makes good."""
    async with disk(path, locking=False) as one:
        one.activate()
        await one.runner.hold()
        async with another(one, path) as runner:
            await runner.restore(activation(one), one.runner.save()._replace(sync_error=5))
            runner.release()
            assert (await one.ask(FLUSH)).status != OK


async def test_records_that_do_not_fit_are_refused(path: Path) -> None:
    """Rings that the driver has not set up, a size that the image has not, and kept requests of nobody."""
    async with disk(path, locking=False) as one:
        one.activate()
        assert (await one.ask(IN, 0, room=512)).status == OK
        await one.runner.hold()
        state: BlkRun = one.runner.save()
        queue = state.queues[0]
        ring = queue.queue.ring
        assert ring.config is not None
        request = KeptRequest(5, 2, one.slot.place(512))

        def changed(**fields: Any) -> BlkRun:
            return state._replace(queues=(queue._replace(**fields), *state.queues[1:]))

        def with_ring(**fields: Any) -> BlkRun:
            return changed(queue=queue.queue._replace(ring=ring._replace(**fields)))

        for wrong, word in (
            (state._replace(queues=state.queues[:0]), "queues"),
            (state._replace(sync_error=-1), "sync_error"),
            (changed(queue=QueueRun(VringState(), True)), "served"),
            (with_ring(config=ring.config._replace(size=128)), "config"),
            (with_ring(next_avail=5), "in_flight"),
            (with_ring(next_avail=ring.next_avail + 1, in_flight=(InFlight(5, writable=1),)), "in_flight"),
            (changed(kept=(request,)), "kept"),
            (changed(broken=9), "broken"),
            (changed(stopped=-1), "stopped"),
        ):
            async with another(one, path) as runner:
                with pytest.raises(ValueError, match=word):
                    await runner.restore(activation(one), wrong)
        async with another(one, path) as runner:
            one_sector_more = struct.pack("<Q", SIZE // 512 + 1)
            space = one_sector_more + one.slot.model.config_bytes()[8:]
            runner._model.restore(one.slot.model.config_state()._replace(space=space), one.features)
            with pytest.raises(ValueError, match="capacity"):
                await runner.restore(activation(one), state)
        one.runner.release()


GOOD: Any = KeptRequest(3, 1, 0x10_0000, 512, 1024, 512, 0, ((0x10_1000, 256), (0x10_3000, 256)))
READ: Any = KeptRequest(3, 0, 0x10_0000, 0, 512, 0, 0, ((0x10_1000, 512),))
ZEROES: Any = KeptRequest(3, 4, 0x10_0000, ranges=((512, 512, True),))


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (GOOD._replace(id=4), "id"),
        (GOOD._replace(id=None), "id"),
        (GOOD._replace(operation=5), "operation"),
        (GOOD._replace(status=1 << 40), "buffer"),
        (GOOD._replace(status=-1), "status"),
        (GOOD._replace(offset=1 << 62), "offset"),
        (GOOD._replace(offset=5), "offset"),
        (GOOD._replace(length=1 << 32), "length"),
        (GOOD._replace(length=1025), "length"),
        (GOOD._replace(done=1025), "done"),
        (GOOD._replace(done=511), "pieces"),
        (GOOD._replace(stable=3), "stable"),
        (GOOD._replace(pieces=((0x10_1000, 0), (0x10_3000, 512))), "pieces"),
        (GOOD._replace(pieces=((0x10_1000,),)), "pieces"),
        (GOOD._replace(pieces=((0xFFFF_FFFF_FFFF_FF00, 512),)), "buffer"),
        (GOOD._replace(pieces=((0x10_1000, 0x7000_0000),)), "buffer"),
        (GOOD._replace(pieces=((0x10_1000, 1),) * 5000), "pieces"),
        (GOOD._replace(pieces=None), "pieces"),
        (GOOD._replace(ranges=((0, 512, False),)), "ranges"),
        (READ._replace(length=1024, pieces=((0x10_1000, 1024),)), "room"),
        (ZEROES._replace(ranges=((0, 0, False),)), "ranges"),
        (ZEROES._replace(ranges=((1 << 63, 5, False),)), "ranges"),
        (ZEROES._replace(ranges=((0, 512, 2),)), "ranges"),
        (ZEROES._replace(ranges=((0, 512),)), "ranges"),
        (ZEROES._replace(ranges=((0, 512, False),) * 257), "ranges"),
        (ZEROES._replace(length=512), "length"),
        (ZEROES._replace(pieces=((0x10_1000, 512),)), "pieces"),
    ],
)
async def test_kept_requests_are_checked(path: Path, request_: Any, word: str) -> None:
    """No address outside of RAM, no sum that overflows, nothing more than a driver could have asked for."""
    chains = {3: InFlight(3, writable=513)}
    async with disk(path, locking=False) as one:
        for good in (GOOD, READ, ZEROES):
            assert check_kept((good,), chains, one.slot.memory, read_only=False) == (good,)
        with pytest.raises(ValueError, match=word):
            check_kept((request_,), chains, one.slot.memory, read_only=False)
        with pytest.raises(ValueError, match="operation"):
            check_kept((GOOD,), chains, one.slot.memory, read_only=True)
        with pytest.raises(ValueError, match="kept"):
            check_kept((GOOD, GOOD), chains, one.slot.memory, read_only=False)
        with pytest.raises(ValueError, match="id"):
            check_kept((GOOD,), {3: InFlight(3, writable=513, done=True)}, one.slot.memory, read_only=False)
