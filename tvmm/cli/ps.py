"""``tvmm ps``: the machines that run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.cli.machines import base_directory, control
from tvmm.cli.output import format_age, message, print_json, print_table
from tvmm.config.units import format_size
from tvmm.control.registry import machines, remove_stale
from tvmm.errors import TvmmError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser
    from tvmm.control.registry import MachineEntry

__all__ = ["Row", "add_arguments", "run"]

ANSWER_SECONDS = 2.0
"""What one machine gets to answer: a hung one must not hide the others."""
NAMES_TOLD = 5
"""How many of the machines that were cleared away are named."""

_EXAMPLES = """\
  tvmm ps
  tvmm ps --json | jq -r '.[].name'
"""


class Row(NamedTuple):
    """One machine. `status` is QEMU's word, or ``unreachable``; sizes are bytes, 0 if it did not tell."""

    name: str
    pid: int
    status: str
    cpus: int
    memory: int
    uptime_seconds: float
    control: str


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    parser.describe("List the running machines of this user, and clear away what crashed ones left behind.", _EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print a JSON array with an object per machine")


def run(options: Mapping[str, Any]) -> int:
    """Print the list."""
    base = base_directory()
    stale = remove_stale(base)
    rows = [_ask(entry) for entry in machines(base) if entry.alive]
    if stale:
        more = f" and {len(stale) - NAMES_TOLD} more" if len(stale) > NAMES_TOLD else ""
        message(f"cleared away what is left of {', '.join(entry.name for entry in stale[:NAMES_TOLD])}{more}")
    if options.get("json"):
        print_json([row._asdict() for row in rows])
    elif not rows:
        message("no machine is running; start one with 'tvmm run'")
    else:
        print_table(
            ("NAME", "PID", "STATUS", "CPUS", "MEMORY", "UPTIME"),
            [
                (
                    row.name,
                    str(row.pid),
                    row.status,
                    str(row.cpus or "-"),
                    format_size(row.memory) if row.memory else "-",
                    format_age(row.uptime_seconds),
                )
                for row in rows
            ],
            right="PID CPUS MEMORY UPTIME",
        )
    return 0


def _ask(entry: MachineEntry) -> Row:
    """What a machine says of itself."""
    status, cpus, memory = "unreachable", 0, 0
    try:
        with control(entry, ANSWER_SECONDS) as client:
            status = str(client.execute("query-status")["status"])
            cpus = len(client.execute("query-cpus-fast"))
            memory = int(client.execute("query-memory-size-summary")["base-memory"])
    except TvmmError:
        # It may have ended since it was listed, or hang: the row says that it does not answer.
        pass
    uptime = max(time.time() - entry.started, 0.0)
    return Row(entry.name, entry.pid, status, cpus, memory, round(uptime, 3), str(entry.paths.control))
