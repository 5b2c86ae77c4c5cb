"""The rules of a network, as nft reads them. Pure.

One table for each network: it is loaded as a whole or not at all, and goes as a whole. Rules of other tables still
hold: whatever any table drops is dropped.

Guests get no further into the host than DHCP, DNS and ping (input); they go out under their own addresses only, and
nobody comes in who was not asked for (forward). Guests of one bridge reach one another without these rules: what is
isolated there is so by the bridge's ports, and here for those who go by way of the host.
"""

from __future__ import annotations

from ipaddress import IPv6Network
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tvmm.net.spec import Forward, Port

__all__ = ["PRIVATE4", "PRIVATE6", "Rules", "is_own_prefix", "ruleset", "table_name"]

PRIVATE4 = ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16")
"""Networks that are somebody's own (RFC 1918, 6598, 3927): no way for isolated guests."""
PRIVATE6 = ("fc00::/7", "fe80::/10")


class Rules(NamedTuple):
    """What the rules are made of. `subnet6` '' is none; `forwards` have addresses for guests; `mark` tells ours."""

    network: str
    bridge: str
    mark: str
    subnet: str
    subnet6: str
    nat: bool
    isolated: bool
    uplink: str
    dhcp: bool
    allows: tuple[Port, ...]
    forwards: tuple[Forward, ...]


def table_name(network: str) -> str:
    """The table of family inet."""
    return f"tvmm_{network}"


def is_own_prefix(subnet6: str) -> bool:
    """Whether a prefix is nobody else's either (RFC 4193), so that its addresses have to be translated."""
    return IPv6Network(subnet6).subnet_of(IPv6Network("fc00::/7"))


def ruleset(rules: Rules) -> str:
    """For ``nft -f``. It fails if the table is there already."""
    name = table_name(rules.network)
    chains = [
        _chain("input", "type filter hook input priority filter", _input(rules)),
        _chain("forward", "type filter hook forward priority filter", _forward(rules)),
    ]
    if rules.forwards:
        # Not for 127.0.0.1: its packets may not leave the loopback.
        own = "ip daddr != 127.0.0.0/8 fib daddr type local"
        dnat = [
            f"{own} {forward.protocol} dport {forward.port} dnat ip to {forward.guest}:{forward.guest_port}"
            for forward in rules.forwards
        ]
        chains.append(_chain("prerouting", "type nat hook prerouting priority dstnat", dnat))
        chains.append(_chain("output", "type nat hook output priority -100", dnat))
    if rules.nat:
        chains.append(_chain("postrouting", "type nat hook postrouting priority srcnat", _postrouting(rules)))
    return f"create table inet {name}\ntable inet {name} {{\n" + "\n".join(chains) + "}\n"


def _chain(name: str, hook: str, rules: list[str]) -> str:
    lines = "".join(f"    {rule}\n" for rule in rules)
    return f"  chain {name} {{\n    {hook}; policy accept;\n{lines}  }}\n"


def _input(rules: Rules) -> list[str]:
    found = [
        f'iifname != "{rules.bridge}" accept comment "{rules.mark}"',
        "ct state established,related accept",
        "meta l4proto { icmp, ipv6-icmp } accept",
    ]
    if rules.dhcp:
        found += ["udp dport { 53, 67, 547 } accept", "tcp dport 53 accept"]
    found += [f"{port.protocol} dport {port.port} accept" for port in rules.allows]
    return [*found, "reject with icmpx admin-prohibited"]


def _forward(rules: Rules) -> list[str]:
    bridge, refuse = f'"{rules.bridge}"', "reject with icmpx admin-prohibited"
    within = f"iifname {bridge} oifname {bridge}"
    found = [
        f"iifname != {bridge} oifname != {bridge} accept",
        # First: where br_netfilter is loaded, this has what stays in the bridge too, as link-local as it is.
        f"{within} {refuse if rules.isolated else 'accept'}",
        f"iifname {bridge} ip saddr != {rules.subnet} drop",
        f"iifname {bridge} ip6 saddr != {rules.subnet6} drop"
        if rules.subnet6
        else f"iifname {bridge} meta nfproto ipv6 drop",
        "ct state established,related accept",
    ]
    if rules.isolated:
        found += [
            f"iifname {bridge} ip daddr {{ {', '.join(PRIVATE4)} }} {refuse}",
            f"iifname {bridge} ip6 daddr {{ {', '.join(PRIVATE6)} }} {refuse}",
        ]
    if rules.uplink:
        found += [
            f'iifname {bridge} oifname != "{rules.uplink}" {refuse}',
            f'oifname {bridge} iifname != "{rules.uplink}" {refuse}',
        ]
    found.append(f"iifname {bridge} accept")
    # To guests, from elsewhere.
    if rules.forwards:
        found.append("ct status dnat accept")
    if rules.nat:
        found.append(refuse)
    return found


def _postrouting(rules: Rules) -> list[str]:
    way = f'oifname "{rules.uplink}"' if rules.uplink else f'oifname != "{rules.bridge}"'
    found = [f"ip saddr {rules.subnet} {way} masquerade"]
    if rules.subnet6 and is_own_prefix(rules.subnet6):
        found.append(f"ip6 saddr {rules.subnet6} {way} masquerade")
    if rules.forwards:
        # A guest that asks the host's address for a port of its neighbour: the answer has to come back this way.
        found.append(f"ip saddr {rules.subnet} ip daddr {rules.subnet} ct status dnat masquerade")
    return found
