"""Images that `qemu-nbd` opens for a machine: guests on them, and what is left when either of the two is killed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import trio

from tests.nbd.test_local import new_image
from tests.support.nbd_programs import need
from tests.support.nbd_server import Facts, serving_nbd
from tests.support.patience import PATIENT
from tests.support.process import PROMPT as PROMPT_BYTES
from tests.support.process import call, read_until, started, until
from tests.wiring.guests import PROMPT, GuestShell, guest
from tests.wiring.test_nbd_disks import MIB, Lines
from tvmm import Machine, MachineConfig
from tvmm.config.incoming import IncomingConfig
from tvmm.errors import ImageError, UserError
from tvmm.nbd.image import NbdImage
from tvmm.nbd.local import LocalServer

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]


def server_of(vm: Machine) -> LocalServer:
    """Of its only disk."""
    assert vm.board.devices is not None
    [disk] = vm.board.devices.disks.values()
    assert isinstance(disk.image, NbdImage)
    assert isinstance(disk.image._server, LocalServer)
    return disk.image._server


def check_image(path: Path, *, leaks: bool = False) -> None:
    """It is sound, and nobody has it. A process that is killed may leave clusters that nothing refers to."""
    done = subprocess.run(["qemu-img", "check", "-q", str(path)], check=False)
    assert done.returncode in ((0, 3) if leaks else (0,))


@pytest.mark.parametrize("options", ["", "queues=2", "cache=none", "cache=unsafe,discard=ignore"])
async def test_patterns(tmp_path: Path, options: str) -> None:
    """What the guest wrote is in the image, by its own and by a later machine; the image is sound."""
    image = new_image(tmp_path / "a.qcow2")
    disk = [",".join(filter(None, [str(image), options]))]
    async with guest(disk=disk) as shell:
        assert " 0 failed requests" in await shell.ask("blkfill 0 16 7 0")
        pid = server_of(shell.vm).pid
    assert not os.path.exists(f"/proc/{pid}")
    check_image(image)
    async with guest(disk=[f"{image},readonly=on"]) as shell:
        assert "read-only" in await shell.ask("blk 0")
        assert "blkcheck: 4096 blocks, 0 errors, 0 unreadable" in await shell.ask("blkcheck 0 16 7")
    assert 16 * MIB <= image.stat().st_blocks * 512 < 20 * MIB


async def test_what_is_told_of_it(tmp_path: Path) -> None:
    """The file and its format, and not how it is opened; its size is its own affair."""
    image = new_image(tmp_path / "a.img")
    async with guest(disk=[f"{image},format=qcow2"]) as shell:
        assert shell.vm.virtio is not None
        (found,) = shell.vm.virtio.disks()
        assert (found.file, found.format, found.aio) == (str(image), "qcow2", "nbd")
        with pytest.raises(ImageError, match="qemu-img resize"):
            await shell.vm.virtio.resize_disk("disk0", 128 * MIB)


async def test_two_machines_on_one_image(tmp_path: Path) -> None:
    """The second is refused in one line."""
    image = new_image(tmp_path / "a.qcow2")
    async with guest(disk=[str(image)]):
        with pytest.raises(ImageError, match="in use by another machine"):
            async with Machine(MachineConfig.parse(memory="64M", disk=[str(image)])):
                pass


async def kill_server(shell: GuestShell) -> None:
    """And return when there is another."""
    pid = server_of(shell.vm).pid
    os.kill(pid, 9)
    while server_of(shell.vm).pid in (0, pid):
        await trio.sleep(0.01)


async def test_qemu_nbd_is_killed_while_the_guest_reads(tmp_path: Path) -> None:
    """It is started again; reads that were under way are repeated, and all is there."""
    image = new_image(tmp_path / "a.qcow2", size=256 * MIB)
    async with guest(disk=[f"{image},connections=2"], memory="128M", seconds=100) as shell:
        lines = Lines(shell)
        await shell.ask("blkfill 0 64 7 0")
        assert "flush: ok" in await shell.ask("flush 0")
        await shell.order("blkbench 0 randread 4096 16 3")
        for _ in range(3):
            await kill_server(shell)
        assert "0 errors" in await shell.prompt()
        assert "blkcheck: 16384 blocks, 0 errors, 0 unreadable" in await shell.ask("blkcheck 0 64 7")
        await lines.find("connected again")
        # Nothing was lost, and so nothing is to be told.
        assert "flush: ok" in await shell.ask("flush 0")
        assert not [line for line in lines.all if "may be lost" in line]
    check_image(image, leaks=True)


async def test_qemu_nbd_is_killed_while_the_guest_writes(tmp_path: Path) -> None:
    """What was not flushed may be lost, as when a disk loses its power: user and guest are told."""
    image = new_image(tmp_path / "a.qcow2", size=256 * MIB)
    async with guest(disk=[str(image)], seconds=100) as shell:
        lines = Lines(shell)
        assert "flush: ok" in await shell.ask("flush 0")
        assert ": ok" in await shell.ask("wrsec 0 100 text")
        await kill_server(shell)
        await lines.find("what the guest had not flushed may be lost")
        assert "flush: ok" not in await shell.ask("flush 0")
    check_image(image, leaks=True)


def test_the_machine_is_killed(tmp_path: Path) -> None:
    """Nothing stays of it: no process, no socket, no directory, no lock."""
    image = new_image(tmp_path / "a.qcow2")
    with started("run", "--disk", str(image), environment={**os.environ, "TMPDIR": str(tmp_path)}) as process:
        read_until(process.stdout, PROMPT_BYTES)
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        [pid] = found.stdout.split()
        process.kill()
        process.wait()
        # Its parent is gone, and somebody may be slow to take note of its end.
        until(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())
    check_image(image)
    assert os.listdir(tmp_path) == ["a.qcow2"]


def test_words_on_the_command_line(tmp_path: Path) -> None:
    """A file that is not what its name says, in one line."""
    need("qemu-nbd")
    (tmp_path / "a.qcow2").write_bytes(bytes(MIB))
    status, _, said = call("run", "--disk", str(tmp_path / "a.qcow2"))
    assert status == 2
    assert "Image is not in qcow2 format" in said
    assert said.count("\n") == 1


# -- moves ----------------------------------------------------------------------------------------------------


async def write(shell: GuestShell, sector: int, text: str) -> None:
    """Have the guest write and flush."""
    assert f"wrsec {sector}: ok" in await shell.ask(f"wrsec 0 {sector} {text}")
    assert "flush: ok" in await shell.ask("flush 0")


async def test_a_guest_moves_with_its_image(tmp_path: Path) -> None:
    """Exactly one side has the image open for writing, and what was written is there, twice."""
    image = new_image(tmp_path / "a.qcow2")
    config = MachineConfig.parse(memory="64M", disk=[str(image)])
    with trio.fail_after(100):
        async with Machine(config) as first:
            await first.resume()
            await first.wait_serial(PROMPT)
            await write(GuestShell(first), 100, "one")
            waiting = config._replace(incoming=IncomingConfig(f"unix:{tmp_path}/there"))
            async with Machine(waiting) as second:
                assert server_of(first).pid
                assert not server_of(second).pid
                await first.migrate(f"unix:{tmp_path}/there", PATIENT)
                await second.wait_arrival()
                assert not server_of(first).pid
                assert server_of(second).pid
                shell = GuestShell(second)
                assert b"one".hex() in await shell.ask("rdsec 0 100")
                assert " 0 failed requests" in await shell.ask("blkfill 0 16 7 0")
                assert "4096 blocks, 0 errors, 0 unreadable" in await shell.ask("blkcheck 0 16 7")
    check_image(image)


async def fail_to_arrive(waiting: MachineConfig, source: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A destination that cannot have the image."""

    def refuse() -> None:
        raise ImageError("no")

    async with Machine(waiting) as second:
        assert second.board.devices is not None
        monkeypatch.setattr(second.board.devices.disks["disk0"].image, "lock", refuse)
        assert waiting.incoming is not None
        with pytest.raises(UserError, match="abandoned"):
            await source.migrate(waiting.incoming.uri, PATIENT)
        await second.wait()


async def test_a_move_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source has its image again, and the guest goes on."""
    image = new_image(tmp_path / "a.qcow2")
    config = MachineConfig.parse(memory="64M", disk=[str(image)])
    waiting = config._replace(incoming=IncomingConfig(f"unix:{tmp_path}/there"))
    # A source that has heard of it does not ask again.
    monkeypatch.setattr("tvmm.migration.incoming.ANSWER_SECONDS", 0.5)
    with trio.fail_after(100):
        async with Machine(config) as first:
            await first.resume()
            await first.wait_serial(PROMPT)
            # The destination is of no use any more, and says so.
            with pytest.raises(UserError, match="no"):
                await fail_to_arrive(waiting, first, monkeypatch)
            shell = GuestShell(first)
            await write(shell, 100, "one")
            assert b"one".hex() in await shell.ask("rdsec 0 100")
    check_image(image)


async def test_a_guest_moves_between_connections(tmp_path: Path) -> None:
    """Both sides are connected to one server; what is written here is read there."""
    facts = Facts({"": bytearray(64 * MIB)})
    config = MachineConfig.parse(memory="64M", disk=[f"nbd+unix:///?socket={tmp_path}/s"])
    with trio.fail_after(100):
        async with serving_nbd(tmp_path / "s", facts) as server, Machine(config) as first:
            await first.resume()
            await first.wait_serial(PROMPT)
            here = GuestShell(first)
            await here.ask("blkfill 0 8 7 0")
            waiting = config._replace(incoming=IncomingConfig(f"unix:{tmp_path}/there"))
            async with Machine(waiting) as second:
                assert server.connections == 2
                await first.migrate(f"unix:{tmp_path}/there", PATIENT)
                await second.wait_arrival()
                assert server.halves[0].seen[-1] == "FLUSH"
                shell = GuestShell(second)
                assert "2048 blocks, 0 errors, 0 unreadable" in await shell.ask("blkcheck 0 8 7")
