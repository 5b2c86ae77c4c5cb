"""What the source says to its destination, and hears: greeting, expected words, bad news, and questions afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import trio

from tvmm.errors import ProtocolError, TvmmError
from tvmm.migration.descriptors import is_trusted
from tvmm.migration.link import Link, LinkLost, open_connection
from tvmm.migration.messages import FROM_DESTINATION, Answer, Failure, Grants, Hello, Query, Refuse, Wants, Welcome
from tvmm.migration.source import SourceEvent
from tvmm.migration.wire import HIGHEST, LOWEST, TOKEN_BYTES, Kind, Opening, readable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.migration.link import Address
    from tvmm.migration.secure import Securer

__all__ = ["Ended", "Talk", "ask", "say_if_possible"]

T = TypeVar("T")

GREETING_SECONDS = 60.0
"""For the destination to compare the machines; it may have to read a kernel for that."""
FAREWELL_SECONDS = 1.0
"""For a last message that may be lost: nobody waits for a peer that is gone."""
REASONS_MAX = 32
"""Sentences of a refusal that a user gets to see: a destination does not fill the terminal."""
UNASKED_MAX = 16
"""Messages that nobody has waited for yet: a destination does not fill this side's memory."""


class Ended(Exception):
    """An event that ends the migration, with what to tell the user."""

    def __init__(self, event: SourceEvent, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.event = event
        self.reason = reason
        self.hint = hint


class Talk:
    """The control connection. Everything raises `LinkLost` or `ProtocolError` for a peer that is gone or wrong."""

    def __init__(self, link: Link) -> None:
        self.link = link
        """For last words; nothing else is said past this object."""
        self._heard, self._unasked = trio.open_memory_channel[Any](UNASKED_MAX)
        self._bad_news: Exception = ProtocolError("nobody listens")
        self.aside: dict[type[Any], Callable[[Any], None]] = {}
        """What becomes of messages that may come at any time, between those that `expect` waits for."""
        self.granted: frozenset[str] = frozenset()
        """Features that the destination goes along with, once it was greeted."""

    @classmethod
    async def open(cls, address: Address, security: Securer) -> Talk:
        """Connect. Raises `UserError` too."""
        stream = await open_connection(address, Opening(Kind.CONTROL, security.kind))
        return cls(Link(await security.wrap(stream), FROM_DESTINATION))

    @property
    def is_trusted(self) -> bool:
        """Whether descriptors can go there, and may."""
        return is_trusted(self.link.stream)

    async def greet(self, hello: Hello, wants: tuple[str, ...] = (), details: tuple[Any, ...] = ()) -> bytes:
        """The token for lanes. Raises `Ended` if the destination refuses or says nothing.

        `wants` are features that are wanted; see `granted` afterwards. `details` are messages about them.
        """
        if wants:
            await self.link.send(Wants(wants))
        for detail in details:
            await self.link.send(detail)
        await self.link.send(hello)
        with trio.move_on_after(GREETING_SECONDS) as patience:
            answer = await self._answer(wants)
        if patience.cancelled_caught:
            raise Ended(SourceEvent.OVERDUE, f"the destination said nothing for {GREETING_SECONDS:g} s")
        if isinstance(answer, Refuse):
            reasons = "; ".join(map(readable, answer.reasons[:REASONS_MAX])) or "no reason given"
            raise Ended(
                SourceEvent.REFUSE, f"the destination refuses the machine: {reasons}", readable(answer.hint)
            )
        if not isinstance(answer, Welcome) or not LOWEST <= answer.version <= HIGHEST:
            raise ProtocolError("the destination's answer to the greeting is none")
        if len(answer.token) != TOKEN_BYTES:
            raise ProtocolError("the destination's token has another length")
        return answer.token

    async def _answer(self, wants: tuple[str, ...]) -> Any:
        if not wants:
            return await self.link.receive()
        try:
            answer = await self.link.receive()
        except LinkLost:
            raise Ended(
                SourceEvent.LOST,
                f"the destination does not answer to a wish for {', '.join(wants)}",
                "an older tvmm there does not know it: use the same version",
            ) from None
        if isinstance(answer, Grants):
            self.granted = frozenset(wants) & frozenset(answer.features)
            answer = await self.link.receive()
        return answer

    async def hear(self, kind: type[T], seconds: float, what: str) -> T:
        """As `expect`, before anybody listens."""
        with trio.move_on_after(seconds) as patience:
            message = await self.link.receive()
        if patience.cancelled_caught:
            raise Ended(SourceEvent.OVERDUE, f"the destination did not {what} within {seconds:.3g} s")
        if isinstance(message, Failure):
            raise Ended(SourceEvent.FAILURE, readable(message.reason), readable(message.hint))
        if not isinstance(message, kind):
            raise ProtocolError(f"the destination sent {type(message).__name__} in place of {kind.__name__}")
        return message

    async def listen(self) -> None:
        """Hear what the destination says, for `expect`, until there is bad news: raised here, and by `expect` too."""
        try:
            while True:
                message = await self.link.receive()
                if isinstance(message, Failure):
                    raise Ended(SourceEvent.FAILURE, readable(message.reason), readable(message.hint))
                if (take := self.aside.get(type(message))) is not None:
                    take(message)
                    continue
                try:
                    self._heard.send_nowait(message)
                except trio.WouldBlock:
                    raise ProtocolError("the destination sends what nobody has asked for") from None
        except (TvmmError, Ended) as error:
            self._bad_news = error
            self._heard.close()
            raise

    async def expect(self, kind: type[T], seconds: float, what: str) -> T:
        """The next message, which has to be of `kind`. Raises `Ended` when the destination does not say it in time."""
        with trio.move_on_after(seconds) as patience:
            try:
                message = await self._unasked.receive()
            except trio.EndOfChannel:
                raise self._bad_news from None
        if patience.cancelled_caught:
            raise Ended(SourceEvent.OVERDUE, f"the destination did not {what} within {seconds:.3g} s")
        if not isinstance(message, kind):
            raise ProtocolError(f"the destination sent {type(message).__name__} in place of {kind.__name__}")
        return message

    async def say(self, message: Any) -> None:
        """Send it."""
        await self.link.send(message)

    async def close(self) -> None:
        """At once."""
        await self.link.close()


async def say_if_possible(link: Link, message: Any) -> None:
    """A word that may be lost, for a moment."""
    with trio.move_on_after(FAREWELL_SECONDS, shield=True):
        try:
            await link.send(message)
        except TvmmError:
            return


async def ask(address: Address, security: Securer, session: bytes) -> SourceEvent:
    """What has become of a guest, on a new connection. Raises any `TvmmError` if there is no answer."""
    stream = await open_connection(address, Opening(Kind.QUERY, security.kind))
    link = Link(await security.wrap(stream), FROM_DESTINATION)
    try:
        await link.send(Query(session))
        answer = await link.receive()
    finally:
        await link.close()
    if not isinstance(answer, Answer):
        raise ProtocolError("the destination's answer to a question is none")
    known = {"running": SourceEvent.ANSWER_RUNNING, "abandoned": SourceEvent.ANSWER_ABANDONED}
    return known.get(answer.outcome, SourceEvent.ANSWER_UNKNOWN)
