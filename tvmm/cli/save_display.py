"""Where the progress of a save is shown: as that of a migration, with other words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.cli.migration_display import LINE_MS, Lines, Live, bar_and_rows
from tvmm.cli.migration_view import amount
from tvmm.cli.output import message, printable
from tvmm.config.units import format_duration
from tvmm.control.save_info import save_status_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from tvmm.snapshot.status import SaveStatus

__all__ = ["SaveLines", "SaveLive", "progress_rows", "summary_lines"]


class SaveLines(Lines):
    """A line on standard error now and then."""

    def update(self, info: Mapping[str, Any]) -> None:
        """Say it, if there is news."""
        status = save_status_of(info)
        if status.state != self._phase or status.total_ms - self._at_ms >= LINE_MS:
            self._phase, self._at_ms = status.state, status.total_ms
            message(printable(", ".join([_phase(status), *(text for _, text in progress_rows(status)[1:])])))


class SaveLive(Live):
    """A panel on the terminal."""

    def update(self, info: Mapping[str, Any]) -> None:
        """Draw it anew."""
        status = save_status_of(info)
        if self.is_due(status.total_ms):
            self.draw(_panel(status))


def _panel(status: SaveStatus) -> RenderableType:
    share = status.done / status.total if status.total else 0.0
    return bar_and_rows(share, [(title, printable(text)) for title, text in progress_rows(status)])


def progress_rows(status: SaveStatus) -> list[tuple[str, str]]:
    """What is known so far, as titles and texts."""
    rows = [("phase", _phase(status))]
    if status.total:
        speed = status.data / status.total_ms * 1000 if status.total_ms else 0.0
        rows += [
            ("RAM", f"{amount(status.done)} of {amount(status.total)}"),
            ("written", f"{amount(status.data)} at {amount(speed)}/s"),
        ]
    if status.pause_ms:
        rows.append(("pause", f"{format_duration(status.pause_ms / 1000)} so far"))
    return rows


def _phase(status: SaveStatus) -> str:
    words = {"setup": "preparing", "active": "writing memory", "finishing": "making it safe"}
    return words.get(status.state, status.state)


def summary_lines(name: str, status: SaveStatus) -> list[str]:
    """What to tell about a machine that was saved."""
    seconds = status.total_ms / 1000
    speed = status.data / seconds if seconds else 0.0
    paused = format_duration(status.pause_ms / 1000)
    after = "it has ended" if status.stopped else f"the guest was paused for {paused}"
    lines = [
        f"{name} was saved in {status.path} in {format_duration(seconds)}; {after}",
        f"  written: {amount(status.data)} for {amount(status.total)} of RAM at {amount(speed)}/s"
        f"{', encrypted' if status.encrypted else ''}",
    ]
    return [printable(line) for line in lines]
