"""Somebody at a viewer: a `RfbViewer` with a connection, as tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.support.rfb_viewer import RfbViewer
from tvmm.vnc import encodings
from tvmm.vnc.client_messages import EnableContinuousUpdates
from tvmm.vnc.pixel_format import Rect

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Person", "come_in"]


class Person:
    """Somebody at a viewer."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.viewer = RfbViewer()
        self._stream = stream
        self._news = trio.Event()

    async def run(self) -> None:
        """Take in what comes."""
        try:
            while data := await self._stream.receive_some(1 << 16):
                self.viewer.receive(bytes(data))
                await self.say()
                self._news.set()
                self._news = trio.Event()
        except trio.ClosedResourceError:
            return

    async def say(self, data: bytes = b"") -> None:
        """Send what there is, and `data`."""
        self.viewer.send(data)
        if output := self.viewer.take_output():
            await self._stream.send_all(output)

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Until it holds."""
        while not condition():
            await self._news.wait()

    async def leave(self) -> None:
        """Close the window."""
        await self._stream.aclose()


async def come_in(stream: trio.abc.Stream, nursery: trio.Nursery) -> Person:
    """Somebody who has come in, has the first picture, and gets updates as fast as they are made."""
    person = Person(stream)
    nursery.start_soon(person.run)
    await person.wait(lambda: person.viewer.running)
    extensions = (encodings.DESKTOP_SIZE, encodings.FENCE, encodings.CONTINUOUS_UPDATES, encodings.LED_STATE)
    person.viewer.set_encodings(encodings.RAW, *extensions, encodings.POINTER_MOTION)
    person.viewer.request(incremental=False)
    await person.say(EnableContinuousUpdates(True, Rect(0, 0, 0xFFFF, 0xFFFF)).pack())
    await person.wait(lambda: bool(person.viewer.updates))
    return person
