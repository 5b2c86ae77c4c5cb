"""What the command line prints: aligned tables, messages, and colour where there is a terminal to show it.

Plain text and a few escape sequences on purpose: a table of ten rows is not worth 100 ms of importing a
library for it. Names and texts that come from machines are made printable first.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

from tvmm.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BOLD",
    "DIM",
    "GREEN",
    "RED",
    "YELLOW",
    "OutputError",
    "flush",
    "format_age",
    "message",
    "paint",
    "print_json",
    "print_table",
    "printable",
    "say",
    "table_lines",
    "wants_colour",
]

BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"
"""Parameters of the SGR sequence (ECMA-48, 8.3.117)."""


class OutputError(HostError):
    """Standard output takes no more, for another reason than that its reader left."""


def say(text: str) -> None:
    """Print `text` and a newline on standard output. Raises `BrokenPipeError` or `OutputError`."""
    try:
        print(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"the output cannot be written: {error.strerror}") from error


def flush() -> None:
    """Have everything written while an error still has somebody to go to. Raises as `say` does."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"the output cannot be written: {error.strerror}") from error


def wants_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal whose user does not mind colour (see no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, stream: TextIO) -> str:
    """`text` in `colour`, if `stream` shows colours."""
    return f"\x1b[{colour}m{text}\x1b[m" if wants_colour(stream) else text


def printable(text: str) -> str:
    """`text` without characters that a terminal would act on."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def message(text: str, colour: str = BOLD) -> None:
    """Say `text` on standard error as one line that begins with the program's name.

    Where standard error went away (its terminal hung up) nothing is said.
    """
    line = " ".join(text.split("\n"))
    try:
        print(paint("tvmm:", colour, sys.stderr), printable(line), file=sys.stderr, flush=True)
    except OSError:
        return


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> list[str]:
    """`rows` under `header` in columns; those whose titles are the words of `right` are aligned right."""
    cells = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    to_right = [title in right.split() for title in header]
    return [
        "  ".join(
            cell.rjust(width) if aligned else cell.ljust(width)
            for cell, width, aligned in zip(row, widths, to_right, strict=True)
        ).rstrip()
        for row in cells
    ]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> None:
    """Print `table_lines`; a terminal gets a bold header and no lines longer than it is wide."""
    first, *rest = table_lines(header, rows, right)
    if sys.stdout.isatty():
        from shutil import get_terminal_size

        width = get_terminal_size().columns
        first, *rest = (line if len(line) <= width else line[: width - 1] + "…" for line in (first, *rest))
    say("\n".join([paint(first, BOLD, sys.stdout), *rest]))


def print_json(value: object) -> None:
    """Print `value` on standard output as indented JSON."""
    import json

    say(json.dumps(value, indent=2))


def format_age(seconds: float) -> str:
    """A span of time in its two largest units: ``3d4h``, ``2m7s``, ``8s``."""
    whole = max(int(seconds), 0)
    for size, unit, smaller_size, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // smaller_size}{smaller}"
    return f"{whole}s"
