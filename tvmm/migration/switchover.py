"""What is left of a guest when it is paused at its source, and how that goes over before the guest may be given up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from tvmm.migration.messages import Ready, State
from tvmm.migration.policy import longest_pause
from tvmm.migration.receivers import LAST_ROUND
from tvmm.migration.source import SourceEvent
from tvmm.migration.talk import Ended

if TYPE_CHECKING:
    from tvmm.migration.disk_departure import LeavingDisks
    from tvmm.migration.guest import LeavingGuest
    from tvmm.migration.postcopy_source import Departure
    from tvmm.migration.progress import Progress
    from tvmm.migration.rounds import Rounds
    from tvmm.migration.senders import SenderLanes
    from tvmm.migration.status import MigrationParameters
    from tvmm.migration.talk import Talk

__all__ = ["Rest", "RestWithPages"]


class Rest:
    """The state of a guest whose memory the destination has already, and what its disks have left."""

    def __init__(self, guest: LeavingGuest, talk: Talk, disks: LeavingDisks, progress: Progress) -> None:
        self._guest = guest
        self._talk = talk
        self._disks = disks
        self._parts = progress.pause

    async def go(self, parameters: MigrationParameters, ram_bytes: int, *, was_running: bool) -> None:
        """Until the destination is ready. Raises `Ended` when a guest that `was_running` has been paused for too long,
        `LinkLost`, or what else ends a migration.
        """
        limit = longest_pause(parameters, ram_bytes + self._disks.total) if was_running else math.inf
        with trio.move_on_after(limit) as patience:
            async with self._disks.finishing():
                await self._send(was_running, verify=parameters.verify)
            ready = await self._talk.expect(Ready, math.inf, "load the state")
        if patience.cancelled_caught:
            raise Ended(
                SourceEvent.OVERDUE,
                f"the guest would have been paused for more than {parameters.max_downtime_ms:g} ms",
                "it goes on here; try again, or allow more with --max-downtime",
            )
        # Bad news, or the user, may have been here in the same moment as Ready: the guest is not given up then.
        await trio.lowlevel.checkpoint_if_cancelled()
        self._parts.ready(ready)

    async def _send(self, was_running: bool, *, verify: bool) -> None:
        sections = await self._guest.save()
        self._parts.saved()
        hashes = await self._guest.hashes() if verify else ()
        await self._talk.say(State(sections, was_running, 0, hashes))
        self._parts.pages_sent()


class RestWithPages(Rest):
    """The same with the pages that were written last, or with what is to be known of those that stay behind."""

    def pages(self, rounds: Rounds, lanes: SenderLanes, departure: Departure | None) -> None:
        """Where they are. `departure`: the guest goes before them."""
        self._rounds = rounds
        self._lanes = lanes
        self._departure = departure

    async def _send(self, was_running: bool, *, verify: bool) -> None:
        self._guest.end_hints()
        sections = await self._guest.save()
        self._parts.saved()
        # The log is read last: reading a vCPU's state may have made KVM write to the guest's memory.
        self._rounds.sync()
        self._lanes.group.log = None
        hashes = await self._guest.hashes() if verify else ()
        if self._departure is not None:
            await self._departure.leave_behind(self._talk)
        # Before the pages, so that it is taken apart there while they come.
        await self._talk.say(State(sections, was_running, self._rounds.number, hashes))
        await self._lanes.send_round(self._rounds.number | LAST_ROUND)
        self._rounds.number += 1
        if self._departure is not None:
            self._departure.serve()
        self._parts.pages_sent()
