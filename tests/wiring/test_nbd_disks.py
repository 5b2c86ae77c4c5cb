"""Disks at NBD servers, of whole machines: servers that lie and die, and the built-in guest that checks its blocks."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import trio

from tests.nbd.test_connect import server_context
from tests.support.nbd_programs import PROGRAMS, real_server
from tests.support.nbd_server import ALL_FLAGS, Facts, FakeNbdServer, serving_nbd
from tests.vnc.certificates import make_certificate
from tests.wiring.guests import GuestShell, guest
from tvmm import Machine, MachineConfig
from tvmm.errors import ImageError, UserError
from tvmm.nbd.constants import Flag

pytestmark = pytest.mark.guest

MIB = 1 << 20


def export_at(path: Path, *options: str) -> list[str]:
    """The value of --disk."""
    return [",".join([f"nbd+unix:///?socket={path}", *filter(None, options)])]


class Lines:
    """What the user reads. Tells when something comes."""

    def __init__(self, shell: GuestShell) -> None:
        self.all: list[str] = []
        self._news = trio.Event()
        shell.vm.on_warning = self._tell

    def _tell(self, line: str) -> None:
        self.all.append(line)
        self._news.set()

    async def wait(self, count: int) -> str:
        """The line of that number, from 1."""
        while len(self.all) < count:
            self._news = trio.Event()
            await self._news.wait()
        return self.all[count - 1]

    async def find(self, words: str) -> None:
        """Return when a line with these words has come."""
        while not any(words in line for line in self.all):
            await self.wait(len(self.all) + 1)


@pytest.mark.parametrize("options", ["", "connections=3", "queues=2,connections=4", "packed=on,transport=mmio"])
async def test_patterns(tmp_path: Path, options: str) -> None:
    """What the guest wrote is at the server, and is read back."""
    facts = Facts({"": bytearray(64 * MIB)})
    async with serving_nbd(tmp_path / "s", facts) as server:
        async with guest(disk=export_at(tmp_path / "s", options)) as shell:
            assert " 0 failed requests" in await shell.ask("blkfill 0 16 7 0")
            assert "blkcheck: 4096 blocks, 0 errors, 0 unreadable" in await shell.ask("blkcheck 0 16 7")
            assert server.connections == int((re.findall(r"connections=(\d)", options) or ["1"])[0])
        while server.connections:
            await trio.sleep(0.01)
        # A queue that the guest has not used says nothing.
        assert all(half.seen[-1] in ("DISCONNECT", "GO") for half in server.halves)
    assert facts.exports[""][: 16 * MIB].count(0) < 16 * MIB


async def test_what_is_told_of_it(tmp_path: Path) -> None:
    """Address, size, engine; and a size that is not to be had."""
    async with (
        serving_nbd(tmp_path / "s", Facts({"": bytearray(8 * MIB)}, block_sizes=(1, 65536, 32 * MIB))),
        guest(disk=export_at(tmp_path / "s")) as shell,
    ):
        assert shell.vm.virtio is not None
        (found,) = shell.vm.virtio.disks()
        assert (found.file, found.size_bytes, found.aio) == (f"nbd+unix:///?socket={tmp_path}/s", 8 * MIB, "nbd")
        assert "physical block 65536" in await shell.ask("blk 0")
        with pytest.raises(ImageError, match="is at a server, which says how large it is"):
            await shell.vm.virtio.resize_disk("disk0", 16 * MIB)


async def test_read_only(tmp_path: Path) -> None:
    """An export for reading only is refused, and taken if that is what was asked for."""
    facts = Facts({"": bytearray(8 * MIB)}, flags=ALL_FLAGS | Flag.READ_ONLY)
    async with serving_nbd(tmp_path / "s", facts):
        with pytest.raises(ImageError, match="is for reading only; say readonly=on"):
            async with Machine(MachineConfig.parse(memory="64M", disk=export_at(tmp_path / "s"))):
                pass
        async with guest(disk=export_at(tmp_path / "s", "readonly=on")) as shell:
            assert "read-only" in await shell.ask("blk 0")
            assert ": ok 0000" in await shell.ask("rdsec 0 5")


REFUSED = {
    "blocks": (
        Facts({"": bytearray(8 * MIB)}, block_sizes=(4096, 4096, MIB)), "logical_block_size=512", "blocks of 4096",
    ),
    "sectors": (Facts({"": bytearray(1000)}), "", "no whole number of sectors"),
    "end": (Facts({"": bytearray(4608)}, block_sizes=(4096, 4096, MIB)), "", "no whole number of its blocks"),
    "queues": (Facts(flags=ALL_FLAGS & ~Flag.CAN_MULTI_CONN), "queues=2", "allows one connection; say queues=1"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
async def test_refused(tmp_path: Path, what: str) -> None:
    """What does not fit is told before the machine is there, and nobody stays connected."""
    facts, options, words = REFUSED[what]
    async with serving_nbd(tmp_path / "s", facts) as server:
        with pytest.raises(UserError) as caught:
            async with Machine(MachineConfig.parse(memory="64M", disk=export_at(tmp_path / "s", options))):
                pass
        assert words.partition(";")[0] in str(caught.value)
        while server.connections:
            await trio.sleep(0.01)


async def test_one_connection_only(tmp_path: Path) -> None:
    """More are asked for than the server has: a warning, and it works."""
    facts = Facts({"": bytearray(8 * MIB)}, flags=ALL_FLAGS & ~Flag.CAN_MULTI_CONN)
    async with serving_nbd(tmp_path / "s", facts) as server, guest(disk=export_at(tmp_path / "s", "connections=3")):
        assert server.connections == 1


async def drop_while_writing(shell: GuestShell, server: FakeNbdServer) -> None:
    """In the middle of it, five times."""
    await shell.order("blkfill 0 32 9 0")
    for _ in range(5):
        seen = len(server.halves)
        while sum("WRITE" in half.seen for half in server.halves[-2:]) < 1:
            await trio.sleep(0.001)
        server.drop()
        with trio.fail_after(20):
            while len(server.halves) == seen:
                await trio.sleep(0.005)


async def test_dropped_again_and_again(tmp_path: Path) -> None:
    """The guest notices nothing: what was outstanding is repeated; two lines in all for as many losses."""
    async with (
        serving_nbd(tmp_path / "s", Facts({"": bytearray(64 * MIB)})) as server,
        guest(disk=export_at(tmp_path / "s", "connections=2")) as shell,
    ):
        lines = Lines(shell)
        await drop_while_writing(shell, server)
        assert " 0 failed requests" in await shell.prompt()
        assert "8192 blocks, 0 errors, 0 unreadable" in await shell.ask("blkcheck 0 32 9")
        assert re.match(r"disk0: the connection is lost \(.*\); requests wait for up to 30 s", await lines.wait(1))
        assert "disk0: connected again after" in await lines.wait(2)
        assert len(lines.all) == 2


async def test_away_for_too_long(tmp_path: Path) -> None:
    """With the patience at its end requests fail, the machine lives, and works when the server is back."""
    facts = Facts({"": bytearray(64 * MIB)})
    async with (
        serving_nbd(tmp_path / "s", facts) as server,
        guest(disk=export_at(tmp_path / "s", "reconnect_delay=1", "werror=report")) as shell,
    ):
        lines = Lines(shell)
        assert ": ok" in await shell.ask("wrsec 0 5 text")
        server.go()
        assert "is lost" in await lines.wait(1)
        assert ": ok" not in await shell.ask("wrsec 0 6 text")
        assert "requests fail from now on" in await lines.wait(2)
        await server.come()
        assert "connected again" in await lines.wait(3)
        assert ": ok" in await shell.ask("wrsec 0 6 text")
    assert facts.exports[""][6 * 512 :].startswith(b"text")


async def begin_to_write(shell: GuestShell, server: FakeNbdServer) -> None:
    """Return in the middle of it."""
    await shell.order("blkfill 0 32 9 0")
    while not any("WRITE" in half.seen for half in server.halves):
        await trio.sleep(0.001)


async def test_stops_at_an_error_and_goes_on(tmp_path: Path) -> None:
    """With werror=stop a server that is away stops the machine; a resume repeats what failed."""
    options = export_at(tmp_path / "s", "reconnect_delay=0", "werror=stop", "rerror=stop")
    async with (
        serving_nbd(tmp_path / "s", Facts({"": bytearray(64 * MIB)})) as server,
        guest(disk=options) as shell,
    ):
        lines = Lines(shell)
        await begin_to_write(shell, server)
        server.go()
        await shell.event("BLOCK_IO_ERROR")
        await shell.event("STOP")
        await server.come()
        await lines.find("connected again")
        await shell.vm.resume()
        assert " 0 failed requests" in await shell.prompt()
        assert "8192 blocks, 0 errors, 0 unreadable" in await shell.ask("blkcheck 0 32 9")


async def test_an_export_that_changes(tmp_path: Path) -> None:
    """Larger: the guest is told. Smaller: reads behind the end fail. Read-only: writes fail. Each with a line."""
    facts = Facts({"": bytearray(64 * MIB)})
    options = export_at(tmp_path / "s", "werror=report")
    async with serving_nbd(tmp_path / "s", facts) as server, guest(disk=options) as shell:
        lines = Lines(shell)
        assert "131072 sectors" in await shell.ask("blk 0")
        facts.exports[""] += bytes(16 * MIB)
        server.drop()
        await lines.wait(2)
        assert "163840 sectors" in await shell.ask("blk 0")
        assert ": ok" in await shell.ask("wrsec 0 163839 end")
        del facts.exports[""][32 * MIB :]
        server.drop()
        assert "has 33554432 bytes now, and the guest knows of 83886080" in await lines.wait(3)
        assert ": ok" not in await shell.ask("rdsec 0 163839")
        assert ": ok" in await shell.ask("rdsec 0 5")
        facts.flags |= Flag.READ_ONLY
        server.drop()
        assert "for reading only now: writes fail" in await lines.wait(4)
        assert ": ok" not in await shell.ask("wrsec 0 5 text")
        assert ": ok" in await shell.ask("rdsec 0 5")


async def test_a_server_that_lies(tmp_path: Path) -> None:
    """An answer that is none ends the connection with a reason; the next one is used."""
    facts = Facts({"": bytearray(64 * MIB)})

    def spoil_once(data: bytes) -> bytes:
        facts.spoil.clear()
        return b"\xff" * len(data)

    async with serving_nbd(tmp_path / "s", facts), guest(disk=export_at(tmp_path / "s")) as shell:
        lines = Lines(shell)
        facts.spoil["write"] = spoil_once
        assert ": ok" in await shell.ask("wrsec 0 5 text")
        assert "disk0: the connection is lost (" in await lines.wait(1)
        assert "connected again" in await lines.wait(2)
    assert facts.exports[""][5 * 512 :].startswith(b"text")


@pytest.mark.parametrize("how", ["silent", "away"])
async def test_the_end_of_a_machine_whose_server_is_gone(tmp_path: Path, how: str) -> None:
    """A machine ends although its requests never will."""
    facts = Facts({"": bytearray(64 * MIB)})
    with trio.fail_after(30):
        async with serving_nbd(tmp_path / "s", facts) as server, guest(disk=export_at(tmp_path / "s")) as shell:
            if how == "silent":
                facts.stall |= {"write", "flush"}
            await begin_to_write(shell, server)
            if how == "away":
                server.go()


async def test_pause_and_reset_while_it_is_away(tmp_path: Path) -> None:
    """Neither waits for the server."""
    async with (
        serving_nbd(tmp_path / "s", Facts({"": bytearray(64 * MIB)})) as server,
        guest(disk=export_at(tmp_path / "s")) as shell,
    ):
        await begin_to_write(shell, server)
        server.go()
        with trio.fail_after(20):
            async with shell.vm.paused():
                pass
            await shell.vm.reset()
        await server.come()
        await shell.vm.wait_serial("tvmm built-in guest")
        await shell.prompt()
        await shell.ask("blkfill 0 1 3 0")
        assert "256 blocks, 0 errors" in await shell.ask("blkcheck 0 1 3")


# -- real servers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", PROGRAMS)
async def test_real_servers_killed_in_the_middle(tmp_path: Path, program: str) -> None:
    """Killed and started again three times while the guest writes and checks: no block is wrong, no request fails."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(256 * MIB)
    async with (
        real_server(program, tmp_path, image) as server,
        guest(disk=[f"{server.uri},connections=2"], memory="128M", seconds=100) as shell,
    ):
        lines = Lines(shell)
        await shell.order("blkstress 0 128 11 60000")
        for _ in range(3):
            before = os.stat(image).st_mtime_ns
            with trio.fail_after(30):
                while os.stat(image).st_mtime_ns == before:
                    await trio.sleep(0.01)
            await server.kill()
            await server.start()
        text = await shell.prompt()
        assert " 0 wrong" in text
        assert re.search(r"[^0-9]0 failed", text)
        assert "is lost" in await lines.wait(1)
        assert "connected again" in await lines.wait(2)


async def test_tls_that_is_lost_and_made_again(tmp_path: Path) -> None:
    """The pump carries a guest's requests, and the next connection has one too."""
    certificate = make_certificate(tmp_path)
    context = server_context(certificate)
    facts = Facts({"": bytearray(64 * MIB)}, tls="required")
    options = export_at(tmp_path / "s", "tls=on", "tls_hostname=localhost", f"tls_ca={certificate.authority}")
    async with serving_nbd(tmp_path / "s", facts, context) as server, guest(disk=options) as shell:
        lines = Lines(shell)
        await drop_while_writing(shell, server)
        assert " 0 failed requests" in await shell.prompt()
        assert "8192 blocks, 0 errors, 0 unreadable" in await shell.ask("blkcheck 0 32 9")
        assert "connected again" in await lines.wait(2)
        assert all(half.secure for half in server.halves if "GO" in half.seen)
