"""Guest pages that system calls stay in for as long as a test likes: userfaultfd(2) with nobody who answers.

A read into such a page is a request that a slow disk has not answered yet, on any engine, and at no real disk's mercy.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from struct import pack
from typing import TYPE_CHECKING

import pytest
import trio

from tvmm.kvm.calls import ffi

if TYPE_CHECKING:
    from tvmm.memory.ram import GuestRam

__all__ = ["SlowPages"]

SYS_USERFAULTFD = 323
UFFD_API = 0xAA
UFFDIO_API, UFFDIO_REGISTER = 0xC018_AA3F, 0xC020_AA00
MODE_MISSING = 1
PAGE = 4096


class SlowPages:
    """`count` pages from `gpa` on, which nobody has touched yet. Skips the test where the kernel does not allow it."""

    def __init__(self, ram: GuestRam, gpa: int, count: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            pytest.skip(f"userfaultfd: {os.strerror(ctypes.get_errno())}")
        [(region, offset, _)] = list(ram.regions.spans(gpa, count * PAGE))
        buffer = ffi.from_buffer(ram.blocks[region.block].view)
        address = int(ffi.cast("uintptr_t", buffer)) + offset
        ffi.release(buffer)
        fcntl.ioctl(self.fd, UFFDIO_API, pack("QQQ", UFFD_API, 0, 0))
        fcntl.ioctl(self.fd, UFFDIO_REGISTER, pack("QQQQ", address, count * PAGE, MODE_MISSING, 0))

    async def wait_stuck(self) -> None:
        """Return when somebody waits for one of the pages."""
        with trio.fail_after(30):
            await trio.lowlevel.wait_readable(self.fd)

    def release(self) -> None:
        """Ordinary pages from now on, of zeroes."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
