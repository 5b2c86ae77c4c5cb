"""The saves of one machine into snapshot files: at most one under way, and none while the guest moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tvmm.errors import UserError

if TYPE_CHECKING:
    from tvmm.machine import Machine
    from tvmm.snapshot.status import SaveParameters, SaveStatus
    from tvmm.wiring.live_saving import LiveSaving
    from tvmm.wiring.saving import Saving

__all__ = ["Saves"]


class Saves:
    """`SaveTarget` of `tvmm.control.save_target`, for a machine in whose nursery they run."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._saving: Saving | None = None
        self._beginning = False
        self._ended = trio.Event()
        self._last_state = ""

    @property
    def under_way(self) -> bool:
        """Whether the machine is being saved."""
        return self._beginning or (self._saving is not None and self._saving.status.under_way)

    @property
    def live(self) -> LiveSaving | None:
        """The last one, if it was live."""
        return self._saving.live if self._saving is not None else None

    def save_status(self) -> SaveStatus:
        """See `SaveTarget`, as all of these."""
        from tvmm.snapshot.status import NO_SAVE

        return self._saving.status if self._saving is not None else NO_SAVE

    def cancel_save(self) -> None:
        """The file that was there stays, and the guest goes on."""
        if self._saving is not None:
            self._saving.cancel()

    async def start_save(self, path: str, parameters: SaveParameters) -> None:
        """Begin to write the guest into `path`."""
        self._refuse()
        self._beginning = True
        try:
            await trio.to_thread.run_sync(_import)
            from tvmm.wiring.saving import Saving

            saving = Saving(self._machine, path, parameters.check(), self._changed)
            # What can be refused is refused before it has begun.
            await saving.open()
        finally:
            self._beginning = False
        self._saving = saving
        self._ended = trio.Event()
        self._last_state = ""
        self._changed(saving.status)
        self._machine.nursery.start_soon(self._run, saving, name="save")

    async def _run(self, saving: Saving) -> None:
        try:
            await saving.run()
        finally:
            self._ended.set()

    def _refuse(self) -> None:
        machine = self._machine
        if machine.outcome is not None:
            raise UserError(f"the machine has ended ({machine.outcome.kind})")
        if self.under_way:
            raise UserError("the machine is being saved already", "QMP's x-query-save shows it, x-save-cancel ends it")
        machine.moves.refuse_if_incomplete("saved")
        if machine.moves.leaving:
            raise UserError("a migration is under way", "save the machine when it is over")
        if machine.farewell is not None:
            raise UserError(f"the guest has moved to {machine.farewell.report}")
        if machine.motion.stage == "inmigrate":
            raise UserError("the machine waits for a guest and has none to save")
        if machine.motion.stage == "postmigrate":
            raise UserError("the guest was given away and may run there", "'tvmm resume' takes it back if it does not")

    async def save(self, path: str, parameters: SaveParameters | None) -> SaveStatus:
        """See `Machine.save`."""
        from tvmm.snapshot.status import SaveParameters

        await self.start_save(path, parameters or SaveParameters())
        status = await self.wait_save()
        if status.state != "completed":
            raise UserError(status.error or "the save was cancelled", status.error_hint)
        return status

    async def wait_save(self) -> SaveStatus:
        """How the one that is under way, or the last one, has ended."""
        await self._ended.wait()
        return self.save_status()

    def _changed(self, status: SaveStatus) -> None:
        from tvmm.control.save_info import EVENT, save_info

        if status.state != self._last_state:
            self._last_state = status.state
            self._machine.tell(EVENT, {"status": status.state, "x-info": save_info(status)})


def _import() -> None:
    """On a worker thread: the event loop has other work."""
    import tvmm.wiring.saving  # noqa: F401
