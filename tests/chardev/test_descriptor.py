"""Borrowed descriptors: a description of our own where there can be one, the old flags where there cannot."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.chardev.fakes import open_descriptors
from tvmm.chardev.descriptor import borrow


async def test_master_of_a_pty_is_not_opened_again() -> None:
    """The master stays itself: it writes to its own slave, and it blocks again afterwards."""
    master, slave = os.openpty()
    with borrow(master, os.O_WRONLY) as ours:
        await ours.write(b"a\n")
        assert os.read(slave, 2) == b"a\n"
        assert not os.get_blocking(master)
    assert os.get_blocking(master)
    os.close(master)
    os.close(slave)


async def test_flags_of_a_socket_come_back() -> None:
    """A socket is non-blocking only while it is borrowed, also if borrowed twice and the block fails."""
    left, right = socket.socketpair()
    fd = left.fileno()

    async def use_and_fail() -> None:
        with borrow(fd, os.O_RDONLY) as reading, borrow(fd, os.O_WRONLY) as writing:
            await writing.write(b"out")
            right.send(b"in")
            assert await reading.read(10) == b"in"
            raise KeyError

    with pytest.raises(KeyError):
        await use_and_fail()
    assert os.get_blocking(fd)
    left.close()
    right.close()


async def test_pipe_is_opened_again() -> None:
    """A pipe is non-blocking for us and still blocking for others; our description goes with the block."""
    reading, writing = os.pipe()
    before = open_descriptors()
    with borrow(reading, os.O_RDONLY) as ours:
        assert ours.fd != reading
        assert (os.get_blocking(ours.fd), os.get_blocking(reading)) == (False, True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.read, 10)
            await trio.testing.wait_all_tasks_blocked()
            os.write(writing, b"now")
    assert open_descriptors() == before
    os.close(reading)
    os.close(writing)


async def test_file_is_shared(tmp_path: Path) -> None:
    """A regular file is used as it is, so that its offset stays common."""
    (tmp_path / "file").write_bytes(b"onetwo")
    with open(tmp_path / "file", "rb", buffering=0) as file, borrow(file.fileno(), os.O_RDONLY) as ours:
        assert file.read(3) == b"one"
        assert await ours.read(10) == b"two"
        assert await ours.read(10) == b""


async def test_waiting_can_be_cancelled() -> None:
    """A read of an empty and a write to a full pipe end at once when cancelled."""
    reading, writing = os.pipe()
    with borrow(reading, os.O_RDONLY) as source, borrow(writing, os.O_WRONLY) as sink:
        with trio.move_on_after(0.01) as scope:
            await source.read(1)
        assert scope.cancelled_caught
        with trio.move_on_after(0.01) as scope:
            await sink.write(bytes(1 << 20))
        assert scope.cancelled_caught
    os.close(reading)
    os.close(writing)


def test_closed_descriptor_is_an_error() -> None:
    """A number that nothing is open on raises `OSError`."""
    with pytest.raises(OSError, match="Bad file descriptor"), borrow(1 << 18, os.O_RDONLY):
        pass
