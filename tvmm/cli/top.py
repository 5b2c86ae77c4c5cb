"""``tvmm top [NAME...]``: what machines do, again and again."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import base_directory
from tvmm.cli.output import flush, message, print_table, printable, say
from tvmm.cli.top_view import detail_tables, machines_table
from tvmm.config.units import format_duration, parse_duration, parse_integer
from tvmm.control.registry import find, machines
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvmm.cli.metrics_view import Table
    from tvmm.cli.parser import Parser
    from tvmm.cli.top_watch import Watched
    from tvmm.control.registry import MachineEntry

__all__ = ["add_arguments", "run"]

LEAST_DELAY_S, MOST_DELAY_S = 0.1, 3600.0
MOST_SCREENS = 1_000_000_000

_EXAMPLES = """\
  tvmm top                      every machine, once a second; q ends it
  tvmm top web                  one machine: exits by reason, disks, networks
  tvmm top -d 5 web db          two of them, every five seconds
  tvmm top --once               plain text, once: what happened in one second
  tvmm top --json -n 10 | jq -r '.machines[].exits'
"""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.completers import attach, machine_names

    parser.describe(
        "Show what running machines do, again and again: processor time, exits, disk and network traffic, memory.\n"
        "With one NAME: its exits by reason, disks with how long requests took, networks, queues.\n"
        "Without a terminal, as with --batch: plain text.",
        _EXAMPLES,
    )
    names = parser.add_argument("names", metavar="NAME", nargs="*", help="the machines (default: all)")
    attach(names, machine_names)
    parser.add_argument(
        "-d", "--delay", metavar="TIME", help="time between two looks, 0.1s to 1h (default 1s)"
    )
    parser.add_argument("-n", "--count", metavar="N", help="end after so many looks (default: go on)")
    parser.add_argument("--batch", action="store_true", help="print plain text, not for a terminal")
    parser.add_argument("--once", action="store_true", help="print plain text once, as --batch -n 1")
    parser.add_argument("--json", action="store_true", help="print an object per look, one in each line")


def run(options: Mapping[str, Any]) -> int:
    """Until the user has seen enough, or all that were named have ended."""
    from tvmm.cli.top_watch import Watches

    delay = parse_duration(options.get("delay") or "1s", "delay")
    if not LEAST_DELAY_S <= delay <= MOST_DELAY_S:
        raise ConfigError(f"delay {format_duration(delay)} is out of range", "it goes from 0.1s to 1h")
    count = parse_integer(options["count"], "count", 1, MOST_SCREENS) if options.get("count") else 0
    if options.get("once"):
        if count > 1:
            raise ConfigError("--once is one look, and -n wants more", "leave one of them out")
        count = 1
    names = list(dict.fromkeys(options.get("names") or ()))
    for name in names:
        find(base_directory(), name)
    plain = options.get("batch") or options.get("once") or options.get("json") or not _is_screen()
    try:
        with Watches() as watches:
            if plain:
                return _print(_Looks(watches, names), delay, count, as_json=bool(options.get("json")))
            return _draw(_Looks(watches, names), delay, count)
    except KeyboardInterrupt:
        # The usual way to end it where there are no keys; its own way on a screen.
        return 0


def _is_screen() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb")


class _Looks:
    """One look after the other at the machines that were asked for."""

    def __init__(self, watches: Any, names: Sequence[str]) -> None:
        self._watches = watches
        self._names = names
        self.ended = False
        """All that were named are gone."""

    def look(self) -> list[Watched]:
        """As they are now."""
        live = [entry for entry in machines(base_directory()) if entry.alive]
        wanted = [entry for entry in live if entry.name in self._names] if self._names else live
        self.ended = bool(self._names) and not wanted
        found: list[Watched] = self._watches.look(sorted(wanted, key=self._place))
        return found

    def _place(self, entry: MachineEntry) -> tuple[int, str]:
        return (self._names.index(entry.name) if entry.name in self._names else 0), entry.name

    def tables(self, found: Sequence[Watched]) -> list[Table]:
        """What is shown of a look."""
        if len(self._names) == 1 and len(found) == 1 and found[0].rates is not None:
            return detail_tables(found[0].entry.name, found[0].rates)
        return [machines_table([watched.row() for watched in found])]

    def farewell(self) -> None:
        """Say that there is nothing left to look at."""
        message(f"{', '.join(self._names)} {'has' if len(self._names) == 1 else 'have'} ended")


def _print(looks: _Looks, delay: float, count: int, *, as_json: bool) -> int:
    """Plain text. The first look is for the rates of the second, and not shown."""
    looks.look()
    shown = 0
    while not looks.ended:
        time.sleep(delay)
        found = looks.look()
        if looks.ended:
            break
        if as_json:
            import json

            say(json.dumps({"time": round(time.time(), 3), "machines": [one.row()._asdict() for one in found]}))
        else:
            _print_tables(looks.tables(found), found, separated=shown > 0)
        flush()
        shown += 1
        if shown == count:
            return 0
    looks.farewell()
    return 0


def _print_tables(tables: Sequence[Table], found: Sequence[Watched], *, separated: bool) -> None:
    if separated:
        say("")
    if not found:
        message("no machine is running; start one with 'tvmm run'")
        return
    for index, table in enumerate(tables):
        if index:
            say("")
        print_table(table.header, table.rows, table.right)


def _draw(looks: _Looks, delay: float, count: int) -> int:
    """On the screen of the terminal."""
    from tvmm.cli.top_screen import Screen

    with Screen() as screen:
        shown = 0
        while True:
            found = looks.look()
            if looks.ended:
                break
            screen.show(_title(found, delay), _printable(looks.tables(found)))
            shown += 1
            # The first one has no rates: whoever wants one screen wants to see some.
            if (count and shown > count) or screen.wait(delay):
                return 0
    looks.farewell()
    return 0


def _title(found: Sequence[Watched], delay: float) -> str:
    number = len(found)
    what = "no machine is running" if not number else f"{number} machine{'s' if number > 1 else ''}"
    return f"tvmm top  {what}, every {format_duration(delay)}, {time.strftime('%H:%M:%S')}; q ends it"


def _printable(tables: Sequence[Table]) -> list[Table]:
    """Without characters that a terminal would act on."""
    return [
        table._replace(rows=[tuple(printable(cell) for cell in row) for row in table.rows])
        for table in tables
        if table.rows
    ]
