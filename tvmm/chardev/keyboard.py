"""What becomes of keys pressed on a terminal: input for the guest, or orders that are carried out here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.chardev.escape import Escape, Event, Kind
from tvmm.errors import TvmmError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tvmm.chardev.feed import Follower
    from tvmm.chardev.port import Actions, Line

__all__ = ["Keyboard"]


class Keyboard:
    """Does what the escape machine says, one event after the other.

    `key` is the control character that escapes, `show` writes to the terminal, and `follower` is what brings
    the guest's output there: it pauses while the user is at the control prompt.
    """

    def __init__(
        self,
        key: int,
        line: Line,
        follower: Follower,
        actions: Actions,
        show: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self.quit_asked = False
        """Whether the user has asked for the end of the machine."""
        self._escape = Escape(key=key)
        self._line = line
        self._follower = follower
        self._actions = actions
        self._show = show

    async def take(self, data: bytes) -> None:
        """Carry out what was typed; returns when all of it is done or handed to the guest's queue."""
        for event in self._escape.feed(data):
            await self._do(event)

    async def _do(self, event: Event) -> None:
        if event.kind is Kind.SEND:
            await self._line.send(event.data)
        elif event.kind is Kind.BREAK:
            await self._line.send_break()
        elif event.kind is Kind.QUIT:
            self.quit_asked = True
            self._actions.quit()
        elif event.kind is Kind.HELP:
            await self._show(self._escape.help())
        elif event.kind is Kind.ECHO:
            await self._show(event.data)
        elif event.kind is Kind.COMMAND:
            await self._show(await self._answer(event.data))
        else:
            # Output that comes while the user types a command would tear it apart. It is kept, as far as the
            # history reaches, and the guest goes on.
            self._follower.paused = event.kind is Kind.PROMPT

    async def _answer(self, command: bytes) -> bytes:
        try:
            answer = await self._actions.command(command.decode("utf-8", "replace"))
        except TvmmError as error:
            answer = str(error)
        if answer and not answer.endswith("\n"):
            answer += "\n"
        return answer.replace("\n", "\r\n").encode("utf-8", "replace")
