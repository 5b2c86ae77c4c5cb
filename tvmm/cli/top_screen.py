"""The terminal of `tvmm top`: tables over the whole screen, drawn by rich, and keys that are typed meanwhile."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from rich.console import RenderableType

    from tvmm.cli.metrics_view import Table

__all__ = ["Screen", "drawing", "is_quit"]

LEAST_COLUMNS, LEAST_LINES = 40, 6
"""Of a terminal that shows anything of use."""

QUIT_KEYS = frozenset(b"qQ\x03\x04\x1b")
"""q, Ctrl-C, Ctrl-D, Escape by itself."""


class Screen:
    """The terminal, as a context manager that leaves it as it was."""

    def __init__(self) -> None:
        self._console = Console()
        self._live = Live(console=self._console, screen=True, auto_refresh=False)

    def __enter__(self) -> Self:
        self._keys = _raw_keys()
        self._typed = self._keys.__enter__()
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        self._keys.__exit__(kind, value, trace)

    def show(self, title: str, tables: Sequence[Table]) -> None:
        """Draw it anew."""
        size = self._console.size
        self._live.update(drawing(title, tables, size.width, size.height), refresh=True)

    def wait(self, seconds: float) -> bool:
        """So long, or until a key is typed that ends it: True then."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._typed is None:
                time.sleep(left)
                return False
            ready, _, _ = select.select([self._typed], [], [], left)
            if ready:
                data = os.read(self._typed, 64)
                if not data or is_quit(data):
                    return True
        return False


def is_quit(data: bytes) -> bool:
    """Whether what was typed at once asks for the end. A key that is more than one byte begins with Escape."""
    return data == b"\x1b" or bool(not data.startswith(b"\x1b") and QUIT_KEYS & set(data))


@contextmanager
def _raw_keys() -> Iterator[int | None]:
    """Standard input key by key; None if nobody types there."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    saved = termios.tcgetattr(descriptor)
    try:
        # Signals stay: Ctrl-C and Ctrl-Z are the terminal's.
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)


def drawing(title: str, tables: Sequence[Table], columns: int, lines: int) -> RenderableType:
    """A title, and the tables as far as there is room; it says how many rows are left out."""
    if columns < LEAST_COLUMNS or lines < LEAST_LINES:
        return Text(f"the terminal is too small: {columns}x{lines}, at least {LEAST_COLUMNS}x{LEAST_LINES}")
    parts: list[RenderableType] = [Text(title, style="bold", no_wrap=True, overflow="ellipsis")]
    left = lines - 2
    hidden = 0
    for table in tables:
        room = left - 2  # an empty line, and the header
        if room < 1:
            hidden += len(table.rows)
            continue
        shown = table.rows[:room]
        hidden += len(table.rows) - len(shown)
        parts += [Text(""), _grid(table, shown)]
        left -= 2 + len(shown)
    if hidden:
        parts.append(Text(f"... and {hidden} more rows", style="dim"))
    return Group(*parts)


def _grid(table: Table, rows: Sequence[tuple[str, ...]]) -> RichTable:
    grid = RichTable(box=None, padding=(0, 2, 0, 0), header_style="bold")
    right = table.right.split()
    for title in table.header:
        grid.add_column(
            Text(title), justify="right" if title in right else "left", no_wrap=True, overflow="ellipsis"
        )
    for row in rows:
        # Text and not str: what machines say is no markup.
        grid.add_row(*(Text(cell) for cell in row))
    return grid
