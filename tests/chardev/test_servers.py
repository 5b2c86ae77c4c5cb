"""The socket backends: several viewers, names that are taken, ports in use."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.chardev.fakes import RING_BYTES, FakeGuest, odd_bytes, open_descriptors
from tests.chardev.rigs import Viewer
from tvmm.chardev import server
from tvmm.chardev.port import Backend, SerialHub
from tvmm.chardev.tcp import TcpBackend
from tvmm.chardev.unix import UnixBackend
from tvmm.errors import HostError

pytestmark = pytest.mark.timeout(30)


@asynccontextmanager
async def running(guest: FakeGuest, backend: Backend) -> AsyncIterator[None]:
    """A backend with a guest behind it."""
    async with backend, trio.open_nursery() as nursery:
        nursery.start_soon(SerialHub(guest, backend).run)
        yield
        nursery.cancel_scope.cancel()


async def connect(backend: Backend) -> Viewer:
    """A viewer."""
    stream = await trio.open_unix_socket(backend.path)
    return Viewer(stream, stream)


async def test_first_viewer_holds_and_the_next_inherits(tmp_path: Path) -> None:
    """The guest waits for the viewer that came first, whoever else reads; when it leaves, for the second."""
    guest, backend = FakeGuest(), UnixBackend(str(tmp_path / "s"))
    data = odd_bytes(1 << 20)
    async with running(guest, backend):
        first = await connect(backend)
        await guest.write(b"hello")
        assert await first.receive(5) == b"hello"
        second = await connect(backend)
        assert await second.receive(5) == b"hello"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guest.write_chunks, data)
            await trio.testing.wait_all_tasks_blocked(0.01)
            blocked_at = guest.written
            assert blocked_at < len(data)
            received = await second.receive(blocked_at - RING_BYTES - 5)
            assert guest.written == blocked_at
            await first.close()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert blocked_at < guest.written < len(data)
            received += await second.receive(len(data) - len(received))
        assert received == data
        await second.close()


async def test_viewer_that_joins_gets_the_history(tmp_path: Path) -> None:
    """Who comes while somebody is there has seen nothing yet."""
    guest, backend = FakeGuest(), UnixBackend(str(tmp_path / "s"))
    async with running(guest, backend):
        await guest.write(b"boot messages")
        for viewer in (await connect(backend), await connect(backend)):
            assert await viewer.receive(13) == b"boot messages"
    assert await viewer.receive(1) == b""


async def test_number_of_viewers_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One viewer too many is turned away."""
    monkeypatch.setattr(server, "MAX_VIEWERS", 2)
    guest, backend = FakeGuest(), UnixBackend(str(tmp_path / "s"))
    async with running(guest, backend):
        viewers = [await connect(backend) for _ in range(2)]
        await guest.write(b"a")
        assert [await viewer.receive(1) for viewer in viewers] == [b"a", b"a"]
        third = await connect(backend)
        assert await third.receive(1) == b""
        for viewer in (*viewers, third):
            await viewer.close()


async def test_viewer_that_reads_nothing_cannot_delay_the_end(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """At the guest's end a stuck viewer is given a bounded time."""
    guest, backend = FakeGuest(), UnixBackend(str(tmp_path / "s"))
    async with backend, trio.open_nursery() as nursery:
        hub = SerialHub(guest, backend)
        nursery.start_soon(hub.run)
        viewer = await connect(backend)
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.start_soon(guest.write, odd_bytes(1 << 20))
        await trio.testing.wait_all_tasks_blocked(0.01)
        guest.finish()
        start = trio.current_time()
        await hub.drain()
        assert trio.current_time() - start == pytest.approx(backend.patience)
        nursery.cancel_scope.cancel()
    await viewer.close()


async def test_socket_is_private(tmp_path: Path) -> None:
    """Only the user can connect, and the path is what a viewer opens, also if it was relative."""
    async with UnixBackend(str(tmp_path / "s")) as backend:
        assert os.stat(backend.path).st_mode & 0o777 == 0o600


async def test_relative_path_survives_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket is removed from where it was made."""
    monkeypatch.chdir(tmp_path)
    async with UnixBackend("s"):
        assert (tmp_path / "s").exists()
        monkeypatch.chdir("/")
    assert not (tmp_path / "s").exists()


async def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    """The socket of a process that is no more does not stand in the way."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    guest, backend = FakeGuest(), UnixBackend(str(tmp_path / "s"))
    async with running(guest, backend):
        viewer = await connect(backend)
        await viewer.close()


@pytest.mark.parametrize("taken_by", ["file", "directory", "listener"])
async def test_taken_path_is_refused(taken_by: str, tmp_path: Path) -> None:
    """A path where something else is, or somebody listens, is refused and left alone."""
    path = tmp_path / "s"
    listening = socket.socket(socket.AF_UNIX)
    if taken_by == "file":
        path.write_text("precious")
    elif taken_by == "directory":
        path.mkdir()
    else:
        listening.bind(str(path))
        listening.listen()
    before = path.lstat()
    with pytest.raises(HostError, match=str(path)):
        async with UnixBackend(str(path)):
            pass
    assert os.path.samestat(path.lstat(), before)
    listening.close()


async def test_port_in_use_is_one_line() -> None:
    """A second listener on the same port is told so, and leaves no descriptor."""
    async with TcpBackend("127.0.0.1", 0) as first:
        port = int(first.path.rpartition(":")[2])
        before = open_descriptors()
        with pytest.raises(HostError, match=rf"127\.0\.0\.1:{port}: the port is in use"):
            async with TcpBackend("127.0.0.1", port):
                pass
        assert open_descriptors() == before


async def test_name_without_address_is_one_line() -> None:
    """A host that does not resolve is one clear error."""
    with pytest.raises(HostError, match="cannot listen on"):
        async with TcpBackend("256.256.256.256", 4000):
            pass


async def test_address_of_another_host_is_one_line() -> None:
    """An address that is not ours is one clear error."""
    with pytest.raises(HostError, match=r"cannot listen on 192\.0\.2\.1:4000"):
        async with TcpBackend("192.0.2.1", 4000):
            pass


async def test_localhost_works_whatever_it_resolves_to() -> None:
    """A name with several addresses gives a port that can be connected to."""
    guest, backend = FakeGuest(), TcpBackend("localhost", 0)
    async with running(guest, backend):
        host, _, port = backend.path.rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        await guest.write(b"hello")
        assert await Viewer(stream, stream).receive(5) == b"hello"
        await stream.aclose()
