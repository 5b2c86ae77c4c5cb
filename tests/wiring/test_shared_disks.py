"""One image on both sides of a move: who has it locked, and what is in it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.support.bridged import HOST, bridged
from tests.support.patience import PATIENT
from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig
from tvmm.config.incoming import IncomingConfig
from tvmm.virtio.runner.image import FLOCK, WHOLE_FILE, DiskImage

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

SECTOR = 512
SLOW = 4 << 20
"""Bytes per second: a guest with 16 MiB written is under way until it is told to hurry."""


def is_locked_for(fd: int) -> bool:
    """Whether another open file has a lock that keeps this one from writing."""
    told = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, *WHOLE_FILE))
    return bool(FLOCK.unpack(told)[0] != fcntl.F_UNLCK)


class Shared:
    """An image, seen from outside, and the machines that have it by the names of their sides."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("wb") as file:
            file.truncate(64 << 20)
        self.fd = os.open(path, os.O_RDWR)
        self.images: dict[str, DiskImage] = {}

    def add(self, side: str, vm: Machine) -> None:
        """A machine of which nothing but this image is a disk."""
        assert vm.board.devices is not None
        [disk] = vm.board.devices.disks.values()
        assert isinstance(disk.image, DiskImage)
        self.images[side] = disk.image

    def holder(self) -> str:
        """The side that keeps everybody else off; '' for none. A lock does not keep off its own open file."""
        if not is_locked_for(self.fd):
            return ""
        [side] = [side for side, image in self.images.items() if not is_locked_for(image.fd)]
        return side

    def text(self, sector: int) -> bytes:
        """What the file has at the beginning of a sector."""
        return os.pread(self.fd, SECTOR, sector * SECTOR).rstrip(b"\0")


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    """Zeros."""
    found = Shared(tmp_path / "disk.img")
    yield found
    os.close(found.fd)


async def write(shell: GuestShell, sector: int, text: str) -> None:
    """Have the guest write and flush."""
    assert f"wrsec {sector}: ok" in await shell.ask(f"wrsec 0 {sector} {text}")
    assert "flush: ok" in await shell.ask("flush 0")


@pytest.mark.parametrize("cache", ["writeback", "none"])
async def test_exactly_one_side_has_it(shared: Shared, tmp_path: Path, cache: str) -> None:
    """Before, while pages flow, paused, and after; and what the guest has flushed is in the file at each time."""
    config = MachineConfig.parse(memory="64M", disk=[f"{shared.path},cache={cache}"])
    waiting = config._replace(incoming=IncomingConfig(f"unix:{tmp_path}/there"))
    seen: list[tuple[str, object, str]] = []
    with trio.fail_after(100):
        async with Machine(config) as source, Machine(waiting) as destination:
            here, there = GuestShell(source), GuestShell(destination)
            for side, vm in (("source", source), ("destination", destination)):
                shared.add(side, vm)
                vm.listeners.append(
                    lambda name, data, side=side: seen.append((side, data.get("status", name), shared.holder()))  # type: ignore[misc]
                )
            await source.resume()
            await source.wait_serial(PROMPT)
            await here.ask("dirty 0 16M 1")
            await write(here, 100, "before")
            assert (shared.holder(), shared.text(100)) == ("source", b"before")

            source.moves.set_migration_parameters({"bandwidth": SLOW})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.migrate, f"unix:{tmp_path}/there", source.moves.migration_parameters())
                while source.moves.migration_status().state != "active":
                    await here.event("MIGRATION")
                await write(here, 200, "between")
                status = source.moves.migration_status()
                assert status.state == "active"
                assert status.ram.transferred
                assert status.ram.remaining
                assert (shared.holder(), shared.text(200)) == ("source", b"between")
                source.moves.set_migration_parameters({"bandwidth": 0})
            await destination.wait_arrival()

            assert shared.holder() == "destination"
            await write(there, 300, "after")
            for sector, text in ((100, b"before"), (200, b"between"), (300, b"after")):
                assert shared.text(sector) == text
                assert text.hex() in await there.ask(f"rdsec 0 {sector}")
        assert not is_locked_for(shared.fd)
    holders = {(side, state): holder for side, state, holder in seen}
    assert holders["source", "active"] == holders["source", "device"] == holders["source", "STOP"] == "source"
    assert holders["destination", "active"] == "source"
    assert holders["destination", "RESUME"] == holders["source", "completed"] == "destination"
    assert "" not in holders.values()


async def test_another_host_finds_what_was_written(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over an address that may be another host's the source has all written back before it lets go of the image, and
    the destination forgets what its page cache had, once it has it.
    """
    calls: list[tuple[str, str]] = []
    flush, forget = DiskImage.flush, DiskImage.forget

    def spy_on(name: str, image: DiskImage) -> None:
        [side] = [side for side, known in shared.images.items() if known is image]
        assert shared.holder() == side
        calls.append((side, name))

    def flushing(image: DiskImage) -> None:
        spy_on("flush", image)
        flush(image)

    def forgetting(image: DiskImage) -> None:
        spy_on("forget", image)
        forget(image)

    with bridged(), trio.fail_after(100):
        monkeypatch.setattr(DiskImage, "flush", flushing)
        monkeypatch.setattr(DiskImage, "forget", forgetting)
        config = MachineConfig.parse(memory="64M", disk=[str(shared.path)])
        waiting = config._replace(incoming=IncomingConfig(f"tcp:{HOST}:0", insecure=True))
        async with Machine(config) as source, Machine(waiting) as destination:
            shared.add("source", source)
            shared.add("destination", destination)
            await source.resume()
            await source.wait_serial(PROMPT)
            assert "wrsec 100: ok" in await GuestShell(source).ask("wrsec 0 100 words")
            uri = destination.moves.migration_status().listening
            await source.migrate(uri, PATIENT._replace(insecure=True))
            await destination.wait_arrival()
            assert calls[0] == ("source", "flush")
            assert calls[-1] == ("destination", "forget")
            assert b"words".hex() in await GuestShell(destination).ask("rdsec 0 100")
