"""A viewer with a connection: `RfbViewer` on a stream of trio's, for tests of whole servers."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Self

import trio

from tests.support.rfb_lossless import lossless_decoders
from tests.support.rfb_viewer import RfbViewer, Steps
from tvmm.vnc import encodings
from tvmm.vnc.client_messages import KeyEvent, PointerEvent
from tvmm.vnc.des import encrypt_challenge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

__all__ = ["EXTENSIONS", "RfbClient", "rfb_client"]

READ_BYTES = 1 << 16
EXTENSIONS = (encodings.DESKTOP_SIZE, encodings.LAST_RECT, encodings.LED_STATE, encodings.POINTER_MOTION)
"""What it says it speaks if nothing is said."""


def password_exchange(password: str) -> Callable[[RfbViewer], Steps]:
    """VNC authentication as a viewer does it."""

    def exchange(viewer: RfbViewer) -> Steps:
        viewer.send(encrypt_challenge(password.encode(), (yield 16)))

    return exchange


class RfbClient:
    """`viewer` knows the protocol. It asks for updates while somebody waits in `until`, and reads only then."""

    def __init__(self, stream: trio.abc.Stream, viewer: RfbViewer) -> None:
        self.stream = stream
        self.viewer = viewer
        self._asked = 0
        """Updates that had come when one was asked for last."""

    async def flush(self) -> Self:
        """Say what there is to say."""
        if data := self.viewer.take_output():
            await self.stream.send_all(data)
        return self

    async def read(self) -> bool:
        """What has come, or comes next; whether the connection still is."""
        await self.flush()
        data = bytes(await self.stream.receive_some(READ_BYTES))
        self.viewer.receive(data)
        await self.flush()
        return bool(data)

    async def until(self, condition: Callable[[RfbViewer], object]) -> Self:
        """Read, and ask for updates, until something holds."""
        while not condition(self.viewer):
            if self.viewer.running:
                self._ask()
            if not await self.read():
                raise trio.EndOfChannel
        return self

    def _ask(self) -> None:
        if self._asked == len(self.viewer.updates) + 1:
            return
        self.viewer.request(incremental=bool(self.viewer.updates))
        self._asked = len(self.viewer.updates) + 1

    async def until_gone(self) -> None:
        """Read until the server hangs up."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while await self.read():
                pass

    async def key(self, keysym: int, *, down: bool) -> None:
        """Press or release one."""
        self.viewer.send(KeyEvent(down, keysym).pack())
        await self.flush()

    async def point(self, x: int, y: int, buttons: int = 0) -> None:
        """Move the pointer there, with these buttons down."""
        self.viewer.send(PointerEvent(buttons, x, y).pack())
        await self.flush()


@asynccontextmanager
async def rfb_client(
    path: Path | str,
    *numbers: int,
    password: str = "",
    shared: bool = True,
    extensions: tuple[int, ...] = EXTENSIONS,
) -> AsyncIterator[RfbClient]:
    """A viewer at a unix socket, which wants pixels as `numbers` say, and is in."""
    async with await trio.open_unix_socket(str(path)) as stream:
        viewer = RfbViewer(
            security=2 if password else 1,
            shared=shared,
            exchanges={2: password_exchange(password)},
            decoders=lossless_decoders(),
        )
        client = RfbClient(stream, viewer)
        await client.until(lambda viewer: viewer.running)
        viewer.set_encodings(*numbers, *extensions)
        await client.flush()
        yield client
