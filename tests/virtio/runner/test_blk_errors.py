"""Errors of the host: what the driver hears, what stops the machine, and that nothing is lost when it goes on."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
import trio

from tests.support.disk_driver import ALL, FLUSH, IN, IO_ERROR, OK, OUT, WRITE_ZEROES, Disk, disk, ranges
from tests.virtio.runner.disks import SIZE, Backend, loop_device, new_image, small_tmpfs
from tvmm.kvm.blk import IoError, Policy
from tvmm.virtio.features import Blk as Feature
from tvmm.virtio.features import Ring

SMALL = 1 << 20
PATIENCE_S = 30


class Owner:
    """Hears of a disk's errors, as a machine does."""

    def __init__(self, one: Disk) -> None:
        self.errors: list[IoError] = []
        self._heard, self._errors = trio.open_memory_channel[IoError](100)
        self._token = trio.lowlevel.current_trio_token()
        one.runner.on_io_error = self._on_error

    def _on_error(self, error: IoError) -> None:
        self._token.run_sync_soon(self._heard.send_nowait, error)

    async def wait(self) -> IoError:
        """The next error."""
        with trio.fail_after(PATIENCE_S):
            return await self._errors.receive()


async def test_truncated_file_is_no_zeroes(backend: Backend, path: Path) -> None:
    """Reads behind the end of a file that was cut under the guest fail; those before it, and later ones, do not."""
    async with disk(path, **backend.options) as one:
        owner = Owner(one)
        one.activate()
        os.truncate(path, SIZE // 2)
        assert (await one.ask(IN, 0, room=4096)).data == b"\x11" * 4096
        answer = await one.ask(IN, SIZE // 1024, room=4096)
        assert (answer.status, answer.used) == (IO_ERROR, 0)
        assert await owner.wait() == IoError("read", errno.EIO, Policy.REPORT)
        assert (await one.ask(IN, SIZE // 1024 - 4, room=4096)).status == IO_ERROR
        os.truncate(path, SIZE)
        assert (await one.ask(IN, SIZE // 1024, room=4096)).data == bytes(4096)
        counters = one.runner.info().counters
        assert (counters.reads, counters.read_errors) == (2, 2)
        assert one.runner.latencies()[0]["read"].count == 4


async def test_errors_may_be_ignored(backend: Backend, path: Path) -> None:
    """With rerror=ignore the driver hears nothing, and the counter tells."""
    async with disk(path, rerror="ignore", **backend.options) as one:
        one.activate()
        os.truncate(path, 0)
        assert (await one.ask(IN, 0, room=4096)).status == OK
        counters = one.runner.info().counters
        assert (counters.ignored, counters.read_errors) == (1, 1)


@pytest.mark.parametrize("features", [0, Ring.RING_PACKED, Ring.IN_ORDER], ids=["split", "packed", "in order"])
async def test_stop_and_go_on(backend: Backend, path: Path, features: int) -> None:
    """With rerror=stop what failed is kept, nothing more is taken, and all of it comes after the release."""
    async with disk(path, rerror="stop", **backend.options) as one:
        owner = Owner(one)
        one.activate(ALL | features)
        os.truncate(path, SIZE // 2)
        first = [one.add(IN, sector, room=512) for sector in range(SIZE // 1024 - 10, SIZE // 1024 + 10)]
        one.slot.publish(0)
        assert await owner.wait() == IoError("read", errno.EIO, Policy.STOP)
        assert one.runner.info().stopped == errno.EIO
        await one.runner.hold()
        second = [one.add(IN, 0, room=512) for _ in range(10)]
        one.slot.publish(0)
        [ring] = one.runner.rings
        assert ring.state().in_flight
        with path.open("r+b") as file:
            file.truncate(SIZE)
            file.seek(SIZE // 2)
            file.write(b"\x22" * (SIZE // 2))
        one.runner.release()
        while len(one.answers) < 30:
            await one.collect()
        for index, pending in enumerate(first + second):
            assert pending is not None
            expected = b"\x22" if 10 <= index < 20 else b"\x11"
            assert one.answers[pending] == (OK, expected * 512, 513)
        counters = one.runner.info().counters
        assert (one.runner.info().stopped, counters.reads) == (0, 30)
        # Once each, however often it was tried, with the time that it was kept.
        assert one.runner.latencies()[0]["read"].count == 30
        assert counters.stops == 1
        assert counters.retried >= 1
        assert ring.state().in_flight == ()


async def test_release_too_early(backend: Backend, path: Path) -> None:
    """Going on while the reason is still there stops again, and says so again."""
    async with disk(path, rerror="stop", **backend.options) as one:
        owner = Owner(one)
        one.activate()
        os.truncate(path, 0)
        for _ in range(8):
            assert one.add(IN, 0, room=512)
        one.slot.publish(0)
        for _ in range(5):
            assert (await owner.wait()).action is Policy.STOP
            await one.runner.hold()
            one.runner.release()
        assert (await owner.wait()).action is Policy.STOP
        os.truncate(path, SIZE)
        await one.runner.hold()
        one.runner.release()
        while len(one.answers) < 8:
            await one.collect()


async def test_resize_while_stopped(backend: Backend, path: Path) -> None:
    """Another size is no reason to go on: the disk waits until it is released."""
    async with disk(path, rerror="stop", **backend.options) as one:
        owner = Owner(one)
        one.activate()
        os.truncate(path, SIZE // 2)
        assert one.add(IN, SIZE // 512 - 8, room=512)
        one.slot.publish(0)
        await owner.wait()
        await one.runner.hold()
        await one.runner.resize(SIZE - 512)
        assert one.runner.info().stopped == errno.EIO
        await one.runner.resize(SIZE)
        one.runner.release()
        [pending] = await one.collect()
        assert one.answers[pending].status == OK


async def test_shrunk_while_stopped(backend: Backend, path: Path) -> None:
    """A request that waits, and is behind the new end of the disk by then, fails and does not make the file longer."""
    async with disk(path, rerror="stop", **backend.options) as one:
        owner = Owner(one)
        one.activate()
        os.truncate(path, SIZE // 2)
        assert one.add(IN, SIZE // 512 - 8, room=512)
        one.slot.publish(0)
        await owner.wait()
        await one.runner.hold()
        await one.runner.resize(SIZE // 2)
        one.runner.release()
        [pending] = await one.collect()
        assert one.answers[pending].status == IO_ERROR
        assert path.stat().st_size == SIZE // 2


async def test_reset_while_stopped(backend: Backend, path: Path) -> None:
    """The driver may reset a disk that waits: what was kept is dropped."""
    async with disk(path, rerror="stop", **backend.options) as one:
        owner = Owner(one)
        one.activate()
        os.truncate(path, 512)
        for _ in range(20):
            assert one.add(IN, 8, room=512)
        one.slot.publish(0)
        await owner.wait()
        await one.reset()
        one.activate()
        assert (await one.ask(IN, 0, room=512)).status == OK
        assert one.runner.info().stopped == 0


async def test_cancelled_while_stopped(backend: Backend, path: Path) -> None:
    """The machine may end while a disk waits."""
    async with disk(path, rerror="stop", **backend.options) as one:
        owner = Owner(one)
        one.activate()
        os.truncate(path, 512)
        assert one.add(IN, 8, room=512)
        one.slot.publish(0)
        await owner.wait()


@pytest.mark.parametrize("options", [{"aio": "auto"}, {"aio": "threads"}, {"aio": "io_uring"}], ids=lambda o: o["aio"])
async def test_full_disk(options: dict[str, object]) -> None:
    """ENOSPC stops writes of all kinds; with more room they go on, and the image has every byte."""
    for folder in small_tmpfs(256 << 10):
        path = new_image(folder, SMALL)
        async with disk(path, **options) as one:
            owner = Owner(one)
            one.activate()
            for part in range(16):
                assert one.add(OUT, part * 128, bytes([part + 1]) * 65536)
            assert one.add(WRITE_ZEROES, 0, ranges((2000, 16, 0)))
            one.slot.publish(0)
            assert await owner.wait() == IoError("write", errno.ENOSPC, Policy.STOP)
            await one.runner.hold()
            subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
            one.runner.release()
            while len(one.answers) < 17:
                await one.collect()
            assert {answer.status for answer in one.answers.values()} == {OK}
            assert (await one.ask(FLUSH)).status == OK
        data, written = path.read_bytes(), b"".join(bytes([part + 1]) * 65536 for part in range(16))
        # The zeroes and the write of the same sectors were under way together: either may have been the last.
        zeroed = written[: 2000 * 512] + bytes(16 * 512) + written[2016 * 512 :]
        is_right = data in (written, zeroed)
        assert is_right


async def test_full_disk_that_is_reported() -> None:
    """With werror=report the driver gets the error and the queue goes on."""
    for folder in small_tmpfs(64 << 10):
        path = new_image(folder, SMALL)
        async with disk(path, werror="report") as one:
            owner = Owner(one)
            one.activate()
            assert (await one.ask(OUT, 0, b"x" * 131072)).status == IO_ERROR
            assert await owner.wait() == IoError("write", errno.ENOSPC, Policy.REPORT)
            assert (await one.ask(IN, 0, room=512)).status == OK
            assert one.runner.info().counters.write_errors == 1


async def test_many_errors_are_not_many_reports(backend: Backend, path: Path) -> None:
    """A guest that makes errors without end does not keep its owner busy."""
    async with disk(path, **backend.options) as one:
        errors: list[IoError] = []
        one.runner.on_io_error = errors.append
        one.activate()
        os.truncate(path, 0)
        for _ in range(4):
            for _ in range(50):
                assert one.add(IN, 0, room=512)
            one.slot.publish(0)
            count = 0
            while count < 50:
                count += len(await one.collect())
        assert one.runner.info().counters.read_errors == 200
        assert 1 <= len(errors) < 20


async def test_failed_sync_is_not_forgotten() -> None:
    """The kernel tells of lost writes once; each later flush fails too, on every queue, whatever has changed."""
    for folder in small_tmpfs(256 << 10):
        for device in loop_device(new_image(folder, SMALL)):
            async with disk(device, queues=2, aio="threads", werror="report") as one:
                one.activate(ALL | Feature.MQ)
                assert (await one.ask(FLUSH)).status == OK
                assert (await one.ask(OUT, 0, b"x" * SMALL)).status == OK
                assert (await one.ask(FLUSH)).status == IO_ERROR
                subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
                for queue in (0, 1, 0):
                    assert (await one.ask(FLUSH, queue=queue)).status == IO_ERROR
                assert (await one.ask(IN, 0, room=512)).status == OK


async def test_each_direct_sync_speaks_for_itself() -> None:
    """Past the page cache a write that the host has no room for fails itself, and flushes go on."""
    for folder in small_tmpfs(256 << 10):
        for device in loop_device(new_image(folder, SMALL)):
            async with disk(device, aio="io_uring", cache="none", werror="report") as one:
                one.activate()
                # A page at a time: of larger requests to a loop device the kernel loses errors now and then.
                pages = range(0, SMALL // 512, 8)
                assert IO_ERROR in [(await one.ask(OUT, sector, b"x" * 4096)).status for sector in pages]
                subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
                assert {(await one.ask(OUT, sector, b"x" * 4096)).status for sector in pages} == {OK}
                assert (await one.ask(FLUSH)).status == OK
