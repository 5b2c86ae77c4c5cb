"""A listening unix socket that only its user can connect to, and that is gone when nobody listens any
more."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

import trio

from tvmm.control.registry import check_socket_path
from tvmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

__all__ = ["unix_listener"]

BACKLOG = 16
LOCK_SECONDS = 5.0
"""How long to wait for another process that is creating a socket in the same directory."""
LOCK_POLL_SECONDS = 0.005


@asynccontextmanager
async def unix_listener(path: Path, backlog: int = BACKLOG) -> AsyncIterator[trio.SocketListener]:
    """Listen at `path`, with mode 0600 from the first moment on; the file goes at the end.

    `backlog`: clients that may wait to be accepted.

    A socket that nobody listens at any more is replaced. Raises `HostError` if somebody does, if something
    else is in the way or if the socket cannot be made, `UserError` if the path is too long.
    """
    check_socket_path(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        async with _directory_lock(path):
            _clear(path)
            _bind(listening, path, backlog)
        created = os.lstat(path)
        listening.setblocking(False)
        try:
            yield trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        finally:
            # Before the socket is closed: while it listens, nobody takes the file for a stale one and
            # replaces it.
            with suppress(OSError):
                if os.path.samestat(os.lstat(path), created):
                    os.unlink(path)
    finally:
        listening.close()


@asynccontextmanager
async def _directory_lock(path: Path) -> AsyncIterator[None]:
    """Be the only one who replaces sockets in the directory of `path`.

    Of two processes that find the same stale socket, the slower one would otherwise remove the new socket of
    the faster. Locking the directory itself leaves no lock file behind.
    """
    with _translated(path):
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with trio.move_on_after(LOCK_SECONDS) as patience:
            while True:
                with _translated(path), suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                await trio.sleep(LOCK_POLL_SECONDS)
        if patience.cancelled_caught:
            raise HostError(f"cannot create {path}: another process has locked {path.parent}")
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    """Remove a stale socket from `path`."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _failure(path, error) from error
    if not stat.S_ISSOCK(found.st_mode):
        raise HostError(f"{path} is in the way: it is not a socket", "move it away or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            pass
        except (BlockingIOError, OSError):
            # A listener whose queue is full, one of another kind, or one that we may not talk to: not stale
            # in any case.
            raise _in_use(path) from None
        else:
            raise _in_use(path)
    with _translated(path):
        os.unlink(path)


def _bind(listening: socket.socket, path: Path, backlog: int) -> None:
    """Create the socket's file and listen.

    The file gets the mode of the descriptor (unix_bind() in Linux), so it is set there first: a chmod of the
    file would come late, and the umask belongs to all threads of the process.
    """
    with _translated(path):
        os.fchmod(listening.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        listening.bind(str(path))
        listening.listen(backlog)


def _in_use(path: Path) -> HostError:
    return HostError(f"{path} is in use: somebody listens there", "choose another path")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failure(path, error) from error


def _failure(path: Path, error: OSError) -> HostError:
    return HostError(f"cannot create the socket {path}: {error.strerror or error}")
