"""userfaultfd: page faults of this process, also those that KVM takes for the guest, as messages (uffd.h).

A fault in a range that is registered waits until somebody has put the page there, woken it, or unregistered the range.
Whoever waits may hold the interpreter lock: who answers must not need it.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.errors import HostError
from tvmm.kvm.calls import ffi, lib

if TYPE_CHECKING:
    from tvmm.memory.ram import RamBlock

__all__ = [
    "FAULT_PROTECTED",
    "FAULT_WRITE",
    "FEATURE_MISSING_SHMEM",
    "FEATURE_PROTECT",
    "FEATURE_PROTECT_SHMEM",
    "MISSING",
    "PROTECT",
    "Fault",
    "Uffd",
    "can_wait_for_pages",
]

MISSING, PROTECT = int(lib.UFFDIO_REGISTER_MODE_MISSING), int(lib.UFFDIO_REGISTER_MODE_WP)
"""What a range is registered for: pages that are absent, and writes to pages that are protected."""
FEATURE_MISSING_SHMEM = int(lib.UFFD_FEATURE_MISSING_SHMEM)
FEATURE_PROTECT = int(lib.UFFD_FEATURE_PAGEFAULT_FLAG_WP)
FEATURE_PROTECT_SHMEM = int(lib.UFFD_FEATURE_WP_HUGETLBFS_SHMEM)
FAULT_WRITE, FAULT_PROTECTED = int(lib.UFFD_PAGEFAULT_FLAG_WRITE), int(lib.UFFD_PAGEFAULT_FLAG_WP)
PAGE = 4096


class Fault(NamedTuple):
    """Somebody waits: at which of the blocks, byte `offset` of its page there, and `FAULT_` flags."""

    block: str
    offset: int
    flags: int


class Uffd:
    """A userfaultfd and the blocks that are registered with it."""

    def __init__(self, features: int = 0) -> None:
        """Raises `HostError` where it is not allowed, or has not all of `features`."""
        fd = int(lib.tvmm_uffd_open(features))
        if fd < 0:
            raise _open_error(-fd)
        self.fd = fd
        self._ranges: dict[str, tuple[int, int]] = {}
        self._buffers: dict[str, Any] = {}

    def register(self, block: RamBlock, mode: int) -> None:
        """All of a block, for `MISSING`, `PROTECT`, or both. Keeps its buffer until it is unregistered.

        Raises `HostError` for huge pages and for what is mapped from a file: pages must be ordinary ones.
        """
        if block.fd >= 0 and os.fstatvfs(block.fd).f_bsize != PAGE:
            raise HostError(
                f"{block.name} is of huge pages, and single pages of it cannot be waited for",
                "start without hugepages= in --memory",
            )
        buffer = ffi.from_buffer("uint8_t[]", block.view)
        error = -int(lib.tvmm_uffd_register(self.fd, buffer, len(buffer), mode, ffi.new("uint64_t *")))
        if error:
            ffi.release(buffer)
            raise HostError(f"the host does not report faults of {block.name}: {os.strerror(error)}")
        start = int(ffi.cast("uintptr_t", buffer))
        self._buffers[block.name] = buffer
        self._ranges[block.name] = (start, start + len(buffer))

    def unregister(self, name: str) -> None:
        """From any thread; whoever waits there goes on. Idempotent."""
        buffer = self._buffers.pop(name, None)
        if buffer is None:
            return
        lib.tvmm_uffd_unregister(self.fd, buffer, len(buffer))
        del self._ranges[name]
        ffi.release(buffer)

    def copy(self, name: str, page: int, data: bytes | memoryview) -> bool:
        """Put a page there and wake those that wait; False if there is one already. Raises `OSError`."""
        if len(data) != PAGE:
            raise ValueError(f"a page has {PAGE} bytes, not {len(data)}")
        with ffi.from_buffer("uint8_t[]", data) as source:
            return _placed(int(lib.tvmm_uffd_copy(self.fd, self._at(name, page), source, PAGE, 0)))

    def zero(self, name: str, page: int) -> bool:
        """The same with zeros."""
        return _placed(int(lib.tvmm_uffd_zero(self.fd, self._at(name, page), PAGE, 0)))

    def wake(self, name: str, first: int, count: int = 1) -> None:
        """Those that wait at these pages look again."""
        lib.tvmm_uffd_wake(self.fd, self._at(name, first, count), count * PAGE)

    def protect(self, name: str, first: int, count: int, *, on: bool) -> None:
        """Have writes to these pages wait, or let them go on. Raises `OSError`."""
        mode = lib.UFFDIO_WRITEPROTECT_MODE_WP if on else 0
        error = -int(lib.tvmm_uffd_protect(self.fd, self._at(name, first, count), count * PAGE, mode))
        if error:
            raise OSError(error, f"write protection of guest memory: {os.strerror(error)}")

    def read(self) -> list[Fault]:
        """Those that have come, without waiting; `fd` is readable when there are some. Raises `OSError`."""
        room = int(lib.TVMM_UFFD_READ_MAX)
        faults = ffi.new("struct tvmm_uffd_fault[]", room)
        count = int(lib.tvmm_uffd_read(self.fd, faults, room))
        if count < 0:
            raise OSError(-count, os.strerror(-count))
        found = []
        for fault in faults[0:count]:
            for name, (start, end) in self._ranges.items():
                if start <= fault.address < end:
                    found.append(Fault(name, int(fault.address) - start, int(fault.flags)))
        return found

    def close(self) -> None:
        """Unregisters all; nobody may be in a call. Idempotent."""
        for name in list(self._buffers):
            self.unregister(name)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _at(self, name: str, page: int, count: int = 1) -> Any:
        buffer = self._buffers[name]
        if page < 0 or count < 1 or page + count > len(buffer) // PAGE:
            raise ValueError(f"block {name} has no {count} pages from {page} on")
        return buffer + page * PAGE


def can_wait_for_pages(block: RamBlock) -> bool:
    """Whether who touches an absent page of this block can be made to wait for it."""
    if block.fd >= 0 and os.fstatvfs(block.fd).f_bsize != PAGE:
        return False
    try:
        Uffd(FEATURE_MISSING_SHMEM).close()
    except HostError:
        return False
    return True


def _placed(done: int) -> bool:
    if done == -errno.EEXIST:
        return False
    if done < 0:
        raise OSError(-done, f"a page of guest memory: {os.strerror(-done)}")
    return True


def _open_error(error: int) -> HostError:
    if error in (errno.EPERM, errno.EACCES):
        return HostError(
            "the host does not let this user wait for pages of memory (userfaultfd)",
            "allow it with 'sysctl vm.unprivileged_userfaultfd=1', or give access to /dev/userfaultfd",
        )
    if error == errno.EOPNOTSUPP:
        return HostError("the kernel's userfaultfd is too old for this", "use Linux 5.19 or later")
    if error == errno.ENOSYS:
        return HostError("the kernel has no userfaultfd", "use one with CONFIG_USERFAULTFD")
    return HostError(f"no userfaultfd: {os.strerror(error)}", "raise the limit with 'ulimit -n'")
