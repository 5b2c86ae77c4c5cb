"""Files that only their owner may read: read with that checked, and replaced as a whole."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from tvmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["FILE_LIMIT", "check_owner", "create", "read_file", "system_errors", "write_atomically"]

FILE_LIMIT = 16 << 20
"""Bytes of a file that are read."""


def write_atomically(path: Path, data: bytes) -> None:
    """Let `path` have `data`, readable by its owner alone, or stay as it is; on disk when this returns."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_file(path: Path, *, private: bool = False) -> bytes:
    """The content of a file. Raises `HostError`, also if it is `private` and others can read it."""
    with system_errors(f"cannot read {path}"):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise HostError(f"{path} is not a file", "move it away")
        check_owner(path, found)
        if private and found.st_mode & 0o077:
            raise HostError(
                f"others can read the private key {path} (mode {stat.S_IMODE(found.st_mode):04o})",
                f"chmod 0600 {path}, and issue a new one if somebody may have seen it",
            )
        with system_errors(f"cannot read {path}"):
            return file.read(FILE_LIMIT)


def check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise HostError(f"{path} belongs to another user (uid {found.st_uid})", "use --keys DIR for one of your own")


@contextmanager
def create(path: Path) -> Iterator[BinaryIO]:
    """A new file for a private key, to be written to; it goes away if the block fails. Raises `HostError`."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise HostError(f"{path} is there already", "delete it, or use --out FILE with another name") from None
    except OSError as error:
        raise HostError(f"cannot make {path}: {error.strerror}", "use --out FILE with another name") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise HostError(f"cannot write {path}: {error.strerror}", "use --out FILE for another place") from error
        raise


@contextmanager
def system_errors(what: str) -> Iterator[None]:
    """Turn `OSError` into `HostError` that begins with `what`."""
    try:
        yield
    except OSError as error:
        raise HostError(f"{what}: {error.strerror}", "use --keys DIR for another directory") from error
