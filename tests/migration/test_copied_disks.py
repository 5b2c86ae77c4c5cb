"""Disks that are copied while a guest moves, over real sockets, with guests that are no more than RAM and a file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.migration.ends import Ends, check_one_guest, connected
from tests.migration.rig import Group
from tests.support.copied_disks import GuestDisk, target_in
from tests.support.moving_guests import World
from tests.support.patience import PATIENT, hurry
from tvmm.errors import HostError
from tvmm.migration import disk_departure, tls
from tvmm.migration.disk_files import DiskTarget
from tvmm.migration.messages import Image
from tvmm.migration.secure import Tls
from tvmm.migration.source import SourceState
from tvmm.migration.wire import Security

SIZE = 8 << 20
COPIED = PATIENT._replace(connections=2, copy_storage=True)


@pytest.fixture
def disk(world: World, tmp_path: Path) -> Iterator[GuestDisk]:
    """One, sparse but for its beginning, that goes to ``copy``."""
    made = GuestDisk(tmp_path / "disk0", SIZE, 3 << 20)
    world.source.disks.append(made)
    world.destination.targets.append(target_in(tmp_path / "copy"))
    yield made
    made.close()


@contextmanager
def writing(disk: GuestDisk, world: World) -> Iterator[None]:
    """A guest that writes as fast as it can, while it runs at its source."""
    over, lock = threading.Event(), threading.Lock()

    def write() -> None:
        while not over.wait(0.0005):
            with lock:
                if world.source.is_running:
                    disk.scribble(4)

    def paused() -> None:
        # A real one has no request under way then.
        with lock:
            pass

    world.source.on_held = paused
    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def moved(ends: Ends, world: World) -> None:
    """It has worked."""
    assert await ends.out.run(trio.Event()) is SourceState.DONE, ends.out.status.reason
    check_one_guest(world, ends)


def same(disk: GuestDisk, tmp_path: Path) -> bool:
    """Whether the copy is one."""
    return disk.path.read_bytes() == (tmp_path / "copy").read_bytes()


@pytest.mark.parametrize("compress", ["off", "zstd"])
async def test_a_disk_that_is_written_to_is_the_same(
    world: World, disk: GuestDisk, tmp_path: Path, compress: str
) -> None:
    """Every byte, while the guest writes all over it, and verified by both sides too."""
    with writing(disk, world):
        async with connected(world, tmp_path, parameters=COPIED._replace(verify=True, compress=compress)) as ends:
            await moved(ends, world)
            assert same(disk, tmp_path)
            disks = ends.out.status.disks
            assert disks.total == SIZE
            assert disks.remaining == 0
            assert disks.rounds >= 2
            assert disks.copied >= 3 << 20
            assert ends.incoming.status.disks.transferred > 0


async def test_holes_stay_holes(world: World, disk: GuestDisk, tmp_path: Path) -> None:
    """Zeroes that the source has on its disk take no room at the destination either."""
    disk.write(4 << 20, bytes(1 << 20))
    async with connected(world, tmp_path, parameters=COPIED) as ends:
        await moved(ends, world)
    assert same(disk, tmp_path)
    assert os.stat(tmp_path / "copy").st_blocks * 512 <= (3 << 20) + (64 << 10)
    assert ends.out.status.disks.copied == 3 << 20


async def test_what_was_there_before_is_overwritten(world: World, disk: GuestDisk, tmp_path: Path) -> None:
    """By zeroes too."""
    (tmp_path / "copy").write_bytes(b"old" * (SIZE // 3))
    async with connected(world, tmp_path, parameters=COPIED) as ends:
        await moved(ends, world)
    assert same(disk, tmp_path)


async def test_several_disks(world: World, disk: GuestDisk, tmp_path: Path) -> None:
    """Over one connection, with a size that is no whole number of blocks."""
    second = GuestDisk(tmp_path / "disk1", (1 << 20) + 512, 1 << 20, seed=2)
    world.source.disks.append(second)
    world.destination.targets.append(target_in(tmp_path / "copy1"))
    with writing(second, world):
        async with connected(world, tmp_path, parameters=COPIED._replace(verify=True)) as ends:
            await moved(ends, world)
    assert same(disk, tmp_path)
    assert second.path.read_bytes() == (tmp_path / "copy1").read_bytes()
    second.close()


async def test_over_tls(world: World, disk: GuestDisk, tmp_path: Path) -> None:
    """As pages go."""
    group = Group(tmp_path)
    beta = group.join("beta", "127.0.0.1")
    near = Tls(tls.source(group.alpha, "beta"), Security.TLS, "beta")
    far = Tls(tls.destination(beta), Security.TLS)
    with writing(disk, world):
        async with connected(world, tmp_path, parameters=COPIED, secured=(near, far)) as ends:
            await moved(ends, world)
    assert same(disk, tmp_path)


async def test_a_limit_of_bandwidth_holds_for_both(world: World, disk: GuestDisk, tmp_path: Path) -> None:
    """Disks and RAM together take as long as their bytes do."""
    async with connected(world, tmp_path, parameters=COPIED._replace(bandwidth=10 << 20)) as ends:
        began = trio.current_time()
        await moved(ends, world)
        status = ends.out.status
        sent = status.disks.transferred + status.ram.transferred
        assert trio.current_time() - began >= 0.8 * sent / (10 << 20)


@pytest.mark.parametrize("wanted", [True, False])
async def test_one_side_alone_wants_it(world: World, tmp_path: Path, wanted: bool) -> None:
    """It is refused, and the guest stays."""
    made = GuestDisk(tmp_path / "disk0", SIZE)
    world.source.disks.append(made)
    if not wanted:
        world.destination.targets.append(target_in(tmp_path / "copy"))
    async with connected(world, tmp_path, parameters=COPIED._replace(copy_storage=wanted)) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert "by one side alone" in ends.out.status.reason
        check_one_guest(world, ends)
        assert ends.incoming.status.state == "none"
    made.close()


class Full(DiskTarget):
    """Of a host that has no room left after some writes."""

    room = 2 << 20

    def write(self, data: memoryview, offset: int) -> None:
        """As long as there is room."""
        self.room -= len(data)
        if self.room < 0:
            raise HostError(f"disk image {self.name} at the destination cannot be written: No space left on device")
        super().write(data, offset)


class Unstable(DiskTarget):
    """Of a host whose disk fails when it is to keep something, after some rounds."""

    syncs = 0

    def sync(self) -> None:
        """Fails in the second round."""
        self.syncs += 1
        if self.syncs > 1:
            raise HostError(f"disk image {self.name} at the destination cannot be written back: Input/output error")


@pytest.mark.parametrize(("kind", "reason"), [(Full, "No space left"), (Unstable, "Input/output error")])
async def test_the_destinations_disk_fails(
    world: World, disk: GuestDisk, tmp_path: Path, kind: type[DiskTarget], reason: str
) -> None:
    """The source is told why, in both phases, and its disk is as it was."""

    def make(image: Image) -> DiskTarget:
        (tmp_path / "copy").touch()
        with (tmp_path / "copy").open("r+b") as file:
            file.truncate(image.size)
            return kind(file.fileno(), "copy", image.size)

    world.destination.targets[:] = [make]
    before = disk.path.read_bytes()
    async with connected(world, tmp_path, parameters=COPIED) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert reason in ends.out.status.reason
        check_one_guest(world, ends)
    assert disk.path.read_bytes() == before
    assert disk.changes is None


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *((name, "cut") for name in ("Wants", "Images", "Hello", "Copies", "Stored", "State", "Ready")),
        *((name, "stall") for name in ("Images", "Copies", "Stored")),
    ],
)
async def test_the_connection_breaks(
    world: World, disk: GuestDisk, tmp_path: Path, name: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every word before the commit: the guest goes on at its source, with its disk."""
    if side == "stall":
        hurry(monkeypatch.setattr)
        monkeypatch.setattr(disk_departure, "STORED_SECONDS", 0.3)
        monkeypatch.setattr(disk_departure, "COPIES_SECONDS", 0.3)
    cut: list[Callable[[], None]] = []

    def on_message(message: str) -> bool:
        if message == name and side == "cut":
            cut[0]()
        return message != name

    async with connected(world, tmp_path, on_message, COPIED) as ends:
        cut.append(ends.wire.cut)
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        check_one_guest(world, ends)
    assert disk.changes is None


async def test_cancelled_in_the_first_pass(world: World, disk: GuestDisk, tmp_path: Path) -> None:
    """At once, however slow it is."""
    async with connected(world, tmp_path, parameters=COPIED._replace(bandwidth=100_000)) as ends:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.out.run, trio.Event())
            while not ends.out.status.disks.transferred:
                await trio.sleep(0)
            assert ends.out.status.phase == "copying disks"
            # Soon: all of it would take half a minute.
            with trio.fail_after(10):
                ends.out.cancel()
        assert ends.out.state is SourceState.CANCELLED
        check_one_guest(world, ends)


async def test_a_guest_that_writes_faster_than_the_network(world: World, disk: GuestDisk, tmp_path: Path) -> None:
    """It is slowed, and if that is of no use, it stays, with figures."""

    class Overtaken(DiskTarget):
        """When it is stable, all of the source's disk has been written again."""

        def sync(self) -> None:
            if disk.changes is not None:
                disk.changes.fill()

    def make(image: Image) -> DiskTarget:
        with (tmp_path / "copy").open("wb+") as file:
            file.truncate(image.size)
            return Overtaken(file.fileno(), "copy", image.size)

    world.destination.targets[:] = [make]
    parameters = COPIED._replace(max_downtime_ms=1, timeout_s=1)
    async with connected(world, tmp_path, parameters=parameters) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert "disks did not come to rest within 1 s" in ends.out.status.reason
        assert ends.out.status.disks.slowed_to
        check_one_guest(world, ends)
    assert any(disk.slowed)


async def test_a_copy_that_differs_is_found(world: World, disk: GuestDisk, tmp_path: Path) -> None:
    """With `verify`: here somebody writes into the copy, behind everybody's back."""

    def spoil() -> None:
        with (tmp_path / "copy").open("r+b") as file:
            file.write(b"somebody else")

    world.source.on_held = spoil
    async with connected(world, tmp_path, parameters=COPIED._replace(verify=True)) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert "disk disk0 differs from the source's" in ends.out.status.reason
        check_one_guest(world, ends)
