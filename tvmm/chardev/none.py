"""The backend that is nobody: output is dropped (viewers may still attach), there is no input."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tvmm.chardev.port import Line

__all__ = ["NoneBackend"]


class NoneBackend:
    """Holds nothing and follows nothing, so the guest never waits."""

    path = ""
    patience = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was acquired."""

    async def run(self, line: Line) -> None:
        """Nothing to do."""
