"""Real NBD servers, started at a socket, killed and started again."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = ["PROGRAMS", "RealServer", "need", "real_server"]


def need(*programs: str) -> None:
    """Skip without them."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def _qemu_nbd(socket: Path, image: Path, kind: str) -> list[str]:
    return ["qemu-nbd", "-t", "-e", "16", "-f", kind, "-x", "disk", "-k", str(socket), str(image)]


def _storage_daemon(socket: Path, image: Path, kind: str) -> list[str]:
    return [
        "qemu-storage-daemon",
        "--blockdev", f"driver=file,filename={image},node-name=file,discard=unmap",
        "--blockdev", f"driver={kind},file=file,node-name=disk,discard=unmap",
        "--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=16",
        "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
    ]  # fmt: skip


def _nbdkit(socket: Path, image: Path, kind: str) -> list[str]:
    assert kind == "raw"
    return ["nbdkit", "--foreground", "--unix", str(socket), "--exportname", "disk", "file", str(image)]


PROGRAMS = {"qemu-nbd": _qemu_nbd, "qemu-storage-daemon": _storage_daemon, "nbdkit": _nbdkit}


class RealServer:
    """One at `socket`, over an image that is `kind`."""

    def __init__(self, program: str, socket: Path, image: Path, kind: str = "raw") -> None:
        need(program)
        self.program = program
        self.socket = socket
        self.command = PROGRAMS[program](socket, image, kind)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """For `--disk`."""
        return f"nbd+unix:///disk?socket={self.socket}"

    async def start(self) -> None:
        """Return when it listens."""
        self._process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)
        with trio.fail_after(20):
            while True:
                assert self._process.poll() is None, "it has ended"
                try:
                    (await trio.open_unix_socket(str(self.socket))).socket.close()
                except OSError:
                    await trio.sleep(0.01)
                else:
                    return

    async def kill(self) -> None:
        """At once, and without a word."""
        assert self._process is not None
        self._process.kill()
        await trio.to_thread.run_sync(self._process.wait)
        self.socket.unlink(missing_ok=True)

    def end(self) -> None:
        """Whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@asynccontextmanager
async def real_server(program: str, folder: Path, image: Path, kind: str = "raw") -> AsyncIterator[RealServer]:
    """Running within the block."""
    server = RealServer(program, folder / "nbd.sock", image, kind)
    try:
        await server.start()
        yield server
    finally:
        server.end()
