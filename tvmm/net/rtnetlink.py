"""The little of rtnetlink(7) that every tap needs: the links there are, and their state, MTU and alias.

All else is pyroute2's. To import it takes several times as long as a guest takes to its first byte, and a tap without
bridge and addresses does not need it.
"""

from __future__ import annotations

import os
import socket
from struct import Struct, pack
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Link", "list_links", "set_link"]

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_GETLINK = 16, 18
IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO, IFLA_IFALIAS = 3, 4, 10, 18, 20
IFLA_INFO_KIND, IFLA_INFO_SLAVE_DATA, IFLA_BRPORT_ISOLATED = 1, 5, 33
IFF_UP = 0x1
ATTRIBUTE_MASK = 0x3FFF
RECEIVE_BYTES = 1 << 17

_HEADER = Struct("=IHHII")
_LINK = Struct("=BxHiII")
_ATTRIBUTE = Struct("=HH")


class Link(NamedTuple):
    """One as it is. `number` is its index, `kind` the kernel's word for its type ('' for hardware), `master` the name
    of its bridge or ''.
    """

    number: int
    name: str
    kind: str
    up: bool
    mtu: int
    master: str
    isolated: bool
    alias: str


def list_links() -> list[Link]:
    """Every link of this network namespace. Raises `OSError`."""
    found = []
    masters: dict[int, int] = {}
    for body in _ask(RTM_GETLINK, NLM_F_DUMP, _LINK.pack(0, 0, 0, 0, 0)):
        _, _, number, flags, _ = _LINK.unpack_from(body)
        attributes = _attributes(body[_LINK.size :])
        info = _attributes(attributes.get(IFLA_LINKINFO, b""))
        port = _attributes(info.get(IFLA_INFO_SLAVE_DATA, b""))
        masters[number] = _number(attributes.get(IFLA_MASTER, b""))
        found.append(
            Link(
                number,
                _text(attributes.get(IFLA_IFNAME, b"")),
                _text(info.get(IFLA_INFO_KIND, b"")),
                bool(flags & IFF_UP),
                _number(attributes.get(IFLA_MTU, b"")),
                "",
                bool(_number(port.get(IFLA_BRPORT_ISOLATED, b""))),
                _text(attributes.get(IFLA_IFALIAS, b"")),
            )
        )
    names = {link.number: link.name for link in found}
    return [link._replace(master=names.get(masters[link.number], "")) for link in found]


def set_link(number: int, *, up: bool | None = None, mtu: int | None = None, alias: str | None = None) -> None:
    """Change what is not None. Raises `OSError`."""
    body = _LINK.pack(0, 0, number, IFF_UP if up else 0, 0 if up is None else IFF_UP)
    if mtu is not None:
        body += _attribute(IFLA_MTU, pack("=I", mtu))
    if alias is not None:
        body += _attribute(IFLA_IFALIAS, os.fsencode(alias) + b"\0")
    list(_ask(RTM_NEWLINK, NLM_F_ACK, body))


def _ask(kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """The bodies of the kernel's answers, up to its last word."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        kernel.send(_HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 1, 0) + body)
        while True:
            data = kernel.recv(RECEIVE_BYTES)
            while data:
                length, answer, _, _, _ = _HEADER.unpack_from(data)
                content = data[_HEADER.size : length]
                data = data[length + 3 & ~3 :]
                if answer == NLMSG_DONE:
                    return
                if answer == NLMSG_ERROR:
                    code = -int.from_bytes(content[:4], "little", signed=True)
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield content


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        found[kind & ATTRIBUTE_MASK] = data[_ATTRIBUTE.size : length]
        data = data[max(length + 3 & ~3, _ATTRIBUTE.size) :]
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _text(value: bytes) -> str:
    return os.fsdecode(value.rstrip(b"\0"))


def _number(value: bytes) -> int:
    return int.from_bytes(value, "little")
