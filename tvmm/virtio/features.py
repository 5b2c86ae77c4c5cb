"""Feature bits by name, what each needs, and whether a driver's choice can be accepted (virtio 1.3, 2.2 and 6).

Features are masks in a 64-bit word. A device offers a set (`check_offer` keeps ours honest), the driver takes a
part of it, and `refusal` says whether the part can stand. Modern devices only: without VERSION_1 there is no
agreement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BALLOON_ID",
    "BLK_ID",
    "CONSOLE_ID",
    "DEFAULT_RING",
    "INPUT_ID",
    "NET_ID",
    "RING_FEATURES",
    "RNG_ID",
    "VSOCK_ID",
    "Balloon",
    "Blk",
    "Console",
    "Net",
    "Ring",
    "Vsock",
    "check_offer",
    "names",
    "refusal",
]

NET_ID, BLK_ID, CONSOLE_ID, RNG_ID, BALLOON_ID, INPUT_ID = 1, 2, 3, 4, 5, 18
"""Virtio device ids (5)."""
VSOCK_ID = 19


class Ring:
    """Features of queues and transports, the same for all devices (6)."""

    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40
    ADMIN_VQ = 1 << 41


class Net:
    """Of a network device (5.1.3)."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    CTRL_RX_EXTRA = 1 << 20
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56
    GUEST_HDRLEN = 1 << 59
    SPEED_DUPLEX = 1 << 63


class Blk:
    """Of a block device (5.2.3)."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    GEOMETRY = 1 << 4
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14


class Console:
    """Of a console (5.3.3)."""

    SIZE = 1 << 0
    MULTIPORT = 1 << 1
    EMERG_WRITE = 1 << 2


class Balloon:
    """Of a memory balloon (5.5.3)."""

    MUST_TELL_HOST = 1 << 0
    STATS_VQ = 1 << 1
    DEFLATE_ON_OOM = 1 << 2
    FREE_PAGE_HINT = 1 << 3
    PAGE_POISON = 1 << 4
    PAGE_REPORTING = 1 << 5


class Vsock:
    """Of a socket device (5.10.3)."""

    STREAM = 1 << 0
    SEQPACKET = 1 << 1
    NO_IMPLIED_STREAM = 1 << 2


RING_FEATURES = (
    Ring.INDIRECT_DESC
    | Ring.EVENT_IDX
    | Ring.VERSION_1
    | Ring.RING_PACKED
    | Ring.IN_ORDER
    | Ring.NOTIFICATION_DATA
    | Ring.RING_RESET
)
"""Those of `Ring` that a device of tvmm can be made with; the rest is never offered (2.2.2)."""

DEFAULT_RING = Ring.INDIRECT_DESC | Ring.EVENT_IDX | Ring.VERSION_1 | Ring.RING_RESET
"""What a device offers unless it is told otherwise."""

OF_DEVICE: dict[int, type] = {
    NET_ID: Net, BLK_ID: Blk, CONSOLE_ID: Console, BALLOON_ID: Balloon, VSOCK_ID: Vsock
}

REQUIRES: dict[int, dict[int, int]] = {
    NET_ID: {
        Net.GUEST_TSO4: Net.GUEST_CSUM,
        Net.GUEST_TSO6: Net.GUEST_CSUM,
        Net.GUEST_UFO: Net.GUEST_CSUM,
        Net.GUEST_USO4: Net.GUEST_CSUM,
        Net.GUEST_USO6: Net.GUEST_CSUM,
        Net.GUEST_ECN: Net.GUEST_TSO4 | Net.GUEST_TSO6,
        Net.HOST_TSO4: Net.CSUM,
        Net.HOST_TSO6: Net.CSUM,
        Net.HOST_UFO: Net.CSUM,
        Net.HOST_USO: Net.CSUM,
        Net.HOST_ECN: Net.HOST_TSO4 | Net.HOST_TSO6,
        Net.CTRL_RX: Net.CTRL_VQ,
        Net.CTRL_VLAN: Net.CTRL_VQ,
        Net.GUEST_ANNOUNCE: Net.CTRL_VQ,
        Net.MQ: Net.CTRL_VQ,
        Net.CTRL_MAC_ADDR: Net.CTRL_VQ,
    },
}
"""Device id, feature: any one of these has to be there too (5.1.3.1)."""

OFFERED_WITH: dict[int, dict[int, int]] = {
    NET_ID: {Net.CTRL_RX_EXTRA: Net.CTRL_VQ},
    BLK_ID: {Blk.CONFIG_WCE: Blk.FLUSH},
}
"""The same for what a device offers; a driver may take the one without the other (5.1.4.1, 5.2.5.2)."""


def _named(group: type) -> dict[int, str]:
    return {value: name for name, value in vars(group).items() if type(value) is int}


def names(device_id: int, features: int) -> tuple[str, ...]:
    """The names of `features`, lowest bit first; ``bit 42`` for one that has none."""
    known = _named(Ring) | (_named(OF_DEVICE[device_id]) if device_id in OF_DEVICE else {})
    bits = [1 << bit for bit in range(features.bit_length()) if features >> bit & 1]
    return tuple(known.get(bit, f"bit {bit.bit_length() - 1}") for bit in bits)


def _missing(features: int, rules: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """The first feature without any of those that it needs, and these."""
    for feature, needed in rules:
        if features & feature and not features & needed:
            return feature, needed
    return None


def refusal(device_id: int, offered: int, accepted: int) -> str:
    """Why a device cannot do with `accepted`, in words; empty if it can (2.2.1, 2.2.2, 6.2)."""
    if not accepted & Ring.VERSION_1:
        return "VERSION_1 was not accepted: the driver speaks the legacy interface"
    if accepted & ~offered:
        return f"not offered: {', '.join(names(device_id, accepted & ~offered))}"
    missing = _missing(accepted, REQUIRES.get(device_id, {}).items())
    if missing:
        feature, needed = (names(device_id, part) for part in missing)
        return f"{feature[0]} was accepted without {' or '.join(needed)}"
    return ""


def check_offer(device_id: int, offered: int) -> int:
    """`offered` if a device may offer it; raises `ConfigError` if not (2.2.2, 6.2)."""
    of_device = sum(_named(OF_DEVICE[device_id])) if device_id in OF_DEVICE else 0
    strange = offered & ~(of_device | RING_FEATURES)
    if strange:
        raise ConfigError(f"a virtio device {device_id} cannot have {', '.join(names(device_id, strange))}")
    if not offered & Ring.VERSION_1:
        raise ConfigError(f"a virtio device {device_id} has to offer VERSION_1")
    rules = {**REQUIRES.get(device_id, {}), **OFFERED_WITH.get(device_id, {})}
    missing = _missing(offered, rules.items())
    if missing:
        feature, needed = (names(device_id, part) for part in missing)
        raise ConfigError(f"a virtio device with {feature[0]} needs {' or '.join(needed)} too")
    return offered
