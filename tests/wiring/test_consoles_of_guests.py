"""The console and the source of entropy of whole machines, with the built-in guest's drivers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.wiring.guests import guest

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("transport", ["pci", "mmio"])
async def test_conversation_on_two_ports(transport: str, tmp_path: Path) -> None:
    """Each port is a line of its own: one to a socket in both directions, one into a file, with its name."""
    socket, file = tmp_path / "port.sock", tmp_path / "port.log"
    devices = [
        f"virtio-console,chardev=unix={socket},transport={transport}",
        f"virtserialport,chardev=file={file},name=org.tvmm.log",
    ]
    async with guest(device=devices) as shell:
        ports = await shell.ask("vcon")
        assert '"org.tvmm.log"' in ports
        await shell.ask("vcon open 1")
        assert "vcon write 1: 12 bytes\r\n" in await shell.ask("vcon write 1 to the file")
        async with await trio.open_unix_socket(str(socket)) as stream:
            await shell.ask("vcon open 0")
            await shell.ask("vcon write 0 hello host")
            received = b""
            while b"\n" not in received:
                received += await stream.receive_some()
            assert received == b"hello host\n"
            await stream.send_all(b"hello guest")
            assert "hello guest" in await shell.ask("vcon read 0 11")
        while file.read_bytes() != b"to the file\n":
            await trio.lowlevel.checkpoint()


async def test_guest_that_never_reads(tmp_path: Path) -> None:
    """What the host sends waits, in bounded room, and the rest of the machine goes on; a reader gets all of it."""
    socket = tmp_path / "port.sock"
    sent = bytes(range(97, 123)) * 40_000
    async with guest(device=[f"virtio-console,chardev=unix={socket}"]) as shell:
        stream = await trio.open_unix_socket(str(socket))
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, sent)
            await trio.testing.wait_all_tasks_blocked(0.2)
            assert "two" in await shell.ask("echo one two")
            await shell.ask("vcon open 0")
            text = await shell.ask(f"vcon read 0 {len(sent)}")
            assert f"vcon read 0: {len(sent)} bytes" in text


async def test_resize_reaches_the_guest() -> None:
    """The window's size, as it changes."""
    async with guest(device=["virtio-console,cols=100,rows=30"]) as shell:
        assert "100x30" in await shell.ask("vcon")
        assert shell.vm.board.devices is not None
        shell.vm.board.devices.consoles["console0"].resize(120, 40)
        assert "120x40" in await shell.ask("vcon")


async def test_guest_that_writes_to_nobody() -> None:
    """Output of a port that leads nowhere is taken and dropped: the guest is not held up."""
    async with guest(device=["virtio-console"]) as shell:
        await shell.ask("vcon open 0")
        assert "vcon pump 0: 4194304 bytes" in await shell.ask("vcon pump 0 4194304")


@pytest.mark.parametrize("transport", ["pci", "mmio"])
async def test_entropy(transport: str) -> None:
    """Two readings differ."""
    async with guest(device=[f"virtio-rng,transport={transport}"]) as shell:
        seen = [re.findall(r"[0-9a-f]{32}", await shell.ask("rng 0 64")) for _ in range(2)]
        assert all(seen)
        assert seen[0] != seen[1]


async def test_entropy_with_a_limit() -> None:
    """A guest gets no more than its rate: 4 KiB a second take more than two seconds for 12."""
    async with guest(device=["virtio-rng,max-bytes=4k,period=1000"]) as shell:
        started = trio.current_time()
        assert "12288 bytes" in await shell.ask("rng 0 12288")
        assert trio.current_time() - started > 1.9
