"""A machine that is saved in no time."""

from __future__ import annotations

from tvmm.snapshot.status import NO_SAVE, SaveParameters, SaveStatus


class FakeSave:
    """`SaveTarget`: what was asked for is in `asked`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, SaveParameters]] = []
        self.cancelled = 0
        self.status = NO_SAVE

    def save_status(self) -> SaveStatus:
        """See `SaveTarget`."""
        return self.status

    async def start_save(self, path: str, parameters: SaveParameters) -> None:
        """See `SaveTarget`."""
        self.asked.append((path, parameters))

    def cancel_save(self) -> None:
        """See `SaveTarget`."""
        self.cancelled += 1
