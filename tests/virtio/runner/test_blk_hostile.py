"""Drivers of disks that keep to no rule: the device is given up, nothing else is harmed, and a reset mends it."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.support.disk_driver import ALL, IN, OK, OUT, Disk, disk
from tests.support.driver_ring import Buffer, SplitDriver
from tests.virtio.runner.disks import Backend

PATIENCE_S = 30


async def broken(one: Disk) -> str:
    """Wait until the device is given up; why."""
    with trio.fail_after(PATIENCE_S):
        await one.slot.broken.wait()
    one.slot.broken = trio.Event()
    return one.slot.reasons[-1]


def offer(one: Disk, *buffers: Buffer) -> None:
    """A chain of the test's own making."""
    assert one.slot.drivers[0].add(list(buffers)) is not None
    one.slot.publish(0)


async def test_chains_that_are_no_requests(backend: Backend, path: Path) -> None:
    """No room for a status, half a header: the device is given up once, and works again after a reset."""
    async with disk(path, **backend.options) as one:
        for buffers, reason in (
            ([Buffer(0x40_0000, 528)], "no room for the status of a block request"),
            ([Buffer(0x40_0000, 15), Buffer(0x40_0100, 513, True)], "a block request shorter than its header"),
            ([Buffer(1 << 40, 16)], "a buffer has address 0x10000000000, which is not RAM"),
        ):
            one.activate(ALL)
            assert (await one.ask(IN, 0, room=512)).status == OK
            offer(one, *buffers)
            assert await broken(one) == reason
            # Nothing is taken any more, and nobody looks.
            assert not one.runner._queues[0].active()
            await one.reset()
        one.activate(ALL)
        assert (await one.ask(IN, 0, room=512)).status == OK
        assert len(one.slot.reasons) == 3


async def test_requests_before_the_broken_one(backend: Backend, path: Path) -> None:
    """What came before it is carried out and given back."""
    async with disk(path, **backend.options) as one:
        one.activate()
        for sector in range(20):
            assert one.add(OUT, sector, bytes([sector]) * 512)
        offer(one, Buffer(0x40_0000, 16))
        assert await broken(one) == "no room for the status of a block request"
        back = one.slot.drivers[0].collect()
        assert len(back) == 20
        await one.reset()
    assert path.read_bytes()[: 20 * 512] == b"".join(bytes([sector]) * 512 for sector in range(20))


async def test_index_that_jumps(plain: Path) -> None:
    """The ring's own errors are passed on with their sentence."""
    async with disk(plain) as one:
        one.activate()
        driver = one.slot.drivers[0]
        assert isinstance(driver, SplitDriver)
        driver.set_index(1000)
        one.runner.notify(0)
        assert await broken(one) == "the available index jumped by more than the queue size, to 1000"


async def test_ring_that_is_not_in_ram(plain: Path) -> None:
    """Areas that no queue can have give the device up at once, and a reset mends it."""
    async with disk(plain) as one:
        one.activate()
        await one.reset()
        setup = one.slot.setups[0]._replace(desc=1 << 40)
        with one.slot.bus_lock:
            one.runner.start_queue(setup)
        assert "not wholly in RAM" in await broken(one)
        await one.reset()
        one.activate()
        assert (await one.ask(IN, 0, room=512)).status == OK


async def test_chain_in_too_many_pieces(plain: Path) -> None:
    """There is a limit on the pieces of a chain, which no driver that keeps to seg_max reaches."""
    async with disk(plain, queue_size=8192) as one:
        one.activate(ALL, 8192)
        offer(one, *[Buffer(0x40_0000 + n, 1) for n in range(4099)], Buffer(0x50_0000, 1, True))
        assert await broken(one) == "a chain is in more than 4096 pieces, which is the device's limit"
