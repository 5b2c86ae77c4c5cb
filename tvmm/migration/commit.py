"""The source's second step: the guest is given up, or taken back, or nobody knows.

From the first line of it on the destination's word is what counts. Whatever ends it, cancellation included, the guest
stays paused here unless that word lets it go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tvmm.errors import ProtocolError, TvmmError, UserError
from tvmm.migration.link import LinkLost
from tvmm.migration.messages import Commit, Running
from tvmm.migration.source import SourceEvent, SourceState
from tvmm.migration.talk import Ended, ask

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.migration.guest import LeavingGuest
    from tvmm.migration.link import Address
    from tvmm.migration.secure import Securer
    from tvmm.migration.talk import Talk

__all__ = ["Commitment", "Destination"]

RUNNING_SECONDS = 10.0
"""For the word that the guest runs there, before it is asked for."""
ASK_SECONDS, ASK_AGAIN_SECONDS = 30.0, 0.5
"""How long, and how often, a destination is asked that does not answer."""
_ASKED = (SourceState.ASKING, SourceState.INQUIRING)


class Destination:
    """Where it is, and how to ask it about a session."""

    def __init__(self, address: Address, security: Securer, session: bytes) -> None:
        self._address = address
        self._security = security
        self._session = session

    async def ask(self) -> SourceEvent:
        """What has become of the guest. Raises any `TvmmError` if there is no answer."""
        return await ask(self._address, self._security, self._session)


class Commitment:
    """Of one guest. `move` takes events to the source's table and returns the state; `running` gets the word of a
    destination that has it.
    """

    def __init__(
        self,
        guest: LeavingGuest,
        talk: Talk,
        destination: Destination,
        move: Callable[[SourceEvent], SourceState],
        running: Callable[[Running], None],
    ) -> None:
        self._guest = guest
        self._talk = talk
        self._destination = destination
        self._move = move
        self._running = running
        self._asking = trio.CancelScope()
        self._trouble: LinkLost | Ended = LinkLost("the connection broke")

    def look_at(self, destination: Destination) -> None:
        """It has another address now."""
        self._destination = destination

    def stop_asking(self) -> None:
        """The user does not want to wait for an answer any more."""
        self._asking.cancel()

    async def run(self) -> Ended | None:
        """Why the guest is not the destination's; None if it is, or may be and post-copy has a state for that."""
        self._guest.keep_paused()
        trouble = await self._give_up()
        if trouble is None:
            return None
        self._trouble = trouble
        return await self._find_out(self._move(trouble.event if isinstance(trouble, Ended) else SourceEvent.LOST))

    async def ask_again(self) -> Ended | None:
        """As `run`, for an answer that was not to be had then and that the user wants now."""
        return await self._find_out(self._move(SourceEvent.RECOVER))

    async def _find_out(self, state: SourceState) -> Ended | None:
        trouble = self._trouble
        if state in _ASKED:
            state = await self._ask(state)
        if state is SourceState.FAILED:
            return self._take_back(trouble)
        if state in (SourceState.DONE, SourceState.CUT, SourceState.UNHEARD):
            return None
        return Ended(
            SourceEvent.OVERDUE,
            f"the destination was given the guest and does not answer ({trouble}): it may run there",
            "the guest is paused here: if it does not run there, 'tvmm resume' lets it go on",
        )

    async def _give_up(self) -> LinkLost | Ended | None:
        """Send COMMIT and hear that the guest runs; else what came between, but no cancellation."""
        with trio.CancelScope(shield=True):
            try:
                self._guest.release_disks()
                self._move(SourceEvent.READY)
                await self._talk.say(Commit())
                self._running(await self._talk.expect(Running, RUNNING_SECONDS, "say that the guest runs"))
                self._move(SourceEvent.RUNNING)
            except (LinkLost, Ended) as error:
                return error
            except ProtocolError as error:
                # Whoever talks nonsense now may still have started the guest.
                return LinkLost(str(error))
        return None

    async def _ask(self, state: SourceState) -> SourceState:
        """What has become of the guest: asked until somebody who knows answers, the time is up, or the user is."""
        self._asking = trio.CancelScope(deadline=trio.current_time() + ASK_SECONDS)
        with self._asking:
            while state in _ASKED:
                try:
                    state = self._move(await self._destination.ask())
                except (TvmmError, OSError):
                    self._move(SourceEvent.LOST)
                    await trio.sleep(ASK_AGAIN_SECONDS)
        return self._move(SourceEvent.OVERDUE) if state in _ASKED else state

    def _take_back(self, error: LinkLost | Ended) -> Ended:
        """The destination has abandoned the guest: it goes on here, if its disks are still to be had."""
        reason, hint = (error.reason, error.hint) if isinstance(error, Ended) else (str(error), "")
        try:
            self._guest.take_disks()
        except UserError as lock_error:
            return Ended(
                SourceEvent.FAILURE,
                f"the destination has abandoned the guest, and {lock_error.message}",
                "the guest is paused here: 'tvmm resume' lets it go on once the disk is free",
            )
        self._guest.go_on()
        return Ended(SourceEvent.FAILURE, f"the destination has abandoned the guest: {reason}", hint)
