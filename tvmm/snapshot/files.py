"""A file that comes into its place in one step: whoever looks there finds the old one or the whole new one.

It has no name while it is written, where the file system can do that (O_TMPFILE): a process that dies leaves nothing
behind. Elsewhere, and for the moment in which it takes an old one's place, it is ``.NAME.tvmm-new`` beside it; one that
was left there is taken away by the next. A file is never changed once it has its name, since guests may have it mapped.

Who writes has the file locked (flock), so that no other takes it away, or puts it in place half written. Who died has
no lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from tvmm.errors import HostError, UserError
from tvmm.snapshot.format import MAGIC, is_snapshot

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["NewFile", "absolute", "open_direct"]

MODE = 0o600
"""It has all of the guest's memory: keys, passwords."""


SUFFIX = ".tvmm-new"
LOCK_TRIES, LOCK_PAUSE_S = 200, 0.01
"""For another to put its file in place, which takes it microseconds, or longer over a network."""


def absolute(path: str) -> str:
    """`path` from the root on. Raises `UserError` for what can only be a directory, which would be lost here."""
    if not os.path.basename(path):
        raise UserError(f"{path!r} is no name of a file", "give the name of a file")
    return os.path.abspath(path)


class NewFile:
    """One that is to be at `path`. A context manager: left without `keep` there is nothing."""

    def __init__(self, path: str, *, force: bool = False) -> None:
        """`force` replaces files that are no snapshot. Raises `UserError` for a place where there cannot be one."""
        # Through symbolic links: the file that they lead to is replaced, and not the link.
        self.path = os.path.realpath(path)
        self._shown = path
        folder, self._name = os.path.split(self.path)
        self._force = force
        self.check_replaceable(force=force)
        try:
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}", "choose a directory that exists") from None
        self._named = False
        try:
            limit = os.fpathconf(self._folder, "PC_NAME_MAX")
            if len(os.fsencode(self._name)) > limit:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            start = os.fsencode(f".{self._name}")[: limit - len(SUFFIX)]
            self._temporary = os.fsdecode(start) + SUFFIX
            self.fd = self._open()
        except UserError:
            os.close(self._folder)
            raise
        except OSError as error:
            os.close(self._folder)
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

    def check_replaceable(self, *, force: bool) -> None:
        """Raise `UserError` if what is at the path is not to be replaced."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self._shown} cannot be written: {error.strerror}") from None
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
        for _ in range(LOCK_TRIES):
            if not self._take_away():
                raise UserError(
                    f"{self._shown} is being written by another save", "wait for it, or give another name"
                )
            with suppress(FileExistsError):
                fd = os.open(
                    self._temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, MODE, dir_fd=self._folder
                )
                # Another may have found it before it was locked, and taken it for one that was left.
                if _lock(fd) and self._is_there(fd):
                    self._named = True
                    return fd
                os.close(fd)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def _take_away(self) -> bool:
        """Whether there is no temporary file any more: one that somebody writes stays."""
        try:
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(self._temporary, flags, dir_fd=self._folder)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            os.unlink(self._temporary, dir_fd=self._folder)
            return True
        try:
            if not _lock(fd):
                return False
            if self._is_there(fd):
                os.unlink(self._temporary, dir_fd=self._folder)
            return True
        finally:
            os.close(fd)

    def _is_there(self, fd: int) -> bool:
        """Whether the temporary name is that of this file."""
        try:
            named = os.stat(self._temporary, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(fd))

    def keep(self) -> None:
        """Have it at its path, safely on the disk. Raises `HostError`, or `UserError` if something else has come there:
        then what was there is there still.
        """
        try:
            os.fsync(self.fd)
            # It may have taken long to write.
            self.check_replaceable(force=self._force)
            self._put_in_place()
            os.fsync(self._folder)
        except OSError as error:
            raise HostError(f"{self._shown} cannot be written: {error.strerror}") from error

    def _put_in_place(self) -> None:
        if not self._named and self._link(self._name):
            return
        if not self._named:
            _lock(self.fd)
            self._link_beside()
        # The name of the old one goes from it to this one.
        os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._named = False

    def _link_beside(self) -> None:
        """Under the temporary name, for the moment of a rename."""
        for _ in range(LOCK_TRIES):
            if self._take_away() and self._link(self._temporary):
                self._named = True
                return
            # Somebody does the same at this moment.
            time.sleep(LOCK_PAUSE_S)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

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
                if self._is_there(self.fd):
                    os.unlink(self._temporary, dir_fd=self._folder)
        os.close(self.fd)
        os.close(self._folder)
        self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lock(fd: int) -> bool:
    """Whether nobody else has it locked, as far as the file system can tell."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def open_direct(fd: int, flags: int) -> int:
    """The same file past the page cache, -1 where that is not possible."""
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1
