"""Guests that are saved while they run by the dirty log, where write protection is not to be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.snapshot.test_live import LIVE, ask, booted, stopped
from tests.support.churn import summary
from tvmm import Machine, MachineConfig
from tvmm.errors import HostError, UserError
from tvmm.kvm.live import Frozen
from tvmm.kvm.rounds import SnapshotRounds
from tvmm.testing import HISTORIES, PROMPT, pair
from tvmm.wiring.log_saving import Logged
from tvmm.wiring.moving import LeavingMachine
from tvmm.wiring.restoring import restored

if TYPE_CHECKING:
    from pathlib import Path

    from tvmm.kvm.serve import Waker

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def _no_userfaultfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user who is not root."""

    def refuse(self: Frozen) -> None:
        raise HostError("a live snapshot needs the right to handle page faults of the kernel")

    monkeypatch.setattr(Frozen, "open", refuse)


class Gate:
    """Between the first round and the second."""

    def __init__(self) -> None:
        self.first_is_over, self.go_on = trio.Event(), trio.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The second round begins when the test says so."""
    gate = Gate()
    settle = Logged.settle

    async def settle_later(self: Logged) -> None:
        gate.first_is_over.set()
        await gate.go_on.wait()
        # A round more, whatever was left after the first.
        await self._round()
        await settle(self)

    monkeypatch.setattr(Logged, "settle", settle_later)
    return gate


def undone(vm: Machine) -> bool:
    """Whether nothing is logged, and nothing dropped has to wait."""
    return not vm.board.device_log.on and vm.board.ram.before_drop is None and not vm.reset_listeners


@pytest.mark.parametrize(("memory", "rate"), [("64M", "20000"), ("64M,shared=on", "0")])
async def test_the_file_has_the_guest_of_one_moment(tmp_path: Path, memory: str, rate: str) -> None:
    """Guests that write flat out, or moderately, which are saved twice; they check each page."""
    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory=memory, cpus=2)) as vm:
        await booted(vm)
        await vm.send_serial(f"dirty {rate} 16M\n")
        for _ in range(2 if int(rate) else 1):
            status = await vm.save(str(path), LIVE)
            assert status.done == status.total > 64 << 20
            assert 0 < status.data < status.total
            assert (status.live_by, vm.run_state()) == ("dirty-log", "running")
            assert undone(vm)
        await stopped(vm)
    async with restored(path, load="eager") as vm:
        await vm.resume()
        await stopped(vm)


@pytest.mark.parametrize("history", ["restored", "cloned"])
async def test_memory_that_is_a_file_can_be_saved(
    tmp_path: Path, history: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was restored lazily, and one of several of the same file, are saved twice: once as they came."""
    monkeypatch.undo()
    path = tmp_path / "guest.snap"
    async with HISTORIES[history](MachineConfig.parse(memory="64M"), None) as vm:
        assert vm.board.ram.blocks["pc.ram"].unmap_file is not None
        first = await vm.save(str(path), LIVE)
        assert first.live_by == "dirty-log"
        await vm.send_serial("dirty 20000 16M\n")
        assert (await vm.save(str(path), LIVE)).data >= first.data
        await stopped(vm)
    async with restored(path) as vm:
        await vm.resume()
        await stopped(vm)
        # Into the very file that its memory is mapped from.
        assert (await vm.save(str(path), LIVE)).live_by == "dirty-log"
        assert b": 0 errors" in await ask(vm, "check")
    async with restored(path, load="eager") as vm:
        await vm.resume()
        assert b": 0 errors" in await ask(vm, "check")


async def test_devices_write_into_memory_meanwhile(tmp_path: Path, gate: Gate) -> None:
    """Disk requests are answered into pages that were written before; so is a screen's memory."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(16 << 20))
    path = tmp_path / "guest.snap"
    config = MachineConfig.parse(memory="96M", disk=[str(image)], display="bochs-display", device=["virtio-rng"])
    async with Machine(config) as vm:
        await booted(vm)
        await ask(vm, "screen mode 640x480")
        await ask(vm, "screen fill 112233")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vm.save, str(path), LIVE)
            await gate.first_is_over.wait()
            await ask(vm, "screen fill 445566")
            vram = bytes(vm.board.ram.blocks["vga.vram"].view)
            await vm.send_serial("churn 60 rate=5000 pages=16M mib=4\n")
            await vm.wait_serial("churning")
            gate.go_on.set()
        await vm.send_serial("q")
        assert not summary((await vm.wait_serial(PROMPT)).decode()).damage()
    async with restored(path, load="eager", force=True) as vm:
        assert bytes(vm.board.ram.blocks["vga.vram"].view) == vram
        await vm.resume()
        await vm.send_serial("q")
        # Its disk has been written since.
        assert not summary((await vm.wait_serial(PROMPT)).decode()).page_errors


async def test_a_reset_and_a_balloon_wait_for_nobody(tmp_path: Path, gate: Gate) -> None:
    """The guest's memory is dropped while it is written: what is saved is the guest after that."""
    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory="64M", device=["virtio-balloon"])) as vm:
        await booted(vm)
        await vm.send_serial("dirty 0 4M\n")
        devices = vm.board.devices
        assert devices is not None
        assert devices.balloon is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vm.save, str(path), LIVE)
            await gate.first_is_over.wait()
            await vm.reset()
            await vm.wait_serial("entered by")
            await vm.wait_serial(PROMPT)
            await ask(vm, "balloon")
            devices.balloon.set_memory(60 << 20)
            while devices.balloon.info().actual != 60 << 20:
                await trio.sleep(0.005)
            await vm.send_serial("dirty 0 4M\n")
            gate.go_on.set()
        await stopped(vm)
    async with restored(path, load="eager") as vm:
        await vm.resume()
        await stopped(vm)


async def test_a_guest_that_wrote_too_much_in_the_last_moment_is_held_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on for another round."""
    path = tmp_path / "guest.snap"
    freeze = Logged.freeze
    tries: list[bool] = []

    async def freeze_late(self: Logged) -> bool:
        if not tries:
            self.ram_was_reset()
        tries.append(await freeze(self))
        return tries[-1]

    monkeypatch.setattr(Logged, "freeze", freeze_late)
    async with Machine(MachineConfig.parse(memory="64M")) as vm:
        await booted(vm)
        await vm.send_serial("dirty 20000 4M\n")
        await vm.save(str(path), LIVE)
        assert tries == [False, True]
        await stopped(vm)
    async with restored(path, load="eager") as vm:
        await vm.resume()
        await stopped(vm)


async def test_a_guest_that_writes_too_fast_is_slowed_and_then_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says so; it is not slow afterwards, and can be migrated."""
    path = tmp_path / "guest.snap"
    sync, throttle, told = Logged._sync, LeavingMachine.throttle, []

    def all_is_written(self: Logged) -> None:
        sync(self)
        self._rounds.bitmap.fill()

    def note(self: LeavingMachine, percent: int) -> None:
        told.append(percent)
        throttle(self, percent)

    monkeypatch.setattr(Logged, "_sync", all_is_written)
    monkeypatch.setattr(LeavingMachine, "throttle", note)
    async with pair(MachineConfig.parse(memory="64M")) as machines:
        vm = machines.source
        with pytest.raises(UserError, match=r"writes to its memory faster than it can be saved.* slowed by 99%"):
            await vm.save(str(path), LIVE)
        assert told[0] == 20
        assert told[-1] == 0
        assert sorted(told[:-1]) == told[:-1]
        assert undone(vm)
        assert not list(tmp_path.iterdir())
        await vm.send_serial("dirty 0 4M\n")
        await machines.migrate()
        await stopped(machines.destination)


@pytest.mark.parametrize("how", ["cancel", "full", "end"])
async def test_whatever_ends_it_the_guest_is_as_before(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Cancelled, without room, or with the machine: the old file stays, and nothing is logged any more."""
    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory="64M")) as vm:
        await booted(vm)
        await vm.save(str(path))
        before = path.stat()
        await vm.send_serial("dirty 0 16M\n")
        await vm.saves.start_save(str(path), LIVE)
        await gate.first_is_over.wait()
        with pytest.raises(UserError, match="is being saved"):
            await vm.migrate("unix:/nowhere")
        if how == "cancel":
            vm.saves.cancel_save()
            assert (await vm.saves.wait_save()).state == "cancelled"
        elif how == "full":
            monkeypatch.setattr(SnapshotRounds, "put", no_room)
            gate.go_on.set()
            status = await vm.saves.wait_save()
            assert (status.state, "No space left" in status.error) == ("failed", True)
        if how != "end":
            assert undone(vm)
            await stopped(vm)
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert [each.name for each in tmp_path.iterdir()] == ["guest.snap"]


def no_room(self: SnapshotRounds, waker: Waker) -> None:
    """As on a disk that is full."""
    raise HostError("No space left on device")


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
