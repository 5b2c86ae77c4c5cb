"""Handshakes over real sockets, for tests: on a Trio stream and on a thread's lane, and what came of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import trio

from tests.migration.rig import both, connected
from tvmm.errors import ProtocolError, UserError
from tvmm.migration.tls import Endpoint, SecureLane

__all__ = ["Met", "is_in", "met_on_lanes", "met_on_streams", "refused"]

Met = Callable[..., tuple[Any, Any]]


def met_on_lanes(near: Endpoint, far: Endpoint, host: str = "127.0.0.1") -> tuple[Any, Any]:
    """What source and destination return or raise; lanes are closed."""
    here, there = connected()
    results = both(lambda: near.lane(here, "beta", host), lambda: far.lane(there, "alpha"))
    for lane in results:
        if isinstance(lane, SecureLane):
            lane.stream.close()
    return results


def met_on_streams(near: Endpoint, far: Endpoint, host: str = "127.0.0.1") -> tuple[Any, Any]:
    """The same on Trio streams."""
    here, there = connected()
    results: list[Any] = [None, None]

    async def one(index: int, make: Callable[[], Any]) -> None:
        try:
            results[index] = await make()
        except Exception as error:
            results[index] = error
        else:
            await trio.aclose_forcefully(results[index])

    async def main() -> None:
        ends = [trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (here, there)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 0, functools.partial(near.secure, ends[0], "beta", host))
            nursery.start_soon(one, 1, functools.partial(far.secure, ends[1], "alpha"))

    trio.run(main)
    return results[0], results[1]


def is_in(result: tuple[Any, Any]) -> bool:
    """Whether both ends have the connection."""
    return all(isinstance(end, SecureLane | trio.SSLStream) for end in result)


def refused(result: tuple[Any, Any], near: str, far: str) -> None:
    """Both ends have raised, the source what its user can mend, the destination what outlives it."""
    error, other = result
    assert near in str(error), error
    assert far in str(other), other
    assert isinstance(other, ProtocolError)
    assert isinstance(error, UserError)
    assert error.hint
    assert "\n" not in str(error) + str(other)
