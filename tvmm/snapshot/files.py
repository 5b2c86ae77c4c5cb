"""A file that comes into its place in one step: whoever looks there finds the old one or the whole new one.

It has no name while it is written, where the file system can do that (O_TMPFILE): a process that dies leaves nothing
behind. Elsewhere, and for the moment in which it takes an old one's place, it is ``.NAME.tvmm-new`` beside it; one that
was left there is taken away by the next. A file is never changed once it has its name, since guests may have it mapped.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from tvmm.errors import HostError, UserError
from tvmm.snapshot.format import MAGIC, is_snapshot

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["NewFile", "open_direct"]

MODE = 0o600
"""It has all of the guest's memory: keys, passwords."""


class NewFile:
    """One that is to be at `path`. A context manager: left without `keep` there is nothing."""

    def __init__(self, path: str, *, force: bool = False) -> None:
        """`force` replaces files that are no snapshot. Raises `UserError` for a place where there cannot be one."""
        # Through symbolic links: the file that they lead to is replaced, and not the link.
        self.path = os.path.realpath(path)
        self._shown = path
        folder, self._name = os.path.split(self.path)
        self.check_replaceable(force=force)
        try:
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}", "choose a directory that exists") from None
        self._temporary = f".{self._name}.tvmm-new"
        self._named = False
        try:
            self.fd = self._open()
        except OSError as error:
            os.close(self._folder)
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

    def check_replaceable(self, *, force: bool) -> None:
        """Raise `UserError` if what is at the path is not to be replaced."""
        try:
            found = os.stat(self.path)
        except OSError:
            return
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{self._shown} is no regular file", "give the name of a file")
        if force or not found.st_size:
            return
        try:
            with open(self.path, "rb") as file:
                fine = is_snapshot(file.read(len(MAGIC)))
        except OSError as error:
            raise UserError(f"{self._shown} is there and cannot be read: {error.strerror}") from None
        if not fine:
            raise UserError(f"{self._shown} is there and is no snapshot", "--force replaces it")

    def _open(self) -> int:
        try:
            return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, MODE, dir_fd=self._folder)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
        self._take_away()
        self._named = True
        return os.open(
            self._temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, MODE, dir_fd=self._folder
        )

    def _take_away(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._temporary, dir_fd=self._folder)

    def keep(self) -> None:
        """Have it at its path, safely on the disk. Raises `HostError`: then what was there is there still."""
        try:
            os.fsync(self.fd)
            self._put_in_place()
            os.fsync(self._folder)
        except OSError as error:
            raise HostError(f"{self._shown} cannot be written: {error.strerror}") from error

    def _put_in_place(self) -> None:
        if not self._named and not self._link(self._name):
            # Somebody who does the same at this moment may take ours away; theirs is whole too.
            self._take_away()
            self._link(self._temporary)
            self._named = True
        if self._named:
            os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._named = False

    def _link(self, name: str) -> bool:
        """Give the nameless file a name, unless there is one of that name."""
        try:
            # With a directory's descriptor it is linkat(2), which follows the link in /proc.
            os.link(f"/proc/self/fd/{self.fd}", name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except FileExistsError:
            return False
        return True

    def close(self) -> None:
        """Idempotent; what was not kept is gone."""
        if self.fd < 0:
            return
        if self._named:
            with suppress(OSError):
                self._take_away()
        os.close(self.fd)
        os.close(self._folder)
        self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_direct(fd: int, flags: int) -> int:
    """The same file past the page cache, -1 where that is not possible."""
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1
