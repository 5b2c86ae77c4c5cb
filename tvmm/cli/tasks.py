"""``tvmm tasks [NAME]``: the tasks of a running machine, what each waits for and what each has cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import control, named
from tvmm.cli.output import format_age, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
  tvmm tasks web
  tvmm tasks web --json | jq 'max_by(.seconds)'
"""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.parser import add_name

    parser.describe(
        "Show the tasks of a running machine: what each waits for, how often it ran and how long in all.",
        _EXAMPLES,
    )
    add_name(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON array with an object per task")


def run(options: Mapping[str, Any]) -> int:
    """Print the table."""
    with control(named(options)) as client:
        tasks: list[dict[str, Any]] = client.execute("x-query-tasks")
    if options.get("json"):
        print_json(tasks)
        return 0
    print_table(
        ("TASK", "RUNS", "TIME", "AGE", "WAITS FOR"),
        [
            (
                task["name"],
                str(task["wakeups"]),
                f"{task['seconds'] * 1000:.1f}ms",
                format_age(task["age-seconds"]),
                task["waits-for"],
            )
            for task in tasks
        ],
        right="RUNS TIME AGE",
    )
    return 0
