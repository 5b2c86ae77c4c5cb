"""A pseudo-terminal that viewers open by name: `screen /dev/pts/7`, minicom, a script.

Whether somebody has the other side open is only told by trying: while nobody has, the master reads EIO and
polls as hung up. Nothing wakes a sleeper when somebody opens it, so while it is closed it is looked at four
times a second. Keeping the other side open ourselves would make polling unnecessary, but then a viewer that
left could not be told from one that is slow, and the first that left would stop the guest for good.

While nobody is connected the guest goes on and its output waits in the history for the next viewer, which is
told how much no longer fitted. Several viewers of one pty share its bytes at random, as on any terminal.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import termios
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import trio

from tvmm.chardev.descriptor import Descriptor
from tvmm.chardev.port import INPUT_CHUNK, skipped_note
from tvmm.chardev.terminal import raw_attributes
from tvmm.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from tvmm.chardev.feed import Follower
    from tvmm.chardev.port import Line

__all__ = ["PtyBackend"]

LOOK_SECONDS = 0.25
"""How often a pty that nobody has open is looked at."""

PTS = "/dev/pts/"


class PtyBackend:
    """`pty`: `path` is what viewers open; `link`, if not empty, is a symbolic link to it until the end.

    A link that leads to some pty is replaced: a process that was killed left it. Acquisition raises
    `ConfigError` if `link` names anything else that exists, `HostError` if the system gives no pty or no
    link.
    """

    patience = 2.0

    def __init__(self, link: str = "") -> None:
        self.path = ""
        # Absolute, so that it is the same name at the end even if the working directory is not.
        self._link = os.path.abspath(link) if link else ""

    async def __aenter__(self) -> Self:
        with ExitStack() as stack:
            try:
                master, slave = os.openpty()
            except OSError as error:
                raise HostError(f"cannot get a pseudo-terminal: {error.strerror}") from None
            stack.callback(os.close, master)
            try:
                self.path = os.ttyname(slave)
            finally:
                # Opened and closed once, it reads as closed: a fresh one cannot be told from one in use.
                os.close(slave)
            os.set_blocking(master, False)
            self._master = master
            self._poll = select.poll()
            self._poll.register(master, 0)
            self._make_raw()
            if self._link:
                stack.enter_context(_symlink(self._link, self.path))
            self._undo = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    async def run(self, line: Line) -> None:
        """Carry bytes until the guest's output ends."""
        with line.follow(holding=False) as follower:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_input, line, follower)
                await self._write_output(line, follower)
                nursery.cancel_scope.cancel()

    async def _write_output(self, line: Line, follower: Follower) -> None:
        while True:
            if self._is_closed():
                follower.holding = False
                if line.finished.is_set():
                    return
                await _look_later(line)
                continue
            follower.holding = True
            piece = await follower.wait()
            if piece is None:
                return
            if self._is_closed():
                continue
            if piece.missed:
                await self._write_some(skipped_note(piece.missed))
            follower.took(piece, await self._write_some(piece.data))

    async def _write_some(self, data: bytes) -> int:
        """Write what the terminal takes; it may be nothing.

        To be called only if the viewer is there: a closed terminal takes bytes that nobody may ever read.
        """
        try:
            return os.write(self._master, data)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(self._master)
        except OSError as error:
            if error.errno != errno.EIO:
                raise HostError(f"cannot write to {self.path}: {error.strerror}") from None
        return 0

    async def _read_input(self, line: Line, follower: Follower) -> None:
        """Also sees who comes and goes while the guest writes nothing."""
        while True:
            try:
                data = await Descriptor(self._master).read(INPUT_CHUNK)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise HostError(f"cannot read from {self.path}: {error.strerror}") from None
                follower.holding = False
                self._make_raw()
                await _look_later(line)
                # Read again even if it is closed still: a short visit may have left something.
                follower.holding = not self._is_closed()
            else:
                await line.send(data)

    def _is_closed(self) -> bool:
        """Whether nobody has the other side open."""
        return bool(self._poll.poll(0))

    def _make_raw(self) -> None:
        """Make the other side transparent, also after a viewer that left it otherwise.

        An echoing terminal would type the guest's output back at it.
        """
        attributes = termios.tcgetattr(self._master)
        raw = raw_attributes(attributes, output=True)
        if raw != attributes:
            termios.tcsetattr(self._master, termios.TCSANOW, raw)


async def _look_later(line: Line) -> None:
    """Let some time pass, less if the line finishes."""
    if line.finished.is_set():
        await trio.sleep(LOOK_SECONDS)
        return
    with trio.move_on_after(LOOK_SECONDS):
        await line.finished.wait()


@contextmanager
def _symlink(link: str, target: str) -> Iterator[None]:
    """`link` leads to `target` inside the block."""
    made = f"{link}.{os.getpid()}"
    try:
        _refuse_other(link)
        os.symlink(target, made)
        # Replaced in one step, so that a viewer that waits for the name never finds it missing.
        os.rename(made, link)
    except OSError as error:
        with suppress(OSError):
            os.unlink(made)
        raise HostError(f"cannot make the link {link}: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            if os.readlink(link) == target:
                os.unlink(link)


def _refuse_other(link: str) -> None:
    try:
        mode = os.lstat(link).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISLNK(mode) or not os.readlink(link).startswith(PTS):
        raise ConfigError(
            f"{link} exists and is no link to a pseudo-terminal", "give another name or remove it"
        )
