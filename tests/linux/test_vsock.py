"""The tiny Linux and its own driver for sockets: streams in both directions, many at once."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.linux.saved import CID, NAME, listening_stream
from tests.linux.shell import Shell
from tests.support.process import started
from tests.support.vsock_programs import echo, listening
from tvmm.chardev.vsock_client import dial
from tvmm.errors import HostError

pytestmark = [pytest.mark.linux, pytest.mark.timeout(600)]


def test_streams(saved_linux: Path, tmp_path: Path) -> None:
    """By the guest, also fifty at once and one that is refused, and by the host."""
    environment = {"TVMM_RUNTIME_DIR": str(tmp_path)}
    path = tmp_path / "socket"
    with (
        listening_stream() as net,
        started(
            *("restore", f"{saved_linux}", "--name", NAME, "--net", net, "--vsock", f"{path},cid={CID}"),
            environment=environment,
        ) as process,
    ):
        shell = Shell(process, restored=True)
        assert shell.read("/sys/bus/virtio/devices/virtio1/device") == "0x0013"
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
