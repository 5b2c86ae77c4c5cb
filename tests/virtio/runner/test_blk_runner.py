"""The disk's runner: what the driver, the machine and a hostile guest may do at any moment."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from struct import pack

import pytest
import trio

from tests.support.disk_driver import (
    ALL,
    FLUSH,
    IN,
    IO_ERROR,
    OK,
    OUT,
    WRITE_ZEROES,
    Disk,
    disk,
    ranges,
)
from tests.support.driver_ring import Buffer
from tests.support.slow_pages import PAGE, SlowPages
from tests.virtio.runner.disks import SIZE, Backend, loop_device, new_image
from tvmm.errors import ImageError
from tvmm.kvm.serve import CALL_NONE
from tvmm.virtio.features import Blk as Feature
from tvmm.virtio.features import Ring

PATIENCE_S = 30


# -- many at once ---------------------------------------------------------------------------------------------


async def test_engine_is_what_was_asked_for(backend: Backend, path: Path) -> None:
    """The engine under test is the one that runs."""
    async with disk(path, **backend.options) as one:
        wanted = "sync" if backend.in_memory else backend.options["aio"]
        if one.warnings:
            pytest.skip(one.warnings[0])
        assert one.runner.info().aio == wanted


async def test_queues_work_side_by_side(backend: Backend, path: Path) -> None:
    """Four queues, a writer on each: everything arrives, and each queue counts its own."""
    async with disk(path, queues=4, **backend.options) as one:
        one.activate(ALL | Feature.MQ)

        async def writer(queue: int) -> None:
            for step in range(40):
                sector = queue * 1024 + step * 8
                data = bytes([queue + 1]) * 4096
                assert (await one.ask(OUT, sector, data, queue=queue)).status == OK
                assert (await one.ask(IN, sector, room=4096, queue=queue)).data == data

        async with trio.open_nursery() as nursery:
            for queue in range(4):
                nursery.start_soon(writer, queue)
        info = one.runner.info()
        assert [(counters.reads, counters.writes) for counters in info.queues] == [(40, 40)] * 4
        assert info.counters.writes == 160


async def test_interrupts_by_hand(backend: Backend, path: Path) -> None:
    """Without an eventfd the slot is asked to interrupt, for the right queue."""
    async with disk(path, queues=2, **backend.options) as one:
        one.activate(ALL | Feature.MQ, by_python=True)
        for queue in (0, 1, 1):
            assert (await one.ask(IN, 0, room=512, queue=queue)).status == OK
        assert one.slot.used
        assert set(one.slot.used) == {0, 1}


async def test_many_pieces(backend: Backend, path: Path) -> None:
    """A request in more pieces than one system call takes."""
    async with disk(path, queue_size=4096, **backend.options) as one:
        one.activate(ALL & ~Ring.INDIRECT_DESC, 4096)
        data = os.urandom(16384)
        cuts = list(range(16, 16400, 8))
        assert (await one.ask(OUT, 8, data, cuts=cuts)).status == OK
        answer = await one.ask(IN, 8, room=16384, cuts=list(range(7, 16384, 11)))
        assert (answer.status, answer.data) == (OK, data)


async def test_kick_without_eventfd(plain: Path) -> None:
    """A notification that came as an access wakes the thread."""
    async with disk(plain, poll_us=0) as one:
        one.activate()
        for _ in range(3):
            assert one.add(IN, 0, room=512)
            one.slot.drivers[0].publish()
            one.runner.notify(0)
            assert len(await one.collect()) == 1


async def test_no_interrupt_without_a_vector(plain: Path) -> None:
    """A queue whose vector is taken away is served in silence."""
    async with disk(plain) as one:
        one.activate()
        assert (await one.ask(IN, 0, room=512)).status == OK
        one.runner.set_call(0, CALL_NONE)
        for _ in range(4):
            assert one.add(IN, 0, room=512)
            one.slot.publish(0)
        # At most the one for the first request.
        await collect_silently(one, 4)
        with suppress(BlockingIOError):
            os.eventfd_read(one.slot.calls[0])
        assert one.add(IN, 0, room=512)
        one.slot.publish(0)
        await collect_silently(one, 1)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(one.slot.calls[0])


async def collect_silently(one: Disk, count: int) -> None:
    """Look for used buffers again and again."""
    with trio.fail_after(PATIENCE_S):
        while count:
            count -= len(one.slot.drivers[0].collect())
            await trio.lowlevel.checkpoint()


# -- caches ---------------------------------------------------------------------------------------------------


async def test_writes_are_stable_without_a_flush(backend: Backend, path: Path) -> None:
    """A driver that cannot flush, or turned the cache off, has its writes stable; another one has not."""
    async with disk(path, **backend.options) as one:

        def stable() -> int:
            return one.runner.info().counters.stable

        one.activate(Ring.VERSION_1)
        assert (await one.ask(OUT, 0, bytes(512))).status == OK
        assert stable() == 1
        await one.reset()
        one.activate(ALL)
        assert (await one.ask(OUT, 0, bytes(512))).status == OK
        assert stable() == 1
        with one.slot.bus_lock:
            assert one.slot.model.write_config(32, 1, 0)
        assert (await one.ask(OUT, 0, bytes(512))).status == OK
        assert (await one.ask(WRITE_ZEROES, 0, ranges((8, 8, 0)))).status == OK
        assert stable() == 3


async def test_unsafe_flushes_nothing(plain: Path) -> None:
    """With cache=unsafe a flush is answered, and no system call made."""
    async with disk(plain, cache="unsafe") as one:
        one.activate()
        assert (await one.ask(FLUSH)).status == OK
        counters = one.runner.info().counters
        assert (counters.flushes, counters.steps) == (1, 0)


async def test_read_only(tmp_path: Path) -> None:
    """Nothing gets through to a file that is open for reading."""
    path = new_image(tmp_path, SIZE)
    async with disk(path, readonly=True) as one:
        one.activate(Ring.VERSION_1 | Feature.RO)
        assert (await one.ask(OUT, 0, b"x" * 512)).status == IO_ERROR
        assert (await one.ask(WRITE_ZEROES, 0, ranges((0, 1, 0)))).status != OK
        assert (await one.ask(IN, 0, room=512)).data == bytes(512)


async def test_odd_buffers_past_the_page_cache(backend: Backend, path: Path) -> None:
    """O_DIRECT cannot have a buffer at an odd address: it goes another way, and is seen by those that can."""
    async with disk(path, **backend.options) as one:
        one.activate()
        data = os.urandom(4096)
        assert (await one.ask(OUT, 8, data, offset=3)).status == OK
        assert (await one.ask(IN, 8, room=4096)).data == data
        assert (await one.ask(OUT, 8, data[::-1])).status == OK
        assert (await one.ask(IN, 8, room=4096, offset=1, cuts=[5, 4000])).data == data[::-1]
        assert (one.runner.info().counters.plain > 0) == one.image.direct


async def test_io_uring_that_is_not_to_be_had(plain: Path) -> None:
    """A queue too large for it is served by threads; who asked for io_uring is told, who did not is not."""
    for aio, lines in (("io_uring", 1), ("auto", 0)):
        async with disk(plain, aio=aio, queue_size=8192) as one:
            assert one.runner.info().aio == "threads"
            assert len(one.warnings) == lines
            one.activate()
            assert (await one.ask(IN, 0, room=512)).status == OK


# -- resets, holds, ends --------------------------------------------------------------------------------------


def fill(one: Disk, pages: int) -> int:
    """Reads of a page each into memory from a page boundary on; the first one's address."""
    slot = one.slot
    start = slot.place((pages + 1) * PAGE) + PAGE - 1 & ~(PAGE - 1)
    for page in range(pages):
        header, status = slot.place(16), slot.place(1)
        slot.ram.write(header, pack("<IIQ", IN, 0, 8 * page))
        buffers = [Buffer(header, 16), Buffer(start + page * PAGE, PAGE, True), Buffer(status, 1, True)]
        assert slot.drivers[0].add(buffers, 0) is not None
    return start


async def test_reset_with_256_requests_in_flight(backend: Backend, path: Path) -> None:
    """The reset is done when the last request is, and not before: the memory is the driver's then."""
    async with disk(path, **backend.options) as one:
        one.activate(ALL | Ring.INDIRECT_DESC)
        start = fill(one, 256)
        slow = SlowPages(one.slot.ram, start, 256)
        done = trio.Event()
        try:
            one.slot.publish(0)
            await slow.wait_stuck()
            async with trio.open_nursery() as nursery:

                async def reset() -> None:
                    await one.reset()
                    done.set()

                nursery.start_soon(reset)
                await trio.testing.wait_all_tasks_blocked()
                assert not done.is_set()
                slow.release()
        finally:
            slow.release()
        one.slot.ram.write(start, b"\x55" * 256 * PAGE)
        one.activate()
        assert (await one.ask(IN, 0, room=512)).data == b"\x11" * 512
        assert one.slot.ram.read(start, 256 * PAGE) == b"\x55" * 256 * PAGE


async def test_hold_waits_for_what_is_in_flight(backend: Backend, path: Path) -> None:
    """After a hold everything that was begun is done; nothing is begun until the release."""
    async with disk(path, **backend.options) as one:
        one.activate(ALL | Ring.INDIRECT_DESC)
        start = fill(one, 32)
        slow = SlowPages(one.slot.ram, start, 32)
        held = trio.Event()
        try:
            one.slot.publish(0)
            await slow.wait_stuck()
            async with trio.open_nursery() as nursery:

                async def hold() -> None:
                    await one.runner.hold()
                    held.set()

                nursery.start_soon(hold)
                await trio.testing.wait_all_tasks_blocked()
                assert not held.is_set()
                slow.release()
        finally:
            slow.release()
        driver = one.slot.drivers[0]
        back = driver.collect()
        assert back
        [ring] = one.runner.rings
        assert ring.state().in_flight == ()
        fill(one, 32)
        one.slot.publish(0)
        assert driver.collect() == []
        one.runner.release()
        while len(back) < 64:
            back += await one.slot.wait_used(0)
        assert one.slot.ram.read(start, 32 * PAGE) == b"\x11" * 32 * PAGE


async def test_suspend_is_undone_by_release(plain: Path) -> None:
    """Holds nest, whichever way they were asked for."""
    async with disk(plain) as one:
        one.activate()
        with one.slot.bus_lock:
            one.runner.suspend()
        await one.runner.hold()
        assert one.add(IN, 0, room=512)
        one.slot.publish(0)
        one.runner.release()
        await one.runner.hold()
        assert one.slot.drivers[0].collect() == []
        one.runner.release()
        one.runner.release()
        assert len(await one.collect()) == 1


async def test_cancelled_hold_holds_nothing(backend: Backend, path: Path) -> None:
    """Who gives up waiting for a hold leaves a disk that works."""
    async with disk(path, queues=3, **backend.options) as one:
        one.activate(ALL | Feature.MQ)
        for _ in range(10):
            with trio.CancelScope() as scope:
                scope.cancel()
                await one.runner.hold()
            for queue in range(3):
                assert (await one.ask(IN, 0, room=512, queue=queue)).status == OK


async def test_resets_one_after_the_other(backend: Backend, path: Path) -> None:
    """Three hundred drivers that are reset in the middle of their requests; the last one is served."""
    async with disk(path, queues=2, **backend.options) as one:
        for round_number in range(300):
            one.activate(ALL | Feature.MQ | (Ring.RING_PACKED if round_number % 2 else 0), 16)
            for queue in range(2):
                for sector in range(round_number % 5):
                    assert one.add(OUT, sector, b"\x11" * 512, queue=queue)
                one.slot.publish(queue)
            await one.reset()
        one.activate()
        assert (await one.ask(IN, 0, room=4096)).data == b"\x11" * 4096
        assert not one.slot.reasons


async def test_one_queue_is_taken_back(backend: Backend, path: Path) -> None:
    """A queue that the driver stops can be set up anew; the other one goes on."""
    async with disk(path, queues=2, **backend.options) as one:
        features = ALL | Feature.MQ
        one.activate(features)
        for size in (8, 64):
            done = trio.Event()
            token = trio.lowlevel.current_trio_token()
            with one.slot.bus_lock:
                one.runner.stop_queue(1, lambda token=token, done=done: token.run_sync_soon(done.set))  # type: ignore[misc]
            assert (await one.ask(IN, 0, room=512)).status == OK
            await done.wait()
            setup = one.slot.lay_out(1, features, size)
            with one.slot.bus_lock:
                one.runner.start_queue(setup)
            assert (await one.ask(IN, 0, room=512, queue=1)).status == OK


async def test_cancelled_runner(backend: Backend, path: Path) -> None:
    """Cancelling the tasks with a hundred requests under way ends them, with none left half done."""
    async with disk(path, **backend.options) as one:
        one.activate()
        async with trio.open_nursery() as nursery:
            for sector in range(100):
                if one.add(OUT, sector * 8, bytes([sector]) * 4096) is None:
                    break
            one.slot.publish(0)
            nursery.cancel_scope.cancel()
        # The block ends here: runner cancelled, then closed.
    content = path.read_bytes()
    for sector in range(100):
        assert content[sector * 4096 : (sector + 1) * 4096] in (b"\x11" * 4096, bytes([sector]) * 4096)


# -- resize ---------------------------------------------------------------------------------------------------


async def test_resize(backend: Backend, path: Path) -> None:
    """File, limits and configuration space change together; the driver is told each time."""
    async with disk(path, queues=2, **backend.options) as one:
        told: list[int] = []
        one.slot.model.config_changed = lambda: told.append(one.slot.model.read_config(0, 8))
        one.activate(ALL | Feature.MQ)
        assert (await one.ask(IN, SIZE // 512, room=512)).status == IO_ERROR
        await one.runner.resize(2 * SIZE)
        for queue in (0, 1):
            assert (await one.ask(IN, SIZE // 512, room=512, queue=queue)).data == bytes(512)
        await one.runner.resize(SIZE // 2)
        assert path.stat().st_size == SIZE // 2
        assert (await one.ask(IN, SIZE // 1024, room=512)).status == IO_ERROR
        assert (await one.ask(IN, SIZE // 1024 - 1, room=512)).status == OK
        for size in (100, -512):
            with pytest.raises(ImageError, match="multiples of 512"):
                await one.runner.resize(size)
        assert told == [2 * SIZE // 512, SIZE // 1024]
        assert one.runner.info().size == SIZE // 2
        await one.reset()
        one.activate(ALL | Feature.MQ)
        assert (await one.ask(IN, SIZE // 1024, room=512)).status == IO_ERROR


async def test_block_device(tmp_path: Path) -> None:
    """A device in place of a file: all requests, on each engine, past the page cache too."""
    path = new_image(tmp_path, SIZE, b"\x11" * SIZE)
    for device in loop_device(path):
        for aio in ("threads", "io_uring"):
            for cache in ("none", "writeback"):
                async with disk(device, aio=aio, cache=cache) as one:
                    one.activate()
                    data = os.urandom(4096)
                    assert (await one.ask(OUT, 64, data)).status == OK
                    assert (await one.ask(IN, 64, room=4096)).data == data
                    assert (await one.ask(WRITE_ZEROES, 0, ranges((64, 7, 0), (128, 128, 1)))).status == OK
                    assert (await one.ask(IN, 64, room=4096)).data == bytes(7 * 512) + data[-512:]
                    assert (await one.ask(IN, 128, room=65536)).data == bytes(65536)
                    assert (await one.ask(FLUSH)).status == OK
                    if one.image.can_unmap:
                        assert (await one.ask(11, 0, ranges((1024, 1024, 0)))).status == OK
                    counters = one.runner.info().counters
                    assert counters.write_zeroes == 1
                    assert sum(counters[6:12]) == 0
