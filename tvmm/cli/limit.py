"""``tvmm limit [NAME] [DEVICE] [LIMIT=VALUE ... | none]``: how much disks and networks may do, shown and changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import base_directory, control, named
from tvmm.cli.output import print_json, print_table, printable, say
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvmm.cli.parser import Parser
    from tvmm.config.limits import Words
    from tvmm.control.client import QmpClient
    from tvmm.control.registry import MachineEntry

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
  tvmm limit web                                  all disks and network devices, and their limits
  tvmm limit web disk0 bps=10M iops=500           from now on; what is not named stays
  tvmm limit web disk0 bps=0 bps_rd=20M bps_wr=5M
  tvmm limit web disk0 iops=500 iops_max=2000 iops_max_length=30
  tvmm limit web net0 bps_rx=100M pps_tx=10k
  tvmm limit web disk0 none                       as much as the host can do
  tvmm limit disk0 bps=10M                        only one machine runs: no need to name it
  tvmm limit web --json | jq '.[] | select(.waits > 0) | .id'
"""

_MORE = """\
Limits are tokens a second: bytes (bps), of disks requests (iops), of networks frames (pps), for both
directions together or for one (_rd, _wr; _rx, _tx). With _max there is a burst of so many a second, for
_max_length seconds. 0 is no limit. 'tvmm run --disk help' explains each. The guest notices nothing but that
it waits. 'none' in front of others lifts all that are not named.
"""

NONE = "none"


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.completers import attach
    from tvmm.cli.limit_completer import limit_words

    parser.describe("Show how much a machine's disks and network devices may do, or change it.", _EXAMPLES, _MORE)
    words = parser.add_argument(
        "words",
        metavar="[NAME] [DEVICE] [LIMIT=VALUE ... | none]",
        nargs="*",
        help="machine, if more than one runs; one of its devices, if it has more than one; new limits",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array with an object per device")
    attach(words, limit_words)


def run(options: Mapping[str, Any]) -> int:
    """Show, or change and show."""
    names, settings, from_none = _sort(options.get("words") or [])
    entry, device = _who(names)
    with control(entry) as client:
        devices = client.execute("x-query-throttle")
        if settings or from_none:
            one = _the_device(devices, device, entry)
            devices = [_change(client, one, settings, from_none=from_none)]
        elif device is not None:
            devices = [_the_device(devices, device, entry)]
    if options.get("json"):
        print_json(devices)
    elif settings or from_none:
        say(printable(f"{devices[0]['id']} of {entry.name}: {_spelled(devices[0])}"))
    else:
        rows = [[one["id"], one["kind"], _spelled(one), str(one["waits"])] for one in devices]
        print_table(("DEVICE", "KIND", "LIMITS", "WAITS"), rows, right="WAITS")
    return 0


def _sort(words: Sequence[str]) -> tuple[list[str], dict[str, str], bool]:
    """Names, limits by name, and whether all others are lifted."""
    names: list[str] = []
    settings: dict[str, str] = {}
    from_none = False
    for word in words:
        name, equals, value = word.partition("=")
        if word == NONE:
            if settings:
                raise ConfigError("'none' stands behind other limits", "write it in front of those that are to hold")
            from_none = True
        elif not equals:
            if settings or from_none:
                raise ConfigError(f"{word!r} is no limit", f"write LIMIT=VALUE, as in bps=10M, or {NONE}")
            names.append(word)
        elif name in settings:
            raise ConfigError(f"limit {name!r} is given twice")
        else:
            settings[name] = value
    if len(names) > 2:
        raise ConfigError(f"unexpected argument {names[2]!r}", "see 'tvmm limit --help'")
    return names, settings, from_none


def _who(names: Sequence[str]) -> tuple[MachineEntry, str | None]:
    """The machine, and the device if one is named. One word alone is a machine if one is called so."""
    from tvmm.control.registry import machines

    if len(names) == 2:
        return named({"name": names[0]}), names[1]
    if not names:
        return named({}), None
    alive = [entry.name for entry in machines(base_directory()) if entry.alive]
    if names[0] in alive or len(alive) != 1:
        return named({"name": names[0]}), None
    return named({}), names[0]


def _the_device(devices: Sequence[dict[str, Any]], wanted: str | None, entry: MachineEntry) -> dict[str, Any]:
    """The one called `wanted`, or the only one."""
    ids = [one["id"] for one in devices]
    listing = f"there are: {', '.join(ids) or 'none'}"
    if wanted is None:
        if len(devices) != 1:
            raise ConfigError(f"{entry.name} has not just one disk or network device", f"name one; {listing}")
        return devices[0]
    if wanted not in ids:
        raise ConfigError(f"{entry.name} has no disk or network device {wanted!r}", listing)
    return devices[ids.index(wanted)]


def _words(one: Mapping[str, Any]) -> Words:
    from tvmm.config.limits import DISK_WORDS, NET_WORDS

    return DISK_WORDS if one["kind"] == "disk" else NET_WORDS


def _change(
    client: QmpClient, one: dict[str, Any], settings: Mapping[str, str], *, from_none: bool
) -> dict[str, Any]:
    """The device as it is then."""
    from tvmm.config.limits import NO_LIMITS, change_limits

    words, name = _words(one), one["id"]
    old = NO_LIMITS if from_none else change_limits(NO_LIMITS, one["limits"], name, words)
    new = change_limits(old, settings, name, words)
    command = "block_set_io_throttle" if one["kind"] == "disk" else "x-net-set-throttle"
    client.command(command, {"id": name, **new.spelled(words)})
    changed: dict[str, Any] = client.execute("x-query-throttle", id=name)[0]
    return changed


def _spelled(one: Mapping[str, Any]) -> str:
    """The limits that there are, as they are given."""
    from tvmm.config.limits import limit_properties

    rows = {prop.name: prop for prop in limit_properties(_words(one))}
    values = {name: value for name, value in one["limits"].items() if name in rows and value != rows[name].default}
    return " ".join(f"{name}={rows[name].spelling(value)}" for name, value in values.items()) or "none"
