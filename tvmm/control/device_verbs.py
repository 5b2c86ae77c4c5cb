"""Commands of the control socket about disks, network devices and virtio; `tvmm.control.verbs` has the table.

Shapes are QAPI's (qapi/block-core.json, qapi/net.json, qapi/virtio.json), with what QEMU has and tvmm has not
left at its resting value where clients expect the member.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmm.config.limits import NET_WORDS
from tvmm.control.limit_verbs import block_device_info
from tvmm.control.qmp import CommandFailed
from tvmm.control.target import no_such

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.config.limits import Limits
    from tvmm.control.target import ControlTarget, DiskInfo, Json, NetInfo, VirtioInfo

__all__ = [
    "announce_self",
    "block_resize",
    "query_block",
    "query_blockstats",
    "query_rx_filter",
    "query_virtio",
    "set_link",
    "virtio_counters",
]

KINDS = {
    "net": (1, "virtio-net"),
    "blk": (2, "virtio-blk"),
    "console": (3, "virtio-serial"),
    "rng": (4, "virtio-rng"),
    "balloon": (5, "virtio-balloon"),
    "input": (18, "virtio-input"),
    "vsock": (19, "vhost-vsock"),
}
"""Virtio device id (virtio 1.3, 5) and QEMU's name, by `VirtioInfo.kind`."""

_COUNTED = (
    "rd_bytes",
    "wr_bytes",
    "unmap_bytes",
    "rd_operations",
    "wr_operations",
    "flush_operations",
    "unmap_operations",
    "failed_rd_operations",
    "failed_wr_operations",
    "failed_flush_operations",
    "failed_unmap_operations",
    "rd_total_time_ns",
    "wr_total_time_ns",
    "flush_total_time_ns",
    "unmap_total_time_ns",
)
"""Members of BlockDeviceStats that `DiskInfo` has under the same names."""

_ABSENT = ("write_threshold", "backing_file_depth")
"""Members of BlockDeviceInfo that stand for what tvmm does not do."""

MAX_SIZE = (1 << 63) - 1


async def query_block(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: a list of BlockInfo."""
    limited = target.limited()
    return [_block_info(disk, limited[disk.id].limits) for disk in target.disks()]


def _block_info(disk: DiskInfo, limits: Limits) -> Json:
    return {
        "device": disk.id,
        "qdev": disk.id,
        "type": "unknown",
        "removable": False,
        "locked": False,
        "io-status": disk.io_status,
        "inserted": {
            "file": disk.file,
            "node-name": disk.id,
            "drv": disk.format,
            "ro": disk.readonly,
            "encrypted": False,
            "detect_zeroes": "off",
            "cache": {
                "writeback": True,
                "direct": disk.direct,
                "no-flush": disk.cache == "unsafe",
            },
            "image": {"filename": disk.file, "format": disk.format, "virtual-size": disk.size_bytes},
            **block_device_info(disk.id, limits),
            **dict.fromkeys(_ABSENT, 0),
        },
        "x-aio": disk.aio,
    }


async def query_blockstats(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: a list of BlockStats. How times are spread is in x-query-metrics."""
    return [
        {
            "device": disk.id,
            "qdev": disk.id,
            "node-name": disk.id,
            "stats": {
                **{name: getattr(disk, name) for name in _COUNTED},
                "account_invalid": True,
                "account_failed": True,
                "timed_stats": [],
                "x-invalid-operations": disk.invalid_operations,
            },
        }
        for disk in target.disks()
    ]


async def block_resize(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when the disk has the new size, and its guest has been told."""
    names = {arguments[key] for key in ("device", "node-name") if key in arguments}
    if len(names) != 1:
        raise CommandFailed("GenericError", "name one disk, by 'device' or by 'node-name'")
    if not 0 < arguments["size"] <= MAX_SIZE:
        raise CommandFailed("GenericError", "argument 'size' must be a number of bytes above 0")
    await target.resize_disk(names.pop(), arguments["size"])
    return {}


async def query_rx_filter(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: a list of RxFilterInfo, of all network devices or the one called `name`."""
    wanted = arguments.get("name")
    nets, limited = target.nets(), target.limited()
    if wanted is not None and wanted not in [net.id for net in nets]:
        raise no_such("network device", wanted, [net.id for net in nets])
    return [_rx_filter(net, limited[net.id].limits) for net in nets if wanted in (None, net.id)]


def _rx_filter(net: NetInfo, limits: Limits) -> Json:
    return {
        "name": net.id,
        "main-mac": net.mac.hex(":"),
        "promiscuous": net.promiscuous,
        "unicast": _state(net.no_unicast, net.all_unicast),
        "multicast": _state(net.no_multicast, net.all_multicast),
        "broadcast-allowed": not net.no_broadcast,
        "unicast-overflow": net.unicast_overflow,
        "multicast-overflow": net.multicast_overflow,
        "unicast-table": [mac.hex(":") for mac in net.unicast],
        "multicast-table": [mac.hex(":") for mac in net.multicast],
        # Without the feature frames of all VLANs pass; QEMU lists each of the 4096 then.
        "vlan": "all" if net.vlans is None else "normal",
        "vlan-table": list(net.vlans or ()),
        "x-ifname": net.ifname,
        "x-link": net.link_up,
        "x-throttle": limits.spelled(NET_WORDS),
    }


def _state(none: bool, everything: bool) -> str:
    """QAPI: RxState."""
    return "none" if none else "all" if everything else "normal"


async def set_link(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Answer when the cable is in or out; the guest is told."""
    name = arguments["name"]
    nets = [net.id for net in target.nets()]
    if name not in nets:
        raise CommandFailed("DeviceNotFound", str(no_such("network device", name, nets)))
    target.set_link(name, arguments["up"])
    return {}


async def announce_self(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """Have the guest announce itself. It decides how often: QEMU's numbers are taken, and not needed."""
    target.announce(arguments.get("interfaces", []))
    return {}


async def query_virtio(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """QAPI: a list of VirtioInfo, with the device's virtio id added."""
    return [
        {"path": f"/machine/peripheral/{device.name}", "name": name, "virtio-id": number}
        for device in target.virtio()
        for number, name in [KINDS[device.kind]]
    ]


async def virtio_counters(target: ControlTarget, arguments: Mapping[str, Any]) -> Json:
    """All that is known of the virtio devices, of each or of the one called `name`."""
    wanted = arguments.get("name")
    devices = target.virtio()
    if wanted is not None and wanted not in [device.name for device in devices]:
        raise no_such("virtio device", wanted, [device.name for device in devices])
    return [_counters(device) for device in devices if wanted in (None, device.name)]


def _counters(device: VirtioInfo) -> Json:
    return {
        "name": device.name,
        "kind": device.kind,
        "transport": device.transport,
        "place": device.place,
        "status": list(device.status),
        "features": list(device.features),
        "mistakes": device.mistakes,
        "last-error": device.last_error,
        "counters": dict(device.counters),
        "queues": [queue._asdict() for queue in device.queues],
    }
