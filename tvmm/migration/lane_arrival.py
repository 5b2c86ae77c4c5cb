"""Connections for pages, as the destination takes them: waited for, told from strangers', and unwrapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import trio

from tvmm.errors import ProtocolError
from tvmm.migration.link import LinkLost

if TYPE_CHECKING:
    from tvmm.migration.receivers import ReceiverLanes
    from tvmm.migration.secure import Securer

__all__ = ["NOBODY", "LaneArrivals", "Session", "add_lanes"]

LANES_SECONDS = 30.0
"""For all lanes to come."""


class Session(NamedTuple):
    """What a source is known by, and how its pages come."""

    session: bytes
    token: bytes
    identity: bytes
    lanes: int
    compress: str


NOBODY = Session(b"", b"", b"", 0, "off")
"""Before a source has been let in."""


class LaneArrivals:
    """Connections of one source, by their numbers."""

    def __init__(self) -> None:
        self._streams: dict[int, trio.SocketStream] = {}
        self._news = trio.Event()

    def take(self, stream: trio.SocketStream, number: int, session: Session) -> None:
        """One has come: it is this object's. Raises `ProtocolError` if it is not wanted."""
        if number >= session.lanes or number in self._streams:
            raise ProtocolError(f"connection {number} for pages is one too many")
        self._streams[number] = stream
        self._news.set()
        self._news = trio.Event()

    async def gather(self, lanes: ReceiverLanes, session: Session, security: Securer) -> None:
        """Return when `lanes` has all of them. Raises `LinkLost` and what `Securer` raises."""
        with trio.move_on_after(LANES_SECONDS) as patience:
            while len(self._streams) < session.lanes:
                await self._news.wait()
        if patience.cancelled_caught:
            raise LinkLost("its connections for pages did not come")
        # Of a copy: a number that has come stays taken.
        await add_lanes(lanes, self._streams.copy(), session, security)

    def close(self) -> None:
        """No task is left that could let another one in."""
        for stream in self._streams.values():
            stream.socket.close()


async def add_lanes(
    lanes: ReceiverLanes, arrivals: dict[int, trio.SocketStream], session: Session, security: Securer
) -> None:
    """Lanes over connections that have come, which are taken out of `arrivals` one by one."""
    for number in range(session.lanes):
        stream = arrivals[number]
        if session.compress == "off" and security.lanes_are_plain:
            lanes.add_plain(arrivals.pop(number))
            continue
        decoder = None
        if session.compress == "zstd":
            from tvmm.migration.zstd import Decompressor

            decoder = Decompressor()
        lanes.add_buffered(await security.wrap_lane(stream, lanes.waker, session.identity), decoder)
        del arrivals[number]
