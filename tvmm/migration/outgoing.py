"""The source of a migration: connects, sends pages in rounds while the guest runs, and gives it up in two steps.

What may follow what is `tvmm.migration.source`; this module does it. Everything that goes wrong before COMMIT ends
with the guest running here as if nothing had been.
"""

from __future__ import annotations

import math
import os
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import trio

from tvmm.errors import ProtocolError, TvmmError, UserError
from tvmm.migration.commit import Commitment, Destination
from tvmm.migration.disk_departure import LeavingDisks
from tvmm.migration.greeting import Greeting
from tvmm.migration.guest import blocks_of
from tvmm.migration.hand_over import MEMFD, pass_memory, pass_taps, taps_in
from tvmm.migration.lane_opening import lane_count, open_lanes
from tvmm.migration.link import LinkLost, open_connection, peer_name
from tvmm.migration.messages import Cancel, Complete, Goodbye, Hello, Watched
from tvmm.migration.progress import Progress
from tvmm.migration.rounds import Rounds
from tvmm.migration.senders import SenderLanes
from tvmm.migration.source import SERVES, TERMINAL, SourceEvent, SourceState, after
from tvmm.migration.status import MigrationStatus
from tvmm.migration.switchover import Rest, RestWithPages
from tvmm.migration.talk import Ended, say_if_possible
from tvmm.migration.threads import attentive, the_cause
from tvmm.migration.wire import Kind, Opening

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tvmm.kvm.dirty_log import DirtyTracker
    from tvmm.kvm.lanes import LaneGroup
    from tvmm.migration.guest import LeavingGuest
    from tvmm.migration.link import Address, Link
    from tvmm.migration.postcopy_source import Departure, Serving
    from tvmm.migration.recovering import Recovery
    from tvmm.migration.secure import Securer
    from tvmm.migration.status import MigrationParameters
    from tvmm.migration.talk import Talk

__all__ = ["Outgoing"]

SESSION_BYTES = 16
_GIVEN_UP = (
    *(SourceState.COMMITTING, SourceState.ASKING),
    *(SourceState.ENTRUSTING, SourceState.INQUIRING, SourceState.UNHEARD),
    *SERVES,
)
"""Behind Commit: what the control connection has to say is for those who wait for it."""


class Outgoing:
    """One migration of `guest` to `address`. `changed` is called whenever the status' state is another one, or a new
    round has begun. Use it once.
    """

    def __init__(
        self,
        guest: LeavingGuest,
        address: Address,
        parameters: MigrationParameters,
        security: Securer,
        changed: Callable[[MigrationStatus], None],
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`random` gives the name of the session."""
        self.parameters = parameters
        self.progress = Progress(peer_name(address))
        self.state = SourceState.GREETING
        self._guest = guest
        self._disks = LeavingDisks(guest, parameters)
        self._address = self._met_at = address
        self._security = security
        self._changed = changed
        self._session = random(SESSION_BYTES)
        self._scope = trio.CancelScope()
        self._ended: Ended | None = None
        self._rounds = Rounds(guest, self._disks, self.progress, parameters, lambda: self._changed(self.status))
        self._lanes: SenderLanes
        self._group: LaneGroup | None = None
        self._talk: Talk
        self._commitment: Commitment
        self._lane_total = 0
        self._departure: Departure | None = None
        self._serving: Serving | None = None

    # --- the user's side ---

    @property
    def status(self) -> MigrationStatus:
        """As it is now."""
        status = self.progress.status()._replace(disks=self._disks.progress())
        return status if self._serving is None else status._replace(postcopy=self._serving.progress())

    def cancel(self) -> None:
        """The guest is to stay. Too late once it has been given up."""
        if self.state in (*TERMINAL, SourceState.COMMITTING, SourceState.ENTRUSTING):
            return
        if self.state in (SourceState.ASKING, SourceState.INQUIRING):
            self._commitment.stop_asking()
            return
        if self._serving is not None:
            self._serving_or_refuse().give_up()
            return
        if self.progress.state in ("setup", "active", "device"):
            self._tell("cancelling")
        self._end(Ended(SourceEvent.CANCEL, "cancelled"))

    def start_postcopy(self) -> None:
        """Let the guest go before its memory, once the first pass is over. Raises `UserError`."""
        if self.parameters.postcopy == "off":
            raise UserError("the migration was begun without post-copy", "switch on the capability postcopy-ram before")
        if self.state not in (SourceState.GREETING, SourceState.COPYING):
            raise UserError("it is too late for post-copy: the guest is on its way already")
        self._rounds.leave_soon()

    def _serving_or_refuse(self) -> Serving:
        if self._serving is None or self.state in TERMINAL:
            raise UserError("there is no post-copy under way")
        if self.state is not SourceState.UNHEARD:
            raise UserError(
                f"the guest runs at {self.progress.peer} and cannot be taken back: part of its memory is there alone",
                "it gets the rest from here: keep this process alive",
            )
        return self._serving

    def pause(self) -> None:
        """Cut a post-copy. Raises `UserError` if there is none."""
        if self._serving is None or self.state not in SERVES:
            raise UserError("there is no post-copy under way")
        self._serving.pause()

    def recover(self, address: Address | None) -> None:
        """Go on with a post-copy, at `address` if there is one; it is kept if the guest is there. `UserError`."""
        if self._serving is None or self.state not in (SourceState.CUT, SourceState.UNHEARD):
            raise UserError("there is no post-copy that is paused")
        self._address = address or self._met_at
        self._commitment.look_at(Destination(self._address, self._security, self._session))
        self._serving.go_on()

    def set_parameters(self, parameters: MigrationParameters) -> None:
        """Bandwidth and longest pause may change on the way."""
        self.parameters = parameters
        self._rounds.set_parameters(parameters)
        self._disks.set_parameters(parameters)
        if self._group is not None:
            self._group.bandwidth = parameters.bandwidth

    async def run(self, begun: trio.Event) -> SourceState:
        """To its end: a state of `source.TERMINAL`; `begun` is set once it is told that it has begun.

        Cancelled from outside before COMMIT, the guest goes on here.
        """
        self._tell("setup")
        begun.set()
        try:
            with self._scope:
                await self._body()
        except Ended as ended:
            self._ended = self._ended or ended
        except (LinkLost, ProtocolError) as error:
            event = SourceEvent.LOST if isinstance(error, LinkLost) else SourceEvent.BROKEN
            self._ended = self._ended or Ended(event, str(error))
        except UserError as error:
            self._ended = self._ended or Ended(SourceEvent.BROKEN, error.message, error.hint)
        if self._ended is not None and self.state not in TERMINAL:
            self._move(self._ended.event)
        return self._conclude()

    # --- states ---

    def _move(self, event: SourceEvent) -> SourceState:
        following = after(self.state, event)
        if following is None:
            raise ProtocolError(f"the destination sent {event.value} while the source was {self.state.value}")
        self.state = following
        return following

    def _end(self, ended: Ended) -> None:
        """From another task: what `_body` does is over."""
        if self._ended is None:
            self._ended = ended
        self._scope.cancel()

    def _tell(self, state: str) -> None:
        self.progress.enter(state)
        self._changed(self.status)

    def _conclude(self) -> SourceState:
        ended = self._ended
        if self.state is SourceState.DONE:
            return self.state
        if self.state is SourceState.UNCERTAIN:
            self.progress.guest = "unknown"
        if self.state is not SourceState.CANCELLED:
            self.progress.error = ended.reason if ended else "it ended for no known reason"
            self.progress.error_hint = ended.hint if ended else ""
        self._tell("cancelled" if self.state is SourceState.CANCELLED else "failed")
        return self.state

    # --- the whole of it ---

    async def _body(self) -> None:
        async with AsyncExitStack() as stack:
            await self._greet(stack)
            if MEMFD in self._talk.granted:
                stack.push_async_exit(self._say_why)
                await self._while_listening(self._hand_memory_over)
                return
            # The tracker before the lanes: no lane reads a page that nobody watches.
            tracker = self._guest.tracker()
            self._lanes = stack.enter_context(
                SenderLanes(self._guest.ram, self.parameters.bandwidth)
            )
            self._group = self._lanes.group
            stack.callback(self.progress.freeze)
            # Before the lanes are closed: the destination is to hear why, and not to find out that they are gone.
            stack.push_async_exit(self._say_why)
            await pass_taps(self._guest, self._address, self._security, self._token, self._talk)
            await self._open_lanes(self._token)
            await self._disks.open(stack, self._talk, self._open_storage, self._security, self._lanes.group)
            await self._copy_disks()
            await trio.to_thread.run_sync(tracker.start)
            stack.push_async_callback(_stop_tracking, tracker)
            self._lanes.group.log = tracker.log
            stack.callback(self._guest.throttle, 0)
            await stack.enter_async_context(self._guest.on_reset(self._rounds.ram_was_reset))
            self._rounds.begin(self._talk, self._lanes, tracker)
            self.progress.begin_copying(self._lanes)
            self._tell("active")
            stack.callback(self._guest.end_hints)
            if not self.parameters.verify:
                # What is free may differ over there, and with it the hashes.
                self._guest.begin_hints(self._rounds.spare)
            try:
                await self._while_listening(self._copy_and_commit)
            finally:
                if self._departure is not None:
                    await self._departure.close()

    async def _copy_disks(self) -> None:
        """Before RAM's first pass."""
        if self._disks.is_wanted:
            self.progress.phase = "copying disks"
            self._tell("active")
            await self._disks.first_pass(self._listen)

    async def _open_storage(self) -> trio.SocketStream:
        return await open_connection(self._address, Opening(Kind.STORAGE, self._security.kind, token=self._token))

    async def _while_listening(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen)
                await work()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise the_cause(group, (Ended, TvmmError)) from None

    async def _copy_and_commit(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._disks.keep_up)
            first = await self._rounds.one()
            with attentive():
                leaves = await self._rounds.converge(*first, self._announce_departure)
                rest = RestWithPages(self._guest, self._talk, self._disks, self.progress)
                rest.pages(self._rounds, self._lanes, self._departure)
                await self._switch_over(rest, leaves=leaves)
            await self._serve_pages()
            nursery.cancel_scope.cancel()

    async def _hand_memory_over(self) -> None:
        """The memory itself in place of copies, and all else as ever."""
        with attentive():
            await pass_memory(self._guest, self._address, self._security, self._token, self._talk)
            self.progress.pass_memory(self._ram_bytes)
            self._tell("active")
            await self._switch_over(Rest(self._guest, self._talk, self._disks, self.progress))
        if self.state is SourceState.DONE:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._guest.let_go_of_memory)

    async def _listen(self) -> None:
        """Bad news end all at once, unless the guest is given up already: then they are for `_commit`."""
        try:
            await self._talk.listen()
        except (TvmmError, Ended):
            if self.state not in (*TERMINAL, *_GIVEN_UP):
                raise

    # --- setup ---

    async def _greet(self, stack: AsyncExitStack) -> None:
        greeting = Greeting(self._address, self._security, self.parameters.postcopy, self.progress)
        await greeting.open()
        stack.push_async_callback(greeting.close)
        self._lane_total = lane_count(self.parameters, self._address)
        hello = Hello(
            self._session,
            self._guest.name,
            await self._guest.description(),
            self._guest.cpu(),
            blocks_of(self._guest.ram),
            self._lane_total,
            self.parameters.compress,
            self.parameters.verify,
        )
        self._token = await greeting.ask_in(hello, self._guest, self._disks)
        self._talk = greeting.talk
        destination = Destination(self._address, self._security, self._session)
        self._commitment = Commitment(
            self._guest, self._talk, destination, self._move, self.progress.pause.resumed
        )
        self._move(SourceEvent.WELCOME)

    async def _open_lanes(self, token: bytes) -> None:
        compress = self.parameters.compress
        await open_lanes(self._lanes, self._lane_total, self._address, self._security, token, compress=compress)
        self.progress.connections = self._lane_total

    # --- switchover ---

    @property
    def _ram_bytes(self) -> int:
        return sum(block.size for block in self._guest.ram.blocks.values())

    async def _switch_over(self, rest: Rest, *, leaves: bool = False) -> None:
        self._tell("device")
        self.progress.pause.begin()
        async with self._guest.held() as was_running:
            self._move(SourceEvent.PARTED if leaves else SourceEvent.PAUSED)
            self.progress.pause.stopped()
            await rest.go(self.parameters, self._ram_bytes, was_running=was_running)
            await self._commit()

    async def _announce_departure(self) -> None:
        from tvmm.migration.postcopy_source import Departure

        self._departure = Departure(self._lanes)
        await self._departure.announce(self._talk, self._address, self._security, self._token)

    async def _commit(self) -> None:
        self._ended = await self._commitment.run()
        if self.state in (*SERVES, SourceState.UNHEARD):
            self._guest.serve_pages(self.progress.peer)
        await self._end_if_done(self._talk.link)

    async def _serve_pages(self) -> None:
        """The guest is elsewhere, and pages of it are here: until it has them all."""
        if self.state not in (*SERVES, SourceState.UNHEARD):
            return
        from tvmm.migration.postcopy_source import Serving

        assert self._departure is not None
        self.progress.pause.ensure_resumed()
        self._serving = Serving(
            self._departure, self._lanes, self.progress, self._move, lambda: self.state, self._tell
        )
        hear = partial(self._talk.expect, Complete, math.inf, "say that all is there")
        # A machine that ends by force does not lose its guest without a word: see `Moves`.
        await self._serving.run(self._rounds.number, hear, self._commitment, self._recovery)
        self._ended = self._serving.ended
        if self.state is SourceState.UNCERTAIN:
            self._guest.keep_paused()
        link = self._serving.link
        await self._end_if_done(self._talk.link if link is None else link)
        if link is not None:
            await link.close()

    def _recovery(self) -> Recovery:
        from tvmm.migration.recovering import Recovery

        return Recovery(self._address, self._security, self._session, self._token, self._open_lanes, self._met)

    def _met(self) -> None:
        """The destination is where it was looked for."""
        self._met_at = self._address
        self.progress.peer = peer_name(self._address)

    async def _end_if_done(self, link: Link) -> None:
        if self.state is SourceState.DONE:
            # A post-copy may have been cut at last, and is through all the same.
            self.progress.error = self.progress.error_hint = ""
            # Told before the machine ends for it: who watches is never in doubt.
            self._tell("completed")
            self._guest.let_go_of_taps(taps_in(self._talk.granted))
            viewers = self._guest.end(self.progress.peer, self._open_screen)
            if viewers:
                await say_if_possible(link, Watched(viewers))
            await say_if_possible(link, Goodbye())

    async def _open_screen(self) -> trio.abc.Stream:
        """See `LeavingGuest.end`: secured like all connections, and known by the token."""
        stream = await open_connection(self._address, Opening(Kind.SCREEN, self._security.kind, token=self._token))
        try:
            return await self._security.wrap(stream)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise

    async def _say_why(self, kind: object, error: BaseException | None, trace: object) -> None:
        """A word to a destination that still expects something."""
        if self.state is not SourceState.DONE and self.state not in SERVES:
            why = self._ended or error
            cancel = Cancel(str(why) if isinstance(why, Ended | TvmmError) else "")
            await say_if_possible(self._talk.link, cancel)


async def _stop_tracking(tracker: DirtyTracker) -> None:
    """On a thread: KVM takes up to 25 ms, and most of it for a guest that is gone."""
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(tracker.stop)
