"""What control clients ask about saving a machine into a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol

from tvmm.errors import UserError
from tvmm.snapshot.status import NO_SAVE

if TYPE_CHECKING:
    from tvmm.snapshot.status import SaveParameters, SaveStatus

__all__ = ["NoSave", "SaveTarget"]


class SaveTarget(Protocol):
    """The machine announces each new state by the event X_SAVE, with `save_info`; each save that was begun ends with
    one of a state in `status.ENDED`, announced before the machine ends for it.
    """

    def save_status(self) -> SaveStatus:
        """How it goes, or how the last one ended."""

    async def start_save(self, path: str, parameters: SaveParameters) -> None:
        """Begin to write the guest into `path`, checked but for the space. Raises `UserError` if it cannot begin."""

    def cancel_save(self) -> None:
        """Begin to give it up, if it can still be given up."""


class NoSave:
    """`SaveTarget` of a machine that cannot be saved."""

    def save_status(self) -> SaveStatus:
        """That there was none."""
        return NO_SAVE

    async def start_save(self, path: str, parameters: SaveParameters) -> NoReturn:
        """Raise `UserError`."""
        raise UserError("this machine cannot be saved")

    def cancel_save(self) -> None:
        """Nothing to do."""
