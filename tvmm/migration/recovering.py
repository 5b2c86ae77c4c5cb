"""The source of a post-copy comes anew after a cut: who it is, what the destination has, and new connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import trio

from tvmm.errors import ProtocolError, UserError
from tvmm.kvm.pages import PageBitmap
from tvmm.migration.absent import take_piece
from tvmm.migration.link import Link, LinkLost, open_connection
from tvmm.migration.messages import FROM_DESTINATION, Complete, Failure, Received, Recover, Rejoin, Resumed
from tvmm.migration.wire import MAX_MESSAGE, TOKEN_BYTES, Kind, Opening, readable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tvmm.migration.link import Address
    from tvmm.migration.postcopy_source import Departure
    from tvmm.migration.secure import Securer
    from tvmm.migration.senders import SenderLanes

__all__ = ["Recovery", "recover"]

RECOVER_SECONDS = 60.0
"""For all of it."""
RECEIVED_MESSAGES_MAX = 1 << 16
"""A destination does not keep the source at it for ever."""


class Recovery(NamedTuple):
    """Where the destination is, and what it knows this source by. `open_lanes` makes those of a token; `met` hears that
    it is there.
    """

    address: Address
    security: Securer
    session: bytes
    token: bytes
    open_lanes: Callable[[bytes], Awaitable[None]]
    met: Callable[[], None]


async def recover(
    recovery: Recovery, lanes: SenderLanes, departure: Departure, welcomed: Callable[[], None]
) -> Link | Complete:
    """The connection on which the destination will say that all is there, or that word itself.

    `welcomed` is called when it has let this source in. Raises `LinkLost`, `ProtocolError` or `UserError`; what was
    made up to then is closed, but for lanes.
    """
    with trio.move_on_after(RECOVER_SECONDS):
        stream = await _connect(recovery)
        link = Link(await recovery.security.wrap(stream), FROM_DESTINATION)
        link.inbox.limit = MAX_MESSAGE
        try:
            await link.send(Recover(recovery.session))
            answer = await _rejoin(recovery, link, lanes, departure, welcomed)
        except BaseException:
            await link.close()
            raise
        if isinstance(answer, Complete):
            # It has waited for nothing but this, and hears that it was heard.
            return answer
        return link
    raise LinkLost(f"the destination did not go on within {RECOVER_SECONDS:g} s")


async def _connect(recovery: Recovery) -> trio.SocketStream:
    try:
        return await open_connection(
            recovery.address, Opening(Kind.RECOVER, recovery.security.kind, token=recovery.token)
        )
    except UserError as error:
        # Its hint is for who begins: another machine there would be of no use.
        raise UserError(error.message, "where the guest is, its machine has to listen") from error


async def _rejoin(
    recovery: Recovery, link: Link, lanes: SenderLanes, departure: Departure, welcomed: Callable[[], None]
) -> Complete | None:
    received = PageBitmap.of(lanes.pages)
    for _ in range(RECEIVED_MESSAGES_MAX):
        message = await link.receive()
        if isinstance(message, Complete):
            recovery.met()
            return message
        if isinstance(message, Rejoin) and len(message.token) == TOKEN_BYTES:
            break
        _check(message, Received)
        take_piece(message, received)
    else:
        raise ProtocolError("the destination names pages without an end")
    recovery.met()
    welcomed()
    departure.server.recover(received)
    lanes.group.begin_round()
    requests = await open_connection(
        recovery.address, Opening(Kind.REQUESTS, recovery.security.kind, token=message.token)
    )
    departure.connect(await recovery.security.wrap(requests))
    await recovery.open_lanes(message.token)
    answer = await link.receive()
    if isinstance(answer, Complete):
        return answer
    _check(answer, Resumed)
    return None


def _check(message: object, kind: type[object]) -> None:
    if isinstance(message, Failure):
        raise UserError(f"the destination does not go on: {readable(message.reason)}", readable(message.hint))
    if not isinstance(message, kind):
        raise ProtocolError(f"the destination sent {type(message).__name__} in place of {kind.__name__}")
