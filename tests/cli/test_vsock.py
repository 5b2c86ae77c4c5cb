"""``tvmm vsock``: standard input and output on a port of a guest, against a real machine and against sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.support.vsock_programs import pattern
from tests.support.vsock_rig import listen_at
from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig
from tvmm.cli.vsock import _carry

pytestmark = pytest.mark.timeout(120)


async def verb(folder: Path, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A process of its own, with `data` for standard input."""
    command = [sys.executable, "-m", "tvmm.cli", "vsock", *words]
    environment = {**os.environ, "TVMM_RUNTIME_DIR": str(folder)}
    return await trio.to_thread.run_sync(
        lambda: subprocess.run(command, input=data, capture_output=True, env=environment, timeout=60, check=False)
    )


@pytest.mark.guest
async def test_in_both_directions(tmp_path: Path) -> None:
    """An echo in the guest gives everything back; no port; then the guest is the one that connects."""
    config = MachineConfig.parse(name="web", memory="64M", vsock=f"{tmp_path}/v", runtime_dir=str(tmp_path))
    with trio.fail_after(100):
        async with Machine(config) as vm:
            await vm.resume()
            await vm.wait_serial(PROMPT)
            shell = GuestShell(vm)
            await vm.control_ready.wait()
            await shell.order("vsock echo 80 1")
            await vm.wait_serial("listening at port 80")
            done = await verb(tmp_path, "web", "80", data=b"hello" * 100_000)
            assert (done.returncode, done.stdout, done.stderr) == (0, b"hello" * 100_000, b"")
            await shell.prompt()
            done = await verb(tmp_path, "web", "x")
            assert done.returncode == 2
            assert done.stderr.count(b"\n") == 1

            async def send() -> None:
                while not (tmp_path / "v_1234").exists():
                    await trio.sleep(0.01)
                assert "300000 bytes" in await shell.ask("vsock send 1234 300000")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                done = await verb(tmp_path, "--listen", "web", "1234")
            assert (done.returncode, done.stdout) == (0, pattern(300_000))
            assert not (tmp_path / "v_1234").exists()


@pytest.mark.guest
async def test_by_the_machines_socket(tmp_path: Path) -> None:
    """What the verb does when it has found the machine: an echo of the guest's, and the end of both sides."""
    config = MachineConfig.parse(memory="64M", vsock=f"{tmp_path}/v")
    with trio.fail_after(60):
        async with Machine(config) as vm:
            await vm.resume()
            await vm.wait_serial(PROMPT)
            shell = GuestShell(vm)
            await shell.order("vsock echo 80 1")
            await vm.wait_serial("listening at port 80")
            data = bytes(range(256)) * 4000
            script = (
                "from tvmm.chardev.vsock_client import dial; from tvmm.cli.vsock import _carry; import sys; "
                "_carry(dial(sys.argv[1], 80))"
            )
            command = [sys.executable, "-c", script, f"{tmp_path}/v"]
            done = await trio.to_thread.run_sync(
                lambda: subprocess.run(command, input=data, capture_output=True, timeout=60, check=True)
            )
            assert done.stdout == data
            assert "1 connections" in await shell.prompt()


def carried(talk: Callable[[socket.socket], None], data: bytes, tmp_path: Path) -> bytes:
    """What the verb prints while the other end of its connection does `talk`."""
    listener = listen_at(str(tmp_path / "s"))

    def run() -> None:
        with listener, listener.accept()[0] as other:
            talk(other)

    thread = threading.Thread(target=run)
    thread.start()
    script = (
        "import socket, sys; from tvmm.cli.vsock import _carry; "
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); _carry(s)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "s")], input=data, capture_output=True, timeout=60, check=False
    )
    thread.join()
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_end_of_the_input_is_half_of_the_end(tmp_path: Path) -> None:
    """The guest still answers, to the end."""

    def answer(other: socket.socket) -> None:
        got = b""
        while data := other.recv(65536):
            got += data
        other.sendall(got[::-1])

    assert carried(answer, b"abc" * 100_000, tmp_path) == b"cba" * 100_000


def test_the_end_of_the_guest_is_the_end(tmp_path: Path) -> None:
    """Although there may be more input."""
    assert carried(lambda other: other.sendall(b"bye"), b"", tmp_path) == b"bye"
    assert callable(_carry)
