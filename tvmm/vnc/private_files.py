"""Files with passwords and keys: read only if nobody else can read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tvmm.errors import HostError, UserError
from tvmm.vnc.passwords import PASSWORD_LIMIT, check_password, parse_users

__all__ = ["FILE_LIMIT", "read_password", "read_private", "read_users"]

FILE_LIMIT = 1 << 20
"""Bytes of such a file."""


def read_private(path: str | Path) -> bytes:
    """The content of a file that belongs to this user or to root. Raises `HostError`, also if others can read it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise HostError(f"{path} is not a file")
            if found.st_uid not in (os.geteuid(), 0):
                raise HostError(f"{path} belongs to another user (uid {found.st_uid})", "use a file of your own")
            if found.st_mode & 0o077:
                raise HostError(
                    f"others can read {path} (mode {stat.S_IMODE(found.st_mode):04o})",
                    f"chmod 0600 {path}, and change what is in it if somebody may have seen it",
                )
            data = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > FILE_LIMIT:
        raise HostError(f"{path} is larger than {FILE_LIMIT >> 20} MiB")
    return data


def read_password(path: str | Path) -> str:
    """The password in the file at `path`: all of it, without the line break at its end. Raises `UserError`."""
    text = _text(read_private(path), path)
    password = text.removesuffix("\n").removesuffix("\r")
    try:
        return check_password(password)
    except UserError as error:
        raise UserError(
            f"{path}: {error.message}", error.hint or f"it is one line of at most {PASSWORD_LIMIT} bytes"
        ) from error


def read_users(path: str | Path) -> dict[str, str]:
    """Passwords by user of the file at `path`, lines of ``user:password``. Raises `UserError`."""
    return parse_users(_text(read_private(path), path), str(path))


def _text(data: bytes, path: str | Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8") from None
