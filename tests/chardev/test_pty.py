"""The pseudo-terminal: its mode, its link, viewers that come back."""

from __future__ import annotations

import os
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.chardev.fakes import FakeGuest
from tvmm.chardev.port import SerialHub
from tvmm.chardev.pty import PtyBackend
from tvmm.errors import ConfigError, HostError

pytestmark = [pytest.mark.timeout(30), pytest.mark.usefixtures("autojump_clock")]


@asynccontextmanager
async def running(guest: FakeGuest) -> AsyncIterator[PtyBackend]:
    """A pty with a guest behind it."""
    async with PtyBackend() as backend, trio.open_nursery() as nursery:
        nursery.start_soon(SerialHub(guest, backend).run)
        yield backend
        nursery.cancel_scope.cancel()


def opened(path: str) -> int:
    """The viewer's side."""
    return os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)


async def test_bytes_pass_unchanged_from_the_start() -> None:
    """Without any setting up by the viewer each byte value passes both ways, and nothing is echoed."""
    guest = FakeGuest()
    everything = bytes(range(256))
    async with (
        running(guest) as backend,
        trio.lowlevel.FdStream(opened(backend.path)) as stream,
    ):
        await stream.send_all(everything)
        assert await guest.wait_received(256) == everything
        await guest.write(everything)
        received = b""
        while len(received) < 256:
            received += await stream.receive_some()
        assert received == everything
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert guest.received == everything


async def test_mode_is_raw_again_for_the_next_viewer() -> None:
    """A viewer that leaves the terminal echoing does not make the next one's guest talk to itself."""
    guest = FakeGuest()
    async with running(guest) as backend:
        fd = opened(backend.path)
        attributes = termios.tcgetattr(fd)
        attributes[3] |= termios.ECHO | termios.ICANON
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
        await trio.testing.wait_all_tasks_blocked(0.01)
        os.close(fd)
        await trio.testing.wait_all_tasks_blocked(0.01)
        fd = opened(backend.path)
        assert not termios.tcgetattr(fd)[3] & (termios.ECHO | termios.ICANON)
        os.close(fd)


async def test_input_of_a_short_visit_arrives() -> None:
    """What `echo hello >/dev/pts/N` writes reaches the guest, though it is gone before anyone looks."""
    guest = FakeGuest()
    async with running(guest) as backend:
        for turn in range(1, 4):
            fd = opened(backend.path)
            os.write(fd, b"hello")
            os.close(fd)
            await guest.wait_received(5 * turn)
    assert guest.received == b"hello" * 3


async def test_machine_ends_without_a_viewer() -> None:
    """With nobody connected the guest's end is the backend's, too."""
    guest = FakeGuest()
    async with PtyBackend() as backend:
        await guest.write(b"bye")
        guest.finish()
        await SerialHub(guest, backend).run()


async def test_link_leads_to_the_terminal(tmp_path: Path) -> None:
    """The link exists while the backend is acquired, also when a killed process left its own."""
    link = tmp_path / "console"
    link.symlink_to("/dev/pts/99999")
    async with PtyBackend(str(link)) as backend:
        assert os.readlink(link) == backend.path
        assert list(tmp_path.iterdir()) == [link]
    assert list(tmp_path.iterdir()) == []


async def test_link_of_somebody_else_stays(tmp_path: Path) -> None:
    """A link that another process has taken over meanwhile is not removed."""
    link = tmp_path / "console"
    async with PtyBackend(str(link)):
        link.unlink()
        link.symlink_to("/dev/pts/99999")
    assert os.readlink(link) == "/dev/pts/99999"


async def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    """A file, and a link to one, are refused and stay."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with pytest.raises(ConfigError, match="no link to a pseudo-terminal"):
            async with PtyBackend(str(tmp_path / name)):
                pass
        assert (tmp_path / name).read_text() == "precious"


async def test_link_into_nowhere_is_an_error(tmp_path: Path) -> None:
    """A link that cannot be made is one line that says why."""
    with pytest.raises(HostError, match="No such file"):
        async with PtyBackend(str(tmp_path / "nowhere" / "link")):
            pass
