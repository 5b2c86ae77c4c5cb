"""Streams between the built-in guest and programs on the host, through the machine's vsock socket."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.support.vsock_programs import echo, listening, pattern
from tests.wiring.guests import GuestShell, guest
from tvmm.errors import HostError, UserError

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

MIB = 1 << 20


def counters(shell: GuestShell) -> dict[str, int]:
    """Of the device."""
    assert shell.vm.virtio is not None
    (device,) = [device for device in shell.vm.virtio.virtio() if device.kind == "vsock"]
    assert device.last_error == ""
    return dict(device.counters)


async def settled(shell: GuestShell) -> None:
    """Return when there are no connections any more."""
    while counters(shell)["connections"]:
        await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("append", "options"),
    [("", ""), ("packed", ",packed=on"), ("noevent noindirect", ",transport=mmio"), ("intx", ",in_order=on,poll-us=0")],
)
async def test_streams_of_the_guest(tmp_path: Path, append: str, options: str) -> None:
    """To an echo and to who counts, on each kind of ring and transport; every byte is checked."""
    path = str(tmp_path / "v")
    got = bytearray()

    def count(program: socket.socket) -> None:
        while data := program.recv(1 << 18):
            got.extend(data)

    with listening(f"{path}_7", echo), listening(f"{path}_9", count):
        with listening(f"{path}_10", lambda program: program.sendall(pattern(3 * MIB))):
            async with guest(append, vsock=path + options) as shell:
                assert "uses" in await shell.ask("virtio")
                assert "1000 round trips" in await shell.ask("vsock ping 7 1000 100")
                answer = await shell.ask(f"vsock send 9 {4 * MIB}")
                assert f"{4 * MIB} bytes in" in answer
                assert "not all" not in answer
                assert f"{3 * MIB} bytes in" in (answer := await shell.ask("vsock recv 10"))
                assert "right" in answer
                assert "refused" in await shell.ask("vsock send 8 1")
                await settled(shell)
        assert bytes(got) == pattern(4 * MIB)


async def test_two_hundred_at_once(tmp_path: Path) -> None:
    """By the guest: each sends 20,000 bytes and reads them back."""
    with listening(f"{tmp_path}/v_7", echo):
        async with guest(vsock=f"{tmp_path}/v") as shell:
            answer = await shell.ask("vsock many 7 200 20000")
            assert "200 connections, 200 at once, 200 whole, 4000000 bytes back, 0 wrong" in answer
            await settled(shell)


async def test_two_hundred_programs_at_once(tmp_path: Path) -> None:
    """By the host: all connected before the first one speaks."""
    async with guest(vsock=f"{tmp_path}/v") as shell:
        await shell.order("vsock echo 80 200")
        await shell.vm.wait_serial("listening at port 80")
        streams: list[trio.SocketStream] = []

        async def connect() -> None:
            streams.append(await shell.vm.vsock(80))

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(connect)

        async def talk(number: int, stream: trio.SocketStream) -> None:
            data = bytes([number]) * 20_000
            async with stream, trio.open_nursery() as inner:
                inner.start_soon(stream.send_all, data)
                got = b""
                while len(got) < len(data):
                    got += await stream.receive_some(1 << 16)
                assert got == data

        async with trio.open_nursery() as nursery:
            for number, stream in enumerate(streams):
                nursery.start_soon(talk, number, stream)
        assert "200 connections, 4000000 bytes" in await shell.prompt()
        await settled(shell)


async def test_half_of_a_connection_is_closed(tmp_path: Path) -> None:
    """The program says that it is done, and still gets all of its echo; then the guest's end is told."""
    async with guest(vsock=f"{tmp_path}/v") as shell:
        await shell.order("vsock echo 80 1")
        await shell.vm.wait_serial("listening at port 80")
        stream = await shell.vm.vsock(80)
        data = pattern(300_000)

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        got = b""
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async for chunk in stream:
                got += chunk
        assert got == data
        assert "1 connections, 300000 bytes" in await shell.prompt()


async def test_a_guest_that_ignores_credit(tmp_path: Path) -> None:
    """Its connection is reset and counted, the program sees the end, and the next connection works."""
    release = threading.Event()

    def sleep(program: socket.socket) -> None:
        release.wait(60)

    with listening(f"{tmp_path}/v_9", sleep), listening(f"{tmp_path}/v_7", echo):
        async with guest(vsock=f"{tmp_path}/v") as shell:
            assert "reset after" in await shell.ask("vsock flood 9")
            assert counters(shell)["no-credit"] == 1
            assert "100 round trips" in await shell.ask("vsock ping 7 100")
            release.set()


async def test_a_guest_that_sends_anything(tmp_path: Path) -> None:
    """Thousands of packets of any kind, and then connections as if nothing had been."""
    with listening(f"{tmp_path}/v_7", echo), listening(f"{tmp_path}/v_2", echo):
        async with guest(vsock=f"{tmp_path}/v") as shell:
            for seed in range(1, 4):
                assert "3000 packets" in await shell.ask(f"vsock junk 3000 {seed}")
            assert "100 round trips" in await shell.ask("vsock ping 7 100")
            found = counters(shell)
            assert found["malformed"]
            assert found["strays"]


async def test_who_does_not_say_what_it_wants(tmp_path: Path) -> None:
    """Other words, too many of them, or the end of them: the connection is closed."""
    async with guest(vsock=f"{tmp_path}/v") as shell:
        assert shell
        for words in (b"HELLO\n", b"CONNECT 99999999999\n", b"x" * 100, b"CONNECT"):
            stream = await trio.open_unix_socket(f"{tmp_path}/v")
            async with stream:
                await stream.send_all(words)
                if words == b"CONNECT":
                    await stream.send_eof()
                assert await ending(stream)


async def ending(stream: trio.SocketStream) -> bool:
    """Whether nothing comes but the end."""
    try:
        return not await stream.receive_some(100)
    except trio.BrokenResourceError:
        return True


async def test_nobody_in_the_guest(tmp_path: Path) -> None:
    """Without a driver, and with one where nobody listens: one line that says so."""
    async with guest(vsock=f"{tmp_path}/v") as shell:
        with pytest.raises(HostError, match="refuses vsock port 80"):
            await shell.vm.vsock(80)
        await shell.ask("vsock")
        # The guest looks at its queues when it runs a command.
        with trio.move_on_after(30) as patience:
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    while True:
                        await shell.ask("vsock")

                nursery.start_soon(ask)
                with pytest.raises(HostError, match="refuses vsock port 80"):
                    await shell.vm.vsock(80)
                nursery.cancel_scope.cancel()
        assert not patience.cancelled_caught


async def test_a_machine_without_a_vsock() -> None:
    """Says what to do."""
    async with guest() as shell:
        with pytest.raises(UserError, match="has no vsock"):
            await shell.vm.vsock(80)


async def test_the_socket_is_the_users_alone(tmp_path: Path) -> None:
    """Nobody else may connect; it is gone with the machine, and a stale one is replaced."""
    path = tmp_path / "v"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    async with guest(vsock=str(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(HostError, match="in use"):
            async with guest(vsock=str(path)):
                pass
    assert not path.exists()
    path.touch()
    with pytest.raises(HostError, match="in the way"):
        async with guest(vsock=str(path)):
            pass


async def test_a_reset_ends_connections(tmp_path: Path) -> None:
    """The driver's reset is the end for programs; afterwards there are new ones."""
    with listening(f"{tmp_path}/v_7", echo):
        async with guest(vsock=f"{tmp_path}/v") as shell:
            await shell.order("vsock echo 80 1")
            await shell.vm.wait_serial("listening at port 80")
            stream = await shell.vm.vsock(80)
            await shell.vm.send_serial("\x03")
            await shell.prompt()
            async with stream:
                assert await ending(stream)
            await shell.ask("vreset 0 5")
            assert "100 round trips" in await shell.ask("vsock ping 7 100")


async def test_a_pause_keeps_connections(tmp_path: Path) -> None:
    """What is sent meanwhile arrives when the guest runs again."""
    async with guest(vsock=f"{tmp_path}/v") as shell:
        await shell.order("vsock echo 80 1")
        await shell.vm.wait_serial("listening at port 80")
        async with await shell.vm.vsock(80) as stream:
            async with shell.vm.paused():
                await stream.send_all(b"while you slept")
            assert await stream.receive_some(100) == b"while you slept"
        assert "1 connections" in await shell.prompt()


@pytest.mark.skipif(shutil.which("socat") is None, reason="needs socat")
async def test_socat_in_the_form_of_firecracker(tmp_path: Path) -> None:
    """A program that knows nothing of tvmm: the words, then the stream."""
    async with guest(vsock=f"{tmp_path}/v") as shell:
        await shell.order("vsock echo 80 1")
        await shell.vm.wait_serial("listening at port 80")
        done = await trio.to_thread.run_sync(
            partial(
                subprocess.run,
                ["socat", "-t10", "-", f"UNIX-CONNECT:{tmp_path}/v"],
                input="CONNECT 80\nhello guest\n",
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
        )
        lines = done.stdout.splitlines()
        assert lines[0].startswith("OK ")
        assert lines[1:] == ["hello guest"]
        await shell.prompt()


async def test_descriptors_are_given_back(tmp_path: Path) -> None:
    """Of connections by either side."""
    with listening(f"{tmp_path}/v_7", echo):
        async with guest(vsock=f"{tmp_path}/v") as shell:
            await shell.ask("vsock many 7 10 10")
            await settled(shell)
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(3):
                await shell.ask("vsock many 7 50 1000")
            await settled(shell)
            assert len(os.listdir("/proc/self/fd")) <= before
