"""The unix socket that the control server listens at."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.control.fakes import FakeMachine, connected, serving
from tvmm.control.listener import unix_listener
from tvmm.control.server import ControlServer
from tvmm.errors import HostError, UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the control socket goes."""
    return tmp_path / "control.sock"


async def test_socket_belongs_to_its_user_alone(path: Path) -> None:
    """The socket's mode is 0600 whatever the umask."""
    before = os.umask(0)
    try:
        async with unix_listener(path):
            assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    finally:
        os.umask(before)
    assert not path.exists()


async def test_stale_socket_is_replaced(path: Path) -> None:
    """A socket that nobody listens at any more does not stand in the way."""
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    async with serving(FakeMachine(), path), connected(path):
        pass


async def test_socket_in_use_is_left_alone(path: Path) -> None:
    """A second server at the same path is refused; the first goes on."""
    async with serving(FakeMachine(), path):
        with pytest.raises(HostError, match="in use"):
            async with unix_listener(path):
                pass
        async with connected(path):
            pass


async def test_socket_whose_queue_is_full_is_in_use(path: Path) -> None:
    """A listener that does not accept is alive all the same."""
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(HostError, match="in use"):
            async with unix_listener(path):
                pass


async def test_file_in_the_way_is_left_alone(path: Path) -> None:
    """A file that is not a socket is neither removed nor written to."""
    path.write_text("precious")
    with pytest.raises(HostError, match="not a socket"):
        async with unix_listener(path):
            pass
    assert path.read_text() == "precious"


async def test_directory_that_is_not_there(tmp_path: Path) -> None:
    """A path in a directory that does not exist is the user's error, in one line."""
    with pytest.raises(HostError, match="No such file"):
        async with unix_listener(tmp_path / "none" / "control.sock"):
            pass


async def test_path_too_long(tmp_path: Path) -> None:
    """A path that no unix socket can have is refused with the limit."""
    with pytest.raises(UserError, match="at most 107"):
        async with unix_listener(tmp_path / ("x" * 120)):
            pass


async def test_socket_that_was_replaced_is_not_removed(path: Path) -> None:
    """At its end a server removes its own socket only."""
    async with serving(FakeMachine(), path):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


async def test_many_starters_at_one_path(path: Path) -> None:
    """Of several servers that start at one path, stale socket and all, exactly one gets it and is
    reachable."""
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    outcomes: list[str] = []

    async def start(nursery: trio.Nursery, name: str) -> None:
        try:
            await nursery.start(ControlServer(FakeMachine(name), path).serve)
        except HostError:
            outcomes.append("")
        else:
            outcomes.append(name)

    async with trio.open_nursery() as servers:
        async with trio.open_nursery() as starters:
            for number in range(5):
                starters.start_soon(start, servers, f"m{number}")
        [winner] = [name for name in outcomes if name]
        assert len(outcomes) == 5
        async with connected(path) as peer:
            assert await peer.ask("query-name") == {"return": {"name": winner}}
        servers.cancel_scope.cancel()


async def test_socket_while_another_process_holds_the_directory(
    path: Path, autojump_clock: MockClock
) -> None:
    """A directory that somebody keeps locked makes the server give up with a reason."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(HostError, match="locked"):
            async with unix_listener(path):
                pass
    finally:
        os.close(descriptor)
