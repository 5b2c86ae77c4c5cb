"""Another server's screen as if it were the machine's own: the shell around `tvmm.vnc.client`.

A machine whose guest has moved puts it in the place of its own screen and input (`VncServer.move`), so that viewers go
on as they are: what each of them has been sent, its zlib streams and its pixel format stay where they were.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tvmm.errors import ProtocolError, collapse
from tvmm.vnc.client import Client
from tvmm.vnc.remote_input import RemoteInput
from tvmm.vnc.turns import Turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tvmm.screen import Canvas
    from tvmm.vnc.server import Watcher

__all__ = ["Relay"]

READ_BYTES = 256 << 10
FIRST_PICTURE_SECONDS = 10.0
"""For the server to let this end in and to send all of the picture."""
STALL_SECONDS = 30.0
"""For it to take what viewers type."""


class Relay:
    """`ScreenLike`, and `input` is `InputLike`, which keeps what is typed before there is a connection."""

    def __init__(self, xt_of_evdev: Callable[[int], int | None], *, compressed: bool = True) -> None:
        self._client = Client(compressed=compressed)
        self.input = RemoteInput(self._client, xt_of_evdev, self._stir)
        self.bytes_received = 0
        self._told = 0
        self._stream: trio.abc.Stream
        self._watchers: list[Watcher] = []
        self._turns = Turns()
        self._news = trio.Event()

    @property
    def canvas(self) -> Canvas:
        """See `ScreenLike`."""
        return self._client.canvas

    # --- who looks ---

    @asynccontextmanager
    async def watched(self, watcher: Watcher) -> AsyncIterator[None]:
        """See `ScreenLike`."""
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """See `ScreenLike`."""
        async with self._turns.looking():
            yield

    def hurry(self) -> None:
        """See `ScreenLike`. The other end knows by itself."""

    # --- tasks ---

    async def run(
        self, stream: trio.abc.Stream, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Until the server has gone; started when the whole picture is there. Once.

        Raises `ProtocolError` for a server that breaks the protocol or stalls. Closes the stream.
        """
        self._stream = stream
        try:
            with collapse():
                with trio.fail_after(FIRST_PICTURE_SECONDS):
                    while not self._client.updates:
                        await self._flush()
                        if not await self._take_in():
                            raise ProtocolError("the other end has closed the connection")
                task_status.started()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    while await self._take_in():
                        pass
                    nursery.cancel_scope.cancel()
        except trio.TooSlowError:
            raise ProtocolError("the other end does not answer") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ProtocolError("the connection broke") from None
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)

    async def _take_in(self) -> bool:
        """What comes next; False when nothing does any more."""
        data = bytes(await self._stream.receive_some(READ_BYTES))
        if not data:
            return False
        self.bytes_received += len(data)
        leds = self._client.leds
        async with self._turns.changing():
            try:
                self._client.receive(data)
            finally:
                # At once, and whatever comes: nobody looks at a canvas for one of another size.
                if self._client.take_resized():
                    for watcher in list(self._watchers):
                        watcher.resized()
            self._tell_whole()
        self._stir()
        if self._client.leds != leds:
            for listener in self.input.on_leds:
                listener(self._client.leds)
        return True

    def _tell_whole(self) -> None:
        """Who looks hears of whole updates, and is not shown a half if that can be helped."""
        if self._client.updates == self._told:
            return
        self._told = self._client.updates
        tiles = self._client.take_damage()
        for watcher in list(self._watchers) if tiles else ():
            watcher.damaged(tiles, ())

    def _stir(self) -> None:
        self._news.set()

    async def _write(self) -> None:
        while True:
            self._news = trio.Event()
            await self._flush()
            await self._news.wait()

    async def _flush(self) -> None:
        data = self._client.take_output()
        if data:
            with trio.fail_after(STALL_SECONDS):
                await self._stream.send_all(data)
