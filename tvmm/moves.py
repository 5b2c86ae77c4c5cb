"""The migrations of one machine: at most one under way, out of it or into it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import trio

from tvmm.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.machine import Machine
    from tvmm.migration.incoming import Incoming
    from tvmm.migration.outgoing import Outgoing
    from tvmm.migration.status import MigrationParameters, MigrationStatus

__all__ = ["Moves"]


POSTCOPY_STATES = ("postcopy-active", "postcopy-paused", "postcopy-recover-setup", "postcopy-recover")
"""As `tvmm.migration.status.POSTCOPY`, which is not imported for machines that do not move."""
PAUSE_SECONDS = 3.0
"""A vCPU or a device may wait for a page that nobody can bring. Clients hear of that in their time."""
PASSES_TOLD = 32
"""After so many passes over RAM only every so many is announced, so that no client's queue fills with them."""


class Moves:
    """`MigrationTarget` of `tvmm.control.migration_target`, for a machine in whose nursery they run."""

    def __init__(self, machine: Machine) -> None:
        self.arrived = trio.Event()
        """A guest that was waited for is here."""
        self._machine = machine
        self._chosen: MigrationParameters | None = None
        self._out: Outgoing | None = None
        self._in: Incoming | None = None
        self._listening = False
        self._rounds_told = 0
        self._last_state = ""
        self._begun, self._ended = trio.Event(), trio.Event()

    # --- what clients see ---

    def migration_status(self) -> MigrationStatus:
        """See `MigrationTarget`, as all of these."""
        from tvmm.migration.status import NO_MIGRATION

        if self._out is not None:
            return self._out.status
        return self._in.status if self._in is not None else NO_MIGRATION

    def migration_parameters(self) -> MigrationParameters:
        """How the next one goes."""
        from tvmm.migration.status import MigrationParameters

        return self._chosen or MigrationParameters()

    def set_migration_parameters(self, changes: Mapping[str, Any]) -> None:
        """For the next one, and as far as possible for one that is under way."""
        self._chosen = self.migration_parameters()._replace(**changes).check()
        if self._out is not None and self._out.status.under_way:
            self._out.set_parameters(self._out.parameters._replace(**changes))

    def cancel_migration(self) -> None:
        """Of the one out of the machine."""
        if self._out is not None:
            self._out.cancel()

    async def start_migration(self, uri: str, parameters: MigrationParameters) -> None:
        """Begin to move the guest out."""
        from tvmm.config.incoming import MigrationAddress
        from tvmm.migration.threads import attentive

        self._refuse_to_move()
        with attentive():
            watched = self._machine.screen is not None
            await trio.to_thread.run_sync(_import_for_leaving, parameters.tls or bool(parameters.pair), watched)
        from tvmm.migration.outgoing import Outgoing
        from tvmm.migration.secure import client_security
        from tvmm.wiring.moving import LeavingMachine

        machine = self._machine
        address = MigrationAddress.parse(uri, "uri")
        security = await client_security(address, parameters, machine.config.keys_dir)
        # Again: another client may have been faster.
        self._refuse_to_move()
        guest = LeavingMachine(machine, local=address.is_local)
        self._out = Outgoing(guest, address, parameters, security, self._changed)
        self._ended = trio.Event()
        self._rounds_told = 0
        self._begun = trio.Event()
        machine.nursery.start_soon(self._leave, self._out, self._begun, name="migration")
        await self._begun.wait()

    def _refuse_to_move(self) -> None:
        machine = self._machine
        self.refuse_if_incomplete("moved")
        if machine.outcome is not None:
            raise UserError(f"the machine has ended ({machine.outcome.kind})")
        if self.leaving:
            raise UserError("a migration is under way already", "'tvmm info' shows it, QMP's migrate_cancel ends it")
        if machine.saves.under_way:
            raise UserError("the machine is being saved", "move it when that is done")
        if machine.farewell is not None:
            raise UserError(f"the guest has moved to {machine.farewell.report}")
        if machine.motion.stage == "inmigrate":
            raise UserError("the machine waits for a guest and has none to move")
        if machine.motion.stage == "postmigrate":
            raise UserError("the guest was given away and may run there", "'tvmm resume' takes it back if it does not")

    async def _leave(self, out: Outgoing, begun: trio.Event) -> None:
        try:
            await out.run(begun)
        finally:
            begun.set()
            self._ended.set()

    def start_postcopy(self) -> None:
        """See `MigrationTarget`."""
        if self._out is None or not self._out.status.under_way:
            raise UserError("there is no migration under way")
        self._out.start_postcopy()

    def pause_migration(self) -> None:
        """See `MigrationTarget`."""
        side = self._out or self._in
        if side is None:
            raise UserError("there is no post-copy under way")
        side.pause()

    async def recover_migration(self, uri: str) -> None:
        """See `MigrationTarget`."""
        from tvmm.config.incoming import MigrationAddress

        address = MigrationAddress.parse(uri, "uri", listen=self._out is None) if uri else None
        if self._out is not None:
            self._out.recover(address)
        elif self._in is not None:
            await self._in.recover(address)
        else:
            raise UserError("there is no post-copy to go on with")

    def refuse_if_incomplete(self, what: str) -> None:
        """Raise `UserError` while memory of the guest is on the other side, or wanted there: it cannot be `what`."""
        status = self.migration_status()
        if status.state in POSTCOPY_STATES:
            where = "is still to come" if status.incoming else "is wanted at the destination"
            raise UserError(
                f"memory of the guest {where}: it cannot be {what} before that has ended",
                "'tvmm info' shows how far it is",
            )

    @property
    def pause_seconds(self) -> float:
        """How long vCPUs and devices may take to come to rest."""
        if self._in is None or self._in.status.state not in POSTCOPY_STATES:
            return math.inf
        return PAUSE_SECONDS

    @property
    def lends_memory(self) -> bool:
        """Whether the guest runs elsewhere, with memory that is here alone."""
        return self._out is not None and self._out.status.state in POSTCOPY_STATES

    @property
    def leaving(self) -> bool:
        """Whether a migration out of the machine is under way."""
        return self._out is not None and (self._out.status.under_way or not self._begun.is_set())

    async def migrate(self, uri: str, parameters: MigrationParameters | None) -> MigrationStatus:
        """See `Machine.migrate`."""
        from tvmm.migration.status import MigrationParameters

        await self.start_migration(uri, (parameters or MigrationParameters()).check())
        status = await self.wait_migration()
        if status.state != "completed":
            raise UserError(status.error or "the migration was cancelled", status.error_hint)
        return status

    async def wait_migration(self) -> MigrationStatus:
        """How the one out of the machine has ended."""
        await self._ended.wait()
        return self.migration_status()

    # --- arriving ---

    async def listen_for_migration(self, uri: str) -> None:
        """For a machine that waits for a guest and was not told where."""
        incoming = self._machine.config.incoming
        if incoming is None or self._machine.motion.stage != "inmigrate":
            raise UserError("the machine does not wait for a guest", "start it with --incoming defer")
        if self._listening:
            raise UserError(f"the machine listens for its guest already ({incoming.uri})")
        self._machine.config = self._machine.config._replace(incoming=incoming._replace(uri=uri).check())
        await self._machine.nursery.start(self.arrive, name="migration")

    async def arrive(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Wait for the guest, and go on with it. Started when others can connect. Raises `UserError`."""
        from tvmm.migration.incoming import Incoming
        from tvmm.migration.link import listen
        from tvmm.migration.secure import server_security
        from tvmm.wiring.moving import ArrivingMachine

        config = self._machine.config.incoming
        assert config is not None
        address = config.address
        assert address is not None
        self._listening = True
        try:
            async with listen(address) as listeners:
                security = await server_security(
                    config, self._machine.on_warning, self._machine.config.keys_dir
                )
                guest = ArrivingMachine(self._machine)
                async with guest.prepared():
                    say = self._machine.on_warning
                    self._in = Incoming(guest, security, self._changed, say, _bound(address, listeners))
                    say(f"waiting for a guest at {self._in.listening}")
                    task_status.started()
                    await self._in.run(listeners)
        finally:
            self._listening = False

    # --- news ---

    def _changed(self, status: MigrationStatus) -> None:
        from tvmm.control.migration_info import event_data

        machine = self._machine
        if self._is_new_pass(status):
            self._rounds_told = status.ram.rounds
            machine.tell("MIGRATION_PASS", {"pass": status.ram.rounds})
        if status.state != self._last_state:
            self._last_state = status.state
            machine.tell("MIGRATION", dict(event_data(status)))

    def _is_new_pass(self, status: MigrationStatus) -> bool:
        """Late passes are short and many: not each is worth an event."""
        rounds = status.ram.rounds
        if status.incoming or status.state != "active" or rounds <= self._rounds_told:
            return False
        return rounds <= PASSES_TOLD or not rounds % PASSES_TOLD


def _import_for_leaving(secure: bool, watched: bool) -> None:
    """On a worker thread: the first time it takes a tenth of a second, in which the event loop has other work."""
    import tvmm.migration.outgoing
    import tvmm.migration.secure
    import tvmm.wiring.moving

    if secure:
        import tvmm.migration.tls
    if watched:
        import tvmm.wiring.relaying  # noqa: F401


def _bound(address: Any, listeners: list[trio.SocketListener]) -> str:
    if address.kind == "unix":
        return str(address.uri)
    port = listeners[0].socket.getsockname()[1]
    return str(address._replace(port=port).uri)
