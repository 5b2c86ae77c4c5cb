"""Connections for pages, as the source makes them: how many, and what each is wrapped in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tvmm.migration.link import open_connection
from tvmm.migration.wire import Kind, Opening

if TYPE_CHECKING:
    import trio

    from tvmm.migration.link import Address
    from tvmm.migration.secure import Securer
    from tvmm.migration.senders import SenderLanes
    from tvmm.migration.status import MigrationParameters

__all__ = ["lane_count", "open_lanes"]

AUTO_LANES_MAX = 4


def lane_count(parameters: MigrationParameters, address: Address) -> int:
    """How many lanes to open: what the user wants, or as many as this host can fill."""
    if parameters.connections:
        return parameters.connections
    # One fills a path on which both ends have a processor to spare; sender and receiver here share them.
    processors = os.cpu_count() or 1
    return max(1, min(AUTO_LANES_MAX, processors // 4 if address.is_local else processors // 2))


async def open_lanes(
    lanes: SenderLanes, count: int, address: Address, security: Securer, token: bytes, *, compress: str
) -> None:
    """Add `count` of them to `lanes`. Raises as `open_connection` and `Securer`; those that were added stay."""
    streams: list[trio.SocketStream] = []
    try:
        # All of them before the first handshake: the destination begins with those when all are there.
        for number in range(count):
            streams.append(await open_connection(address, Opening(Kind.LANE, security.kind, token=token, lane=number)))
        while streams:
            await _add_lane(lanes, streams.pop(0), security, compress)
    finally:
        for stream in streams:
            stream.socket.close()


async def _add_lane(lanes: SenderLanes, stream: trio.SocketStream, security: Securer, compress: str) -> None:
    if compress == "off" and security.lanes_are_plain:
        lanes.add_plain(stream)
        return
    codec = None
    if compress == "zstd":
        from tvmm.migration.zstd import Compressor

        codec = Compressor()
    lanes.add_buffered(await security.wrap_lane(stream, lanes.waker), codec)
