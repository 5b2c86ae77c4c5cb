"""Each backend with what it takes to reach it from outside, in one shape, for the contract suite."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from tests.chardev.fakes import FakeActions
from tvmm.chardev.port import Backend
from tvmm.chardev.pty import PtyBackend
from tvmm.chardev.stdio import StdioBackend
from tvmm.chardev.tcp import TcpBackend
from tvmm.chardev.unix import UnixBackend


class Viewer(NamedTuple):
    """Somebody at the other end. For some ways of connecting both are the same stream."""

    output: trio.abc.ReceiveStream
    input: trio.abc.SendStream

    async def receive(self, count: int, limit: int = 65536) -> bytes:
        """The next `count` bytes, read at most `limit` at a time; fewer if the output ends."""
        data = bytearray()
        try:
            while len(data) < count and (
                more := await self.output.receive_some(min(limit, count - len(data)))
            ):
                data += more
        except trio.BrokenResourceError:  # a terminal or a connection that was hung up
            pass
        return bytes(data)

    async def close(self) -> None:
        """Leave, also if cancelled."""
        try:
            await trio.aclose_forcefully(self.output)
        finally:
            await trio.aclose_forcefully(self.input)


class Rig(NamedTuple):
    """A backend that is not acquired yet, and how to reach it once it is."""

    backend: Backend
    connect: Callable[[], AbstractAsyncContextManager[Viewer]]
    names: tuple[Path, ...] = ()
    """Names in the file system that exist exactly while the backend is acquired."""


MakeRig = Callable[[Path], AbstractAsyncContextManager[Rig]]


def _twice(fd: int) -> Viewer:
    """A viewer that reads and writes the same thing; takes the descriptor."""
    os.set_blocking(fd, False)
    return Viewer(trio.lowlevel.FdStream(fd), trio.lowlevel.FdStream(os.dup(fd)))


@asynccontextmanager
async def stdio_terminal(tmp_path: Path) -> AsyncIterator[Rig]:
    """Standard input and output are the same terminal."""
    master, slave = os.openpty()

    @asynccontextmanager
    async def connect() -> AsyncIterator[Viewer]:
        viewer = _twice(os.dup(master))
        try:
            yield viewer
        finally:
            await viewer.close()

    yield Rig(StdioBackend(FakeActions(), stdin=slave, stdout=slave), connect)
    os.close(master)
    os.close(slave)


@asynccontextmanager
async def stdio_pipes(tmp_path: Path) -> AsyncIterator[Rig]:
    """Standard input and output are pipes, as in a script."""
    stdin, typed = os.pipe()
    shown, stdout = os.pipe()

    @asynccontextmanager
    async def connect() -> AsyncIterator[Viewer]:
        viewer = Viewer(trio.lowlevel.FdStream(os.dup(shown)), trio.lowlevel.FdStream(os.dup(typed)))
        try:
            yield viewer
        finally:
            await viewer.close()

    yield Rig(StdioBackend(FakeActions(), stdin=stdin, stdout=stdout), connect)
    for fd in (stdin, typed, shown, stdout):
        os.close(fd)


@asynccontextmanager
async def stdio_socket(tmp_path: Path) -> AsyncIterator[Rig]:
    """Standard input and output are one socket, as under inetd; it cannot be opened a second time."""
    ours, theirs = socket.socketpair()

    @asynccontextmanager
    async def connect() -> AsyncIterator[Viewer]:
        viewer = _twice(os.dup(ours.fileno()))
        try:
            yield viewer
        finally:
            await viewer.close()

    fd = theirs.fileno()
    yield Rig(StdioBackend(FakeActions(), stdin=fd, stdout=fd), connect)
    ours.close()
    theirs.close()


@asynccontextmanager
async def pty(tmp_path: Path) -> AsyncIterator[Rig]:
    """A pseudo-terminal that is opened through its link."""
    link = tmp_path / "console"

    @asynccontextmanager
    async def connect() -> AsyncIterator[Viewer]:
        viewer = _twice(os.open(link, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        try:
            yield viewer
        finally:
            await viewer.close()

    yield Rig(PtyBackend(str(link)), connect, (link,))


@asynccontextmanager
async def unix(tmp_path: Path) -> AsyncIterator[Rig]:
    """A unix socket."""
    path = tmp_path / "serial.sock"

    @asynccontextmanager
    async def connect() -> AsyncIterator[Viewer]:
        async with await trio.open_unix_socket(path) as stream:
            yield Viewer(stream, stream)

    yield Rig(UnixBackend(str(path)), connect, (path,))


@asynccontextmanager
async def tcp(tmp_path: Path) -> AsyncIterator[Rig]:
    """A TCP port on loopback."""
    backend = TcpBackend("127.0.0.1", 0)

    @asynccontextmanager
    async def connect() -> AsyncIterator[Viewer]:
        host, port = backend.path.rsplit(":", 1)
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            yield Viewer(stream, stream)

    yield Rig(backend, connect)


TWO_WAY: dict[str, MakeRig] = {
    "stdio-terminal": stdio_terminal,
    "stdio-pipes": stdio_pipes,
    "stdio-socket": stdio_socket,
    "pty": pty,
    "unix": unix,
    "tcp": tcp,
}
"""Every backend that carries bytes both ways."""

RECONNECTING = {name: TWO_WAY[name] for name in ("pty", "unix", "tcp")}
"""Those that somebody connects to."""
