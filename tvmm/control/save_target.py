"""What control clients ask about saving a machine into a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tvmm.snapshot.status import SaveParameters, SaveStatus

__all__ = ["SaveTarget"]


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
