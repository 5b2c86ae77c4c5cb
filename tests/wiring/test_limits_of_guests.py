"""Guests within limits: what they get, by the counters, and that pausing, resetting and moving them does not wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.support.netns import ip, network_namespace
from tests.wiring.guests import PROMPT, GuestShell, guest
from tests.wiring.moves import destination, move
from tests.wiring.test_nets_of_guests import HOST, networked
from tvmm import MachineConfig
from tvmm.config.limits import NO_LIMITS, Limits, Rate

pytestmark = pytest.mark.guest

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """64 MiB of zeros."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    return path


@pytest.fixture
def _namespace() -> Iterator[None]:
    """Nothing of this reaches the host's network."""
    with network_namespace():
        ip("link", "set", "lo", "up")
        yield


def limit(shell: GuestShell, name: str, limits: Limits) -> None:
    """As control clients do it."""
    assert shell.vm.virtio is not None
    shell.vm.virtio.limited()[name].set_limits(limits)


def written(shell: GuestShell) -> int:
    """Bytes, by the first disk's counters."""
    assert shell.vm.virtio is not None
    return shell.vm.virtio.disks()[0].wr_bytes


async def waiting(shell: GuestShell, name: str) -> None:
    """Return when a queue has begun to wait."""
    assert shell.vm.virtio is not None
    before = shell.vm.virtio.limited()[name].limit_waits
    while shell.vm.virtio.limited()[name].limit_waits == before:
        await trio.sleep(0.001)


@pytest.mark.parametrize("transport", ["pci", "mmio"])
async def test_a_disk_is_as_slow_as_it_is_told(image: Path, transport: str) -> None:
    """8 MiB at 8 MiB/s: never faster, and by far not ten times slower. What was written is right."""
    async with guest(disk=[f"{image},bps_wr=8M,transport={transport}"]) as shell:
        start = time.monotonic()
        text = await shell.ask("blkfill 0 8 7 0")
        took = time.monotonic() - start
        assert " 0 failed requests" in text
        assert written(shell) >= 8 * MIB
        # The bucket has 0.8 MiB, and one request is beyond it; reads are not limited.
        assert (written(shell) - 0.8 * MIB - MIB) / (8 * MIB) <= took < 10
        assert "0 errors, 0 unreadable" in await shell.ask("blkcheck 0 8 7")


async def test_limits_change_while_a_guest_works(image: Path) -> None:
    """A guest that gets one request a second gets all it wants at once when the limit is lifted."""
    async with guest(disk=[f"{image},iops=1"]) as shell:
        await shell.order("blkfill 0 32 7 0")
        await waiting(shell, "disk0")
        assert written(shell) < 32 * MIB
        limit(shell, "disk0", Limits(bytes=Rate(1 << 40)))
        assert " 0 failed requests" in await shell.prompt()
        assert written(shell) == 32 * MIB


@pytest.mark.parametrize("options", ["iops=1", "bps_wr=1", "iops=1,queues=4,transport=mmio"])
async def test_a_machine_does_not_wait_for_its_limits(image: Path, options: str) -> None:
    """It is paused, goes on, and is reset at once, with requests of years in front of it."""
    async with guest(disk=[f"{image},{options}"]) as shell:
        await shell.order("blkfill 0 32 7 0")
        await waiting(shell, "disk0")
        for _ in range(3):
            await shell.vm.pause()
            await shell.vm.resume()
        await shell.vm.reset()
        await shell.vm.wait_serial(PROMPT)
        limit(shell, "disk0", NO_LIMITS)
        assert " 0 failed requests" in await shell.ask("blkfill 0 4 7 0")
        assert "0 errors, 0 unreadable" in await shell.ask("blkcheck 0 4 7")
        limit(shell, "disk0", Limits(bytes=Rate(1)))
        await shell.order("blkfill 0 32 7 0")
        await waiting(shell, "disk0")
        # And so it ends.


@pytest.mark.parametrize("options", ["iops=1", "bps_wr=1"])
async def test_limits_do_not_move(image: Path, options: str) -> None:
    """A guest moves while its requests wait, and is not limited where it arrives, but by what that machine says."""
    locking = f"{image},locking=off"
    async with guest(disk=[f"{locking},{options}"]) as shell:
        await shell.order("blkfill 0 16 7 0")
        await waiting(shell, "disk0")
        config = MachineConfig.parse(memory="64M", disk=[f"{locking},bps=512T"])
        async with destination(config) as there:
            await move(shell.vm, there.vm)
            assert " 0 failed requests" in await there.prompt()
            assert "0 errors, 0 unreadable" in await there.ask("blkcheck 0 16 7")
            assert there.vm.virtio is not None
            assert there.vm.virtio.limited()["disk0"].limits == Limits(bytes=Rate(512 << 40))


@pytest.mark.usefixtures("_namespace")
async def test_a_network_is_as_slow_as_it_is_told() -> None:
    """A guest that sends all it can for 2 s at 1 MiB/s, a bucket of 100 KiB: not a frame more, by the counters."""
    async with networked("bps_tx=1M") as shell:
        assert "10 sent, 10 received" in await shell.ask(f"ping 0 {HOST} 10")
        start = time.monotonic()
        await shell.ask("nettx 0 1000 2")
        took = time.monotonic() - start
        assert shell.vm.virtio is not None
        sent = shell.vm.virtio._devices.nets["net0"]._runner.info().counters[0].tx_bytes  # type: ignore[attr-defined]
        assert 0.2 * MIB < sent < (took + 0.1) * MIB + 20_000
        limit(shell, "net0", Limits(operations=Rate(1)))
        await shell.order(f"ping 0 {HOST} 100")
        await waiting(shell, "net0")
        await shell.vm.pause()
        await shell.vm.resume()
        limit(shell, "net0", NO_LIMITS)
        assert "100 sent" in await shell.prompt()
