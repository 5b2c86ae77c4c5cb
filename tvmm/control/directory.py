"""A directory that is this user's alone, and the locks in it.

The directory's name can be guessed and its parent may be /tmp: whoever puts a directory or a link there first
must not get to own the sockets through which machines are commanded.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tvmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["base_lock", "check_own", "is_own", "make_own", "try_lock"]

BASE_LOCK_SECONDS = 5.0
"""How long to wait for others that are changing the directory; each needs about a millisecond."""
BASE_LOCK_POLL_SECONDS = 0.005


def make_own(base: Path) -> None:
    """See to it that `base` is a directory that only this user can change."""
    try:
        with suppress(FileExistsError):
            os.makedirs(base, mode=0o700)
        found = os.lstat(base)
    except OSError as error:
        raise _unusable(base, error) from error
    check_own(base, found)


def is_own(base: Path) -> bool:
    """Whether there is a registry at `base`; raises `HostError` if what is there is not this user's."""
    try:
        found = os.lstat(base)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable(base, error) from error
    check_own(base, found)
    return True


def check_own(path: Path, found: os.stat_result) -> None:
    """Raise `HostError` unless `found`, the status of `path`, is that of a directory of this user alone."""
    if not stat.S_ISDIR(found.st_mode):
        raise HostError(
            f"{path} is in the way: it is not a directory", "move it away or set TVMM_RUNTIME_DIR"
        )
    if found.st_uid != os.geteuid():
        raise HostError(
            f"{path} belongs to another user (uid {found.st_uid})",
            "set TVMM_RUNTIME_DIR to a directory of your own",
        )
    if found.st_mode & 0o022:
        raise HostError(
            f"others may write to {path} (mode {stat.S_IMODE(found.st_mode):04o})", f"chmod 0700 {path}"
        )


@contextmanager
def base_lock(base: Path) -> Iterator[None]:
    """Be the only one who looks at or changes the registry at `base`. Raises `HostError` if that cannot
    be."""
    path = base / ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _unusable(base, error) from error
    try:
        deadline = time.monotonic() + BASE_LOCK_SECONDS
        while not try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise HostError(
                    f"another process has held {path} for {BASE_LOCK_SECONDS:.0f} seconds",
                    "look for a tvmm process that is stopped",
                )
            time.sleep(BASE_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _unusable(base: Path, error: OSError) -> HostError:
    return HostError(
        f"cannot use the machine directory {base}: {error.strerror}",
        "set TVMM_RUNTIME_DIR to a directory that you may write to",
    )


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file unless another open file has it. The lock goes with the descriptor."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise HostError(f"the file system of the machine directory has no locks: {error.strerror}") from error
    return True
