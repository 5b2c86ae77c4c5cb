"""Guest output to a file.

Writes happen in a worker thread, because a file may be on a disk that is busy, and the loop has other things
to do; what the guest writes meanwhile goes out with the next write, so writes grow as the disk gets slower.

When the disk is full (or over quota, or fails) the guest's bytes are held, not dropped: the write is tried
again every second, the user is warned once when it begins and once when it is over. The guest sees a port
that takes no bytes, which a guest survives; a log with a hole in the one place that would have told why the
disk is full is worth nothing. Ending the machine was rejected: other than at stdout, the room can come back.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import trio

from tvmm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tvmm.chardev.port import Actions, Line

__all__ = ["FileBackend"]

RETRY_SECONDS = 1.0


class FileBackend:
    """`file=PATH`: a regular file, begun anew or (`append`) continued; created with the umask's permissions.

    Acquisition raises `ConfigError` if the path names anything but a regular file, `HostError` if it cannot
    be opened for writing.
    """

    path = ""
    patience = 5.0

    def __init__(self, path: str, actions: Actions, *, append: bool = False) -> None:
        self._name = path
        self._append = append
        self._actions = actions
        self._fd = -1

    async def __aenter__(self) -> Self:
        self._fd = _open_log(self._name, self._append)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    async def run(self, line: Line) -> None:
        """Write the guest's output until it ends. There is no input."""
        with line.follow(holding=True) as follower:
            while (piece := await follower.wait()) is not None:
                follower.took(piece, await self._write_some(piece.data))

    async def _write_some(self, data: bytes) -> int:
        """Write a part of `data`, at least one byte, however long that takes."""
        warned = False
        while True:
            try:
                count = await trio.to_thread.run_sync(os.write, self._fd, data)
            except OSError as error:
                if not warned:
                    warned = True
                    self._actions.warn(
                        f"cannot write serial output to {self._name}: {error.strerror}; "
                        "the guest's output waits until this works again"
                    )
                await trio.sleep(RETRY_SECONDS)
            else:
                if warned:
                    self._actions.warn(f"serial output to {self._name} works again, nothing is lost")
                return count


def _open_log(path: str, append: bool) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        # Asked before the file is opened, because to open some devices is already to change them; and again
        # afterwards, because the name may mean something else by then.
        if os.path.exists(path):
            _refuse_special(path, os.stat(path).st_mode)
        fd = os.open(path, flags | (os.O_APPEND if append else 0), 0o666)
    except OSError as error:
        raise HostError(f"cannot write serial output to {path}: {error.strerror}") from None
    try:
        _refuse_special(path, os.fstat(fd).st_mode)
        if not append:
            os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse_special(path: str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise ConfigError(f"serial file {path} is a directory", "give the name of a file in it")
    if stat.S_ISSOCK(mode):
        raise ConfigError(f"serial file {path} is a socket", "use unix=PATH for one that viewers connect to")
    raise ConfigError(
        f"serial file {path} is not a regular file",
        "use none to drop the output, stdio or pty for a terminal",
    )
