"""``tvmm pause [NAME]``: the processors stop, everything else stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import control, named
from tvmm.cli.output import say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser

__all__ = ["add_arguments", "change", "run"]

_EXAMPLES = """\
  tvmm pause web
  tvmm pause                only one machine runs: no need to name it
"""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.parser import add_name

    parser.describe("Stop a machine's processors. 'tvmm resume' lets it go on where it was.", _EXAMPLES)
    add_name(parser)


def run(options: Mapping[str, Any]) -> int:
    """Pause it, and say so."""
    return change(options, "stop", running=False, word="paused")


def change(options: Mapping[str, Any], command: str, *, running: bool, word: str) -> int:
    """Bring a machine into a state with `command`, unless it is in it, and say what was done."""
    entry = named(options)
    with control(entry) as client:
        if client.execute("query-status")["running"] == running:
            say(f"{entry.name} was {word} already")
            return 0
        client.execute(command)
    say(f"{entry.name} is {word}")
    return 0
