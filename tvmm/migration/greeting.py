"""How the source asks to be let in: Hello with the features that it wants, and again without them where that is needed.

Memory is handed over where that is possible, without being asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.migration.hand_over import MEMFD, can_be_passed, why_copied
from tvmm.migration.source import SourceEvent
from tvmm.migration.talk import Ended, Talk

if TYPE_CHECKING:
    from tvmm.memory.ram import GuestRam
    from tvmm.migration.disk_departure import LeavingDisks
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

    async def ask_in(self, hello: Hello, ram: GuestRam, disks: LeavingDisks) -> bytes:
        """The token for other connections. Raises `Ended`, `UserError`, `LinkLost` or `ProtocolError`."""
        wants = ("postcopy",) if self._postcopy != "off" else ()
        if self.talk.is_trusted:
            self._progress.advice = why_copied(ram)
        if disks.is_wanted or not self.talk.is_trusted or not can_be_passed(ram):
            token = await self.talk.greet(hello, (*disks.wants, *wants), await disks.details())
        else:
            token = await self._ask_for_hand_over(hello, wants)
        if self._postcopy == "now" and not self.talk.granted & {MEMFD, "postcopy"}:
            raise Ended(SourceEvent.BROKEN, "the destination's host does not let it wait for single pages of memory",
                        "'tvmm doctor' there says why; migrate without post-copy")  # fmt: skip
        return token

    async def _ask_for_hand_over(self, hello: Hello, wants: tuple[str, ...]) -> bytes:
        try:
            token = await self.talk.greet(hello, (MEMFD, *wants))
        except Ended as ended:
            if ended.event is not SourceEvent.LOST:
                raise
            # A tvmm that is too old to know the wish: it gets a copy.
            await self.talk.close()
            await self.open()
            token = await self.talk.greet(hello)
        if MEMFD in self.talk.granted:
            self._progress.advice = ""
        return token
