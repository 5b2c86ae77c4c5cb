"""Viewers of a guest that moves from one process to another."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.test_migrate_processes import Runner, ask, order, runner, told_by
from tests.support.process import SECONDS, read_until, until
from tests.support.rfb_viewer import RfbViewer
from tvmm.vnc import encodings
from tvmm.vnc.client_messages import ExtendedKeyEvent

__all__ = ["runner"]

pytestmark = pytest.mark.guest

DISPLAY = ("--display", "bochs-display")


class Person:
    """Somebody at a viewer of the server at a unix socket."""

    def __init__(self, path: Path) -> None:
        self.viewer = RfbViewer()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SECONDS)
        self.socket.connect(str(path))
        self.until(lambda: self.viewer.running)
        self.viewer.set_encodings(encodings.RAW, encodings.DESKTOP_SIZE)
        self.viewer.request(incremental=False)
        self.until(lambda: bool(self.viewer.updates))

    def until(self, condition: Callable[[], object]) -> None:
        """Talk until it holds."""
        while not condition():
            self.say()
            data = self.socket.recv(1 << 16)
            assert data, "the server has hung up"
            seen = len(self.viewer.updates)
            self.viewer.receive(data)
            if len(self.viewer.updates) > seen:
                self.viewer.request()
        self.say()

    def say(self, data: bytes = b"") -> None:
        """Send what there is, and `data`."""
        self.viewer.send(data)
        self.socket.sendall(self.viewer.take_output())

    def until_colour(self, *colour: int) -> None:
        """In the middle of the picture."""
        viewer = self.viewer
        self.until(lambda: viewer.colour(viewer.width // 2, viewer.height // 2) == colour)


@contextmanager
def watched(runner: Runner, path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Person]]:
    """A guest, whose memory is full, and somebody who looks at it."""
    with runner.source(*DISPLAY, "--vnc", f"unix:{path}") as source:
        ask(source, "dirty 0 32M 1")
        ask(source, "screen mode 640x480")
        ask(source, "screen fill 102030")
        person = Person(path)
        person.until_colour(0x10, 0x20, 0x30)
        yield source, person
        person.socket.close()


def resident_kib(process: subprocess.Popen[bytes]) -> int:
    """Memory that it has, its guest's included."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    (kib,) = re.findall(r"VmRSS:\s+(\d+)", text)
    return int(kib)


def test_a_viewer_stays(runner: Runner, tmp_path: Path) -> None:
    """It sees and types where the guest is; the verb does not wait for it, and the source, small by then, does."""
    with watched(runner, tmp_path / "vnc") as (source, person), runner.destination(*DISPLAY) as destination:
        full = resident_kib(source)
        status, _, said = runner.migrate()
        assert status == 0, said
        read_until(source.stderr, b"1 viewer is relayed until they leave")
        ask(destination, "screen fill 405060")
        person.until_colour(0x40, 0x50, 0x60)
        assert runner.status(runner.names["here"]) == "postmigrate"
        until(lambda: resident_kib(source) < full - (24 << 10))
        order(destination, "keys 60")
        read_until(destination.stdout, b"Ctrl-C here to end")
        person.say(ExtendedKeyEvent(True, 0, 0x1E).pack())
        read_until(destination.stdout, b"key 30 down")
        person.socket.close()
        read_until(destination.stdout, b"key 30 up")
        assert source.wait(30) == 4


def test_with_a_pairing_code(runner: Runner, tmp_path: Path) -> None:
    """Over TCP, encrypted, and compressed; a signal ends the source at once, with its guest's status."""
    with (
        watched(runner, tmp_path / "vnc") as (source, person),
        runner.destination("--pair", *DISPLAY, uri="tcp:127.0.0.1:0") as destination,
    ):
        told = told_by(destination)
        (code,) = re.findall(r"code is ([0-9A-Z-]+)", told)
        (port,) = re.findall(r"tcp:127.0.0.1:(\d+)", told)
        status, _, said = runner.migrate("--pair", code, to=f"127.0.0.1:{port}")
        assert status == 0, said
        ask(destination, "screen fill 405060")
        person.until_colour(0x40, 0x50, 0x60)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", int(port)), 5)
        source.send_signal(signal.SIGTERM)
        assert source.wait(30) == 4
        assert b"the guest has moved to" in read_until(source.stderr, b"ending the machine")


def test_the_destination_is_killed(runner: Runner, tmp_path: Path) -> None:
    """The viewer is sent away, and the source ends."""
    with watched(runner, tmp_path / "vnc") as (source, person), runner.destination(*DISPLAY) as destination:
        status, _, said = runner.migrate()
        assert status == 0, said
        ask(destination, "screen fill 405060")
        person.until_colour(0x40, 0x50, 0x60)
        destination.kill()
        assert source.wait(30) == 4
        while person.socket.recv(1 << 16):
            pass


def test_a_destination_without_a_relay(runner: Runner, tmp_path: Path) -> None:
    """One that dies before the connection for the screen leaves nobody waiting for long."""
    with watched(runner, tmp_path / "vnc") as (source, person), runner.destination(*DISPLAY) as destination:
        status, _, said = runner.migrate()
        assert status == 0, said
        destination.kill()
        assert source.wait(40) == 4
        person.socket.close()
