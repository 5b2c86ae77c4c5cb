"""The tiny Linux and its own driver for sockets: streams in both directions, many at once."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.linux.initramfs import extended
from tests.linux.shell import Shell, linux_options
from tests.support.process import started
from tests.support.vsock_programs import echo, listening
from tvmm.chardev.vsock_client import dial
from tvmm.errors import HostError

pytestmark = [pytest.mark.linux, pytest.mark.timeout(600)]

TOOL = Path(__file__).with_name("vsock_tool.c")


@pytest.fixture
def initrd(tiny: Path, tmp_path: Path) -> Path:
    """With the tool in it."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed: apt-get install gcc")
    program = tmp_path / "vsock"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(program), str(TOOL)], check=True)
    return extended(tiny / "initrd.cpio", {"bin/vsock": program.read_bytes()}, tmp_path / "initrd")


def options(tiny: Path, initrd: Path, name: str, path: Path) -> list[str]:
    """For `tvmm run`."""
    return [
        *("run", "--name", name, *linux_options(tiny, initrd=initrd), "--vsock", f"{path},cid=42"),
    ]


def test_streams(tiny: Path, initrd: Path, tmp_path: Path) -> None:
    """By the guest, also fifty at once and one that is refused, and by the host."""
    environment = {"TVMM_RUNTIME_DIR": str(tmp_path)}
    path = tmp_path / "socket"
    with started(*options(tiny, initrd, "here", path), environment=environment) as process:
        shell = Shell(process)
        assert shell.read("/sys/bus/virtio/devices/virtio0/device") == "0x0013"
        with listening(f"{path}_7", echo):
            assert "sent 300000, 300000 came back" in shell.run("vsock send 7 300000")
            assert "50 of 50 answered" in shell.run("vsock many 7 50")
        assert "Connection reset by peer" in shell.run("vsock send 8 1 || true")
        shell.begin("vsock echo 80 1")
        shell.wait_begun()
        with dial_until_taken(str(path), 80) as stream:
            stream.sendall(b"hello")
            assert stream.recv(100) == b"hello"
        assert "connection 0: ended" in shell.finish()
        shell.power_off()


def dial_until_taken(path: str, port: int) -> socket.socket:
    """The program in the guest takes a while to listen."""
    while True:
        try:
            return dial(path, port)
        except HostError:
            continue
