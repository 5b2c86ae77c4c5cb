"""Who is on a bridge, and who has a tap open."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from tvmm.net.links import Links
from tvmm.net.prepared import PREPARED, read_prepared
from tvmm.net.tun import TUN_PATH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.net.links import Link

__all__ = ["BridgePort", "ports_of", "tap_users"]

_IFF = re.compile(rb"^iff:\t(\S+)$", re.MULTILINE)
FDINFO_LIMIT = 4096


class BridgePort(NamedTuple):
    """A link in a bridge. `user` is who a prepared tap is for; `pids` have it open, as far as can be seen."""

    name: str
    kind: str
    user: str
    pids: tuple[int, ...]
    carrier: bool

    @property
    def busy(self) -> bool:
        """Somebody uses it: a prepared tap is nobody's while no process has it open."""
        return bool(self.pids) or self.carrier or self.kind != "tun"

    def describe(self, names: Mapping[int, str]) -> str:
        """In words; `names` are the machines of processes."""
        who = [f"machine {names[pid]}" if pid in names else f"process {pid}" for pid in self.pids]
        return f"{' and '.join(who)} ({self.name})" if who else f"link {self.name}"


def ports_of(bridge: str) -> list[BridgePort]:
    """The links in it."""
    with Links() as links:
        found = [link for link in links.all() if link.master == bridge]
    users = tap_users() if any(link.kind == "tun" for link in found) else {}
    return [as_port(link, users) for link in found]


def as_port(link: Link, users: Mapping[str, tuple[int, ...]]) -> BridgePort:
    """A link as a port; `users` of taps by their name."""
    prepared = read_prepared(link.alias) if link.alias.startswith(PREPARED) else None
    return BridgePort(link.name, link.kind, prepared.owner if prepared else "", users.get(link.name, ()), link.carrier)


def tap_users() -> dict[str, tuple[int, ...]]:
    """Processes of this network namespace by the taps that they have open; of others only root sees that."""
    here = os.stat("/proc/thread-self/ns/net")
    found: dict[str, set[int]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        # Any of this may go while it is looked at, or be none of our business.
        numbers = []
        with suppress(OSError):
            if os.path.samestat(here, os.stat(f"/proc/{pid}/ns/net")):
                numbers = os.listdir(f"/proc/{pid}/fd")
        for number in numbers:
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{number}") == TUN_PATH:
                    with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
                        for name in _IFF.findall(file.read(FDINFO_LIMIT)):
                            found.setdefault(os.fsdecode(name), set()).add(int(pid))
    return {name: tuple(sorted(pids)) for name, pids in found.items()}
