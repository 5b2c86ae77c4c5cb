"""``tvmm info [NAME]``: one machine from outside: its state, its processors, its memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tvmm.cli.machines import control, named
from tvmm.cli.output import format_age, print_json, print_table, printable, say
from tvmm.config.units import format_size
from tvmm.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tvmm.cli.parser import Parser
    from tvmm.control.client import QmpClient
    from tvmm.control.registry import MachineEntry

__all__ = ["add_arguments", "run"]

_EXAMPLES = """\
  tvmm info web
  tvmm info web --memory        what answers at each guest-physical address
  tvmm info web --cpus --json
  tvmm info web --virtio        how often each queue kicked, interrupted, was spared it
  tvmm info web --metrics       what it did since it was started, and how long that took
"""


def add_arguments(parser: Parser) -> None:
    """The verb's options."""
    from tvmm.cli.parser import add_name

    parser.describe("Show what a running machine is made of and how it is.", _EXAMPLES)
    add_name(parser)
    views = parser.add_mutually_exclusive_group()
    views.add_argument(
        "--memory",
        dest="view",
        action="store_const",
        const="memory",
        help="show the map of guest-physical addresses",
    )
    views.add_argument("--cpus", dest="view", action="store_const", const="cpus", help="show the processors")
    views.add_argument(
        "--virtio",
        dest="view",
        action="store_const",
        const="virtio",
        help="show the virtio devices, their queues and how often they notified",
    )
    views.add_argument(
        "--metrics",
        dest="view",
        action="store_const",
        const="metrics",
        help="show everything that is counted: exits, requests, bytes, errors, how long they took",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Mapping[str, Any]) -> int:
    """Print the view that was asked for."""
    entry = named(options)
    ask, show = _VIEWS[options.get("view", "")]
    with control(entry) as client:
        answer = ask(client, entry)
    if options.get("json"):
        print_json(answer)
    else:
        show(answer)
    return 0


def _ask_overview(client: QmpClient, entry: MachineEntry) -> dict[str, Any]:
    chardevs = {device["label"]: device["filename"] for device in client.execute("query-chardev")}
    return {
        "name": entry.name,
        "pid": entry.pid,
        "status": client.execute("query-status")["status"],
        "uptime-seconds": round(max(time.time() - entry.started, 0.0), 3),
        "memory": client.execute("query-memory-size-summary")["base-memory"],
        "cpus": len(client.execute("query-cpus-fast")),
        "serial": [filename for label, filename in chardevs.items() if label.startswith("serial")],
        "ports": {label: filename for label, filename in chardevs.items() if not label.startswith("serial")},
        **_balloon(client),
        **_migration(client.execute("query-migrate")),
        "control": str(entry.paths.control),
        "console": str(entry.paths.console),
        **client.execute("x-query-info"),
    }


def _balloon(client: QmpClient) -> dict[str, Any]:
    """How much the guest has, if it has a balloon."""
    if not any(device["name"] == "virtio-balloon" for device in client.execute("x-query-virtio")):
        return {}
    info = client.execute("query-balloon")
    return {"balloon": {"actual": info["actual"], "target": info["x-target"], "driver": info["x-driver"]}}


def _migration(info: dict[str, Any]) -> dict[str, Any]:
    """The migration that is under way or was the last, if there is one to tell of."""
    if not info:
        return {}
    known = {
        "status": info["status"],
        "phase": info.get("x-phase"),
        "from" if info.get("x-incoming") else "to": info.get("x-peer"),
        "memory": "handed over" if info.get("ram", {}).get("x-handed-over") else "",
        "listening": info.get("x-listening"),
        "disks": _disks(info.get("disk"), incoming=bool(info.get("x-incoming"))),
        "error": info.get("error-desc"),
        **_postcopy(info),
    }
    return {"migration": {key: value for key, value in known.items() if value}}


def _postcopy(info: dict[str, Any]) -> dict[str, Any]:
    """Of a guest that has gone before its memory: what is missing at the destination, and how long it waits for it."""
    postcopy = info.get("x-postcopy")
    if postcopy is None:
        return {}
    return {
        "missing": info.get("ram", {}).get("remaining"),
        "faults": postcopy.get("faults"),
        "requests": postcopy.get("requests"),
        "median-fault-ms": postcopy.get("median-fault-ms"),
        "cuts": postcopy.get("cuts"),
    }


def _disks(stats: dict[str, Any] | None, *, incoming: bool) -> str:
    """How far the copies of disks are."""
    if stats is None:
        return ""
    if incoming:
        return f"{format_size(stats['total'])}, {stats['transferred'] >> 20}M received"
    return f"{format_size(stats['total'])}, {stats['remaining'] >> 20}M left, {stats['transferred'] >> 20}M sent"


def _show_overview(answer: dict[str, Any]) -> None:
    texts = {
        **answer,
        "uptime-seconds": format_age(answer["uptime-seconds"]),
        "memory": format_size(answer["memory"]),
    }
    if "balloon" in answer:
        sizes = {key: format_size(value) for key, value in answer["balloon"].items() if key != "driver"}
        texts["balloon"] = {**answer["balloon"], **sizes}
    lines = {key.removesuffix("-seconds"): _plain(value) for key, value in texts.items()}
    width = max(map(len, lines))
    for key, text in lines.items():
        say(f"{key:{width}}  {printable(text)}".rstrip())


def _plain(value: object) -> str:
    """A JSON value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return str(value)


def _ask_memory(client: QmpClient, entry: MachineEntry) -> list[dict[str, Any]]:
    ranges: list[dict[str, Any]] = client.execute("x-query-memory-map")
    return ranges


def _show_memory(answer: list[dict[str, Any]]) -> None:
    print_table(
        ("FIRST", "LAST", "SIZE", "KIND", "BLOCK", "OWNER"),
        [
            (
                f"{part['start']:#014x}",
                f"{part['start'] + part['size'] - 1:#014x}",
                format_size(part["size"]),
                part["kind"],
                part["block"],
                part["owner"],
            )
            for part in answer
        ],
        right="SIZE",
    )


def _ask_cpus(client: QmpClient, entry: MachineEntry) -> list[dict[str, Any]]:
    cpus: list[dict[str, Any]] = client.execute("query-cpus-fast")
    return cpus


def _show_cpus(answer: list[dict[str, Any]]) -> None:
    print_table(
        ("CPU", "THREAD", "STATE", "EXITS"),
        [
            (
                str(cpu["cpu-index"]),
                str(cpu["thread-id"]),
                str(cpu.get("x-state", "-")),
                str(cpu.get("x-exits", "-")),
            )
            for cpu in answer
        ],
        right="CPU THREAD EXITS",
    )


def _ask_virtio(client: QmpClient, entry: MachineEntry) -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = client.execute("x-tvmm-virtio")
    return devices


def _show_virtio(answer: list[dict[str, Any]]) -> None:
    """A row for each queue that is in use; of a device without one, one that says how it is."""
    rows: list[list[str]] = []
    for device in answer:
        head = [device["name"], device["transport"], device["place"], _driver_status(device["status"])]
        for queue in [queue for queue in device["queues"] if queue["ready"] or queue["chains"]]:
            counts = [queue[name] for name in _QUEUE_COUNTS]
            rows.append([*head, str(queue["index"]), *map(str, counts), _per_kick(queue), str(queue["errors"])])
            head = ["", "", "", ""]
        if head[0]:
            rows.append([*head, *["-"] * 8])
    print_table(
        (
            "DEVICE", "TRANSPORT", "PLACE", "STATUS",
            "QUEUE", "CHAINS", "KICKS", "INTERRUPTS", "SUPPRESSED", "EXITS", "CHAINS/KICK", "ERRORS",
        ),
        rows,
        right="QUEUE CHAINS KICKS INTERRUPTS SUPPRESSED EXITS CHAINS/KICK ERRORS",
    )  # fmt: skip
    for device in answer:
        facts = {name: count for name, count in device["counters"].items() if count}
        if device["mistakes"] or device["last-error"]:
            facts = {"driver mistakes": device["mistakes"], "last": device["last-error"], **facts}
        if facts:
            say(printable(f"{device['name']}: {_plain(facts)}"))


def _ask_metrics(client: QmpClient, entry: MachineEntry) -> dict[str, Any]:
    answer: dict[str, Any] = client.execute("x-query-metrics")
    return answer


def _show_metrics(answer: dict[str, Any]) -> None:
    from tvmm.cli.metrics_view import total_tables
    from tvmm.metrics.snapshot import Snapshot

    try:
        tables = total_tables(Snapshot.from_json(answer))
    except ValueError as error:
        raise ProtocolError(f"the machine tells its metrics in a form that is not known here: {error}") from None
    for index, table in enumerate(tables):
        if index:
            say("")
        print_table(table.header, table.rows, table.right)


_QUEUE_COUNTS = ("chains", "kicks", "interrupts", "suppressed", "exits")


def _driver_status(words: list[str]) -> str:
    """The one word of the status field that says most."""
    for word in ("DEVICE_NEEDS_RESET", "FAILED", "DRIVER_OK", "FEATURES_OK", "DRIVER", "ACKNOWLEDGE"):
        if word in words:
            return word
    return "reset"


def _per_kick(queue: dict[str, Any]) -> str:
    return f"{queue['chains'] / queue['kicks']:.1f}" if queue["kicks"] else "-"


_VIEWS: dict[str, tuple[Callable[[QmpClient, MachineEntry], Any], Callable[[Any], None]]] = {
    "": (_ask_overview, _show_overview),
    "memory": (_ask_memory, _show_memory),
    "cpus": (_ask_cpus, _show_cpus),
    "virtio": (_ask_virtio, _show_virtio),
    "metrics": (_ask_metrics, _show_metrics),
}
"""For each view what it asks the machine, and how it is shown."""
