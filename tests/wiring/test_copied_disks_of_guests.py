"""Real machines whose disks are copied while their guests write, and all that keeps the source's image whole."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from tests.support.patience import PATIENT
from tests.virtio.runner.disks import small_tmpfs
from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig
from tvmm.config.incoming import IncomingConfig
from tvmm.errors import ConfigError, IncomingFailed, UserError, collapse
from tvmm.migration.status import MigrationParameters, MigrationStatus

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

MIB = 1 << 20
SIZE = 64 * MIB
SLOW = 24 * MIB
COPIED = PATIENT._replace(copy_storage=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """64 MiB of zeroes."""
    path = tmp_path / "here.img"
    path.touch()
    os.truncate(path, SIZE)
    return path


class Pair(NamedTuple):
    """A guest at its source, and a machine that waits for it."""

    here: GuestShell
    there: GuestShell

    async def move(self, address: str, parameters: MigrationParameters = COPIED) -> MigrationStatus:
        """To its end."""
        status = await self.here.vm.migrate(address, parameters)
        await self.there.vm.wait_arrival()
        return status


@asynccontextmanager
async def pair(
    tmp_path: Path, here: list[str], there: list[str], seconds: float = 100
) -> AsyncIterator[Pair]:
    """Machines with these disks; the source's guest is at its prompt. The destination listens at ``there.sock``."""
    config = MachineConfig.parse(memory="64M", disk=here)
    waiting = MachineConfig.parse(memory="64M", disk=there, incoming=f"unix:{tmp_path}/there.sock")
    with trio.fail_after(seconds):
        async with Machine(config) as source, Machine(waiting) as destination:
            shells = Pair(GuestShell(source), GuestShell(destination))
            await source.resume()
            await source.wait_serial(PROMPT)
            yield shells


def digest(path: Path) -> str:
    """Of all of it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


BACKENDS = {"threads": "aio=threads", "direct": "cache=none,aio=io_uring"}
RARE = {"io_uring": "aio=io_uring", "direct threads": "cache=none,aio=threads", "unsafe": "cache=unsafe"}


@pytest.mark.parametrize("backend", [*BACKENDS, *(pytest.param(name, marks=pytest.mark.slow) for name in RARE)])
async def test_a_guest_that_writes_takes_its_disk_along(image: Path, tmp_path: Path, backend: str) -> None:
    """Every block that it has written, before and meanwhile, is right in the image that was made for it."""
    copy = tmp_path / "copy.img"
    options = (BACKENDS | RARE)[backend]
    async with pair(tmp_path, [f"{image},{options}"], [f"{copy},copy=on,{options}"]) as both:
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        await both.here.ask("blkfill 0 16 7 0")
        await both.here.order("blkstress 0 16 7 6000")
        status = await both.move(f"unix:{tmp_path}/there.sock", COPIED._replace(verify=True))
        assert status.disks.total == SIZE
        assert status.disks.remaining == 0
        assert status.disks.zeroed >= 40 * MIB
        kept = digest(image)
        text = await both.there.prompt()
        assert "0 wrong, 0 failed requests, 0 unreadable" in text
        assert "blkfill" in await both.there.ask("blkfill 0 16 9 0")
        assert "blkcheck: 4096 blocks, 0 errors, 0 unreadable" in await both.there.ask("blkcheck 0 16 9")
        assert both.there.vm.virtio.disks()[0].size_bytes == SIZE  # type: ignore[union-attr]
    assert copy.stat().st_size == SIZE
    assert copy.stat().st_blocks * 512 <= 24 * MIB
    # Nobody has touched it since.
    assert digest(image) == kept


async def test_several_disks_one_of_which_is_shared(image: Path, tmp_path: Path) -> None:
    """The destination says which; a disk for reading only can be copied too."""
    shared, iso = tmp_path / "shared.img", tmp_path / "cd.iso"
    shared.write_bytes(bytes(MIB))
    iso.write_bytes(os.urandom(MIB))
    here = [str(shared), str(image), f"{iso},readonly=on"]
    there = [str(shared), f"{tmp_path}/a,copy=on", f"{tmp_path}/b,copy=on,readonly=on"]
    async with pair(tmp_path, here, there) as both:
        await both.here.ask("blkfill 1 16 3 0")
        await both.move(f"unix:{tmp_path}/there.sock")
        assert "blkcheck: 4096 blocks, 0 errors, 0 unreadable" in await both.there.ask("blkcheck 1 16 3")
    assert (tmp_path / "b").read_bytes() == iso.read_bytes()
    assert digest(tmp_path / "a") == digest(image)


async def test_it_can_go_on_from_there(image: Path, tmp_path: Path) -> None:
    """A disk that was filled is a disk like any other."""
    second = tmp_path / "second.img"
    async with pair(tmp_path, [str(image)], [f"{second},copy=on"]) as both:
        await both.here.ask("blkfill 0 16 5 0")
        await both.move(f"unix:{tmp_path}/there.sock")
        third = MachineConfig.parse(
            memory="64M", disk=[f"{tmp_path}/third.img,copy=on"], incoming=f"unix:{tmp_path}/third.sock"
        )
        async with Machine(third) as last:
            await both.there.vm.migrate(f"unix:{tmp_path}/third.sock", COPIED)
            await last.wait_arrival()
            assert "blkcheck: 4096 blocks, 0 errors" in await GuestShell(last).ask("blkcheck 0 16 5")
    assert digest(second) == digest(tmp_path / "third.img")


async def refused(both: Pair, tmp_path: Path, reason: str, parameters: MigrationParameters = COPIED) -> None:
    """With that reason, and the guest goes on."""
    with pytest.raises(UserError, match=reason):
        await both.here.vm.migrate(f"unix:{tmp_path}/there.sock", parameters)
    assert both.here.vm.run_state() == "running"
    assert "flush: ok" in await both.here.ask("flush 0")


async def test_both_sides_have_to_want_it(image: Path, tmp_path: Path) -> None:
    """Each is told what is to be said at the other one."""
    async with pair(tmp_path, [str(image)], [f"{tmp_path}/copy,copy=on"]) as both:
        await refused(both, tmp_path, "disk0 is to be filled .* say --copy-storage there", MigrationParameters())
    assert not (tmp_path / "copy").exists()
    async with pair(tmp_path, [str(image)], [str(image)]) as both:
        await refused(both, tmp_path, "say --disk FILE,copy=on there for disk0")


async def test_an_image_is_not_copied_onto_itself(image: Path, tmp_path: Path) -> None:
    """Not by another name, not without locks, and not even if it may be overwritten."""
    image.write_bytes(b"precious" * (SIZE // 8))
    link = tmp_path / "link.img"
    os.link(image, link)
    before = digest(image)
    config = MachineConfig.parse(memory="64M", disk=[str(image)])
    waiting = MachineConfig.parse(
        memory="64M", disk=[f"{link},copy=on,overwrite=on"], incoming=f"unix:{tmp_path}/there.sock"
    )
    async with Machine(config):
        with pytest.raises(UserError, match="in use by another machine"), collapse():
            async with Machine(waiting):
                pass
    options = "locking=off"
    async with pair(tmp_path, [f"{image},{options}"], [f"{link},copy=on,overwrite=on,{options}"]) as both:
        await refused(both, tmp_path, "copied onto itself")
    assert digest(image) == before


async def test_a_file_that_was_there_is_not_lost(image: Path, tmp_path: Path) -> None:
    """Without a word nothing is overwritten; one that is empty may be filled, and is empty again if nothing comes."""
    copy = tmp_path / "copy.img"
    copy.write_bytes(b"precious" * 512)
    for path, message in ((copy, "has 4096 bytes already"), (tmp_path, "a directory")):
        with pytest.raises(UserError, match=message), collapse():
            async with Machine(MachineConfig.parse(disk=[f"{path},copy=on"], incoming="defer")):
                pass
    assert copy.read_bytes() == b"precious" * 512
    copy.write_bytes(b"")
    async with Machine(MachineConfig.parse(disk=[f"{copy},copy=on"], incoming="defer")):
        pass
    assert copy.stat().st_size == 0
    copy.write_bytes(b"worthless")
    async with pair(tmp_path, [str(image)], [f"{copy},copy=on,overwrite=on"]) as both:
        await both.here.ask("blkfill 0 16 3 0")
        await both.move(f"unix:{tmp_path}/there.sock")
    assert digest(copy) == digest(image)


async def copying(vm: Machine) -> None:
    """Return when the destination has something to lose."""
    while not vm.moves.migration_status().disks.copied:
        await trio.sleep(0.01)


@pytest.mark.parametrize("there", ["", "made before"])
async def test_a_guest_that_does_not_arrive_leaves_nothing(image: Path, tmp_path: Path, there: str) -> None:
    """Cancelled in the middle: what was made is removed, what was empty is, and the source's guest has its disk."""
    copy = tmp_path / "copy.img"
    if there:
        copy.touch()
    config = MachineConfig.parse(memory="64M", disk=[str(image)])
    waiting = MachineConfig.parse(memory="64M", disk=[f"{copy},copy=on"], incoming=f"unix:{tmp_path}/there.sock")
    with trio.fail_after(60):
        async with Machine(config) as source:
            here = GuestShell(source)
            await source.resume()
            await source.wait_serial(PROMPT)
            await here.ask("blkfill 0 16 3 0")
            with pytest.raises(IncomingFailed), collapse():  # noqa: PT012
                async with Machine(waiting) as destination:
                    await source.moves.start_migration(
                        f"unix:{tmp_path}/there.sock", COPIED._replace(bandwidth=SLOW)
                    )
                    await copying(source)
                    with pytest.raises(UserError, match="is being copied"):
                        await source.virtio.resize_disk("disk0", 2 * SIZE)  # type: ignore[union-attr]
                    assert copy.stat().st_size == SIZE
                    source.moves.cancel_migration()
                    await source.moves.wait_migration()
                    await destination.wait()
            assert "blkcheck: 4096 blocks, 0 errors" in await here.ask("blkcheck 0 16 3")
    assert copy.exists() is bool(there)
    assert not there or copy.stat().st_size == 0


async def test_a_destination_without_room(image: Path, tmp_path: Path) -> None:
    """What does not fit is refused before a byte moves; what gets full on the way is told, and the guest stays."""
    for folder in small_tmpfs(8 * MIB):
        async with pair(tmp_path, [str(image)], [f"{folder}/copy,copy=on"]) as both:
            await both.here.ask("blkfill 0 16 3 0")
            await refused(both, tmp_path, "does not fit at the destination")
    for folder in small_tmpfs(24 * MIB):
        with pytest.raises(IncomingFailed), collapse():  # noqa: PT012
            async with pair(tmp_path, [str(image)], [f"{folder}/copy,copy=on"]) as both:
                await both.here.ask("blkfill 0 16 3 0")
                await both.here.vm.moves.start_migration(
                    f"unix:{tmp_path}/there.sock", COPIED._replace(bandwidth=SLOW)
                )
                await copying(both.here.vm)
                (folder / "other").write_bytes(bytes(16 * MIB))
                await both.here.vm.moves.wait_migration()
                assert "No space left on device; make room" in both.here.vm.moves.migration_status().error
                assert "blkcheck: 4096 blocks, 0 errors" in await both.here.ask("blkcheck 0 16 3")
                await both.there.vm.wait()
        assert not (folder / "copy").exists()


async def test_copy_is_for_machines_that_wait(tmp_path: Path) -> None:
    """And for files."""
    with pytest.raises(ConfigError, match="copy=on is for a machine that waits"):
        MachineConfig.parse(disk=[f"{tmp_path}/a,copy=on"])
    for text, message in (
        ("a.qcow2,copy=on", "raw files"),
        ("nbd://h/x,copy=on", "raw files"),
        ("a,overwrite=on", "without copy=on"),
    ):
        with pytest.raises(ConfigError, match=message):
            MachineConfig.parse(disk=[text], incoming="defer")


async def test_a_source_without_images(tmp_path: Path) -> None:
    """It has nothing to copy."""
    async with Machine(MachineConfig.parse(memory="64M")) as vm:
        await vm.resume()
        with pytest.raises(UserError):
            await vm.migrate(f"unix:{tmp_path}/nobody", COPIED)
    assert IncomingConfig("defer").check()
