"""The file or block device behind a disk: opened, checked, locked, measured. All of it waits for the host's disks."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from contextlib import nullcontext
from pathlib import Path
from struct import Struct, unpack
from typing import TYPE_CHECKING

from tvmm.errors import HostError, ImageError
from tvmm.kvm.blk import can_punch, direct_alignment, in_memory
from tvmm.virtio.blk_request import SECTOR

if TYPE_CHECKING:
    from types import TracebackType

    from tvmm.kvm.nbd import NbdLink

__all__ = ["DiskImage"]

BLKGETSIZE64, BLKSSZGET, BLKPBSZGET = 0x8008_1272, 0x1268, 0x127B
FLOCK = Struct("hhqqi4x")
WHOLE_FILE = (os.SEEK_SET, 0, 0, 0)
BLOCK_MAX = 1 << 20

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
)


class DiskImage:
    """An open raw image.

    `fd` is what requests go to. `plain_fd` is the same file through the page cache where `fd` goes past it, and `fd`
    itself where not. `size` in bytes, whole sectors. `memory_align` and `offset_align` are what O_DIRECT asks for, 1
    without it. `logical_block` and `physical_block` are what the host says of its blocks, in bytes. `warnings` are
    lines for the user.
    """

    is_filled = False
    """This side writes to it, whatever the guest may do: see `tvmm.virtio.runner.image_copy`."""

    def __init__(
        self, path: str, *, read_only: bool = False, direct: bool = False, locking: bool = True, lock_now: bool = True
    ) -> None:
        """Raises `ImageError` for a file that is no disk or is in use, `HostError` if the host refuses.

        Without `lock_now` somebody else has it still, and `lock` comes later.
        """
        self.path = path
        self.read_only = read_only
        self.direct = direct
        self.warnings: list[str] = []
        self.plain_fd = -1
        self._locking = locking
        self._locked = False
        _check_kind(path)
        self.fd = _open(path, read_only=read_only and not self.is_filled, direct=direct)
        try:
            self._examine(lock_now)
        except BaseException:
            self.close()
            raise

    def _examine(self, lock_now: bool) -> None:
        path, about = self.path, os.fstat(self.fd)
        # Opened without waiting, for the case that it has become a FIFO since the check.
        _refuse_kind(path, about.st_mode)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        self.is_device = stat.S_ISBLK(about.st_mode)
        self.size = self.measured()
        if self.size % SECTOR:
            raise ImageError(
                f"disk image {path} has {self.size} bytes, which is no whole number of sectors of {SECTOR}",
                f"'truncate -s %{SECTOR} {path}' makes it one",
            )
        if lock_now:
            self.lock()
        self.plain_fd = self._reopen() if self.direct else self.fd
        self.in_memory = not self.is_device and in_memory(self.fd)
        self.memory_align, self.offset_align = self._alignment() if self.direct else (1, 1)
        self.logical_block, self.physical_block = self._blocks(about)
        self.can_unmap = not self.read_only and self._can_unmap(about)

    def __enter__(self) -> DiskImage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it, and let go of the lock."""
        # The kernel takes an io_uring apart later, and that long it has the file open, with its lock.
        self.unlock()
        if self.plain_fd not in (-1, self.fd):
            os.close(self.plain_fd)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = self.plain_fd = -1

    def links(self, index: int) -> tuple[NbdLink, ...]:
        """None: requests go to the file."""
        return ()

    def tended(self) -> nullcontext[None]:
        """See `Backing`: a file needs nobody."""
        return nullcontext()

    # -- size ----------------------------------------------------------------------------------------------

    def measured(self) -> int:
        """Bytes that it has now, which others may change."""
        if not self.is_device:
            return os.fstat(self.fd).st_size
        return int(unpack("Q", fcntl.ioctl(self.fd, BLKGETSIZE64, bytes(8)))[0])

    def resize(self, size: int) -> None:
        """Give a regular file `size` bytes, whole sectors; of a block device, take note that it has them now.

        Raises `ImageError` or `HostError`, and then nothing has changed.
        """
        if size < 0 or size % SECTOR:
            raise ImageError(f"a disk of {size} bytes is not possible", f"sizes are multiples of {SECTOR}")
        if self.is_device:
            there = self.measured()
            if size > there:
                raise ImageError(f"block device {self.path} has {there} bytes, not {size}", "enlarge it first")
        elif self.read_only:
            raise ImageError(f"disk image {self.path} is open for reading only", "it keeps its size")
        else:
            try:
                os.ftruncate(self.fd, size)
            except OSError as error:
                raise HostError(
                    f"disk image {self.path} cannot have {size} bytes: {error.strerror}", "choose a smaller size"
                ) from error
        self.size = size

    # -- what the host has ---------------------------------------------------------------------------------

    def lock(self) -> None:
        """A lock of this open file, which also keeps off another machine in this process, and QEMU.

        Nothing to do if it is locked, or was opened without locking. Raises `ImageError` if somebody else has it, or if
        it is not of the size any more that it had when it was opened.
        """
        if self._locked or not self._locking:
            return
        self._lock()
        there = self.measured()
        if there < self.size or (not self.is_device and there != self.size):
            self.unlock()
            raise ImageError(f"disk image {self.path} had {self.size} bytes and has {there} now", "start again")

    def unlock(self) -> None:
        """Somebody else may have it; what was written is in the host's page cache at least."""
        if self._locked:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_UNLCK, *WHOLE_FILE))
            self._locked = False

    def flush(self) -> None:
        """Have what was written on the disk, or on the server. Raises `HostError`."""
        if self.read_only:
            return
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            raise HostError(
                f"disk image {self.path} cannot be written back: {error.strerror}", "look at the host's disk"
            ) from error

    def forget(self) -> None:
        """Drop what the page cache has of it: somebody on another host may have written since it was opened."""
        os.posix_fadvise(self.plain_fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _lock(self) -> None:
        kind = fcntl.F_RDLCK if self.read_only and not self.is_filled else fcntl.F_WRLCK
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, *WHOLE_FILE))
            self._locked = True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                self.warnings.append(f"disk image {self.path} is not locked: {error.strerror}")
                return
            answer = fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, FLOCK.pack(kind, *WHOLE_FILE))
            writing = FLOCK.unpack(answer)[0] == fcntl.F_WRLCK
            raise ImageError(
                f"disk image {self.path} is in use by another machine ({'writing' if writing else 'reading'})",
                "stop that one, or " + ("say locking=off" if writing else "say readonly=on here, or locking=off"),
            ) from error

    def _reopen(self) -> int:
        """The same file again, whatever its name stands for by now."""
        access = os.O_RDONLY if self.read_only else os.O_RDWR
        try:
            return os.open(f"/proc/self/fd/{self.fd}", access | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(
                f"disk image {self.path} cannot be opened twice: {error.strerror}", "use cache=writeback"
            ) from error

    def _alignment(self) -> tuple[int, int]:
        told = direct_alignment(self.fd)
        if told:
            return told
        with mmap.mmap(-1, 4096) as page:
            for size in (512, 4096):
                view = memoryview(page)[:size]
                try:
                    os.preadv(self.fd, [view], size)
                except OSError:
                    continue
                finally:
                    view.release()
                return size, size
        return 4096, 4096

    def _blocks(self, about: os.stat_result) -> tuple[int, int]:
        if self.is_device:
            logical, physical = (
                int(unpack("I", fcntl.ioctl(self.fd, call, bytes(4)))[0]) for call in (BLKSSZGET, BLKPBSZGET)
            )
        else:
            logical, physical = self.offset_align, about.st_blksize
        logical = _as_block(logical)
        # A disk that does not end with a block has sectors that cannot be told in blocks.
        logical = logical if self.size % logical == 0 else SECTOR
        return logical, max(logical, _as_block(physical))

    def _can_unmap(self, about: os.stat_result) -> bool:
        if not self.is_device:
            return can_punch(self.fd, self.size)
        block = Path(f"/sys/dev/block/{os.major(about.st_rdev)}:{os.minor(about.st_rdev)}").resolve()
        for queue in (block / "queue", block.parent / "queue"):
            try:
                return int((queue / "discard_max_bytes").read_text()) > 0
            except (OSError, ValueError):
                continue
        return False


def _as_block(size: int) -> int:
    """The power of two in it, from a sector to the most that a disk may have."""
    return min(max(size & -size, SECTOR), BLOCK_MAX)


def _check_kind(path: str) -> None:
    if not path:
        raise ImageError("a disk without a file", "say --disk FILE")
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise _open_error(path, error, read_only=True, direct=False) from error
    _refuse_kind(path, mode)


def _refuse_kind(path: str, mode: int) -> None:
    for is_kind, words in _KINDS:
        if is_kind(mode):
            raise ImageError(f"disk image {path} is {words}", "a raw image file or a block device is needed")


def _open(path: str, *, read_only: bool, direct: bool) -> int:
    flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags | (os.O_DIRECT if direct else 0))
    except OSError as error:
        raise _open_error(path, error, read_only=read_only, direct=direct) from error


def _open_error(path: str, error: OSError | ValueError, *, read_only: bool, direct: bool) -> ImageError | HostError:
    if isinstance(error, ValueError):
        return ImageError(f"a disk image cannot have the name {path!r}", "name a file")
    match error.errno:
        case errno.ENOENT:
            return ImageError(f"disk image {path} does not exist", f"'truncate -s 1G {path}' makes an empty one")
        case errno.EACCES | errno.EPERM | errno.EROFS | errno.ETXTBSY if not read_only:
            return HostError(
                f"disk image {path} cannot be opened for writing: {error.strerror}",
                "get the right to write it, or say readonly=on",
            )
        case errno.EACCES | errno.EPERM:
            return HostError(f"disk image {path} cannot be opened: {error.strerror}", "get the right to read it")
        case errno.EINVAL if direct:
            return HostError(
                f"disk image {path} cannot be opened past the page cache: its file system does not do that",
                "use cache=writeback, or direct=off",
            )
    return HostError(f"disk image {path} cannot be opened: {error.strerror}", "look at the file and its directory")
