"""Links of the host, through pyroute2. Its import takes longer than all else here, so it is done when one is opened."""

from __future__ import annotations

import errno
import os
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.errors import HostError
from tvmm.net.journal import Changes

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Link", "Links", "no_right"]

IFF_UP, IFF_LOWER_UP = 0x1, 0x10000
IFA_F_NODAD = 0x02
RTPROT_RA = 9
RTN_UNICAST = 1


class Link(NamedTuple):
    """One as it is. `number` is its index, `kind` the kernel's word for its type ('' for hardware), `master` the name
    of its bridge or ''. `carrier`: somebody is at the other end. `users`: how many descriptors have a queue of a tap.
    """

    number: int
    name: str
    kind: str
    up: bool
    mtu: int
    master: str
    isolated: bool
    alias: str
    mac: str = ""
    carrier: bool = False
    users: int = 0


def no_right(what: str, by_hand: str = "") -> HostError:
    """The error for EPERM, with the ways out. `by_hand` is a command that does it once and for all."""
    return HostError(
        f"{what}: this needs the right CAP_NET_ADMIN",
        f"'{by_hand}' once, or run tvmm as root"
        if by_hand
        else "run tvmm as root, or have a tap prepared: 'sudo tvmm net create --user $USER' tells its name for"
        " --net tap,ifname=NAME; --net user needs no right",
    )


class Links:
    """A connection to the kernel. Methods raise `HostError` that begins with `what` they were doing."""

    def __enter__(self) -> Links:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        self._error: type[Exception] = NetlinkError
        try:
            self._route: Any = IPRoute()
        except OSError as error:
            raise HostError(f"no netlink socket: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._route.close()

    def all(self) -> list[Link]:
        """Every link of this network namespace."""
        messages = list(self._do("list the links", self._route.get_links))
        names = {int(message["index"]): str(message.get("ifname")) for message in messages}
        return [_link(message, names) for message in messages]

    def find(self, name: str) -> Link | None:
        """By its name."""
        return next((link for link in self.all() if link.name == name), None)

    def segments_udp(self, name: str) -> bool:
        """Whether a tap can be had to leave the segments of UDP to who reads from it (TUN_F_USO), without having it."""
        from pyroute2.ethtool.ioctl import IoctlEthtool, NotSupportedError

        try:
            asked = IoctlEthtool(name)
            try:
                return bool(asked.get_features().is_available("tx-udp-segmentation"))
            finally:
                asked.close()
        except (OSError, NotSupportedError, KeyError):
            return False

    def change(self, link: Link, what: str, by_hand: str = "", **attributes: Any) -> None:
        """Change attributes: `state`, `mtu`, `master` (an index, 0 for none), `ifalias`. `by_hand`: see `no_right`."""
        self._do(what, self._route.link, "set", by_hand=by_hand, index=link.number, **attributes)

    def isolate(self, link: Link, on: bool) -> None:
        """As a port of a bridge: whether it hears other ports that are isolated too."""
        self._do(f"isolate {link.name} in its bridge", self._route.brport, "set", index=link.number, isolated=int(on))

    def address(self, link: Link, command: str, address: str, *, at_once: bool = False) -> None:
        """``add`` or ``del`` the host's own address ADDR/PREFIX. `at_once`: without asking whether others have it."""
        host, _, prefix = address.partition("/")
        more: dict[str, Any] = {"flags": IFA_F_NODAD} if at_once else {}
        self._do(
            f"{command} address {address} of {link.name}",
            self._route.addr, command, index=link.number, address=host, prefixlen=int(prefix), **more,
        )  # fmt: skip

    def make_bridge(self, name: str, mac: str) -> Link:
        """A new one, that has this hardware address from the first."""
        self._do(f"make bridge {name}", self._route.link, "add", ifname=name, kind="bridge", address=mac)
        link = self.find(name)
        if link is None:
            raise HostError(f"bridge {name} was removed while it was set up")
        return link

    def routes(self) -> list[tuple[str, str, bool]]:
        """To where this host sends what: network, link ('' for none), and whether a router has told it."""
        names = {link.number: link.name for link in self.all()}
        found = []
        for family, everything in ((AF_INET, "0.0.0.0"), (AF_INET6, "::")):
            for message in self._do("list the routes", self._route.get_routes, family=family):
                if message["type"] == RTN_UNICAST or message["dst_len"]:
                    network = f"{message.get('dst') or everything}/{message['dst_len']}"
                    link = names.get(int(message.get("oif") or 0), "")
                    found.append((network, link, message["proto"] == RTPROT_RA))
        return found

    def addresses(self, link: Link) -> set[str]:
        """The host's own on this link, as ADDR/PREFIX."""
        messages = self._do(f"list the addresses of {link.name}", self._route.get_addr, index=link.number)
        return {f"{message.get('address')}/{message['prefixlen']}" for message in messages}

    def delete(self, link: Link) -> None:
        """Remove it."""
        self._do(f"remove {link.name}", self._route.link, "del", index=link.number)

    def undo(self, link: Link, changes: Changes) -> None:
        """Make the link as it was, or as much of that as can be: what others did meanwhile is no error."""
        if changes.made:
            if link.kind == "tun":
                self._try(self.delete, link)
            return
        for address in reversed(changes.ip):
            self._try(self.address, link, "del", address)
        if changes.shared:
            self._try(self.isolate, link, False)
        if changes.master is not None:
            bridge = self.find(changes.master) if changes.master else None
            self._try(self.change, link, "undo", master=bridge.number if bridge else 0)
        if changes.mtu is not None:
            self._try(self.change, link, "undo", mtu=changes.mtu)
        if changes.down:
            self._try(self.change, link, "undo", state="down")
        self._try(self.change, link, "undo", ifalias=changes.alias)

    @staticmethod
    def _try(action: Any, *arguments: Any, **attributes: Any) -> None:
        try:
            action(*arguments, **attributes)
        except HostError:
            return

    def _do(self, what: str, call: Any, *arguments: Any, by_hand: str = "", **attributes: Any) -> Any:
        try:
            return call(*arguments, **attributes)
        except self._error as error:
            code = int(getattr(error, "code", 0))
            if code in (errno.EPERM, errno.EACCES):
                raise no_right(f"cannot {what}", by_hand) from error
            raise HostError(f"cannot {what}: {os.strerror(code)}") from error


def _link(message: Any, names: dict[int, str]) -> Link:
    kind = message.get(("linkinfo", "kind"))
    slave = message.get(("linkinfo", "slave_data"))
    isolated = bool(slave.get("isolated")) if slave and hasattr(slave, "get") else False
    users = 0
    if kind == "tun":
        counts = ("tun_num_queues", "tun_num_disabled_queues")
        users = sum(int(message.get(("linkinfo", "data", count)) or 0) for count in counts)
    return Link(
        int(message["index"]),
        str(message.get("ifname")),
        str(kind or ""),
        bool(message["flags"] & IFF_UP),
        int(message.get("mtu") or 0),
        names.get(int(message.get("master") or 0), ""),
        isolated,
        str(message.get("ifalias") or ""),
        str(message.get("address") or ""),
        bool(message["flags"] & IFF_LOWER_UP),
        users,
    )
