"""``tvmm resume [NAME]``: a paused machine goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.cli.pause import change

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
  tvmm run --name web --paused &
  tvmm resume web
"""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.parser import add_name

    parser.describe("Let a machine go on that was paused, or that was started with --paused.", _EXAMPLES)
    add_name(parser)


def run(options: Mapping[str, Any]) -> int:
    """Resume it, and say so."""
    return change(options, "cont", running=True, word="running")
