"""The user's terminal, or whatever standard input and output are connected to.

Input and output end apart from each other. The end of input (a script that was piped in, /dev/null) ends only
input. An output that nobody reads any more ends the machine: there is nobody left to run it for.
"""

from __future__ import annotations

import errno
import math
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import trio

from tvmm.chardev.descriptor import Descriptor, borrow
from tvmm.chardev.port import INPUT_CHUNK, skipped_note
from tvmm.chardev.terminal import RawTerminal
from tvmm.errors import HostError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tvmm.chardev.feed import Follower
    from tvmm.chardev.keyboard import Keyboard
    from tvmm.chardev.port import Actions, Line

__all__ = ["OutputClosed", "StdioBackend"]

QUIT_PATIENCE_SECONDS = 1.0
"""How long the last bytes may take after the user has asked for the end."""


class OutputClosed(HostError):
    """Nobody reads standard output any more, as after ``tvmm run | head``."""


class StdioBackend:
    """`stdio`: output always holds the guest, except while the user is at the control prompt.

    `escape` is the control character that begins an order to tvmm, '' for none; it only counts when input
    comes from a terminal, so that piped bytes pass unchanged. A terminal is raw meanwhile, so without an
    escape every key is the guest's. `run` raises `OutputClosed`, or `HostError` when output fails otherwise.
    """

    path = ""

    def __init__(self, actions: Actions, *, escape: str = "\x01", stdin: int = 0, stdout: int = 1) -> None:
        self._actions = actions
        self._escape_key = ord(escape) if escape else 0
        self._stdin = stdin
        self._stdout = stdout
        self._input: Descriptor | None = None
        self._keyboard: Keyboard | None = None
        self._writing = trio.Lock()

    @property
    def patience(self) -> float:
        """As long as the reader of the guest's last bytes takes, unless the user has asked for the end.

        A pager that is not reading on must not keep the user here.
        """
        return QUIT_PATIENCE_SECONDS if self._keyboard and self._keyboard.quit_asked else math.inf

    async def __aenter__(self) -> Self:
        with ExitStack() as stack:
            try:
                self._output = stack.enter_context(borrow(self._stdout, os.O_WRONLY))
            except OSError as error:
                raise HostError(
                    f"cannot write to standard output: {error.strerror}",
                    "use --serial none to run without it",
                ) from None
            self._input = _optional_input(stack, self._stdin)
            stack.enter_context(RawTerminal(self._stdin))
            self._undo = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    async def run(self, line: Line) -> None:
        """Carry bytes until the guest's output ends."""
        with line.follow(holding=True) as follower:
            async with trio.open_nursery() as nursery:
                if self._input is not None:
                    nursery.start_soon(self._read_input, self._input, line, follower)
                await self._write_output(follower)
                nursery.cancel_scope.cancel()

    async def _write_output(self, follower: Follower) -> None:
        while (piece := await follower.wait()) is not None:
            if piece.missed:
                await self._write(skipped_note(piece.missed))
            await self._write(piece.data)
            follower.took(piece)

    async def _write(self, data: bytes) -> None:
        """Write to the terminal; what the guest and tvmm write does not mix within one call."""
        async with self._writing:
            try:
                await self._output.write(data)
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.EIO):
                    raise OutputClosed("standard output was closed by its reader") from None
                raise HostError(f"cannot write to standard output: {error.strerror}") from None

    async def _read_input(self, source: Descriptor, line: Line, follower: Follower) -> None:
        data = await _read(source)
        if data and self._escape_key and os.isatty(self._stdin):
            # Imported with the first key, and so never before the guest has begun to run.
            from tvmm.chardev.keyboard import Keyboard

            self._keyboard = Keyboard(self._escape_key, line, follower, self._actions, self._write)
            take = self._keyboard.take
        else:
            take = line.send
        while data:
            await take(data)
            data = await _read(source)


def _optional_input(stack: ExitStack, fd: int) -> Descriptor | None:
    """The descriptor to read, or None: a service manager may start us without any."""
    try:
        return stack.enter_context(borrow(fd, os.O_RDONLY))
    except OSError:
        return None


async def _read(source: Descriptor) -> bytes:
    """The next bytes; an input that fails (a terminal that hung up) has ended."""
    try:
        return await source.read(INPUT_CHUNK)
    except OSError:
        return b""
