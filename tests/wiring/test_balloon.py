"""A balloon with the built-in guest: memory that leaves the process, and a guest that does not notice."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import trio

from tests.wiring.guests import GuestShell, guest
from tests.wiring.moves import destination, move

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.wiring.balloon import BalloonPart

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

MIB = 1 << 20
ALL = "virtio-balloon,deflate-on-oom=on,free-page-hint=on,free-page-reporting=on"


def balloon_of(shell: GuestShell) -> BalloonPart:
    """The host's side."""
    devices = shell.vm.board.devices
    assert devices is not None
    assert devices.balloon is not None
    return devices.balloon


async def resize(shell: GuestShell, memory: int) -> None:
    """Ask for `memory` bytes of RAM, and wait until the guest has no more and no less."""
    part = balloon_of(shell)
    part.set_memory(memory)
    await until(lambda: part.info().actual == memory)


async def until(holds: Callable[[], bool]) -> None:
    """Nothing else tells of a configuration space that the guest writes."""
    while not holds():
        await trio.sleep(0.005)


async def use(shell: GuestShell, mib: int) -> None:
    """Have the guest write so many MiB of checked pages, all of them at least once."""
    while True:
        assert " 0 errors" in await shell.ask(f"dirty 0 {mib * MIB} 1")
        if f"checked {mib * 256} pages: 0 errors" in await shell.ask("check"):
            return


@pytest.mark.parametrize("memory", ["128M", "128M,shared=on", "128M,prealloc=on"])
@pytest.mark.parametrize("transport", ["pci", "mmio"])
async def test_memory_leaves_and_comes_back(memory: str, transport: str) -> None:
    """RAM that was used goes back to the host; what the guest keeps is untouched; it can have all of it again."""
    device = f"virtio-balloon,transport={transport}"
    async with guest(memory=memory, device=[device]) as shell:
        part = balloon_of(shell)
        await use(shell, 100)
        assert await part.resident() > 90 * MIB
        assert "balloon: 0 of 0 pages" in await shell.ask("balloon")
        await use(shell, 20)
        await resize(shell, 40 * MIB)
        assert await part.resident() <= 40 * MIB
        assert " 0 errors" in await shell.ask("check")
        await resize(shell, 128 * MIB)
        if "prealloc" in memory:
            assert await part.resident() == 128 * MIB
        await use(shell, 100)
        assert await part.resident() > 90 * MIB
        assert part.info().counters["inflated"] == part.info().counters["deflated"] == 88 * 256


@pytest.mark.parametrize("ring", ["", "packed=on", "in_order=on", "event_idx=off,indirect_desc=off"])
async def test_under_load(ring: str) -> None:
    """The size goes up and down while the guest writes checked pages: none of these is lost."""
    device = ",".join(filter(None, ["virtio-balloon", ring]))
    async with guest("packed" if "packed" in ring else "", memory="128M", device=[device]) as shell:
        await shell.ask("balloon")
        await shell.order(f"dirty 20000 {40 * MIB} 60 spin")
        for memory in (64, 128, 70, 100, 64, 128):
            await resize(shell, memory * MIB)
        await shell.vm.send_serial("q")
        assert " 0 errors" in await shell.prompt()
        assert " 0 errors" in await shell.ask("check")
        events = [data["actual"] for name, data in shell.events if name == "BALLOON_CHANGE"]
        assert events
        assert len(events) < 10


async def test_free_pages_are_reported() -> None:
    """All that the guest does not use goes back, without a balloon that is inflated."""
    async with guest(memory="128M", device=[ALL]) as shell:
        part = balloon_of(shell)
        await use(shell, 90)
        await use(shell, 16)
        before = await part.resident()
        found = re.search(r" (\d+) reported", await shell.ask("balloon report"))
        assert found is not None
        assert part.info().counters["reported"] == int(found[1]) > 90 * 256
        assert await part.resident() < before - 60 * MIB
        assert part.info().actual == 128 * MIB
        assert " 0 errors" in await shell.ask("check")


@pytest.mark.parametrize("options", [ALL, "virtio-balloon,free-page-reporting=on", f"{ALL},transport=mmio"])
async def test_queues_of_a_guest_without_hints(options: str) -> None:
    """The queue of reports moves up, and statistics are where they were."""
    async with guest("nohints", memory="64M", device=[options]) as shell:
        await shell.ask("balloon report")
        assert balloon_of(shell).info().counters["reported"] > 0
        assert await balloon_of(shell).fresh_stats(5)


async def test_statistics_while_the_guest_works() -> None:
    """The guest answers in the middle of a command, each time with something new."""
    async with guest(memory="128M", device=["virtio-balloon,guest-stats-polling-interval=0"]) as shell:
        part = balloon_of(shell)
        assert not await part.fresh_stats(0.1)
        await shell.ask("balloon")
        await shell.order("spin 60")
        seen = set()
        for _ in range(20):
            assert await part.fresh_stats(10)
            stats, updated = part.stats()
            assert updated > 0
            assert stats["stat-total-memory"] is not None
            assert 126 * MIB < stats["stat-total-memory"] <= 128 * MIB
            assert stats["stat-swap-in"] is None
            seen.add(stats["stat-minor-faults"])
        assert len(seen) == 20
        await shell.vm.send_serial("\x03")
        await shell.prompt()


async def test_numbers_that_are_no_pages() -> None:
    """They are counted, and the guest goes on."""
    async with guest(memory="64M", device=["virtio-balloon"]) as shell:
        for first in (0x4000, 0xFEC00, 0xFFFFFFFF - 500):
            await shell.ask(f"balloon raw {first} 500")
        counters = balloon_of(shell).info().counters
        assert (counters["inflated"], counters["strange"]) == (0, 3 * 500)
        await resize(shell, 32 * MIB)
        assert "8192 of 8192 pages" in await shell.ask("balloon")


async def test_a_reset_gives_everything_back() -> None:
    """The host's wish stays: the next guest is asked for the same."""
    async with guest(memory="64M", device=["virtio-balloon"]) as shell:
        await shell.ask("balloon")
        await resize(shell, 40 * MIB)
        await shell.order("reboot")
        await shell.prompt()
        info = balloon_of(shell).info()
        assert (info.actual, info.target) == (64 * MIB, 40 * MIB)
        assert "6144 of 6144 pages" in await shell.ask("balloon")
        assert balloon_of(shell).info().actual == 40 * MIB


async def test_resets_of_the_device_alone() -> None:
    """Over and over, with pages in it."""
    async with guest(memory="64M", device=["virtio-balloon"]) as shell:
        await shell.ask("balloon")
        await resize(shell, 40 * MIB)
        assert "20 resets" in await shell.ask("vreset 0 20")
        assert balloon_of(shell).info().actual == 64 * MIB
        assert "6144 of 6144 pages" in await shell.ask("balloon")


@pytest.mark.parametrize("ring", ["", "packed=on"])
async def test_a_balloon_moves_with_its_guest(ring: str) -> None:
    """Its size, its statistics and what the host wants are the same there, and it goes on being served."""
    device = ",".join(filter(None, ["virtio-balloon", ring]))
    words = "packed" if ring else ""
    async with guest(words, memory="64M", device=[device]) as shell, destination(shell.vm.config) as other:
        await shell.ask("balloon")
        await resize(shell, 40 * MIB)
        balloon_of(shell).set_memory(48 * MIB)
        await move(shell.vm, other.vm)
        part = balloon_of(other)
        await until(lambda: part.info().actual == 48 * MIB)
        assert part.stats()[0]["stat-total-memory"] is not None
        assert await part.fresh_stats(10)
        await resize(other, 20 * MIB)
        await resize(other, 64 * MIB)
        assert "0 of 0 pages" in await other.ask("balloon")
