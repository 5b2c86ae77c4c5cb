"""Taps: made for a machine or found by name or descriptor, set up as the options say, given back as they were.

All of it blocks, and is for a worker thread. A tap that was made goes when its last descriptor is closed, however the
process ends. What was changed on one that was there is undone when it is closed; after a kill by whoever sets a tap up
next (see `tvmm.net.journal`).
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import ExitStack
from typing import NamedTuple, Protocol

from tvmm.errors import ConfigError, HostError
from tvmm.net import tun
from tvmm.net.journal import Changes, is_alive, myself, read_alias, write_alias
from tvmm.net.links import Link, Links, no_right
from tvmm.net.opened_tap import Tap, open_tun, setting_up
from tvmm.virtio.net import HEADER_LENGTH, NetBackend

__all__ = ["Tap", "TapBusy", "TapOptions", "TapSettings", "open_tap", "restore_leftovers", "what_differs"]

NAME_LIMIT = 15
FLAGS = tun.IFF_TAP | tun.IFF_NO_PI | tun.IFF_VNET_HDR


class TapBusy(HostError):
    """Somebody else has the tap."""


class TapOptions(Protocol):
    """What `open_tap` looks at of a network device's configuration; `NetConfig` has it all.

    `ifname` '' has a name made up, `fd` is an open tap, `br` the bridge it is to be in, `mtu` 0 leaves it alone.
    `offloads` are the most that may be used, out of csum, tso4, tso6, ecn and uso. With `persist` the tap stays, and
    stays as it was set up.
    """

    @property
    def ifname(self) -> str: ...
    @property
    def fd(self) -> int | None: ...
    @property
    def br(self) -> str: ...
    @property
    def mtu(self) -> int: ...
    @property
    def queues(self) -> int: ...
    @property
    def offloads(self) -> frozenset[str]: ...
    @property
    def isolated(self) -> bool: ...
    @property
    def persist(self) -> bool: ...
    @property
    def ip(self) -> tuple[str, ...]: ...


class TapSettings(NamedTuple):
    """Plain `TapOptions`."""

    ifname: str = ""
    fd: int | None = None
    br: str = ""
    mtu: int = 0
    queues: int = 1
    offloads: frozenset[str] = frozenset({"csum", "tso4", "tso6", "ecn", "uso"})
    isolated: bool = False
    persist: bool = False
    ip: tuple[str, ...] = ()


def open_tap(options: TapOptions, machine_name: str) -> Tap:
    """The tap that `options` ask for, up and ready. Raises `UserError`, and has then changed nothing."""
    if options.fd is not None:
        return _inherited(options, options.fd)
    with Links() as links, setting_up(), ExitStack() as undo:
        restore_leftovers(links)
        bridge = _bridge(links, options.br) if options.br else None
        fds: list[int] = []
        undo.callback(_close_all, fds)
        name, made = _open_queues(options, machine_name, links, fds)
        link = links.find(name)
        if link is None:
            raise HostError(f"tap {name} was removed while it was set up")
        for fd in fds:
            tun.set_header_length(fd, HEADER_LENGTH)
        changes = Changes(made=True) if made else _planned(links, link, options)
        changed = changes != Changes(alias=link.alias)
        if changed:
            if not made:
                undo.callback(links.undo, link, changes)
            if not options.persist:
                words, by_hand = ("", "") if made else _in_words(link, changes, options)
                links.change(link, f"change tap {name}{words}", by_hand, ifalias=write_alias(myself(), changes))
            _apply(links, link, bridge, options)
        if options.persist:
            tun.set_persistent(fds[0], True)
        to_undo = changes if changed and not made and not options.persist else None
        tap = Tap(name, fds, _probe(fds[0], options.offloads), to_undo)
        undo.pop_all()
    return tap


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def restore_leftovers(links: Links) -> list[str]:
    """Undo what machines that were killed left on links, as far as the rights go; names of the links."""
    restored = []
    for link in links.all():
        found = read_alias(link.alias)
        if found and not is_alive(found[0]):
            links.undo(link, found[1])
            restored.append(link.name)
    return restored


def _bridge(links: Links, name: str) -> Link:
    bridges = [link for link in links.all() if link.kind == "bridge"]
    for bridge in bridges:
        if bridge.name == name:
            return bridge
    known = ", ".join(sorted(bridge.name for bridge in bridges))
    raise HostError(
        f"there is no bridge {name}" + (f", but {known}" if known else ", and no other either"),
        f"'sudo ip link add {name} type bridge && sudo ip link set {name} up'",
    )


def _open_queues(options: TapOptions, machine_name: str, links: Links, fds: list[int]) -> tuple[str, bool]:
    """A descriptor for each pair of queues, into `fds`. The tap's name, and whether it was made."""
    flags = FLAGS | (tun.IFF_MULTI_QUEUE if options.queues > 1 else 0)
    fds.append(open_tun())
    if options.ifname:
        name, made = options.ifname, _make(fds[0], options.ifname, flags)
        if not made:
            flags = _join(fds[0], name, flags, links)
    else:
        name, made = _make_up(fds[0], machine_name, flags), True
    for _ in range(1, options.queues):
        fds.append(open_tun())
        try:
            tun.attach_interface(fds[-1], name, flags)
        except OSError as error:
            raise HostError(f"tap {name} has no {options.queues} queues for us: {error.strerror}") from error
    return name, made


def _make(fd: int, name: str, flags: int) -> bool:
    """A tap of this name; False if there is such a link."""
    try:
        tun.attach_interface(fd, name, flags | tun.IFF_TUN_EXCL)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        if error.errno == errno.EPERM:
            raise no_right(f"cannot make tap {name}") from error
        raise HostError(f"cannot make tap {name}: {error.strerror}") from error
    return True


def _make_up(fd: int, machine_name: str, flags: int) -> str:
    """A tap with the machine's name in its own, or one of a free number."""
    stem = re.sub(r"[^A-Za-z0-9_.-]", "-", machine_name)
    name = f"vt-{stem}"[:NAME_LIMIT]
    if _make(fd, name, flags):
        return name
    try:
        return tun.attach_interface(fd, "tvmm%d", flags).name
    except OSError as error:
        raise HostError(f"cannot make a tap: {error.strerror}") from error


def _join(fd: int, name: str, flags: int, links: Links) -> int:
    """A queue of a tap there is; the flags that it wants."""
    link = links.find(name)
    found = read_alias(link.alias) if link else None
    if found and is_alive(found[0]):
        raise TapBusy(f"tap {name} is in use by the machine in process {found[0].pid}", "choose another ifname")
    last: OSError | None = None
    # A tap with many queues can be used with one of them, but has to be asked for as what it is.
    for tried in dict.fromkeys((flags, flags | tun.IFF_MULTI_QUEUE)):
        try:
            tun.attach_interface(fd, name, tried)
        except OSError as error:
            last = error
            if error.errno != errno.EINVAL:
                break
        else:
            return tried
    assert last is not None
    raise _refusal(name, link, last) from last


def _refusal(name: str, link: Link | None, error: OSError) -> HostError:
    again = f"'sudo ip tuntap del dev {name} mode tap && sudo ip tuntap add dev {name} mode tap user $USER multi_queue'"
    if error.errno == errno.EBUSY:
        return TapBusy(f"tap {name} is in use by another program", f"'ip -d link show {name}' shows it")
    if error.errno in (errno.EPERM, errno.EACCES):
        return HostError(f"tap {name} belongs to another user", f"run tvmm as root, or make it yours: {again}")
    if error.errno == errno.EINVAL and link and link.kind != "tun":
        what = f" but a {link.kind}" if link.kind else ""
        return HostError(f"link {name} is no tap{what}", "choose another ifname")
    if error.errno == errno.EINVAL:
        return HostError(f"tap {name} has one queue, or is a tun", f"leave queues out, or make it anew: {again}")
    return HostError(f"cannot use tap {name}: {error.strerror}")


def _planned(links: Links, link: Link, options: TapOptions) -> Changes:
    """What `_apply` will change on a link that was there."""
    present = links.addresses(link) if options.ip else set()
    return Changes(
        down=not link.up,
        mtu=link.mtu if options.mtu not in (0, link.mtu) else None,
        master=link.master if options.br not in ("", link.master) else None,
        shared=options.isolated and not link.isolated,
        ip=tuple(address for address in options.ip if address not in present),
        alias=link.alias,
    )


def what_differs(links: Links, link: Link, options: TapOptions) -> tuple[str, str]:
    """What a tap that is there is to be, and is not, but for being up; and the commands that make it so. '' if nothing.

    Raises `HostError`.
    """
    return _in_words(link, _planned(links, link, options)._replace(down=False), options)


def _in_words(link: Link, changes: Changes, options: TapOptions) -> tuple[str, str]:
    """What `_apply` will do, for a message, and the commands that do it beforehand."""
    steps = []
    if changes.mtu is not None:
        steps.append((f"its MTU is to be {options.mtu}", f"ip link set {link.name} mtu {options.mtu}"))
    if changes.master is not None:
        steps.append((f"it is to be in bridge {options.br}", f"ip link set {link.name} master {options.br}"))
    if changes.shared:
        steps.append(("it is to be isolated", f"bridge link set dev {link.name} isolated on"))
    if changes.down:
        steps.append(("it is down", f"ip link set {link.name} up"))
    steps += [(f"it is to have {at}", f"ip address add {at} dev {link.name}") for at in changes.ip]
    words = ", ".join(words for words, _ in steps)
    return f" ({words})" if words else "", " && ".join(f"sudo {command}" for _, command in steps)


def _apply(links: Links, link: Link, bridge: Link | None, options: TapOptions) -> None:
    if options.mtu not in (0, link.mtu):
        links.change(link, f"set the MTU of {link.name} to {options.mtu}", mtu=options.mtu)
    if bridge is not None and link.master != bridge.name:
        links.change(link, f"put {link.name} into bridge {bridge.name}", master=bridge.number)
    if options.isolated and not link.isolated:
        if bridge is None and not link.master:
            raise ConfigError(f"net isolated=on: tap {link.name} is in no bridge", "add br=BRIDGE")
        links.isolate(link, True)
    if not link.up:
        links.change(link, f"bring {link.name} up", state="up")
    present = links.addresses(link) if options.ip else set()
    for address in options.ip:
        if address not in present:
            links.address(link, "add", address)


def _inherited(options: TapOptions, fd: int) -> Tap:
    """A tap that somebody has opened for us; its owner sets it up."""
    try:
        interface = tun.describe(fd)
    except OSError as error:
        if error.errno == errno.EBADF:
            raise ConfigError(f"net fd={fd} is not open", "the program that starts tvmm has to pass it on") from error
        raise ConfigError(f"net fd={fd} is no tap", "it has to come from /dev/net/tun, with TUNSETIFF done") from error
    for flag, what in ((tun.IFF_TAP, "IFF_TAP"), (tun.IFF_NO_PI, "IFF_NO_PI"), (tun.IFF_VNET_HDR, "IFF_VNET_HDR")):
        if not interface.flags & flag:
            raise ConfigError(f"net fd={fd} is {interface.name}, opened without {what}", "open it with it")
    os.set_blocking(fd, False)
    os.set_inheritable(fd, False)
    tun.set_header_length(fd, HEADER_LENGTH)
    return Tap(interface.name, (fd,), _probe(fd, options.offloads))


def _probe(fd: int, allowed: frozenset[str]) -> NetBackend:
    """What of the allowed offloads this host's taps can do. All are off afterwards."""

    def can(bits: int) -> bool:
        try:
            tun.set_offload(fd, bits)
        except OSError:
            return False
        return True

    csum = "csum" in allowed and can(tun.TUN_F_CSUM)
    tso4, tso6, uso = (
        csum and word in allowed and can(tun.TUN_F_CSUM | bit)
        for word, bit in (("tso4", tun.TUN_F_TSO4), ("tso6", tun.TUN_F_TSO6), ("uso", tun.TUN_F_USO))
    )
    segments = (tun.TUN_F_TSO4 if tso4 else 0) | (tun.TUN_F_TSO6 if tso6 else 0)
    ecn = bool(segments) and "ecn" in allowed and can(tun.TUN_F_CSUM | segments | tun.TUN_F_TSO_ECN)
    can(0)
    return NetBackend(csum, tso4, tso6, ecn, uso)
