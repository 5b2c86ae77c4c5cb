"""A wire between the two ends of a migration, to be cut."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tvmm.control.listener import unix_listener
from tvmm.migration.descriptors import receive_descriptors, send_descriptors
from tvmm.migration.hand_over import close_all
from tvmm.migration.link import LinkLost
from tvmm.migration.messages import FROM_DESTINATION, FROM_SOURCE
from tvmm.migration.wire import OPENING_BYTES, REPLY_BYTES, Inbox, Kind, Opening

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Cutter", "Wire"]


class Cutter:
    """Cuts its wire the first time that message `name` goes by, in its place. It is what a `Wire` calls."""

    def __init__(self, name: str) -> None:
        self.wire: Wire
        self.name = name
        self.done = False

    def __call__(self, name: str) -> bool:
        if name != self.name or self.done:
            return True
        self.done = True
        self.wire.cut()
        return False


class Wire:
    """A relay in front of a destination, at unix socket `path`, that follows the control connection's messages.

    `on_message(name)` is called before each is passed on. It may call `cut`, or return False to keep the message, and
    all that follow on that connection, for ever.
    """

    def __init__(self, path: str, target: str, on_message: Callable[[str], bool]) -> None:
        self.path = path
        self.refusing = False
        self._target = target
        self._on_message = on_message
        self._streams: set[trio.SocketStream] = set()
        if isinstance(on_message, Cutter):
            on_message.wire = self

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Relay until cancelled."""
        async with unix_listener(Path(self.path)) as listener:
            task_status.started()
            await trio.serve_listeners(self._relay, [listener])

    def cut(self) -> None:
        """Every connection breaks, in both directions, with what is on its way."""
        for stream in self._streams:
            stream.socket.close()

    async def _relay(self, client: trio.SocketStream) -> None:
        if self.refusing:
            await trio.aclose_forcefully(client)
            return
        server = await trio.open_unix_socket(self._target)
        assert isinstance(server, trio.SocketStream)
        self._streams |= {client, server}
        try:
            data = await _exactly(client, OPENING_BYTES)
            await server.send_all(data)
            await client.send_all(await _exactly(server, REPLY_BYTES))
            kind = Opening.from_bytes(data).kind
            if kind is Kind.RAM:
                await self._pass_descriptors(client, server)
                return
            follows = kind in (Kind.CONTROL, Kind.RECOVER)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, client, server, FROM_SOURCE if follows else None)
                nursery.start_soon(self._pump, server, client, FROM_DESTINATION if follows else None)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            self._streams -= {client, server}
            client.socket.close()
            server.socket.close()

    async def _pass_descriptors(self, client: trio.SocketStream, server: trio.SocketStream) -> None:
        files: dict[str, int] = {}
        try:
            files = await receive_descriptors(client)
            if not self._on_message("Descriptors"):
                await trio.sleep_forever()
            await send_descriptors(server, list(files), list(files.values()))
        except LinkLost:
            # It was cut, or never used.
            return
        finally:
            close_all(files)

    async def _pump(self, origin: trio.SocketStream, end: trio.SocketStream, types: Any) -> None:
        inbox = Inbox(types, 1 << 30) if types else None
        while data := await origin.receive_some(1 << 16 if inbox is None else inbox.wanted()):
            if inbox is not None:
                inbox.receive(bytes(data))
                message = inbox.next_message()
                if message is not None and not self._on_message(type(message).__name__):
                    await trio.sleep_forever()
            await end.send_all(data)
        await end.send_eof()


async def _exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        if not part:
            raise trio.BrokenResourceError
        data += part
    return data
