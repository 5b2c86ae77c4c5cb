"""How the source asks to be let in: Hello with the features that it wants, and again without them where that is needed.

Memory and taps are handed over where that is possible, without being asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.migration.hand_over import MEMFD, can_be_passed, tap_feature, why_copied
from tvmm.migration.source import SourceEvent
from tvmm.migration.talk import Ended, Talk

if TYPE_CHECKING:
    from tvmm.migration.disk_departure import LeavingDisks
    from tvmm.migration.guest import LeavingGuest
    from tvmm.migration.link import Address
    from tvmm.migration.messages import Hello
    from tvmm.migration.progress import Progress
    from tvmm.migration.secure import Securer

__all__ = ["Greeting"]


class Greeting:
    """Of one source, at `address`. `postcopy` is the user's wish; `progress` gets what there is to say about it."""

    def __init__(self, address: Address, security: Securer, postcopy: str, progress: Progress) -> None:
        self.talk: Talk
        """The connection, once `open` has returned. It is another one after some greetings."""
        self._address = address
        self._security = security
        self._postcopy = postcopy
        self._progress = progress

    async def open(self) -> None:
        """Connect. Raises as `Talk.open`."""
        self.talk = await Talk.open(self._address, self._security)

    async def close(self) -> None:
        """The connection that there is last."""
        await self.talk.close()

    async def ask_in(self, hello: Hello, guest: LeavingGuest, disks: LeavingDisks) -> bytes:
        """The token for other connections. Raises `Ended`, `UserError`, `LinkLost` or `ProtocolError`."""
        postcopy = ("postcopy",) if self._postcopy != "off" else ()
        taps = tuple(map(tap_feature, guest.taps())) if self.talk.is_trusted else ()
        if self.talk.is_trusted:
            self._progress.advice = why_copied(guest.ram)
        if disks.is_wanted or not self.talk.is_trusted or not can_be_passed(guest.ram):
            needed = (*disks.wants, *postcopy)
            token = await self._ask(hello, (*needed, *taps), needed if taps else None, await disks.details())
        else:
            token = await self._ask(hello, (MEMFD, *postcopy, *taps), ())
            if MEMFD in self.talk.granted:
                self._progress.advice = ""
        if self._postcopy == "now" and not self.talk.granted & {MEMFD, "postcopy"}:
            raise Ended(SourceEvent.BROKEN, "the destination's host does not let it wait for single pages of memory",
                        "'tvmm doctor' there says why; migrate without post-copy")  # fmt: skip
        return token

    async def _ask(
        self, hello: Hello, wants: tuple[str, ...], needed: tuple[str, ...] | None, details: tuple[Any, ...] = ()
    ) -> bytes:
        """Ask for `wants`; of a tvmm that is too old to know of them for what is `needed`. None: it is not asked again.
        """
        try:
            return await self.talk.greet(hello, wants, details)
        except Ended as ended:
            if ended.event is not SourceEvent.LOST or needed is None:
                raise
        await self.talk.close()
        await self.open()
        return await self.talk.greet(hello, needed, details)
