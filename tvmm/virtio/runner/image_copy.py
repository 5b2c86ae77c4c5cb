"""An image that is filled from another host's: made if it is missing, and gone again if the guest does not arrive."""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from tvmm.errors import HostError, ImageError
from tvmm.virtio.blk_request import SECTOR
from tvmm.virtio.runner.image import FLOCK, WHOLE_FILE, DiskImage

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CopiedImage"]

OWNER_ONLY = 0o600


class CopiedImage(DiskImage):
    """A `DiskImage` that is this machine's alone from the start, locked for writing even if the guest may only read.

    It has no size until `prepare`. Until `keep` what becomes of its file is this: one that was made is removed when it
    is closed, one that was empty is empty again. One that was overwritten has been; `say` gets a line about that.
    """

    is_filled = True

    def __init__(
        self,
        path: str,
        *,
        overwrite: bool = False,
        read_only: bool = False,
        direct: bool = False,
        locking: bool = True,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Raises `ImageError` for a file that has something in it, without `overwrite`; and as `DiskImage`."""
        self.was_made = _make(path)
        self._say = say
        self._is_kept = self._is_prepared = False
        self._overwrites = overwrite
        try:
            if not (self.was_made or overwrite):
                # Before its size is judged.
                _refuse_content(path)
            super().__init__(path, read_only=read_only, direct=direct, locking=locking)
        except BaseException:
            if self.was_made:
                with suppress(OSError):
                    os.unlink(path)
            raise

    def _examine(self, lock_now: bool) -> None:
        super()._examine(lock_now)
        there = super().measured()
        if there and not self._overwrites:
            # Somebody was there between the two looks.
            raise _has_content(self.path, there)
        self._was_empty = not there

    def measured(self) -> int:
        """Whole sectors: what is in it now will not be."""
        return super().measured() // SECTOR * SECTOR

    def prepare(self, size: int) -> None:
        """Have `size` bytes; of a file all of them zeroes. Raises `ImageError` or `HostError`."""
        self._is_prepared = True
        if self.is_device:
            self.resize(size)
            return
        try:
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise HostError(
                f"disk image {self.path} at the destination cannot have {size} bytes: {error.strerror}",
                "look at its file system there",
            ) from error
        self.size = size

    def keep(self) -> None:
        """A guest has it now: it is a disk like any other."""
        if self._is_kept:
            return
        self._is_kept = True
        self.is_filled = False
        if self.read_only and self._locked:
            # Others may read it as well.
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_RDLCK, *WHOLE_FILE))

    def close(self) -> None:
        """See `DiskImage`; and undo what was done for a guest that has not arrived."""
        if self.fd >= 0 and not self._is_kept:
            self._undo()
        super().close()

    def _undo(self) -> None:
        if self.was_made:
            with suppress(OSError):
                # If the name still stands for it.
                if os.path.samestat(os.stat(self.path), os.fstat(self.fd)):
                    os.unlink(self.path)
        elif self._is_prepared and self._was_empty and not self.is_device:
            with suppress(OSError):
                os.ftruncate(self.fd, 0)
        elif self._is_prepared:
            self._say(f"disk image {self.path} was overwritten with a part of a copy, and is of no use now")


def _make(path: str) -> bool:
    """Whether there was none."""
    if not path or "\0" in path:
        return False  # `DiskImage` has words for that
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, OWNER_ONLY)
    except FileExistsError:
        return False
    except OSError as error:
        raise HostError(
            f"disk image {path} cannot be made: {error.strerror}", "look at its directory, or name another one"
        ) from error
    os.close(descriptor)
    # A name that is not stable is none after a crash.
    with suppress(OSError):
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    return True


def _refuse_content(path: str) -> None:
    with suppress(OSError, ValueError):
        about = os.stat(path)
        if stat.S_ISBLK(about.st_mode) or (stat.S_ISREG(about.st_mode) and about.st_size):
            raise _has_content(path, about.st_size)


def _has_content(path: str, size: int) -> ImageError:
    what = f"has {size} bytes" if size else "is a block device"
    return ImageError(
        f"disk image {path}, which is to be filled with a copy, {what} already",
        "name a file that is not there yet, or say overwrite=on to lose what is in it",
    )
