"""Links of the host: what there is and simple changes by `tvmm.net.rtnetlink`, all else through pyroute2.

Its import takes longer than all else here, so it is done when the first such change is asked for.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tvmm.errors import HostError
from tvmm.net.journal import Changes
from tvmm.net.rtnetlink import Link, list_links, set_link

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = ["Links", "no_right"]


def no_right(what: str) -> HostError:
    """The error for EPERM, with the ways out."""
    return HostError(
        f"{what}: this needs the right CAP_NET_ADMIN",
        "run tvmm as root, or 'sudo setcap cap_net_admin+ep' its Python interpreter, or prepare a tap once: 'sudo ip"
        " tuntap add dev NAME mode tap user $USER multi_queue && sudo ip link set NAME up', then --net tap,ifname=NAME",
    )


class Links:
    """The kernel's links. Methods raise `HostError` that says what they were doing."""

    def __init__(self) -> None:
        self._pyroute: Any = None

    def __enter__(self) -> Links:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pyroute is not None:
            self._pyroute.close()

    def all(self) -> list[Link]:
        """Every link of this network namespace."""
        with _explained("list the links"):
            return list_links()

    def find(self, name: str) -> Link | None:
        """By its name."""
        return next((link for link in self.all() if link.name == name), None)

    def change(
        self, link: Link, what: str, *, up: bool | None = None, mtu: int | None = None, alias: str | None = None
    ) -> None:
        """Change what is not None; `what` is for the error."""
        with _explained(what):
            set_link(link.number, up=up, mtu=mtu, alias=alias)

    def enslave(self, link: Link, bridge: Link | None) -> None:
        """Make it a port of a bridge, or of none."""
        what = f"put {link.name} into bridge {bridge.name}" if bridge else f"take {link.name} out of its bridge"
        self._do(what, "link", "set", index=link.number, master=bridge.number if bridge else 0)

    def isolate(self, link: Link, on: bool) -> None:
        """As a port of a bridge: whether it hears other ports that are isolated too."""
        self._do(f"isolate {link.name} in its bridge", "brport", "set", index=link.number, isolated=int(on))

    def addresses(self, link: Link) -> set[str]:
        """The host's own on this link, as ADDR/PREFIX."""
        messages = self._do(f"list the addresses of {link.name}", "get_addr", index=link.number)
        return {f"{message.get('address')}/{message['prefixlen']}" for message in messages}

    def address(self, link: Link, command: str, address: str) -> None:
        """``add`` or ``del`` the host's own address ADDR/PREFIX."""
        host, _, prefix = address.partition("/")
        what = f"{command} address {address} of {link.name}"
        self._do(what, "addr", command, index=link.number, address=host, prefixlen=int(prefix))

    def delete(self, link: Link) -> None:
        """Remove it."""
        self._do(f"remove {link.name}", "link", "del", index=link.number)

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
            self._try(self.enslave, link, self.find(changes.master) if changes.master else None)
        if changes.mtu is not None:
            self._try(self.change, link, "undo", mtu=changes.mtu)
        if changes.down:
            self._try(self.change, link, "undo", up=False)
        self._try(self.change, link, "undo", alias=changes.alias)

    @staticmethod
    def _try(action: Any, *arguments: Any, **attributes: Any) -> None:
        try:
            action(*arguments, **attributes)
        except HostError:
            return

    def _do(self, what: str, call: str, *arguments: Any, **attributes: Any) -> list[Any]:
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        with _explained(what):
            if self._pyroute is None:
                self._pyroute = IPRoute()
            try:
                return list(getattr(self._pyroute, call)(*arguments, **attributes) or ())
            except NetlinkError as error:
                raise OSError(error.code, os.strerror(error.code)) from error


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise no_right(f"cannot {what}") from error
        raise HostError(f"cannot {what}: {error.strerror}") from error
