"""What ``tvmm net list`` and ``tvmm net show`` print."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from tvmm.cli.output import format_age, message, print_json, print_table, printable, say
from tvmm.errors import HostError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.net.dnsmasq import Lease
    from tvmm.net.ports import BridgePort
    from tvmm.net.steps import Journal
    from tvmm.net.store import Store

__all__ = ["View", "print_list", "print_one", "say_network"]


class View(NamedTuple):
    """A network as it is now. `journal` None: it is known by its bridge alone. `dhcp_pid` 0: none runs."""

    name: str
    bridge: str
    journal: Journal | None
    state: str
    dhcp_pid: int
    ports: list[BridgePort]
    leases: list[Lease]

    def fact(self, name: str) -> str:
        """One of the journal's."""
        return self.journal.fact(name) if self.journal else ""


def say_network(journal: Journal) -> None:
    """A few lines about a network that is up."""
    rows = [
        ("bridge", journal.fact("bridge")),
        ("IPv4", f"{journal.fact('subnet')}, the host is {journal.fact('address')}{_nat(journal.fact('nat'))}"),
    ]
    if journal.fact("subnet6"):
        rows.append(
            ("IPv6", f"{journal.fact('subnet6')}, the host is {journal.fact('address6')}{_nat(journal.fact('nat6'))}")
        )
    if journal.fact("dhcp"):
        rows.append(("DHCP", f"yes, and DNS for {journal.fact('domain')}"))
    else:
        rows.append(("DHCP", f"no: give guests their addresses, and {journal.fact('address')} as their gateway"))
    if journal.spec.isolated:
        rows.append(("isolated", "guests reach neither one another nor private networks"))
    rows += [(name.removeprefix("host "), value) for name, value in journal.facts if name.startswith("host ")]
    rows += [("forward", str(forward)) for forward in journal.spec.forwards]
    rows += [("allowed", str(port)) for port in journal.spec.allows]
    for name, value in rows:
        say(printable(f"{name:10} {value}"))


def _nat(on: str) -> str:
    return ", NAT" if on else ", no NAT"


def views(store: Store) -> list[View]:
    """The networks of this user, and those of others as far as their bridges tell."""
    from tvmm.net.links import Links

    found = []
    for name in store.names():
        try:
            journal = store.read(name)
        except UserError as error:
            message(str(error))
            continue
        if journal is not None:
            found.append(_view(name, journal))
    with Links() as links:
        bridges = [link for link in links.all() if link.kind == "bridge" and link.alias.startswith("tvmm-net:")]
    known = {view.bridge for view in found}
    for link in bridges:
        name = link.alias.removeprefix("tvmm-net:").split(" ")[0]
        if link.name not in known:
            found.append(View(name, link.name, None, "up (of another user)", 0, _ports(link.name), []))
    return sorted(found)


def _view(name: str, journal: Journal) -> View:
    from tvmm.net.dnsmasq import CONF, LEASES, read_leases
    from tvmm.net.do import dnsmasq_pids
    from tvmm.net.network import is_here

    here = is_here(journal)
    directory = journal.fact("directory")
    pids = dnsmasq_pids(f"{directory}/{CONF}") if directory else []
    leases = []
    try:
        with open(f"{directory}/{LEASES}", encoding="utf-8", errors="replace") as file:
            leases = read_leases(file.read(1 << 20))
    except OSError:
        pass  # There are none yet, or no server.
    bridge = journal.fact("bridge")
    ports = _ports(bridge) if here else []
    return View(name, bridge, journal, _state(journal, here), pids[0] if pids else 0, ports, leases)


def _state(journal: Journal, here: bool) -> str:
    from tvmm.net.network import missing

    if not here:
        return "elsewhere: of another network namespace or boot"
    if not journal.complete:
        return "half made: 'tvmm net down' undoes it"
    try:
        gone = missing(journal)
    except HostError as error:
        return f"unknown: {error.message}"
    return f"damaged: {', '.join(gone)}" if gone else "up"


def _ports(bridge: str) -> list[BridgePort]:
    from tvmm.net.ports import ports_of

    return ports_of(bridge)


def print_list(store: Store, names: Mapping[int, str], *, as_json: bool) -> None:
    """All networks, and the taps that were made for users."""
    from tvmm.net.ports import tap_users
    from tvmm.net.prepared import prepared_taps

    found, taps, users = views(store), prepared_taps(), tap_users()
    if as_json:
        shown = [
            {
                "name": link.name, "owner": prepared.owner, "network": prepared.network, "bridge": link.master,
                "mtu": link.mtu, "pids": list(users.get(link.name, ())),
                "machines": _machines(users.get(link.name, ()), names), "in_use": link.carrier,
            }
            for link, prepared in taps
        ]  # fmt: skip
        print_json({"networks": [_as_json(view, names) for view in found], "taps": shown})
        return
    if not found and not taps:
        message("no network is up; 'tvmm net up NAME' makes one")
    if found:
        print_table(("NAME", "BRIDGE", "IPV4", "IPV6", "NAT", "DHCP", "USED BY", "LEASES", "STATE"), [
            (
                view.name, view.bridge, view.fact("subnet") or "-", view.fact("subnet6") or "-",
                _word(view, "nat"), str(view.dhcp_pid or "-"), _users(view.ports, names) or "-",
                str(len(view.leases)), view.state,
            )
            for view in found
        ], right="LEASES")  # fmt: skip
    if found and taps:
        say("")
    if taps:
        print_table(("TAP", "OWNER", "NETWORK", "BRIDGE", "MTU", "USED BY"), [
            (
                link.name, prepared.owner, prepared.network or "-", link.master or "-", str(link.mtu),
                _in_words(users.get(link.name, ()), names) or ("somebody" if link.carrier else "-"),
            )
            for link, prepared in taps
        ], right="MTU")  # fmt: skip


def _word(view: View, fact: str) -> str:
    return "-" if view.journal is None else "yes" if view.fact(fact) else "no"


def _users(ports: list[BridgePort], names: Mapping[int, str]) -> str:
    return ", ".join(_in_words(port.pids, names) or port.name for port in ports if port.busy)


def _in_words(pids: tuple[int, ...], names: Mapping[int, str]) -> str:
    return ", ".join(names.get(pid, f"process {pid}") for pid in pids)


def _machines(pids: tuple[int, ...], names: Mapping[int, str]) -> list[str]:
    return [names[pid] for pid in pids if pid in names]


def _as_json(view: View, names: Mapping[int, str]) -> dict[str, Any]:
    journal = view.journal
    return {
        "name": view.name,
        "bridge": view.bridge,
        "state": view.state,
        "subnet": view.fact("subnet") or None,
        "address": view.fact("address") or None,
        "subnet6": view.fact("subnet6") or None,
        "address6": view.fact("address6") or None,
        "nat": bool(view.fact("nat")),
        "nat6": bool(view.fact("nat6")),
        "mtu": int(view.fact("mtu") or 0),
        "domain": view.fact("domain") or None,
        "dhcp_pid": view.dhcp_pid or None,
        "isolated": journal.spec.isolated if journal else None,
        "forwards": [str(forward) for forward in journal.spec.forwards] if journal else [],
        "hosts": {
            name.removeprefix("host "): value
            for name, value in (journal.facts if journal else ())
            if name.startswith("host ")
        },
        "ports": [
            {
                "link": port.name, "kind": port.kind, "owner": port.user or None, "pids": list(port.pids),
                "machines": _machines(port.pids, names), "in_use": port.busy,
            }
            for port in view.ports
        ],
        "leases": [lease._asdict() for lease in view.leases],
    }  # fmt: skip


def print_one(name: str, store: Store, names: Mapping[int, str], *, as_json: bool) -> None:
    """One network. Raises `UserError` if there is none of that name."""
    found = views(store)
    view = next((view for view in found if view.name == name), None)
    if view is None:
        known = ", ".join(view.name for view in found)
        raise UserError(
            f"network {name} is not up", f"there is {known}" if known else f"'tvmm net up {name}' makes it"
        )
    if as_json:
        print_json(_as_json(view, names))
        return
    say(printable(f"{'state':10} {view.state}"))
    if view.journal is not None:
        say_network(view.journal)
    if view.dhcp_pid:
        say(f"{'dnsmasq':10} process {view.dhcp_pid}")
    for port in view.ports:
        what = port.describe(names) if port.busy else f"{port.name}, for {port.user}, which nobody uses"
        say(printable(f"{'port':10} {what}"))
    if view.leases:
        say("")
        now = time.time()
        print_table(
            ("ADDRESS", "MAC", "GUEST", "EXPIRES IN"),
            [
                (
                    lease.address,
                    lease.mac,
                    lease.name or "-",
                    format_age(lease.expires - now) if lease.expires else "never",
                )
                for lease in view.leases
            ],
        )
