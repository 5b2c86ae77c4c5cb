"""Requests whose data is in memory that has not come yet, and what of them reaches the image when it never does."""

from __future__ import annotations

from pathlib import Path
from struct import pack

from tests.support.disk_driver import ALL, IN, IO_ERROR, OK, OUT, WRITE_ZEROES, Disk, disk, ranges
from tests.support.driver_ring import Buffer
from tests.support.slow_pages import PAGE, SlowPages
from tests.virtio.runner.disks import SIZE, Backend
from tvmm.kvm.calls import lib
from tvmm.memory.ram import COMING, LOST, PRESENT
from tvmm.virtio.features import Ring

WRITES = 8


def test_python_and_c_mean_the_same() -> None:
    """The words are written down twice."""
    assert (PRESENT, COMING, LOST) == (0, lib.TVMM_MEMORY_COMING, lib.TVMM_MEMORY_LOST)


def begin(one: Disk) -> tuple[SlowPages, list[int]]:
    """Writes from pages that are not there: those, and where the requests' statuses will be."""
    slot = one.slot
    slot.ram.presence[0] = COMING
    start = slot.place((WRITES + 1) * PAGE) + PAGE - 1 & ~(PAGE - 1)
    statuses = []
    for page in range(WRITES):
        header, status = slot.place(16), slot.place(1)
        slot.ram.write(header, pack("<IIQ", OUT, 0, 8 * page))
        slot.ram.write(status, b"\xee")
        statuses.append(status)
        buffers = [Buffer(header, 16), Buffer(start + page * PAGE, PAGE), Buffer(status, 1, True)]
        assert slot.drivers[0].add(buffers, 0) is not None
    return SlowPages(slot.ram, start, WRITES), statuses


async def end(one: Disk) -> None:
    """All of them are back."""
    back = 0
    while back < WRITES:
        back += len(await one.slot.wait_used(0))


async def test_zeros_in_place_of_lost_memory_stay_here(backend: Backend, path: Path) -> None:
    """Neither what waited for it when it was lost nor what comes later changes the image; reads and flushes go on."""
    async with disk(path, **backend.options) as one:
        one.activate(ALL | Ring.INDIRECT_DESC)
        slow, statuses = begin(one)
        try:
            one.slot.publish(0)
            await slow.wait_stuck()
            one.slot.ram.presence[0] = LOST
        finally:
            slow.release()
        await end(one)
        assert {one.slot.ram.read(status, 1)[0] for status in statuses} == {IO_ERROR}
        assert (await one.ask(OUT, 0, b"\x22" * 512)).status == IO_ERROR
        assert (await one.ask(WRITE_ZEROES, data=ranges((0, 8, 0)))).status == IO_ERROR
        assert (await one.ask(IN, 0, room=512)).data == b"\x11" * 512
        # As after a reset.
        one.slot.ram.presence[0] = PRESENT
        assert path.read_bytes() == b"\x11" * SIZE
        assert (await one.ask(OUT, 0, b"\x22" * 512)).status == OK


async def test_memory_that_comes_is_written(backend: Backend, path: Path) -> None:
    """As if it had been there."""
    async with disk(path, **backend.options) as one:
        one.activate(ALL | Ring.INDIRECT_DESC)
        slow, statuses = begin(one)
        try:
            one.slot.publish(0)
            await slow.wait_stuck()
        finally:
            slow.release()
        await end(one)
        assert {one.slot.ram.read(status, 1)[0] for status in statuses} == {OK}
        assert path.read_bytes() == bytes(WRITES * PAGE) + b"\x11" * (SIZE - WRITES * PAGE)
