"""Guests that are saved while they run: what is in the file is of one moment, and the guest notices little."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.churn import summary
from tvmm import Machine, MachineConfig
from tvmm.errors import ConfigError, HostError
from tvmm.kvm.live import Frozen
from tvmm.migration import threads
from tvmm.snapshot.status import SaveParameters
from tvmm.testing import PROMPT, pair
from tvmm.wiring import live_saving
from tvmm.wiring.restoring import restored

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tvmm.kvm.serve import Waker

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

LIVE = SaveParameters(live=True)
CLEAN = b", 0 errors"


@pytest.fixture(autouse=True, scope="module")
def _allowed() -> None:
    """Skip where the kernel does not let anybody trap its own writes."""
    from tvmm.kvm.uffd import FEATURE_PROTECT, Uffd

    try:
        Uffd(FEATURE_PROTECT).close()
    except HostError as error:
        pytest.skip(str(error))


class Gate:
    """Between the moment and the first page that is written."""

    def __init__(self) -> None:
        self.moment, self.go_on = trio.Event(), trio.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Pages are written when the test says so."""
    gate = Gate()
    together = threads.run_together

    async def run_together(calls: list[Callable[[], None]], waker: Waker) -> None:
        gate.moment.set()
        await gate.go_on.wait()
        await together(calls, waker)

    monkeypatch.setattr(live_saving, "run_together", run_together)
    return gate


async def booted(vm: Machine) -> None:
    """At its prompt."""
    await vm.resume()
    await vm.wait_serial(PROMPT)


async def ask(vm: Machine, line: str) -> bytes:
    """What the guest prints for a command."""
    await vm.send_serial(line + "\n")
    return await vm.wait_serial(PROMPT)


async def stopped(vm: Machine) -> None:
    """A guest that writes checked pages stops, and has found none that is wrong; nor does it when it looks again."""
    await vm.send_serial("q")
    assert CLEAN in await vm.wait_serial(PROMPT)
    assert b": 0 errors" in await ask(vm, "check")


@pytest.mark.parametrize("memory", ["128M", "128M,shared=on"])
@pytest.mark.parametrize("rate", ["20000", "0"])
async def test_the_file_has_the_guest_of_one_moment(tmp_path: Path, memory: str, rate: str) -> None:
    """Guests that write moderately or flat out, and check each page; two saves, the second onto the first."""
    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory=memory, cpus=2, name="alpha")) as vm:
        await booted(vm)
        await vm.send_serial(f"dirty {rate} 48M\n")
        for _ in range(2):
            status = await vm.save(str(path), LIVE)
            assert status.done == status.total > 128 << 20
            assert status.live_by == "write-protection"
            assert vm.run_state() == "running"
        await stopped(vm)
        assert vm.board.ram.before_drop is None
    async with restored(path, load="eager") as vm:
        await vm.resume()
        await stopped(vm)
        # And once more from a machine that was restored.
        await vm.send_serial("dirty 20000 16M\n")
        await vm.save(str(path), LIVE)
        await stopped(vm)
    async with restored(path) as vm:
        await vm.resume()
        await stopped(vm)


async def test_devices_write_into_memory_meanwhile(tmp_path: Path, gate: Gate) -> None:
    """Disk requests are answered into pages that are protected; a screen's memory is saved as well."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(16 << 20))
    path = tmp_path / "guest.snap"
    config = MachineConfig.parse(memory="128M", disk=[str(image)], display="bochs-display", device=["virtio-rng"])
    async with Machine(config) as vm:
        await booted(vm)
        await vm.send_serial("churn 60 rate=5000 pages=16M mib=4\n")
        await vm.wait_serial("churning")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vm.save, str(path), LIVE)
            await gate.moment.wait()
            vram = bytes(vm.board.ram.blocks["vga.vram"].view)
            await trio.sleep(0)
            gate.go_on.set()
        live = vm.saves.live
        assert live is not None
        assert live.report is not None
        assert live.report.counters.faults
        await vm.send_serial("q")
        assert not summary((await vm.wait_serial(PROMPT)).decode()).damage()
    async with restored(path, load="eager", force=True) as vm:
        assert bytes(vm.board.ram.blocks["vga.vram"].view) == vram


async def test_a_reset_waits_until_the_pages_are_safe(tmp_path: Path, gate: Gate) -> None:
    """What was there at the moment is saved, though the guest's memory is dropped; the guest boots afterwards."""
    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory="64M")) as vm:
        await booted(vm)
        await ask(vm, "dirty 0 16M 1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vm.save, str(path), LIVE)
            await gate.moment.wait()
            nursery.start_soon(vm.reset)
            await trio.testing.wait_all_tasks_blocked(0.01)
            gate.go_on.set()
            await vm.wait_serial("entered by")
            await vm.wait_serial(PROMPT)
        assert CLEAN in await ask(vm, "dirty 20000 8M 1")
    async with restored(path) as vm:
        await vm.resume()
        assert b": 0 errors" in await ask(vm, "check")


async def test_a_balloon_gives_back_what_has_been_saved(tmp_path: Path, gate: Gate) -> None:
    """Pages that are given back between the moment and their turn are in the file as they were."""
    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory="128M", device=["virtio-balloon"])) as vm:
        await booted(vm)
        await ask(vm, "dirty 0 16M 1")
        devices = vm.board.devices
        assert devices is not None
        assert devices.balloon is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vm.save, str(path), LIVE)
            await gate.moment.wait()
            devices.balloon.set_memory(64 << 20)
            await trio.testing.wait_all_tasks_blocked(0.01)
            gate.go_on.set()
        assert b": 0 errors" in await ask(vm, "check")
    async with restored(path) as vm:
        await vm.resume()
        assert b": 0 errors" in await ask(vm, "check")


@pytest.mark.parametrize("how", ["cancel", "full", "end"])
async def test_whatever_ends_it_the_guest_is_as_before(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Cancelled, without room, or with the machine: the old file stays, and writes do not wait for anybody."""
    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory="64M")) as vm:
        await booted(vm)
        await vm.save(str(path))
        before = identity(path)
        await vm.send_serial("dirty 0 16M\n")
        await vm.saves.start_save(str(path), LIVE)
        await gate.moment.wait()
        if how == "cancel":
            vm.saves.cancel_save()
            assert (await vm.saves.wait_save()).state == "cancelled"
        elif how == "full":
            monkeypatch.setattr(Frozen, "write", no_room)
            gate.go_on.set()
            status = await vm.saves.wait_save()
            assert (status.state, "No space left" in status.error) == ("failed", True)
        if how != "end":
            await stopped(vm)
    assert identity(path) == before
    assert [each.name for each in tmp_path.iterdir()] == ["guest.snap"]


def identity(path: Path) -> tuple[int, ...]:
    """Of a file and its content: that it was read does not matter."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def no_room(self: Frozen, snapshot: object) -> None:
    """As on a disk that is full."""
    self.abandon()
    raise HostError("No space left on device")


async def test_it_goes_together_with_a_migration_afterwards(tmp_path: Path) -> None:
    """And with a second machine of this process that is saved at the same time."""
    async with (
        pair(MachineConfig.parse(memory="64M")) as machines,
        Machine(MachineConfig.parse(memory="64M", name="other")) as other,
    ):
        await booted(other)
        for vm in (machines.source, other):
            await vm.send_serial("dirty 20000 16M\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(machines.source.save, str(tmp_path / "a.snap"), LIVE)
            nursery.start_soon(other.save, str(tmp_path / "b.snap"), LIVE)
        await stopped(other)
        await machines.migrate()
        await stopped(machines.destination)


def test_what_cannot_be_saved_live_is_refused() -> None:
    """Encrypted files, and machines that are to end."""
    with pytest.raises(ConfigError, match="cannot be encrypted"):
        SaveParameters(live=True, passphrase="x").check()
    with pytest.raises(ConfigError, match="to stop is not saved live"):
        SaveParameters(live=True, stop=True).check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_hundred_moments(tmp_path: Path) -> None:
    """Each of them is restored and checks itself, and so does the guest that was saved."""
    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory="64M", cpus=2)) as vm:
        await booted(vm)
        for number in range(100):
            rate = (0, 2000, 50000)[number % 3]
            await vm.send_serial(f"dirty {rate} 24M{' cpus' if number % 2 else ''}\n")
            await trio.sleep(0.01 * (number % 7))
            await vm.save(str(path), LIVE)
            await stopped(vm)
            async with restored(path, load="eager") as again:
                await again.resume()
                await stopped(again)
