"""Output to a file: begun anew or continued, refused where it is none, held while the disk is full."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.chardev.fakes import FakeActions, FakeGuest, odd_bytes, open_descriptors
from tvmm.chardev.file import FileBackend
from tvmm.chardev.port import SerialHub
from tvmm.errors import ConfigError, HostError


async def log(path: Path, data: bytes, *, append: bool = False) -> FakeActions:
    """A guest that writes `data` and ends."""
    guest, actions = FakeGuest(), FakeActions()
    async with FileBackend(str(path), actions, append=append) as backend, trio.open_nursery() as nursery:
        nursery.start_soon(SerialHub(guest, backend).run)
        await guest.write_chunks(data)
        guest.finish()
    return actions


async def test_everything_is_written(tmp_path: Path) -> None:
    """1 MiB in odd pieces is in the file when the guest has ended, without any warning."""
    data = odd_bytes(1 << 20)
    actions = await log(tmp_path / "log", data)
    assert (tmp_path / "log").read_bytes() == data
    assert not actions.warnings


@pytest.mark.parametrize(("append", "content"), [(False, b"new"), (True, b"old new")])
async def test_existing_file(append: bool, content: bytes, tmp_path: Path) -> None:
    """A file that exists is begun anew, or continued if asked for."""
    (tmp_path / "log").write_bytes(b"old ")
    await log(tmp_path / "log", b"new", append=append)
    assert (tmp_path / "log").read_bytes() == content


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


@pytest.mark.parametrize(
    ("make", "what"),
    [(Path.mkdir, "a directory"), (os.mkfifo, "not a regular file"), (_socket, "a socket")],
    ids=["directory", "fifo", "socket"],
)
async def test_what_is_no_file_is_refused(make: Callable[[Path], None], what: str, tmp_path: Path) -> None:
    """A path that is taken by something else is refused at once, and left as it is."""
    make(tmp_path / "log")
    mode = (tmp_path / "log").stat().st_mode
    before = open_descriptors()
    with pytest.raises(ConfigError, match=what):
        await log(tmp_path / "log", b"")
    assert (tmp_path / "log").stat().st_mode == mode
    assert open_descriptors() == before


async def test_device_is_refused() -> None:
    """A device is refused with a hint at what does the same."""
    with pytest.raises(ConfigError, match="use none"):
        await log(Path("/dev/null"), b"")


async def test_missing_directory_is_an_error(tmp_path: Path) -> None:
    """A file that cannot be made is one line that says why."""
    with pytest.raises(HostError, match="No such file"):
        await log(tmp_path / "nowhere" / "log", b"")


async def test_full_disk_holds_the_guest(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is full nothing is lost and nobody is flooded: one warning then, one when it is over."""
    disk = FillingDisk(room=5000, full_for=4)
    monkeypatch.setattr(os, "write", disk.write)
    data = odd_bytes(200_000)
    actions = await log(tmp_path / "log", data)
    monkeypatch.undo()
    assert (tmp_path / "log").read_bytes() == data
    assert disk.refusals == 4
    assert [("No space left" in text, "nothing is lost" in text) for text in actions.warnings] == [
        (True, False),
        (False, True),
    ]


class FillingDisk:
    """`os.write` on a disk that has `room` bytes, is full for some tries and then is emptied."""

    def __init__(self, room: int, full_for: int) -> None:
        self.refusals = 0
        self._room = room
        self._full_for = full_for
        self._write = os.write

    def write(self, fd: int, data: bytes) -> int:
        """As `os.write`."""
        if threading.current_thread() is threading.main_thread():
            return self._write(fd, data)
        if self._room > 0:
            count = self._write(fd, data[: self._room])
            self._room -= count
            return count
        if self.refusals < self._full_for:
            self.refusals += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(fd, data)
