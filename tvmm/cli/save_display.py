"""Where the progress of a save is shown: as that of a migration, with other words."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from tvmm.cli.migration_display import BAR_COLUMNS, LINE_MS, JsonLines, Lines, Live, Nothing
from tvmm.cli.migration_view import amount
from tvmm.cli.output import message, printable
from tvmm.config.units import format_duration
from tvmm.control.save_info import save_status_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from tvmm.cli.migration_display import Display
    from tvmm.snapshot.status import SaveStatus

__all__ = ["choose", "progress_rows", "summary_lines"]


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
        self._live.update(_panel(save_status_of(info)), refresh=True)


def _panel(status: SaveStatus) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    share = status.done / status.total if status.total else 0.0
    grid.add_row("", ProgressBar(total=1.0, completed=share, width=BAR_COLUMNS))
    for title, text in progress_rows(status):
        grid.add_row(Text(title, style="dim"), Text(printable(text), overflow="ellipsis", no_wrap=True))
    return grid


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


def choose(*, as_json: bool, quiet: bool) -> Display:
    """The display that fits the options and standard error."""
    if as_json:
        return JsonLines()
    if quiet:
        return Nothing()
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return SaveLines()
    from rich.console import Console

    return SaveLive(Console(stderr=True))
