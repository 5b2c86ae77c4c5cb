"""A listening unix socket; `socat - UNIX-CONNECT:PATH` is a viewer. See `server` for who gets what."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tvmm.chardev.server import FAREWELL_SECONDS, ViewerServer
from tvmm.control.listener import unix_listener

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tvmm.chardev.port import Line

__all__ = ["UnixBackend"]


class UnixBackend:
    """`unix=PATH`: a socket that only its user can connect to, because a serial line is often a root shell.

    Acquisition replaces the socket of a process that is no more; it raises `HostError` if somebody listens at
    `path` or if something else is there.
    """

    patience = FAREWELL_SECONDS

    def __init__(self, path: str) -> None:
        # Absolute, so that it is the same name at the end even if the working directory is not.
        self._socket = Path(path).absolute()
        self.path = path

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._listener = await stack.enter_async_context(unix_listener(self._socket))
            self._undo = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._undo.aclose()

    async def run(self, line: Line) -> None:
        """Serve viewers until the guest's output ends."""
        await ViewerServer(line).run([self._listener])
