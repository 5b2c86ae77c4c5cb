"""Images at both ends of a copy: what is data and what is a hole, reads and writes, and a hash over all of it."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from typing import TYPE_CHECKING, Protocol, Self

from tvmm.errors import HostError
from tvmm.kvm.blk import zero_range
from tvmm.kvm.dirty_blocks import GRAIN, all_zero
from tvmm.migration.disk_frames import DATA_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from tvmm.kvm.dirty_blocks import DirtyBlocks

__all__ = ["DiskOrigin", "DiskTarget", "ImageFile", "Tracked"]

SMALL_BYTES = 1 << 20
"""To look for holes in less takes longer than to read it, on some file systems."""
_ZEROES = bytes(DATA_MAX)


class Tracked(Protocol):
    """A disk whose changes are marked; `tvmm.virtio.runner.blk.BlkRunner` is one."""

    async def track_changes(self) -> DirtyBlocks:
        """From now on, beginning with all of them."""

    def stop_tracking(self) -> None:
        """Not any more."""

    def slow_writes(self, bytes_per_second: int) -> None:
        """The most that the guest may write; 0: as its limits are."""


class ImageFile:
    """An image, opened once more for itself: seeking in it moves nobody else. Of `size` bytes. A context manager.

    `direct`: past the page cache, as those who write it do: what the cache has of such a file may be old. All methods
    wait for the host's disk, and raise `HostError`.
    """

    def __init__(self, fd: int, name: str, size: int, *, writable: bool, direct: bool = False) -> None:
        """`fd` is the caller's, and not needed any more afterwards."""
        self.name, self.size = name, size
        access = os.O_RDWR if writable else os.O_RDONLY
        flags = access | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        try:
            self._fd = os.open(f"/proc/self/fd/{fd}", flags)
        except OSError as error:
            raise HostError(f"disk image {name} cannot be opened again: {error.strerror}", "look at it") from error
        self._has_holes = True
        self._known_data = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def read_into(self, buffer: memoryview, offset: int, length: int) -> None:
        """`length` bytes from `offset` on, into the beginning of an aligned buffer that has room for a page more."""
        done = 0
        try:
            while done < length:
                # Past the page cache whole blocks are read, of the last one what there is.
                room = -(-(length - done) // mmap.PAGESIZE) * mmap.PAGESIZE
                got = os.preadv(self._fd, [buffer[done : done + room]], offset + done)
                if not got:
                    raise HostError(f"disk image {self.name} has become shorter", "leave its file alone")
                done += got
        except OSError as error:
            raise HostError(
                f"disk image {self.name} cannot be read: {error.strerror}", "look at the host's disk"
            ) from error

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """The parts of a piece, as (offset, length, whether it may be other than zeroes), whole blocks but the last.

        What is small is read in any case.
        """
        end = offset + length
        if os.lseek(self._fd, 0, os.SEEK_END) < end:
            # What is behind the end of a file would pass for a hole.
            raise HostError(f"disk image {self.name} has become shorter", "leave its file alone")
        if 0 < length <= SMALL_BYTES:
            yield offset, length, True
            return
        while offset < end:
            found = self._seek(offset, os.SEEK_DATA, end)
            data = found // GRAIN * GRAIN if found < end else end
            if data > offset:
                yield offset, data - offset, False
            if data < end:
                # Where somebody has made a hole of it meanwhile, a block at least.
                hole = max(self._end_of_data(found, end), data + 1)
                end_of_data = min(-(-hole // GRAIN) * GRAIN, end)
                yield data, end_of_data - data, True
                data = end_of_data
            offset = data

    def _end_of_data(self, offset: int, end: int) -> int:
        """Where the next hole is. A file system in memory looks at each page on the way there: so it is kept in mind.
        If there are holes meanwhile, zeroes are read.
        """
        first, last = self._known_data
        if not first <= offset < last:
            last = self._seek(offset, os.SEEK_HOLE, end)
            self._known_data = offset, last
        return last

    def _seek(self, offset: int, whence: int, end: int) -> int:
        if self._has_holes:
            try:
                return os.lseek(self._fd, offset, whence)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return end
                # A block device, or a file system that does not tell: all is data.
                self._has_holes = False
        return offset if whence == os.SEEK_DATA else end

    def hash(self) -> bytes:
        """Of all blocks that are not zeroes, and their places: the same for a sparse image and one that is not."""
        digest = hashlib.sha256(self.size.to_bytes(8, "little"))
        with mmap.mmap(-1, DATA_MAX + mmap.PAGESIZE) as memory, memoryview(memory) as buffer:
            for start, length, is_data in self.extents(0, self.size):
                for offset in range(start, start + length, DATA_MAX) if is_data else ():
                    part = min(DATA_MAX, start + length - offset)
                    self.read_into(buffer, offset, part)
                    for at in range(0, part, GRAIN):
                        with buffer[at : min(at + GRAIN, part)] as block:
                            if not all_zero(block):
                                digest.update((offset + at).to_bytes(8, "little"))
                                digest.update(block)
        return digest.digest()


class DiskOrigin(ImageFile):
    """An image that is copied, at place `index` of the source's list. `changes` while `disk` is tracked."""

    changes: DirtyBlocks

    def __init__(self, disk: Tracked, fd: int, index: int, name: str, size: int, *, direct: bool) -> None:
        super().__init__(fd, name, size, writable=False, direct=direct)
        self.disk, self.index = disk, index


class DiskTarget(ImageFile):
    """An image that is filled. `syncs`: it has to be stable before a guest may rely on it."""

    def __init__(self, fd: int, name: str, size: int, *, syncs: bool = True) -> None:
        super().__init__(fd, name, size, writable=True)
        self._syncs = syncs
        self._can_zero = True

    def write(self, data: memoryview, offset: int) -> None:
        """All of it."""
        try:
            while data:
                count = os.pwrite(self._fd, data, offset)
                data, offset = data[count:], offset + count
        except OSError as error:
            raise self._failed("written", error) from error

    def zero(self, offset: int, length: int) -> None:
        """As a hole, if there can be one."""
        if self._can_zero:
            try:
                zero_range(self._fd, offset, length)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.ENOTTY):
                    raise self._failed("written", error) from error
                self._can_zero = error.errno == errno.EINVAL
        for at in range(offset, offset + length, DATA_MAX):
            self.write(memoryview(_ZEROES)[: min(DATA_MAX, offset + length - at)], at)

    def sync(self) -> None:
        """Return when all of it is stable."""
        if not self._syncs:
            return
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failed("written back", error) from error

    def _failed(self, what: str, error: OSError) -> HostError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "make room for it there" if full else "look at the destination's disk"
        return HostError(f"disk image {self.name} at the destination cannot be {what}: {error.strerror}", hint)
