"""Machines that are saved and restored: the built-in guest with pages that check themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.patience import PATIENT
from tvmm import Machine, MachineConfig
from tvmm.errors import ImageError, UserError
from tvmm.snapshot.status import SaveParameters
from tvmm.wiring.restoring import restored

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

PROMPT = "tvmm> "
CLEAN = b", 0 errors"
MEMORY = "64M"


async def running(vm: Machine) -> None:
    """At its prompt."""
    await vm.resume()
    await vm.wait_serial(PROMPT)


async def answers(vm: Machine) -> None:
    """The shell is there."""
    await vm.send_serial("echo here\n")
    await vm.wait_serial("\nhere")


@pytest.mark.parametrize("load", ["lazy", "eager", "demand"])
async def test_a_guest_that_writes_goes_on_from_the_file(tmp_path: Path, load: str) -> None:
    """No page is another one than it was when it was saved; and the guest that was saved goes on as well."""
    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory=MEMORY, cpus=2, name="alpha")) as vm:
        await running(vm)
        await vm.send_serial("dirty 20000 8M 1\n")
        status = await vm.save(str(path))
        assert status.state == "completed"
        assert status.done == status.total > 64 << 20
        assert 0 < status.data < status.total
        assert status.file_bytes == path.stat().st_size
        assert path.stat().st_blocks * 512 < 32 << 20
        assert CLEAN in await vm.wait_serial(PROMPT)
    async with restored(path, load=load) as vm:
        assert vm.name == "alpha"
        await vm.resume()
        assert CLEAN in await vm.wait_serial(PROMPT)
        await answers(vm)


async def test_a_restored_machine_can_do_everything_again(tmp_path: Path) -> None:
    """Saved onto the very file that it is mapped from, restored from that, reset, which needs kernel and empty RAM."""
    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory=MEMORY)) as vm:
        await running(vm)
        await vm.save(str(path))
    async with restored(path) as vm:
        await vm.resume()
        await answers(vm)
        inode = path.stat().st_ino
        await vm.save(str(path), SaveParameters(stop=True))
        assert (await vm.wait()).kind == "saved"
        assert path.stat().st_ino != inode
    async with restored(path, load="demand") as vm:
        await vm.resume()
        await answers(vm)
        await vm.reset()
        await vm.wait_serial("entered by")
        await vm.wait_serial(PROMPT)
        await vm.send_serial("dirty 20000 8M 1\n")
        assert CLEAN in await vm.wait_serial(PROMPT)
    assert [each.name for each in tmp_path.iterdir()] == ["guest.snap"]


async def test_a_paused_machine_is_saved_paused(tmp_path: Path) -> None:
    """It stays so, and says so."""
    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory=MEMORY)) as vm:
        await running(vm)
        await vm.pause()
        await vm.save(str(path))
        assert vm.run_state() == "paused"
    async with restored(path) as vm:
        assert vm.run_state() == "paused"
        assert not vm.motion.running


@pytest.mark.parametrize("secret", [SaveParameters(passphrase="open sesame"), SaveParameters(key=bytes(range(32)))])
async def test_an_encrypted_file_wants_its_key(tmp_path: Path, secret: SaveParameters) -> None:
    """Nothing of the guest can be read in it, and the wrong key is told in a line."""
    from tvmm.wiring.saving import secret_of

    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory=MEMORY)) as vm:
        await running(vm)
        await vm.save(str(path), secret)
    data = path.read_bytes()
    assert b"pc.ram" not in data
    assert b"tvmm> " not in data
    right = secret_of(secret)
    assert right is not None
    async with restored(path, ask=lambda source: right) as vm:
        await vm.resume()
        await answers(vm)
    wrong = right._replace(data=b"another one")
    with pytest.raises(ImageError, match=r"passphrase is wrong|the key is another one"):
        async with restored(path, ask=lambda source: wrong):
            pass
    with pytest.raises(ImageError, match="it is encrypted"):
        async with restored(path):
            pass


async def test_a_damaged_page_pauses_the_machine_or_keeps_it_from_starting(tmp_path: Path) -> None:
    """Lazily it is found when the rest is read, eagerly before the guest runs."""
    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory=MEMORY)) as vm:
        await running(vm)
        await vm.save(str(path))
    with path.open("r+b") as file:
        file.seek((2 << 20) + (1 << 20) + 5)
        file.write(b"damage")
    with pytest.raises(ImageError, match=r"checksum of chunk 1 of pc\.ram differs"):
        async with restored(path, load="eager"):
            pass
    said: list[str] = []
    async with restored(path, say=said.append) as vm:
        stopped = trio.Event()
        vm.listeners.append(lambda name, data: stopped.set() if name == "X_RESTORE" else None)
        await vm.resume()
        await stopped.wait()
        assert vm.run_state() in ("io-error", "paused")
    assert "chunk 1 of pc.ram differs; the machine is paused" in said[0]


async def test_a_save_that_is_cancelled_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """The file that was there, and a guest that goes on."""
    path = tmp_path / "guest.snap"
    async with Machine(MachineConfig.parse(memory=MEMORY)) as vm:
        await running(vm)
        await vm.save(str(path))
        before = path.stat().st_ino, path.read_bytes()
        await vm.saves.start_save(str(path), SaveParameters())
        vm.saves.cancel_save()
        assert (await vm.saves.wait_save()).state == "cancelled"
        # Not when it was read: whether it is a snapshot is looked at before it is replaced.
        assert (path.stat().st_ino, path.read_bytes()) == before
        await answers(vm)
        await vm.save(str(path))
    assert [each.name for each in tmp_path.iterdir()] == ["guest.snap"]


async def test_what_cannot_be_saved_is_refused_before_it_begins(tmp_path: Path) -> None:
    """Files of others, directories that are not there, a second save."""
    other = tmp_path / "letter.txt"
    other.write_text("dear all")
    async with Machine(MachineConfig.parse(memory=MEMORY)) as vm:
        with pytest.raises(UserError, match=r"is there and is no snapshot; --force"):
            await vm.save(str(other))
        with pytest.raises(UserError, match="cannot be written: No such file"):
            await vm.save(str(tmp_path / "nowhere" / "x"))
        with pytest.raises(UserError, match="no regular file"):
            await vm.save(str(tmp_path))
        await vm.saves.start_save(str(tmp_path / "a.snap"), SaveParameters())
        with pytest.raises(UserError, match="being saved already"):
            await vm.save(str(tmp_path / "b.snap"))
        await vm.saves.wait_save()
        await vm.save(str(other), SaveParameters(force=True))
    assert other.stat().st_size > 64 << 20


async def test_another_machine_is_refused_with_all_differences(tmp_path: Path) -> None:
    """Hardware is in the file; what was given again has to be the same for the guest."""
    path = tmp_path / "guest.snap"
    disk = tmp_path / "a.img"
    disk.write_bytes(bytes(1 << 20))
    async with Machine(MachineConfig.parse(memory=MEMORY, disk=str(disk))) as vm:
        await vm.save(str(path))
    other = tmp_path / "b.img"
    other.write_bytes(bytes(2 << 20))
    with pytest.raises(ImageError, match="disk0 size is 2M here and 1M in the snapshot"):
        async with restored(path, options={"disk": [str(other)]}):
            pass
    async with restored(path):
        pass
    disk.write_bytes(b"x" * (1 << 20))
    with pytest.raises(UserError, match="was written since the machine was saved"):
        async with restored(path):
            pass
    async with restored(path, force=True):
        pass
    copy = tmp_path / "copy.img"
    copy.write_bytes(bytes(1 << 20))
    async with restored(path, options={"disk": [str(copy)]}):
        pass


@pytest.mark.parametrize("memory", ["128M", "128M,shared=on"])
async def test_a_disk_under_load_goes_on(tmp_path: Path, memory: str) -> None:
    """Requests that are on their way, pages and clocks: nothing is lost, wrong or twice; in private and in shared
    RAM."""
    path, image = tmp_path / "guest.snap", tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    config = MachineConfig.parse(memory=memory, disk=[str(image)], device=["virtio-console", "virtio-rng"])
    with trio.fail_after(100):
        async with Machine(config) as vm:
            await running(vm)
            await vm.send_serial("churn 2 rate=5000 pages=32M iops=0\n")
            await vm.wait_serial("churning")
            await vm.save(str(path), SaveParameters(stop=True))
            assert (await vm.wait()).status == 5
        async with restored(path) as vm:
            await vm.resume()
            told = (await vm.wait_serial(PROMPT)).decode()
            assert " 0 page errors" in told, told
            assert " 0 disk errors" in told, told
            assert "clock 0 backward" in told, told


async def test_a_restored_guest_migrates(tmp_path: Path) -> None:
    """Pages that are still in the file arrive as well."""
    path, socket = tmp_path / "guest.snap", f"unix:{tmp_path}/s"
    async with Machine(MachineConfig.parse(memory=MEMORY)) as vm:
        await running(vm)
        await vm.send_serial("dirty 0 8M 1\n")
        await vm.wait_serial(PROMPT)
        await vm.save(str(path))
    there = Machine(MachineConfig.parse(memory=MEMORY, incoming=socket))
    async with restored(path, load="demand") as vm, there:
        await vm.resume()
        await vm.migrate(socket, PATIENT)
        await there.wait_arrival()
        await there.send_serial("check\n")
        assert b"checked 2048 pages: 0 errors" in await there.wait_serial(PROMPT)
