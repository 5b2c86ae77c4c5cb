"""Commands of the control socket about the balloon; `tvmm.control.verbs` has the table.

Shapes are QAPI's (qapi/machine.json). The guest's statistics are properties of the device, as QEMU has them: of the
object model there is no more here than these and the way to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.control.qmp import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.control.balloon_target import BalloonTarget
    from tvmm.control.target import ControlTarget, Json

__all__ = ["CHANGE_EVENT", "balloon", "qom_get", "qom_list", "qom_set", "query_balloon", "query_balloon_stats"]

CHANGE_EVENT = "BALLOON_CHANGE"
"""``{"actual": bytes}``: what the guest has now."""

MAX_PATIENCE_S = 60.0
NOT_REPORTED = (1 << 64) - 1
"""QEMU's value of a statistic that the guest does not have."""
PERIPHERALS = "/machine/peripheral"
INTERVAL, GUEST_STATS = "guest-stats-polling-interval", "guest-stats"
PATH_SHOWN = 64


def _balloon(target: ControlTarget) -> BalloonTarget:
    found = target.balloon()
    if found is None:
        raise CommandFailed("DeviceNotActive", "No balloon device has been activated")
    return found


async def balloon(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when the guest has been asked; `query-balloon` and BALLOON_CHANGE say how far it is."""
    value = arguments["value"]
    if value <= 0:
        raise CommandFailed("GenericError", "argument 'value' must be a number of bytes above 0")
    _balloon(target).set_memory(value)
    return {}


async def query_balloon(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: BalloonInfo, with what tvmm knows besides."""
    info = _balloon(target).info()
    return {
        "actual": info.actual,
        "x-target": info.target,
        "x-memory": info.memory,
        "x-id": info.id,
        "x-driver": info.driver,
        "x-deflate-on-oom": info.deflate_on_oom,
        "x-pages": dict(info.counters),
    }


async def query_balloon_stats(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """What the host has given for the guest's RAM, and new statistics if the guest sends some within `patience`
    seconds; otherwise the last ones.
    """
    patience = arguments.get("patience", 0)
    if not 0 <= patience <= MAX_PATIENCE_S:
        raise CommandFailed("GenericError", f"argument 'patience' must be 0 to {MAX_PATIENCE_S:g} seconds")
    device = _balloon(target)
    fresh = bool(patience) and await device.fresh_stats(patience)
    resident = await device.resident()
    stats, updated = device.stats()
    return {"fresh": fresh, "last-update": updated, "stats": _known(stats), "resident": resident}


def _known(stats: Mapping[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in stats.items() if value is not None}


# -- the object model -----------------------------------------------------------------------------------------


def _device(target: ControlTarget, path: str) -> BalloonTarget:
    """The balloon, if that is where `path` leads. Raises `CommandFailed` as QEMU does."""
    found = target.balloon()
    if found is None or path != f"{PERIPHERALS}/{found.info().id}":
        shown = path if len(path) <= PATH_SHOWN else f"{path[:PATH_SHOWN]}..."
        raise CommandFailed("DeviceNotFound", f"Device '{shown}' not found")
    return found


def _no_property(name: str) -> CommandFailed:
    return CommandFailed("GenericError", f"Property 'virtio-balloon.{name[:PATH_SHOWN]}' not found")


async def qom_get(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """`guest-stats` (all of them; 2^64 - 1 for what the guest does not tell) or `guest-stats-polling-interval`."""
    device = _device(target, arguments["path"])
    match arguments["property"]:
        case "guest-stats":
            stats, updated = device.stats()
            return {"stats": {**dict.fromkeys(stats, NOT_REPORTED), **_known(stats)}, "last-update": updated}
        case "guest-stats-polling-interval":
            return device.interval_s
        case "type":
            return "virtio-balloon"
    raise _no_property(arguments["property"])


async def qom_set(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """`guest-stats-polling-interval`: seconds, 0 for no more requests."""
    device = _device(target, arguments["path"])
    name = arguments["property"]
    if name == GUEST_STATS:
        raise CommandFailed("GenericError", f"Property 'virtio-balloon.{name}' is not writable")
    if name != INTERVAL:
        raise _no_property(name)
    try:
        device.set_interval(arguments["value"])
    except ValueError as error:
        raise CommandFailed("GenericError", f"argument 'value': {error}") from None
    return {}


async def qom_list(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: a list of ObjectPropertyInfo."""
    path = arguments["path"]
    found = target.balloon()
    children = {
        "/machine": [("peripheral", "child<container>")],
        PERIPHERALS: [(found.info().id, "child<virtio-balloon>")] if found is not None else [],
    }
    if path in children:
        rows = children[path]
    else:
        _device(target, path)
        rows = [("type", "string"), (GUEST_STATS, "guest statistics"), (INTERVAL, "int")]
    return [{"name": name, "type": kind} for name, kind in rows]
