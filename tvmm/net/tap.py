"""Taps: made for a machine or found by name or descriptor, set up as the options say, given back as they were.

All of it blocks, and is for a worker thread. A tap that was made goes when its last descriptor is closed, however the
process ends. What was changed on one that was there is undone when it is closed; after a kill by whoever sets a tap up
next (see `tvmm.net.journal`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tvmm.errors import ConfigError, HostError
from tvmm.net import tun
from tvmm.net.journal import Changes, is_alive, myself, read_alias, write_alias
from tvmm.net.links import Link, Links, no_right
from tvmm.virtio.features import Net as Feature
from tvmm.virtio.net import HEADER_LENGTH, NetBackend

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

__all__ = ["Tap", "TapOptions", "TapSettings", "open_tap", "restore_leftovers"]

NAME_LIMIT = 15
FLAGS = tun.IFF_TAP | tun.IFF_NO_PI | tun.IFF_VNET_HDR
SET_UP_PATIENCE_S = 10
SET_UP_LOOK_S = 0.01


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


class Tap:
    """An open tap: a descriptor for each pair of queues, each frame with a header of 12 bytes. Close it at the end.

    Only pair 0's queue has frames at first. Methods raise `HostError` if the tap is gone.
    """

    is_stream = False

    def __init__(self, name: str, fds: Sequence[int], backend: NetBackend, changes: Changes | None = None) -> None:
        """`changes` are to be undone."""
        self.name = name
        self.fds = tuple(fds)
        self.backend = backend
        self._changes = changes
        self._attached = [True] * len(self.fds)
        for pair in range(1, len(self.fds)):
            self.attach(pair, False)

    def __enter__(self) -> Tap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def set_offload(self, features: int) -> None:
        """What the reader of frames takes, as `GUEST_` bits of a network device's features."""
        bits = 0
        if features & Feature.GUEST_CSUM:
            bits = tun.TUN_F_CSUM
            for feature, bit in (
                (Feature.GUEST_TSO4, tun.TUN_F_TSO4),
                (Feature.GUEST_TSO6, tun.TUN_F_TSO6),
                (Feature.GUEST_ECN, tun.TUN_F_TSO_ECN),
            ):
                bits |= bit if features & feature else 0
            uso = Feature.GUEST_USO4 | Feature.GUEST_USO6
            bits |= tun.TUN_F_USO if features & uso == uso else 0
        with self._explained("set its offloads"):
            tun.set_offload(self.fds[0], bits)

    def attach(self, pair: int, on: bool) -> None:
        """Whether frames come to this pair's descriptor."""
        if self._attached[pair] != on:
            with self._explained("change its queues"):
                tun.set_queue(self.fds[pair], on)
            self._attached[pair] = on

    def set_carrier(self, up: bool) -> None:
        """Show the host whether the cable is in; kernels before 5.0 cannot."""
        with self._explained("change its carrier"):
            try:
                tun.set_carrier(self.fds[0], up)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTTY):
                    raise

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # EINVAL: of queues that are off; what is asked for is never wrong.
            gone = error.errno in (errno.EBADFD, errno.ENODEV, errno.EINVAL)
            why = "it has been removed" if gone else os.strerror(error.errno or 0)
            raise HostError(f"tap {self.name}: cannot {what}: {why}") from error

    def close(self) -> None:
        """Undo what was changed, and let go. Once more does nothing."""
        fds, self.fds = self.fds, ()
        changes, self._changes = self._changes, None
        try:
            if fds and changes is not None:
                with _setting_up(), Links() as links:
                    link = links.find(self.name)
                    if link is not None and read_alias(link.alias) == (myself(), changes):
                        links.undo(link, changes)
        finally:
            for fd in fds:
                os.close(fd)


def open_tap(options: TapOptions, machine_name: str) -> Tap:
    """The tap that `options` ask for, up and ready. Raises `UserError`, and has then changed nothing."""
    if options.fd is not None:
        return _inherited(options, options.fd)
    with _setting_up(), Links() as links, ExitStack() as undo:
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


@contextmanager
def _setting_up() -> Iterator[None]:
    """One machine after the other: nobody restores a link that somebody is about to use."""
    with ExitStack() as stack:
        fd = _open_tun()
        stack.callback(os.close, fd)
        deadline = time.monotonic() + SET_UP_PATIENCE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HostError(
                        f"another machine sets its network up, and has {tun.TUN_PATH} locked for {SET_UP_PATIENCE_S} s",
                        f"'lslocks' or 'fuser {tun.TUN_PATH}' tell which",
                    ) from None
                time.sleep(SET_UP_LOOK_S)
        yield


def _open_tun() -> int:
    try:
        return tun.open_tun()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise HostError(
                f"no right to open {tun.TUN_PATH}", f"run tvmm as root, or 'sudo chmod 666 {tun.TUN_PATH}'"
            ) from error
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise HostError(f"the host has no {tun.TUN_PATH}, which taps need", "'sudo modprobe tun'") from error
        raise HostError(f"cannot open {tun.TUN_PATH}: {error.strerror}") from error


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
    fds.append(_open_tun())
    if options.ifname:
        name, made = options.ifname, _make(fds[0], options.ifname, flags)
        if not made:
            flags = _join(fds[0], name, flags, links)
    else:
        name, made = _make_up(fds[0], machine_name, flags), True
    for _ in range(1, options.queues):
        fds.append(_open_tun())
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
        raise HostError(f"tap {name} is in use by the machine in process {found[0].pid}", "choose another ifname")
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
        return HostError(f"tap {name} is in use by another program", f"'ip -d link show {name}' shows it")
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
