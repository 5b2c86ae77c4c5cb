"""A disk whose changes are tracked: a copy that follows the marks is the disk in the end, whatever was under way."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import trio

from tests.support.disk_driver import ALL, DISCARD, FLUSH, IO_ERROR, OK, OUT, WRITE_ZEROES, Disk, disk, ranges
from tests.virtio.runner.disks import SIZE, Backend, small_tmpfs
from tvmm.config.limits import Limits, Rate
from tvmm.errors import ImageError
from tvmm.kvm.dirty_blocks import GRAIN, DirtyBlocks

PATIENCE_S = 30


class Copy:
    """Of the image, block by block as they are marked."""

    def __init__(self, path: Path, changes: DirtyBlocks) -> None:
        self._path = path
        self._changes = changes
        self.data = bytearray(SIZE)

    def follow(self) -> int:
        """What is marked now; how many bytes."""
        copied = at = 0
        with self._path.open("rb", buffering=0) as image:
            while (run := self._changes.take(at, GRAIN)) is not None:
                at, length = run
                image.seek(at)
                self.data[at : at + length] = image.read(length).ljust(length, b"\0")
                copied += length
        return copied


async def write_about(one: Disk, chance: random.Random, requests: int) -> None:
    """Writes, zeroes and discards of all sizes, a handful at once, each to its end."""
    for _ in range(requests):
        added = []
        for _ in range(chance.randrange(1, 6)):
            kind = chance.choice((OUT, OUT, OUT, WRITE_ZEROES, DISCARD))
            sectors = chance.choice((1, 8, 16, 64))
            sector = chance.randrange(0, SIZE // 512 - sectors)
            data = chance.randbytes(512 * sectors)
            if kind != OUT:
                data = ranges((sector, sectors, chance.randrange(2) if kind == WRITE_ZEROES else 0))
            added.append(one.add(kind, sector if kind == OUT else 0, data))
        one.slot.publish(0)
        while any(pending is not None and pending not in one.answers for pending in added):
            await one.collect()
        assert all(one.answers.pop(pending).status == OK for pending in added if pending is not None)


@pytest.mark.trio
async def test_a_copy_follows_every_engine(backend: Backend, path: Path) -> None:
    """Copied while it is written to, and once more when nothing is under way: the same bytes."""
    async with disk(path, **backend.options) as one:
        one.activate()
        chance = random.Random(backend.name)
        changes = await one.runner.track_changes()
        copy = Copy(path, changes)
        assert copy.follow() == SIZE
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_about, one, chance, 60)
                while len(nursery.child_tasks):
                    await trio.to_thread.run_sync(copy.follow)
                    await trio.sleep(0)
            await one.ask(FLUSH)
            await one.runner.hold()
            copy.follow()
            assert bytes(copy.data) == path.read_bytes()
            one.runner.release()
        one.runner.stop_tracking()
        await write_about(one, chance, 1)
        assert changes.count_bytes() == 0


@pytest.mark.trio
async def test_what_fails_is_marked_too() -> None:
    """A write that fails may have changed some of it."""
    for folder in small_tmpfs(1 << 20):
        full = folder / "full.img"
        full.touch()
        os.truncate(full, SIZE)
        async with disk(full, werror="report") as one:
            one.activate()
            changes = await one.runner.track_changes()
            for at in range(0, SIZE, GRAIN):
                changes.take(at, SIZE)
            (folder / "other").write_bytes(bytes((1 << 20) - 8192))
            statuses = [(await one.ask(OUT, 128 * block, b"x" * 16384)).status for block in range(3)]
            assert statuses[-1] == IO_ERROR
            assert changes.count_bytes() == 3 * GRAIN


@pytest.mark.trio
async def test_reads_and_flushes_mark_nothing(plain: Path) -> None:
    """Nor does what is refused."""
    async with disk(plain) as one:
        one.activate()
        changes = await one.runner.track_changes()
        Copy(plain, changes).follow()
        assert (await one.ask(0, 0, room=4096)).status == OK
        assert (await one.ask(FLUSH)).status == OK
        assert (await one.ask(OUT, SIZE // 512, bytes(512))).status != OK
        assert changes.count_bytes() == 0


@pytest.mark.trio
async def test_a_tracked_disk_keeps_its_size(plain: Path) -> None:
    """Until it is not tracked any more; it is tracked once at a time."""
    async with disk(plain) as one:
        one.activate()
        await one.runner.track_changes()
        with pytest.raises(ImageError, match="being copied"):
            await one.runner.resize(2 * SIZE)
        with pytest.raises(ValueError, match="cannot be tracked"):
            await one.runner.track_changes()
        one.runner.stop_tracking()
        one.runner.stop_tracking()
        await one.runner.resize(2 * SIZE)


@pytest.mark.trio
async def test_writes_are_slowed_and_the_users_limits_stay(plain: Path) -> None:
    """The stricter of both counts, what clients see is the user's, and in the end that is what is left."""
    users = Limits(bytes_out=Rate(1 << 30))
    async with disk(plain, limits=users) as one:
        one.activate()
        await one.runner.track_changes()
        one.runner.slow_writes(1 << 20)
        assert one.runner.limits == users
        with trio.fail_after(PATIENCE_S):
            began = trio.current_time()
            for _ in range(6):
                assert (await one.ask(OUT, 0, bytes(64 << 10))).status == OK
        # 100 ms of it may go at once.
        assert trio.current_time() - began > 0.15
        assert one.runner.limit_waits
        one.runner.stop_tracking()
        assert one.runner.limits == users


@pytest.mark.trio
async def test_it_begins_with_a_driver_that_has_features(backend: Backend, path: Path) -> None:
    """Tracking begins and ends on a disk that nobody has activated, too."""
    async with disk(path, **backend.options) as one:
        await one.runner.track_changes()
        one.activate(ALL)
        assert (await one.ask(OUT, 0, bytes(512))).status == OK
        one.runner.stop_tracking()
