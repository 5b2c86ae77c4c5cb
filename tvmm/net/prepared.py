"""Taps that root prepares for a user: they stay, and that user opens them without any right.

The tap itself is the record: its alias tells that it is one, whose and of which network. It is made to stay as the
last step; whatever happens before leaves nothing.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import HostError, UserError
from tvmm.net import tun
from tvmm.net.links import Links, no_right
from tvmm.virtio.net import HEADER_LENGTH

if TYPE_CHECKING:
    from tvmm.net.links import Link

__all__ = ["PREPARED", "Prepared", "attach_prepared", "create_tap", "delete_tap", "prepared_taps", "read_prepared"]

PREPARED = "tvmm-tap:"
FLAGS = tun.IFF_TAP | tun.IFF_NO_PI | tun.IFF_VNET_HDR
NAME_TRIES = 1000


class Prepared(NamedTuple):
    """Who it is for, ``USER`` or ``@GROUP``, and the network of ``tvmm net up`` that it is in, or ''."""

    owner: str
    network: str = ""


def write_prepared(prepared: Prepared) -> str:
    """For the tap's alias."""
    return f"{PREPARED}{prepared.owner} {prepared.network}".rstrip()


def read_prepared(alias: str) -> Prepared | None:
    """What an alias says; None if it is not one of ours."""
    if not alias.startswith(PREPARED):
        return None
    owner, _, network = alias.removeprefix(PREPARED).partition(" ")
    return Prepared(owner, network)


class TapRequest(NamedTuple):
    """`ifname` '' has one made up; `uid` or `gid` -1: anybody's. `queues` 1: for programs that know of one only."""

    ifname: str
    prepared: Prepared
    uid: int
    gid: int = -1
    bridge: str = ""
    isolated: bool = False
    queues: int = 0
    mtu: int = 0


def create_tap(request: TapRequest) -> str:
    """Make it; its name. Raises `HostError`, and has then made nothing."""
    flags = FLAGS | (tun.IFF_MULTI_QUEUE if request.queues != 1 else 0)
    with Links() as links, ExitStack() as stack:
        bridge = _find_bridge(links, request.bridge) if request.bridge else None
        try:
            fd = tun.open_tun()
        except OSError as error:
            raise HostError(f"cannot open {tun.TUN_PATH}: {error.strerror}", "'sudo modprobe tun'") from error
        stack.callback(os.close, fd)
        name = _attach(fd, request, flags)
        try:
            if request.uid >= 0:
                tun.set_owner(fd, request.uid)
            if request.gid >= 0:
                tun.set_group(fd, request.gid)
            tun.set_header_length(fd, HEADER_LENGTH)
        except OSError as error:
            raise HostError(f"cannot give tap {name} away: {error.strerror}") from error
        link = links.find(name)
        if link is None:
            raise HostError(f"tap {name} was removed while it was set up")
        if request.mtu:
            links.change(link, f"set the MTU of {name} to {request.mtu}", mtu=request.mtu)
        if bridge is not None:
            links.change(link, f"put {name} into bridge {bridge.name}", master=bridge.number)
            if request.isolated:
                links.isolate(link, True)
        links.change(link, f"write down whose {name} is", ifalias=write_prepared(request.prepared))
        links.change(link, f"bring {name} up", state="up")
        try:
            tun.set_persistent(fd, True)
        except OSError as error:
            raise HostError(f"cannot have tap {name} stay: {error.strerror}") from error
    return name


def _find_bridge(links: Links, name: str) -> Link:
    link = links.find(name)
    if link is None or link.kind != "bridge":
        what = f"there is no bridge {name}" if link is None else f"link {name} is no bridge"
        raise HostError(what, "'tvmm net list' and 'ip link show type bridge' show those there are")
    return link


def _attach(fd: int, request: TapRequest, flags: int) -> str:
    wanted = request.ifname or "vt-" + "".join(
        character if character.isascii() and (character.isalnum() or character in "_.-") else "-"
        for character in request.prepared.owner.lstrip("@")
    )
    names = [wanted] if request.ifname else [f"{wanted[:11]}{number or ''}" for number in range(NAME_TRIES)]
    for name in names:
        try:
            return tun.attach_interface(fd, name, flags | tun.IFF_TUN_EXCL).name
        except OSError as error:
            if error.errno == errno.EPERM:
                raise no_right(f"cannot make tap {name}") from error
            if error.errno != errno.EBUSY:
                raise HostError(f"cannot make tap {name}: {error.strerror}") from error
    raise HostError(f"there is a link {wanted} already", "choose another name, or leave it out")


def prepared_taps() -> list[tuple[Link, Prepared]]:
    """All of this network namespace."""
    with Links() as links:
        found = [(link, read_prepared(link.alias)) for link in links.all() if link.kind == "tun"]
    return [(link, prepared) for link, prepared in found if prepared is not None]


def delete_tap(name: str, *, force: bool = False) -> None:
    """Remove one that `create_tap` made. Raises `UserError` for any other, and while it is in use unless `force`."""
    from tvmm.net.ports import tap_users

    with Links() as links:
        link = links.find(name)
        if link is None:
            known = ", ".join(link.name for link, _ in prepared_taps())
            raise UserError(f"there is no tap {name}", f"there is {known}" if known else "'tvmm net create' makes one")
        if link.kind != "tun" or read_prepared(link.alias) is None:
            raise UserError(
                f"{name} was not made by 'tvmm net create'", f"if it is nobody's: 'sudo ip link del {name}'"
            )
        pids = tap_users().get(name, ())
        if (pids or link.carrier) and not force:
            by = f" by process {', '.join(map(str, pids))}" if pids else ""
            raise UserError(f"tap {name} is in use{by}", "stop the machine first, or add --force")
        links.delete(link)


def attach_prepared(network: str, bridge: str, *, isolated: bool) -> list[str]:
    """Put taps that were prepared for a network, and are in no bridge, into its; their names."""
    found = []
    with Links() as links:
        target = _find_bridge(links, bridge)
        for link in links.all():
            prepared = read_prepared(link.alias)
            if prepared and link.kind == "tun" and prepared.network == network and not link.master:
                links.change(link, f"put {link.name} into bridge {bridge}", master=target.number)
                if isolated:
                    links.isolate(link, True)
                found.append(link.name)
    return found
