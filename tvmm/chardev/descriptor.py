"""Descriptors that somebody else gave us, read and written without blocking the loop.

O_NONBLOCK belongs to the open file description, which stdin, stdout and stderr usually share with the shell
and with everything else that runs on the terminal; setting it there breaks programs that outlive us. So the
terminal or pipe is opened once more through /proc/self/fd, which gives a description of our own. Regular
files and block devices keep the description they came with, because it holds the offset, and need no flag,
because they never block in the sense of O_NONBLOCK. What can neither be opened again nor does without (a
socket, a terminal of another user) has the flag set and given back at the end.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Descriptor", "borrow"]

PTMX = os.makedev(5, 2)
"""The pty multiplexer: to open it again gives another pty, not another description of this one."""


class Descriptor:
    """A descriptor that is non-blocking or never blocks. Raises `OSError` as the system calls do.

    `read` and `write` may run at the same time, but two reads, or two writes, may not.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    async def read(self, limit: int) -> bytes:
        """Wait for bytes and return up to `limit` of them; empty at the end of the file."""
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return os.read(self.fd, limit)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.fd)

    async def write_some(self, data: bytes | memoryview) -> int:
        """Wait until some of `data` can be written, write it and return how much it was.

        Lets others run only if it has to wait: it is called for each burst of a guest's output, by loops that
        wait for the burst.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                return os.write(self.fd, data)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self.fd)

    async def write(self, data: bytes) -> None:
        """Write all of `data`. If cancelled, an unknown part of it was written."""
        rest = memoryview(data)
        while rest:
            rest = rest[await self.write_some(rest) :]


@contextmanager
def borrow(fd: int, access: int) -> Iterator[Descriptor]:
    """Use `fd`, which stays open, for `access` (`os.O_RDONLY` or `os.O_WRONLY`).

    Raises `OSError` if `fd` is not open.
    """
    info = os.fstat(fd)
    if stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode):
        yield Descriptor(fd)
        return
    ours = _open_again(fd, access, info)
    if ours >= 0:
        try:
            yield Descriptor(ours)
        finally:
            os.close(ours)
        return
    was_blocking = os.get_blocking(fd)
    os.set_blocking(fd, False)
    try:
        yield Descriptor(fd)
    finally:
        os.set_blocking(fd, was_blocking)


def _open_again(fd: int, access: int, info: os.stat_result) -> int:
    """A new description of what `fd` is open on, or -1 if there can be none."""
    if stat.S_ISCHR(info.st_mode) and info.st_rdev == PTMX:
        return -1
    try:
        return os.open(f"/proc/self/fd/{fd}", access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return -1
