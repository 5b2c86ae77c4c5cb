"""``tvmm console [NAME]``: this terminal on the serial line of a running machine.

The machine sends what its line said last and then what comes; what is typed goes to the guest. Any number of
consoles may be open, and none can hold up the guest.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import named
from tvmm.cli.output import message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser

__all__ = ["add_arguments", "run"]

STDIN, STDOUT = 0, 1

_EXAMPLES = """\
  tvmm console web                      Ctrl-A x leaves, the machine goes on
  tvmm console web < /dev/null          only look
"""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.parser import add_name

    parser.describe(
        "Connect this terminal to a machine's serial line, without holding up the guest.\n"
        "Every key goes to the guest, but Ctrl-A: Ctrl-A x leaves, Ctrl-A h lists what else there is.",
        _EXAMPLES,
    )
    add_name(parser)


def run(options: Mapping[str, Any]) -> int:
    """Stay connected until the user leaves or the machine ends."""
    from tvmm.chardev.console_client import ConsoleEnd, run_console

    entry = named(options)
    sys.stdout.flush()
    if os.isatty(STDIN):
        message(f"connected to {entry.name}; Ctrl-A x leaves")
    end = run_console(entry.paths.console, entry.name, stdin=STDIN, stdout=STDOUT)
    if end is ConsoleEnd.OUTPUT_CLOSED:
        raise BrokenPipeError
    message(end.value)
    return 0
