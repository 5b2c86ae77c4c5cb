"""``tvmm balloon [NAME] [SIZE]``: how much memory a guest has, and giving it less or more while it runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import control, named
from tvmm.cli.output import message, print_json, printable, say
from tvmm.config.units import format_size, parse_duration, parse_size
from tvmm.errors import ConfigError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.cli.parser import Parser
    from tvmm.control.client import QmpClient

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
  tvmm balloon web              what the guest has, what it says of it, what the host has given
  tvmm balloon web 512M         the guest is to have 512 MiB
  tvmm balloon web +256M        that much more than it is to have now
  tvmm balloon web 1G --wait    stay until it has
  tvmm balloon 512M             only one machine runs: no need to name it
"""

_MORE = """\
The machine needs --device virtio-balloon, and the guest a driver for it. SIZE is what the guest is left
with, up to what the machine was started with. The guest decides how fast, and gives no more than it can
spare: one that is left with too little swaps, or ends programs. What it gives leaves this host's memory
at once.
"""

PATIENCE_SECONDS = 1.0
"""For the guest's own figures."""
LOOK_SECONDS = 0.1
DEFAULT_TIMEOUT_SECONDS = 60.0
SIZE_MARKS = "+0123456789"

_WORDS = {
    "stat-total-memory": "total",
    "stat-free-memory": "free",
    "stat-available-memory": "available",
    "stat-disk-caches": "caches",
    "stat-swap-in": "swapped in",
    "stat-swap-out": "swapped out",
}
_COUNTS = {"stat-major-faults": "major faults", "stat-minor-faults": "minor faults", "stat-oom-kill": "killed"}


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.completers import attach, machine_names

    parser.describe("Show or change how much memory a guest has.", _EXAMPLES, _MORE)
    name = parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="the machine, as 'tvmm ps' lists it; may be left out while only one runs",
    )
    parser.add_argument("size", metavar="SIZE", nargs="?", help="what the guest is to have: 512M, 1G; +SIZE for more")
    parser.add_argument("--wait", action="store_true", help="stay until the guest has it")
    parser.add_argument("--timeout", metavar="TIME", help="for --wait: give up after that long (default: 60s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    attach(name, machine_names)


def run(options: Mapping[str, Any]) -> int:
    """Show it, or ask for another size and say what comes of it."""
    text = options.get("size")
    if text is None and (options.get("name") or "")[:1] in tuple(SIZE_MARKS):
        # A size without a machine: names that begin with a digit need the size behind them.
        text, options = options["name"], {**options, "name": None}
    given = parse_size(text.removeprefix("+"), "size") if text is not None else 0
    timeout = parse_duration(options.get("timeout", DEFAULT_TIMEOUT_SECONDS), "timeout")
    if text is None and options.get("wait"):
        raise ConfigError("--wait has nothing to wait for", "say how much the guest is to have: tvmm balloon NAME SIZE")
    entry = named(options)
    with control(entry) as client:
        if text is None:
            _show(client, entry.name, bool(options.get("json")))
            return 0
        before = client.execute("query-balloon")
        size = before["x-target"] + given if text.startswith("+") else given
        _check(size, before, entry.name)
        client.execute("balloon", value=size)
        after = _wait(client, entry.name, timeout) if options.get("wait") else client.execute("query-balloon")
    if options.get("json"):
        print_json(_overview(after))
    else:
        say(printable(f"{entry.name}: the guest has {_mib(after['actual'])}, and is to have {_mib(after['x-target'])}"))
        if not after["x-driver"]:
            message("the guest has no driver for its balloon (yet): it is asked as soon as it has one")
    return 0


def _check(size: int, info: dict[str, Any], name: str) -> None:
    if size > info["x-memory"]:
        raise ConfigError(
            f"{name} has {format_size(info['x-memory'])} of memory and no more to give to its guest",
            "start it with more --memory",
        )
    if size <= 0:
        raise ConfigError("a guest cannot do without memory", "write a size such as 256M")


def _wait(client: QmpClient, name: str, timeout: float) -> dict[str, Any]:
    """Until the guest has what it is to have. A line for each step of a tenth tells the user how far it is."""
    end = time.monotonic() + timeout
    first: int | None = None
    told = -1
    while True:
        info: dict[str, Any] = client.execute("query-balloon")
        left = abs(info["actual"] - info["x-target"])
        if not left:
            return info
        first = first or left
        tenths = 10 * (first - left) // first
        if tenths > told:
            told = tenths
            message(f"{name}: {_mib(info['actual'])}, {_mib(left)} to go")
        if time.monotonic() >= end:
            hint = "it may need what it has" if info["x-driver"] else "it has no driver for its balloon"
            has, wanted = _mib(info["actual"]), _mib(info["x-target"])
            raise UserError(f"the guest of {name} has {has} after {timeout:g} s, not {wanted}", hint)
        time.sleep(LOOK_SECONDS)


def _overview(info: dict[str, Any]) -> dict[str, Any]:
    return {
        "memory": info["x-memory"],
        "target": info["x-target"],
        "actual": info["actual"],
        "driver": info["x-driver"],
        "deflate-on-oom": info["x-deflate-on-oom"],
        "pages": info["x-pages"],
    }


def _show(client: QmpClient, name: str, as_json: bool) -> None:
    found = client.execute("x-query-balloon-stats", patience=PATIENCE_SECONDS)
    info = client.execute("query-balloon")
    if as_json:
        stats = {key: found[key] for key in ("resident", "fresh", "last-update", "stats")}
        print_json({"name": name, **_overview(info), **stats})
        return
    pages = ", ".join(f"{count} {what}" for what, count in info["x-pages"].items() if count)
    rows = {
        "memory": _mib(info["x-memory"]),
        "target": _mib(info["x-target"]),
        "actual": _mib(info["actual"]) + ("" if info["x-driver"] else " (the guest has no driver)"),
        "on this host": f"{_mib(found['resident'])} resident",
        "pages": pages or "-",
        "guest says": _stats(found),
    }
    width = max(map(len, rows))
    for key, text in rows.items():
        say(printable(f"{key:{width}}  {text}"))


def _stats(found: dict[str, Any]) -> str:
    if not found["last-update"]:
        return "nothing"
    stats = found["stats"]
    parts = [f"{word} {_mib(stats[name])}" for name, word in _WORDS.items() if name in stats]
    parts += [f"{word} {stats[name]}" for name, word in _COUNTS.items() if name in stats]
    age = "" if found["fresh"] else f" ({max(int(time.time()) - found['last-update'], 0)} s ago)"
    return ", ".join(parts) + age


def _mib(size: int) -> str:
    """For people: exact to a tenth of a MiB."""
    return f"{size / (1 << 20):.1f}".removesuffix(".0") + " MiB"
