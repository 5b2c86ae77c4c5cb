"""System calls on /dev/net/tun, by their names in <linux/if_tun.h>; `OSError` as they come."""

from __future__ import annotations

import fcntl
import os
import sys
from struct import Struct, pack
from typing import NamedTuple

__all__ = [
    "IFF_DETACH_QUEUE",
    "IFF_MULTI_QUEUE",
    "IFF_NO_PI",
    "IFF_TAP",
    "IFF_TUN_EXCL",
    "IFF_VNET_HDR",
    "TUN_F_CSUM",
    "TUN_F_TSO4",
    "TUN_F_TSO6",
    "TUN_F_TSO_ECN",
    "TUN_F_USO",
    "TUN_PATH",
    "TunInterface",
    "attach_interface",
    "describe",
    "hardware_address",
    "header_length",
    "open_tun",
    "set_carrier",
    "set_group",
    "set_header_length",
    "set_offload",
    "set_owner",
    "set_persistent",
    "set_queue",
]

TUN_PATH = "/dev/net/tun"

TUNSETIFF, TUNSETPERSIST, TUNSETOFFLOAD = 0x400454CA, 0x400454CB, 0x400454D0
TUNSETOWNER, TUNSETGROUP = 0x400454CC, 0x400454CE
TUNGETVNETHDRSZ, SIOCGIFHWADDR = 0x800454D7, 0x8927
TUNGETIFF, TUNSETVNETHDRSZ, TUNSETQUEUE, TUNSETCARRIER = 0x800454D2, 0x400454D8, 0x400454D9, 0x400454E2

IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x8000, 0x0100
IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE = 0x0200, 0x0400

TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 0x01, 0x02, 0x04, 0x08
TUN_F_USO = 0x20 | 0x40
"""IPv4 and IPv6: one is not to be had without the other."""

_IFREQ = Struct("16sH22x")


class TunInterface(NamedTuple):
    """An interface's name, and its `IFF_` bits."""

    name: str
    flags: int


def open_tun() -> int:
    """A descriptor that has no interface yet, not blocking."""
    return os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _interface(answer: bytes) -> TunInterface:
    name, flags = _IFREQ.unpack(answer)
    return TunInterface(os.fsdecode(name.rstrip(b"\0")), flags)


def attach_interface(fd: int, name: str, flags: int) -> TunInterface:
    """TUNSETIFF: make an interface (``%d`` in the name stands for a free number), or have a queue of one there is."""
    return _interface(fcntl.ioctl(fd, TUNSETIFF, _IFREQ.pack(os.fsencode(name), flags)))


def describe(fd: int) -> TunInterface:
    """TUNGETIFF. IFF_DETACH_QUEUE is among the flags of a queue to which no frames come."""
    return _interface(fcntl.ioctl(fd, TUNGETIFF, bytes(_IFREQ.size)))


def hardware_address(fd: int) -> str:
    """SIOCGIFHWADDR of the interface behind `fd`, in whichever network namespace that is."""
    answer: bytes = fcntl.ioctl(fd, SIOCGIFHWADDR, bytes(_IFREQ.size))
    return answer[18:24].hex(":")


def header_length(fd: int) -> int:
    """TUNGETVNETHDRSZ."""
    return int.from_bytes(fcntl.ioctl(fd, TUNGETVNETHDRSZ, bytes(4)), sys.byteorder)


def set_header_length(fd: int, length: int) -> None:
    """TUNSETVNETHDRSZ: bytes in front of each frame, for all queues."""
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, pack("i", length))


def set_offload(fd: int, bits: int) -> None:
    """TUNSETOFFLOAD: what the reader of frames takes, in `TUN_F_` bits, for all queues."""
    fcntl.ioctl(fd, TUNSETOFFLOAD, bits)


def set_persistent(fd: int, on: bool) -> None:
    """TUNSETPERSIST: whether the interface stays when nobody has it open."""
    fcntl.ioctl(fd, TUNSETPERSIST, int(on))


def set_owner(fd: int, uid: int) -> None:
    """TUNSETOWNER: who may have queues of it without any right."""
    fcntl.ioctl(fd, TUNSETOWNER, uid)


def set_group(fd: int, gid: int) -> None:
    """TUNSETGROUP: whose members may."""
    fcntl.ioctl(fd, TUNSETGROUP, gid)


def set_queue(fd: int, attached: bool) -> None:
    """TUNSETQUEUE: whether frames come to this queue. It must be the other way round before."""
    fcntl.ioctl(fd, TUNSETQUEUE, _IFREQ.pack(b"", IFF_ATTACH_QUEUE if attached else IFF_DETACH_QUEUE))


def set_carrier(fd: int, up: bool) -> None:
    """TUNSETCARRIER: whether the host sees a cable (Linux 5.0 and later)."""
    fcntl.ioctl(fd, TUNSETCARRIER, pack("i", up))
