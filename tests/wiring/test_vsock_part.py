"""The host's side of a socket device without a guest: who may connect, and for how long nothing may be said."""

from __future__ import annotations

import os
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
import trio.testing

from tvmm.config.vsock import VsockConfig
from tvmm.wiring.vsock import HANDSHAKE_SECONDS, MAX_HANDSHAKES, VsockPart


class Runner:
    """In place of a `VsockRunner`: keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[int, int]] = []
        self.closed = 0

    def connect(self, fd: int, port: int) -> None:
        """A client that has said what it wants."""
        self.given.append((port, fd))

    def close_connections(self) -> None:
        """The guest has left."""
        self.closed += 1


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def part(tmp_path: Path, runner: Runner) -> VsockPart:
    path = str(tmp_path / "v")
    return VsockPart(VsockConfig(path, "vsock0"), runner, path)  # type: ignore[arg-type]


async def ended(stream: trio.SocketStream) -> bool:
    """Whether nothing comes but the end."""
    try:
        return not await stream.receive_some(1)
    except trio.BrokenResourceError:
        return True


async def test_words_in_pieces(part: VsockPart, runner: Runner, tmp_path: Path) -> None:
    """They are put together, and what comes behind them is left for the guest."""
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        await part.listen(stack, nursery)
        stream = await trio.open_unix_socket(str(tmp_path / "v"))
        for piece in (b"CON", b"NECT 8", b"0\nhello"):
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked(0.01)
        [(port, fd)] = runner.given
        with socket.socket(fileno=fd) as connection:
            assert not os.get_blocking(fd)
            assert (port, connection.recv(100)) == (80, b"hello")
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_silence_is_not_waited_for(part: VsockPart, tmp_path: Path, autojump_clock: object) -> None:
    """Who says nothing for so long is turned away."""
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        await part.listen(stack, nursery)
        start = trio.current_time()
        async with await trio.open_unix_socket(str(tmp_path / "v")) as stream:
            assert await ended(stream)
        assert trio.current_time() - start == pytest.approx(HANDSHAKE_SECONDS)
        nursery.cancel_scope.cancel()


async def test_many_who_say_nothing(part: VsockPart, tmp_path: Path) -> None:
    """So many are heard out; those beyond are cut off at once, and room is made when one leaves."""
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        await part.listen(stack, nursery)
        silent = [await trio.open_unix_socket(str(tmp_path / "v")) for _ in range(MAX_HANDSHAKES)]
        async with await trio.open_unix_socket(str(tmp_path / "v")) as stream:
            assert await ended(stream)
        for stream in silent:
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_guest_that_leaves(part: VsockPart, runner: Runner, tmp_path: Path) -> None:
    """The socket goes, and whoever is connected is told."""
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        await part.listen(stack, nursery)
        async with await trio.open_unix_socket(str(tmp_path / "v")) as stream:
            part.leave()
            assert await ended(stream)
        assert not os.path.exists(tmp_path / "v")
        assert runner.closed == 1
