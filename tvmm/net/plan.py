"""From what a network is to be like, and what there is on the host, to the steps that make it. Pure.

The order is such that nothing is ever open: rules before there is a bridge, a bridge before packets go through it,
and a server at last. `as_shell` has each step as the commands that a person would type.
"""

from __future__ import annotations

import shlex
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, NamedTuple

from tvmm.config.net import mac_for
from tvmm.errors import ConfigError, HostError
from tvmm.net.dnsmasq import CONF, LEASES, PID, Served, configuration, pool
from tvmm.net.firewall import Rules, is_own_prefix, ruleset, table_name
from tvmm.net.spec import SHORTEST_PREFIX, NetworkSpec, bridge_name
from tvmm.net.steps import (
    LoadTable,
    MakeBridge,
    MakeFiles,
    RemoveBridge,
    RemoveFiles,
    RemoveTable,
    RestoreSettings,
    StartDnsmasq,
    Step,
    StopDnsmasq,
    WriteSettings,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["INSTALL_DNSMASQ", "HostFacts", "Plan", "Route", "as_shell", "bridge_alias", "choose_subnet", "make_plan"]

INSTALL_DNSMASQ = "'sudo apt-get install dnsmasq-base' (or your system's package of that name)"

_POOLS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
TRIES = 256
"""Subnets that are looked at in each of the private networks: a host whose routes have all of them is full."""
ORDINARY_MTU = 1500

IPV4_FORWARD = "/proc/sys/net/ipv4/ip_forward"
IPV6_FORWARD = "/proc/sys/net/ipv6/conf/all/forwarding"
ROUTER_FE80 = "fe80::1/64"
"""The bridge's only address on its link: guests know the router by it, and it is there before they are."""


class Route(NamedTuple):
    """To a network, ADDR/PREFIX, by a link. `advertised`: by a router on it (RFC 4861)."""

    network: str
    link: str
    advertised: bool = False


class HostFacts(NamedTuple):
    """What `make_plan` needs to know.

    `links` are names with their MTU, `settings` files of /proc/sys with what is in them: the switches for
    forwarding and what the kernel changes with them. `dnsmasq` '' is not installed. `shared` are the settings that
    other networks here have changed, by their key. `seed` is the host's own, `mark` new each time.
    """

    links: Mapping[str, int]
    routes: Sequence[Route]
    settings: Mapping[str, str]
    ipv6: bool
    dnsmasq: str
    user: str
    group: str
    shared: Mapping[str, RestoreSettings]
    seed: bytes
    mark: str
    directory: str


class Plan(NamedTuple):
    """`facts` are for people and for the journal; `notes` are for the user now."""

    spec: NetworkSpec
    bridge: str
    steps: tuple[Step, ...]
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def make_plan(asked: NetworkSpec, host: HostFacts) -> Plan:
    """The steps. Raises `UserError` if it cannot be had on this host."""
    spec = asked.check()
    bridge = bridge_name(spec.name)
    if bridge in host.links:
        raise HostError(
            f"there is a link {bridge}, and it is not of a network of tvmm's here",
            f"choose another name, or 'sudo ip link del {bridge}'",
        )
    notes: list[str] = []
    if spec.uplink and spec.uplink not in host.links:
        raise HostError(f"there is no link {spec.uplink} for an uplink", f"there are {', '.join(sorted(host.links))}")
    subnet = _subnet(spec, host)
    subnet6 = _subnet6(spec, host, notes)
    dhcp = _dhcp(spec, host, subnet, notes)
    mtu = spec.mtu or _uplink_mtu(spec, host)
    hosts = _hosts(spec, subnet)
    if spec.forwards and hosts and not dhcp:
        raise ConfigError("a forward to a machine's name needs DHCP", "name its address in place of it")
    forwards = tuple(
        forward._replace(guest=hosts[forward.guest.lower()][2]) if forward.guest.lower() in hosts else forward
        for forward in spec.forwards
    )
    rules = Rules(
        spec.name, bridge, f"tvmm {host.mark}", str(subnet), subnet6, spec.nat, spec.isolated, spec.uplink, dhcp,
        spec.allows, forwards,
    )  # fmt: skip
    address = f"{subnet[1]}"
    address6 = str(IPv6Network(subnet6)[1]) if subnet6 else ""
    addresses = [f"{address}/{subnet.prefixlen}"]
    if subnet6:
        addresses += [f"{address6}/64", ROUTER_FE80]
    mac = _mac(host.mark)
    steps = [
        Step("a table of its own in the firewall", LoadTable(ruleset(rules)),
             RemoveTable(table_name(spec.name), rules.mark)),
        Step("a bridge with the host's addresses on it",
             MakeBridge(bridge, mac, mtu, bridge_alias(spec), tuple(addresses), bool(subnet6)),
             RemoveBridge(bridge, mac)),
        *_forwarding(host, bool(subnet6)),
    ]  # fmt: skip
    domain = spec.domain or f"{spec.name}.internal"
    if dhcp:
        served = Served(
            spec.name, bridge, host.directory, host.user, host.group, address, str(subnet), address6, subnet6, mtu,
            domain, spec.dns, tuple(hosts.values()),
        )  # fmt: skip
        conf = f"{host.directory}/{CONF}"
        steps += [
            Step("options for dnsmasq", MakeFiles(host.directory, ((CONF, configuration(served)),)),
                 RemoveFiles(host.directory, (CONF, LEASES, PID))),
            Step("dnsmasq for DHCP, DNS and router advertisements", StartDnsmasq(host.dnsmasq, conf),
                 StopDnsmasq(conf)),
        ]  # fmt: skip
    nat6 = "" if not subnet6 or not spec.nat or not is_own_prefix(subnet6) else "yes"
    facts = {
        "bridge": bridge, "subnet": str(subnet), "address": address, "subnet6": subnet6, "address6": address6,
        "nat": "yes" if spec.nat else "", "nat6": nat6, "dhcp": "yes" if dhcp else "", "mtu": str(mtu or ORDINARY_MTU),
        "domain": domain if dhcp else "", "directory": host.directory,
    }  # fmt: skip
    for name, _, its in hosts.values():
        facts[f"host {name}"] = its
    return Plan(spec, bridge, tuple(steps), tuple(facts.items()), tuple(notes))


def bridge_alias(spec: NetworkSpec) -> str:
    """Written on the bridge for machines that join, which may not be allowed to read the journal."""
    return f"tvmm-net:{spec.name}" + (" isolated" if spec.isolated else "")


def choose_subnet(name: str, seed: bytes, taken: Sequence[IPv4Network]) -> IPv4Network:
    """A private /24 that overlaps none of `taken`: the same for the same name, while it is free."""
    number = int.from_bytes(sha256(seed + name.encode()).digest()[:8], "big")
    for text in _POOLS:
        whole = IPv4Network(text)
        near = [network for network in taken if network.overlaps(whole)]
        count = whole.num_addresses >> 8
        for turn in range(min(TRIES, count)):
            start = int(whole.network_address) + ((number + turn) % count << 8)
            found = IPv4Network((start, 24))
            if not any(found.overlaps(network) for network in near):
                return found
    raise HostError("no private subnet is free: this host has routes to all that were looked at", "name one: --subnet")


def _subnet(spec: NetworkSpec, host: HostFacts) -> IPv4Network:
    routes = _somewhere(route for route in host.routes if ":" not in route.network)
    if not spec.subnet:
        return choose_subnet(spec.name, host.seed, [IPv4Network(route.network) for route in routes])
    wanted = IPv4Network(spec.subnet)
    for route in routes:
        if wanted.overlaps(IPv4Network(route.network)):
            raise _overlap(spec.subnet, route)
    return wanted


def _somewhere(routes: Iterable[Route]) -> list[Route]:
    """Without those that lead to everything: a default route, or the halves of one that some tunnels set."""
    return [route for route in routes if int(route.network.partition("/")[2]) >= SHORTEST_PREFIX]


def _overlap(subnet: str, route: Route) -> ConfigError:
    return ConfigError(
        f"subnet {subnet} overlaps {route.network}, to which this host has a route by {route.link or 'nothing'}",
        "choose another, or leave it out and have a free one chosen",
    )


def _subnet6(spec: NetworkSpec, host: HostFacts, notes: list[str]) -> str:
    if spec.subnet6 == "none":
        return ""
    if not host.ipv6:
        if spec.subnet6:
            raise HostError("this host has no IPv6, or has it switched off", "leave --subnet6 out")
        notes.append("this host has no IPv6, or has it switched off: neither has the network")
        return ""
    routes = _somewhere(route for route in host.routes if ":" in route.network)
    if spec.subnet6:
        wanted = IPv6Network(spec.subnet6)
        for route in routes:
            if wanted.overlaps(IPv6Network(route.network)):
                raise _overlap(spec.subnet6, route)
        return spec.subnet6
    # RFC 4193: 40 bits that nobody else has, then a subnet of 16.
    for turn in range(TRIES):
        own = sha256(host.seed + f"{spec.name}/{turn}".encode()).digest()
        found = IPv6Network((b"\xfd" + own[:7] + bytes(8), 64))
        if not any(found.overlaps(IPv6Network(route.network)) for route in routes):
            return str(found)
    raise HostError("no private IPv6 prefix is free: this host has routes to all of them", "name one: --subnet6")


def _dhcp(spec: NetworkSpec, host: HostFacts, subnet: IPv4Network, notes: list[str]) -> bool:
    if spec.dhcp == "off":
        return False
    if host.dnsmasq:
        return True
    if spec.dhcp == "on":
        raise HostError("dnsmasq, which does DHCP and DNS, is not installed", INSTALL_DNSMASQ)
    first, last = pool(str(subnet))
    notes.append(
        f"dnsmasq is not installed: no DHCP, no DNS; give guests addresses from {first} to {last} with prefix"
        f" {subnet.prefixlen} and gateway {subnet[1]}, or install it: {INSTALL_DNSMASQ}"
    )
    return False


def _uplink_mtu(spec: NetworkSpec, host: HostFacts) -> int:
    """What passes the uplink in one piece, if that is less than usual; 0 otherwise."""
    uplinks = [spec.uplink] if spec.uplink else [route.link for route in host.routes if route.network == "0.0.0.0/0"]
    known = [host.links[name] for name in uplinks if 1280 <= host.links.get(name, 0) < ORDINARY_MTU]
    return min(known, default=0)


def _hosts(spec: NetworkSpec, subnet: IPv4Network) -> dict[str, tuple[str, str, str]]:
    """Name, hardware address and address of guests with a name, by the name in small letters.

    A machine's first network device has its hardware address by the machine's name.
    """
    wanted = {host.name.lower(): (host.name, host.address) for host in spec.hosts}
    for forward in spec.forwards:
        if not forward.guest[0].isdigit() or not forward.guest.replace(".", "").isdigit():
            wanted.setdefault(forward.guest.lower(), (forward.guest, ""))
    taken = {address for _, address in wanted.values()}
    free = (str(subnet[at]) for at in range(2, subnet.num_addresses - 1) if str(subnet[at]) not in taken)
    found = {}
    for key, (name, address) in wanted.items():
        chosen = address or next(free, "")
        if not chosen:
            raise ConfigError(f"subnet {subnet} has no address left for {name}", "choose a larger one")
        found[key] = (name, mac_for(name, 0).hex(":"), chosen)
    return found


def _forwarding(host: HostFacts, ipv6: bool) -> Iterable[Step]:
    """Steps for switches that are off, or that another network has switched on."""
    yield from _switch(host, "ipv4 forwarding", ((IPV4_FORWARD, "1"),))
    if ipv6:
        # A router does not listen to routers, unless told so: the host would lose its own way out.
        listening = dict.fromkeys(
            f"/proc/sys/net/ipv6/conf/{route.link}/accept_ra"
            for route in host.routes
            if route.advertised and host.settings.get(f"/proc/sys/net/ipv6/conf/{route.link}/accept_ra") == "1"
        )
        first = tuple((path, "2") for path in listening)
        yield from _switch(host, "ipv6 forwarding", ((IPV6_FORWARD, "1"), *first))


def _switch(host: HostFacts, key: str, values: tuple[tuple[str, str], ...]) -> Iterable[Step]:
    path, on = values[0]
    if shared := host.shared.get(key):
        # It is on, or was switched off by somebody: then it is wanted again.
        now = () if host.settings.get(path) == on else values
        yield Step(f"{key}, with other networks", WriteSettings(now[1:] + now[:1]), shared)
    elif host.settings.get(path) != on:
        before = [(name, host.settings.get(name, "0")) for name, _ in values]
        rest = [(name, value) for name, value in host.settings.items() if name != path]
        before += [(name, value) for name, value in rest if _is_lost(name, value, path)]
        yield Step(key, WriteSettings(values[1:] + values[:1]), RestoreSettings(key, values, tuple(before)))


def _is_lost(name: str, value: str, switch: str) -> bool:
    """Whether a setting is another one after `switch` was on and off again (Documentation/networking/ip-sysctl.rst)."""
    if name.split("/")[4] != switch.split("/")[4]:
        return False
    last = "/".join(name.split("/")[-2:])
    return value != ("1" if last == "all/accept_redirects" else "0" if last.endswith("/forwarding") else value)


def _mac(mark: str) -> str:
    """Locally administered, and new with each mark: it tells this bridge from any other of its name."""
    return (b"\x52\x54\x01" + sha256(mark.encode()).digest()[:3]).hex(":")


def as_shell(step: Step) -> list[str]:
    """The lines that a person would type, as root."""
    action = step.action
    lines = [f"# {step.title}"]
    if isinstance(action, LoadTable):
        lines += ["nft -f - <<'END'", action.ruleset.rstrip(), "END"]
    elif isinstance(action, MakeFiles):
        lines.append(f"mkdir -p -m 700 {shlex.quote(action.directory)}")
        for name, text in action.files:
            lines += [f"cat > {shlex.quote(f'{action.directory}/{name}')} <<'END'", text.rstrip(), "END"]
    elif isinstance(action, MakeBridge):
        mtu = f" mtu {action.mtu}" if action.mtu else ""
        lines.append(f"ip link add name {action.name} address {action.mac}{mtu} type bridge")
        lines.append(f"ip link set {action.name} alias {shlex.quote(action.alias)}")
        lines.append(f"echo {int(not action.ipv6)} > /proc/sys/net/ipv6/conf/{action.name}/disable_ipv6")
        if action.ipv6:
            lines.append(f"echo 0 > /proc/sys/net/ipv6/conf/{action.name}/accept_ra")
            lines.append(f"echo 1 > /proc/sys/net/ipv6/conf/{action.name}/addr_gen_mode")
        for address in action.addresses:
            lines.append(f"ip address add {address} dev {action.name}{' nodad' if ':' in address else ''}")
        lines.append(f"ip link set {action.name} up")
    elif isinstance(action, WriteSettings):
        lines += [f"echo {value} > {path}" for path, value in action.values]
    else:
        lines.append(f"{action.program} --conf-file={shlex.quote(action.conf)}")
    return lines
