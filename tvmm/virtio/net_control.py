"""Commands of a network device's control queue (virtio 1.3, 5.1.6.5): bytes in, a typed command out.

A buffer is a class byte, a command byte and data, all readable, and one writable byte for the answer. Parsing looks
at lengths and ranges only; whether the device can do it, and does, is `tvmm.virtio.net`'s.
"""

from __future__ import annotations

from struct import unpack_from
from typing import NamedTuple

__all__ = [
    "ACK_ERROR",
    "ACK_OK",
    "MAX_COMMAND",
    "MAX_MAC_ENTRIES",
    "AnnounceAck",
    "Command",
    "MacAddress",
    "MacTable",
    "Offloads",
    "QueuePairs",
    "RxMode",
    "Unsupported",
    "VlanFilter",
    "parse",
]

ACK_OK, ACK_ERROR = 0, 1

MAX_MAC_ENTRIES = 64
"""Addresses in each filter table. A guest may list millions; more than this and the filter lets everything pass."""

MAX_COMMAND = 4096
"""Bytes of a command that are read. The longest that is understood is far shorter, two full address tables."""

MAC_LENGTH = 6


class Kind:
    """Classes of commands."""

    RX, MAC, VLAN, ANNOUNCE, MQ, GUEST_OFFLOADS = range(6)


RX_MODES = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast")
"""By command; those from the third on need CTRL_RX_EXTRA."""


class RxMode(NamedTuple):
    """Turn one of `RX_MODES` on or off."""

    mode: str
    on: bool


class MacTable(NamedTuple):
    """Addresses to receive. `None` stands for a table with more than `MAX_MAC_ENTRIES`: receive all of its kind."""

    unicast: tuple[bytes, ...] | None
    multicast: tuple[bytes, ...] | None


class MacAddress(NamedTuple):
    """The device's own address from now on."""

    mac: bytes


class VlanFilter(NamedTuple):
    """Let a VLAN pass, or no longer."""

    vlan: int
    add: bool


class AnnounceAck(NamedTuple):
    """The driver has seen that it is to announce itself."""


class QueuePairs(NamedTuple):
    """Use this many pairs of queues."""

    pairs: int


class Offloads(NamedTuple):
    """Which offloads of received frames the driver wants, by the bits of their features."""

    features: int


class Unsupported(NamedTuple):
    """Not a command, in words."""

    reason: str


Command = RxMode | MacTable | MacAddress | VlanFilter | AnnounceAck | QueuePairs | Offloads | Unsupported


def parse(command: bytes) -> Command:
    """What a driver asks for with the readable bytes of a control buffer, of which there are up to `MAX_COMMAND`."""
    if len(command) < 2:
        return Unsupported("a command without class and command")
    kind, which, data = command[0], command[1], command[2:]
    match kind, which:
        case (Kind.RX, mode) if mode < len(RX_MODES):
            return RxMode(RX_MODES[mode], bool(data[0])) if len(data) == 1 and data[0] < 2 else _length("rx")
        case (Kind.MAC, 0):
            return _mac_table(data)
        case (Kind.MAC, 1):
            return MacAddress(data) if len(data) == MAC_LENGTH else _length("mac")
        case (Kind.VLAN, 0 | 1):
            return VlanFilter(unpack_from("<H", data)[0], not which) if len(data) == 2 else _length("vlan")
        case (Kind.ANNOUNCE, 0):
            return AnnounceAck() if not data else _length("announce")
        case (Kind.MQ, 0):
            return QueuePairs(*unpack_from("<H", data)) if len(data) == 2 else _length("mq")
        case (Kind.GUEST_OFFLOADS, 0):
            return Offloads(*unpack_from("<Q", data)) if len(data) == 8 else _length("offloads")
    return Unsupported(f"class {kind} command {which}")


def _length(what: str) -> Unsupported:
    return Unsupported(f"{what} with wrong data")


def _mac_table(data: bytes) -> MacTable | Unsupported:
    """Two tables, each a count of 32 bits and that many addresses."""
    tables: list[tuple[bytes, ...] | None] = []
    for _ in range(2):
        if len(data) < 4:
            return _length("mac table")
        (count,) = unpack_from("<I", data)
        if count > MAX_MAC_ENTRIES:
            # Where the second table would begin may be behind the bytes that were read.
            return MacTable(tables[0] if tables else None, None)
        end = 4 + count * MAC_LENGTH
        if len(data) < end:
            return _length("mac table")
        tables.append(tuple(data[at : at + MAC_LENGTH] for at in range(4, end, MAC_LENGTH)))
        data = data[end:]
    return MacTable(tables[0], tables[1]) if not data else _length("mac table")
