"""Where the progress of a migration is shown: a live panel on a terminal, lines elsewhere, JSON, or nowhere."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, Protocol, Self

from tvmm.cli.migration_view import arrived_share, plain_line, progress_rows
from tvmm.cli.output import flush, message, say
from tvmm.control.migration_info import status_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from rich.console import Console, RenderableType
    from rich.live import Live as RichLive

    from tvmm.migration.status import MigrationStatus

__all__ = ["Display", "JsonLines", "Lines", "Live", "Nothing", "bar_and_rows", "choose", "panel"]

LINE_MS = 2000.0
"""A log gets a line when the phase changes, and after this time in the same one."""
PANEL_MS = 300.0
"""What is over sooner gets no panel: to import what draws it takes as long as to hand a guest over."""
BAR_COLUMNS = 50


class Display(Protocol):
    """A context manager, so that a terminal is left as it was."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, info: Mapping[str, Any]) -> None:
        """Show how it goes."""

    def end(self, info: Mapping[str, Any], outcome: str, exit_status: int) -> None:
        """Show how it ended."""


class Nothing:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, info: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def end(self, info: Mapping[str, Any], outcome: str, exit_status: int) -> None:
        """Nothing to do."""


class JsonLines(Nothing):
    """One object of `query-migrate` in each line of standard output; the last has `outcome` and `exit-status` too."""

    def update(self, info: Mapping[str, Any]) -> None:
        """One line; a program that reads it should not wait."""
        say(json.dumps(info))
        flush()

    def end(self, info: Mapping[str, Any], outcome: str, exit_status: int) -> None:
        """The last line."""
        self.update({**info, "outcome": outcome, "exit-status": exit_status})


class Lines(Nothing):
    """A line on standard error now and then."""

    def __init__(self) -> None:
        self._phase = ""
        self._at_ms = 0.0

    def update(self, info: Mapping[str, Any]) -> None:
        """Say it, if there is news."""
        status = status_of(info)
        now_ms = status.total_ms or 0.0
        if status.phase != self._phase or now_ms - self._at_ms >= LINE_MS:
            self._phase, self._at_ms = status.phase, now_ms
            message(plain_line(status))


class Live(Nothing):
    """A panel on the terminal that `console` writes to, by default standard error; it goes away at the end."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._live: RichLive | None = None

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, info: Mapping[str, Any]) -> None:
        """Draw it anew."""
        status = status_of(info)
        if self.is_due(status.total_ms):
            self.draw(panel(status))

    def is_due(self, total_ms: float | None) -> bool:
        """Whether it goes on for long enough to be looked at."""
        return self._live is not None or (total_ms or 0.0) >= PANEL_MS

    def draw(self, what: RenderableType) -> None:
        """In place of what is there."""
        if self._live is None:
            from rich.console import Console
            from rich.live import Live as RichLive

            console = self._console or Console(stderr=True)
            self._live = RichLive(console=console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(what, refresh=True)


def panel(status: MigrationStatus) -> RenderableType:
    """A bar and the rows of `progress_rows`."""
    return bar_and_rows(arrived_share(status), progress_rows(status))


def bar_and_rows(share: float, rows: Iterable[tuple[str, str]]) -> RenderableType:
    """A bar of which `share` (0 to 1) is full, and titles with their texts below it."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_row("", ProgressBar(total=1.0, completed=share, width=BAR_COLUMNS))
    for title, text in rows:
        # Text and not str: what the machine says is no markup.
        grid.add_row(Text(title, style="dim"), Text(text, overflow="ellipsis", no_wrap=True))
    return grid


def choose(*, as_json: bool, quiet: bool, lines: type[Lines] = Lines, live: type[Live] = Live) -> Display:
    """The display that fits the options and standard error: `lines` for a log, `live` for a terminal."""
    if as_json:
        return JsonLines()
    if quiet:
        return Nothing()
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return lines()
    return live()
