"""dnsmasq's options for a network, and what it writes about leases. Pure."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

__all__ = ["CONF", "LEASES", "LEASE_LIMIT", "PID", "Lease", "Served", "configuration", "pool", "read_leases"]

CONF, LEASES, PID = "dnsmasq.conf", "leases", "dnsmasq.pid"
"""Its files, in a directory of their own."""

LEASE_TIME = "12h"
LEASE_LIMIT = 4096
"""Lines of a lease file that are read: the guests' names are in it."""


class Served(NamedTuple):
    """What there is to serve. `hosts` are name, hardware address and address; '' for `subnet6`: no IPv6."""

    network: str
    bridge: str
    directory: str
    user: str
    group: str
    address: str
    subnet: str
    address6: str
    subnet6: str
    mtu: int
    domain: str
    dns: tuple[str, ...]
    hosts: tuple[tuple[str, str, str], ...]


def pool(subnet: str) -> tuple[str, str]:
    """The first and the last address for guests that nobody has named; the first quarter is for those with names."""
    network = IPv4Network(subnet)
    size = network.num_addresses
    start = max(2, size // 4)
    return str(network[start]), str(network[size - 2])


def configuration(served: Served) -> str:
    """The file of options."""
    directory = served.directory
    first, last = pool(served.subnet)
    lines = [
        f"# Made by 'tvmm net up {served.network}'; goes with 'tvmm net down {served.network}'.",
        f"interface={served.bridge}",
        "except-interface=lo",
        # As bind-interfaces, and goes on when addresses come later.
        "bind-dynamic",
        f"user={served.user}",
        f"group={served.group}",
        f"pid-file={directory}/{PID}",
        f"dhcp-leasefile={directory}/{LEASES}",
        # The host's own names are none of the guests' business.
        "no-hosts",
        *(["no-resolv", *(f"server={server}" for server in served.dns)] if served.dns else []),
        f"domain={served.domain}",
        f"local=/{served.domain}/",
        "expand-hosts",
        "domain-needed",
        "bogus-priv",
        "host-record="
        + ",".join(filter(None, (f"host.{served.domain}", served.address, served.address6))),
        "dhcp-authoritative",
        f"dhcp-range={first},{last},{IPv4Network(served.subnet).netmask},{LEASE_TIME}",
        *(f"dhcp-host={mac},{name},{address}" for name, mac, address in served.hosts),
        # Known before they ask for their address, too.
        *(f"host-record={name}.{served.domain},{address}" for name, _, address in served.hosts),
        f"dhcp-option=option:domain-search,{served.domain}",
        "quiet-dhcp",
        "quiet-dhcp6",
        "quiet-ra",
    ]
    if served.mtu:
        lines.append(f"dhcp-option=option:mtu,{served.mtu}")
    if served.subnet6:
        start = IPv6Network(served.subnet6).network_address
        lines += [
            "enable-ra",
            f"dhcp-range={start},ra-stateless,ra-names,64,{LEASE_TIME}",
            f"dhcp-option=option6:domain-search,{served.domain}",
        ]
    return "\n".join(lines) + "\n"


class Lease(NamedTuple):
    """`expires` in seconds since 1970, 0: never. `name` '' if the guest has told none."""

    address: str
    mac: str
    name: str
    expires: int


def read_leases(text: str) -> list[Lease]:
    """Of IPv4, as dnsmasq writes them: expiry, hardware address, address, name, client. Other lines are left out."""
    found = []
    for line in text.split("\n")[:LEASE_LIMIT]:
        words = line.split(" ")
        if len(words) == 5 and words[0].isascii() and words[0].isdigit() and "." in words[2]:
            expires, mac, address, name, _ = words
            found.append(Lease(address, mac, "" if name == "*" else name, int(expires[:18])))
    return found
