"""Disks without a machine, for both ends of a copy: files that a test writes to as a guest would."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

from tvmm.kvm.dirty_blocks import DirtyBlocks
from tvmm.migration.disk_files import DiskOrigin, DiskTarget
from tvmm.migration.messages import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["GuestDisk", "target_in"]

SECTOR = 512


class GuestDisk:
    """A `Tracked` disk with a file. Of `size` bytes, `filled` of which are data at first."""

    def __init__(self, path: Path, size: int, filled: int = 0, seed: int = 1) -> None:
        self.path = path
        self.chance = random.Random(seed)
        self.changes: DirtyBlocks | None = None
        self.slowed: list[int] = []
        self._size = size
        with path.open("wb") as file:
            file.write(self.chance.randbytes(filled))
        os.truncate(path, size)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """The guest is gone."""
        os.close(self._fd)

    async def track_changes(self) -> DirtyBlocks:
        """See `Tracked`."""
        self.changes = DirtyBlocks(self._size)
        self.changes.fill()
        return self.changes

    def stop_tracking(self) -> None:
        """See `Tracked`."""
        self.changes = None

    def slow_writes(self, bytes_per_second: int) -> None:
        """Remembered."""
        self.slowed.append(bytes_per_second)

    def write(self, offset: int, data: bytes) -> None:
        """As a queue does it: the call, then the mark."""
        os.pwrite(self._fd, data, offset)
        if self.changes is not None:
            self.changes.mark(offset, len(data))

    def scribble(self, writes: int = 1) -> None:
        """So many writes of some sectors, anywhere."""
        for _ in range(writes):
            sectors = self.chance.choice((1, 8, 64))
            at = self.chance.randrange(0, self._size // SECTOR - sectors) * SECTOR
            self.write(at, self.chance.randbytes(sectors * SECTOR))

    def offered(self) -> Image:
        """As the source tells of it."""
        about = os.stat(self.path)
        return Image(self.path.name, self._size, about.st_blocks * 512, b"f" * 32, b"s" * 32)

    def origin(self, place: int) -> DiskOrigin:
        """As the source copies it."""
        return DiskOrigin(self, self._fd, place, str(self.path), self._size, direct=False)


def target_in(path: Path) -> Callable[[Image], DiskTarget]:
    """What makes a target of `path` for an image."""

    def make(image: Image) -> DiskTarget:
        path.touch()
        os.truncate(path, image.size)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return DiskTarget(descriptor, str(path), image.size)
        finally:
            os.close(descriptor)

    return make
