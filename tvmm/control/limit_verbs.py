"""Commands of the control socket about rate limits; `tvmm.control.verbs` has the table.

`block_set_io_throttle` is QAPI's (qapi/block-core.json): it gives a disk all its limits at once, and what is not named
is not limited. Network devices have the same under a name of tvmm's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.config.limits import DISK_WORDS, NET_WORDS, NO_LIMITS, change_limits, limit_properties
from tvmm.control.qmp import Argument, CommandFailed
from tvmm.control.target import no_such

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.config.limits import Limits, Words
    from tvmm.control.limit_target import LimitTarget
    from tvmm.control.target import ControlTarget, Json

__all__ = [
    "BLOCK_SET_IO_THROTTLE",
    "NET_SET_THROTTLE",
    "block_device_info",
    "block_set_io_throttle",
    "net_set_throttle",
    "query_throttle",
]

_BLOCK_RATES = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
"""Those that a client of QEMU has to give, and is always told."""


def _arguments(words: Words, required: tuple[str, ...] = ()) -> tuple[Argument, ...]:
    return tuple(Argument(prop.name, "integer", prop.name in required) for prop in limit_properties(words))


BLOCK_SET_IO_THROTTLE = (
    Argument("device", "string", required=False),
    Argument("id", "string", required=False),
    Argument("group", "string", required=False),
    *_arguments(DISK_WORDS, _BLOCK_RATES),
)
NET_SET_THROTTLE = (Argument("id", "string"), *_arguments(NET_WORDS))


def _device(target: ControlTarget, device_id: str, kind: str, words: str) -> LimitTarget:
    found = {name: device for name, device in target.limited().items() if device.kind == kind}
    if device_id not in found:
        raise CommandFailed("DeviceNotFound", str(no_such(words, device_id, list(found))))
    return found[device_id]


def _set(device: LimitTarget, device_id: str, arguments: Mapping[str, Any]) -> None:
    names = {prop.name for prop in limit_properties(device.words)}
    values = {name: value for name, value in arguments.items() if name in names}
    device.set_limits(change_limits(NO_LIMITS, values, device_id, device.words))


async def block_set_io_throttle(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when the limits hold. A disk has limits of its own: there are no groups."""
    names = {arguments[key] for key in ("device", "id") if key in arguments}
    if len(names) != 1:
        raise CommandFailed("GenericError", "name one disk, by 'id' or by 'device'")
    (name,) = names
    device = _device(target, name, "disk", "disk")
    if arguments.get("group", name) != name:
        raise CommandFailed("GenericError", "limits cannot be shared by disks; leave 'group' out")
    _set(device, name, arguments)
    return {}


async def net_set_throttle(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when the limits hold."""
    name = arguments["id"]
    _set(_device(target, name, "net", "network device"), name, arguments)
    return {}


async def query_throttle(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """All devices that can be limited, or the one called `id`, with all their limits."""
    wanted, devices = arguments.get("id"), target.limited()
    if wanted is not None and wanted not in devices:
        raise CommandFailed("DeviceNotFound", str(no_such("disk or network device", wanted, list(devices))))
    return [
        {
            "id": name,
            "kind": device.kind,
            "limits": device.limits.spelled(device.words),
            "waits": device.limit_waits,
        }
        for name, device in devices.items()
        if wanted in (None, name)
    ]


def block_device_info(device_id: str, limits: Limits) -> dict[str, Json]:
    """The members of QAPI's BlockDeviceInfo about limits, those that may be left out only if they say something."""
    values: dict[str, Json] = dict(limits.spelled(DISK_WORDS))
    shown = {name: values[name] for name in _BLOCK_RATES}
    for name in _BLOCK_RATES:
        if values[f"{name}_max"]:
            shown[f"{name}_max"] = values[f"{name}_max"]
            shown[f"{name}_max_length"] = values[f"{name}_max_length"]
    if limits.size:
        shown["iops_size"] = limits.size
    return {**shown, "group": device_id} if limits != NO_LIMITS else shown
