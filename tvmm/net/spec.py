"""What a network of ``tvmm net up`` is to be like: the options, checked. Pure."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from tvmm.errors import ConfigError

__all__ = [
    "BRIDGE_PREFIX",
    "LIMIT",
    "NAME_LIMIT",
    "SHORTEST_PREFIX",
    "Forward",
    "Host",
    "NetworkSpec",
    "Port",
    "bridge_name",
    "check_network_name",
    "read_forward",
    "read_host",
    "read_port",
]

BRIDGE_PREFIX = "tvmm-"
NAME_LIMIT = 10
"""Characters of a network's name: with `BRIDGE_PREFIX` it names a link, which has 15."""

LIMIT = 64
"""Forwarded ports, open ports, hosts: more of one is a mistake, and rules cost each packet."""
DNS_LIMIT = 8

MIN_MTU, MIN_MTU_IPV6, MAX_MTU = 576, 1280, 65535
LONGEST_PREFIX, LONGEST_DHCP_PREFIX, SHORTEST_PREFIX = 30, 29, 8
SLAAC_PREFIX = 64
"""Guests make their own addresses of 64 bits of prefix and 64 of their own (RFC 4862)."""

_NAME = re.compile(r"[a-z][a-z0-9-]*[a-z0-9]|[a-z]")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_HOST = re.compile(_LABEL, re.IGNORECASE)
_PROTOCOLS = ("tcp", "udp")


class Forward(NamedTuple):
    """Connections to `port` of the host go to `guest_port` of a guest: an IPv4 address, or a machine's name."""

    protocol: str
    port: int
    guest: str
    guest_port: int

    def __str__(self) -> str:
        return f"{self.protocol}:{self.port}:{self.guest}:{self.guest_port}"


class Port(NamedTuple):
    """A service of the host that guests may use."""

    protocol: str
    port: int

    def __str__(self) -> str:
        return f"{self.protocol}:{self.port}"


class Host(NamedTuple):
    """A machine of this name always has the same address; '' has one chosen."""

    name: str
    address: str = ""

    def __str__(self) -> str:
        return f"{self.name}={self.address}" if self.address else self.name


class NetworkSpec(NamedTuple):
    """The options of ``tvmm net up``, as the user gave them.

    `subnet` and `subnet6` '' have one chosen, `subnet6` 'none' leaves IPv6 out. `dhcp` is 'auto' (if dnsmasq is
    there), 'on' or 'off'. `mtu` 0: as the uplink has it. `uplink` '': whichever way the host's routes go.
    `domain` '': NAME.internal. `dns` are servers to ask in place of the host's own.
    """

    name: str
    subnet: str = ""
    subnet6: str = ""
    nat: bool = True
    dhcp: str = "auto"
    isolated: bool = False
    uplink: str = ""
    mtu: int = 0
    domain: str = ""
    dns: tuple[str, ...] = ()
    hosts: tuple[Host, ...] = ()
    forwards: tuple[Forward, ...] = ()
    allows: tuple[Port, ...] = ()

    def check(self) -> NetworkSpec:
        """The same, with subnets in their shortest spelling. Raises `ConfigError`."""
        check_network_name(self.name)
        subnet = _subnet4(self.subnet, self.dhcp) if self.subnet else ""
        subnet6 = _subnet6(self.subnet6) if self.subnet6 not in ("", "none") else self.subnet6
        if self.dhcp not in ("auto", "on", "off"):
            raise ConfigError(f"dhcp {self.dhcp!r} is not auto, on or off")
        if self.uplink:
            _check_link(self.uplink)
        least = MIN_MTU if subnet6 == "none" else MIN_MTU_IPV6
        if self.mtu and not least <= self.mtu <= MAX_MTU:
            raise ConfigError(
                f"mtu {self.mtu} is out of range", f"it goes from {least} to {MAX_MTU}; below 1280 needs --subnet6 none"
            )
        if self.domain and (len(self.domain) > 200 or not _DOMAIN.fullmatch(self.domain)):
            raise ConfigError(f"domain {self.domain[:60]!r} is none", "write it as lab.internal, in small letters")
        for server in self.dns:
            _address(server, "dns")
        self._check_lists(subnet)
        return self._replace(subnet=subnet, subnet6=subnet6)

    def _check_lists(self, subnet: str) -> None:
        for what, found, most in (
            ("dns servers", self.dns, DNS_LIMIT),
            ("hosts", self.hosts, LIMIT),
            ("forwards", self.forwards, LIMIT),
            ("allowed ports", self.allows, LIMIT),
        ):
            if len(found) > most:
                raise ConfigError(f"{len(found)} {what} are too many", f"at most {most} are possible")
        named = [host.name.lower() for host in self.hosts]
        addresses = [host.address for host in self.hosts if host.address]
        ports = [f"{forward.protocol}:{forward.port}" for forward in self.forwards]
        for kind, values in (("host", named), ("host address", addresses), ("forwarded port", ports)):
            if twice := [value for value in values if values.count(value) > 1]:
                raise ConfigError(f"{kind} {twice[0]} is given twice")
        if self.forwards and not self.nat:
            raise ConfigError(
                "--forward and --no-nat do not go together", "guests of a routed network are reached as they are"
            )
        for address in [*addresses, *(forward.guest for forward in self.forwards if _is_address(forward.guest))]:
            if not subnet:
                raise ConfigError(f"address {address} is given, and no subnet", "add --subnet, or name a machine alone")
            if not _is_guests(address, subnet):
                raise ConfigError(f"address {address} cannot be a guest's of {subnet}", "its first is the host's own")


def bridge_name(network: str) -> str:
    """The link that is a network's bridge."""
    return BRIDGE_PREFIX + network


def check_network_name(name: str) -> str:
    """`name`, if a network may be called that. Raises `ConfigError`."""
    if not _NAME.fullmatch(name) or len(name) > NAME_LIMIT:
        raise ConfigError(
            f"{name[:40]!r} cannot name a network",
            f"it has 1 to {NAME_LIMIT} small letters, digits and '-', and begins with a letter",
        )
    return name


def read_forward(text: str) -> Forward:
    """``tcp:8080:web:80``: protocol, the host's port, guest, the guest's port. Raises `ConfigError`."""
    parts = text.split(":")
    if len(parts) != 4 or parts[0] not in _PROTOCOLS:
        raise ConfigError(f"forward {text[:60]!r} is none", "write PROTOCOL:PORT:GUEST:PORT, as in tcp:8080:web:80")
    protocol, port, guest, guest_port = parts
    if not _is_address(guest):
        _check_host(guest, f"forward {text[:60]!r}: guest")
    return Forward(protocol, _port(port, text), guest, _port(guest_port, text))


def read_port(text: str) -> Port:
    """``tcp:22``. Raises `ConfigError`."""
    protocol, _, port = text.partition(":")
    if protocol not in _PROTOCOLS:
        raise ConfigError(f"{text[:60]!r} is no service", "write PROTOCOL:PORT, as in tcp:22")
    return Port(protocol, _port(port, text))


def read_host(text: str) -> Host:
    """``web`` or ``web=10.9.8.7``. Raises `ConfigError`."""
    name, equals, address = text.partition("=")
    _check_host(name, "host")
    if equals and not _is_address(address):
        raise ConfigError(f"host {text[:60]!r}: {address[:40]!r} is no IPv4 address", "write NAME or NAME=ADDRESS")
    return Host(name, str(IPv4Address(address)) if equals else "")


def _check_host(name: str, what: str) -> None:
    if not _HOST.fullmatch(name):
        raise ConfigError(
            f"{what} {name[:40]!r} is no name for the DNS", "letters, digits and '-', as the machine is called"
        )


def _port(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise ConfigError(f"{whole[:60]!r}: {text[:20]!r} is no port", "ports go from 1 to 65535")
    return int(text)


def _is_address(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


def _is_guests(address: str, subnet: str) -> bool:
    """Whether a guest can have it: not the first, which is the host's, nor the last, which is all of them."""
    network = IPv4Network(subnet)
    first, last = int(network.network_address), int(network.broadcast_address)
    return first + 1 < int(IPv4Address(address)) < last


def _check_link(name: str) -> None:
    if not 0 < len(name) <= 15 or not re.fullmatch(r"[A-Za-z0-9_.@-]+", name) or name in (".", ".."):
        raise ConfigError(f"uplink {name[:40]!r} cannot name a link", "'ip link' shows those there are")


def _address(text: str, what: str) -> None:
    try:
        if "%" in text or ip_address(text).is_unspecified:
            raise ValueError
    except ValueError:
        raise ConfigError(f"{what} {text[:60]!r} is no address") from None


def _network(text: str, what: str) -> IPv4Network | IPv6Network:
    example = "10.9.8.0/24" if what == "subnet" else "fd12:3456:789a::/64"
    try:
        network = ip_network(text if "/" in text and "%" not in text else "", strict=False)
    except ValueError:
        raise ConfigError(f"{what} {text[:60]!r} is no network with a prefix", f"write it as {example}") from None
    if str(network.network_address) != text.partition("/")[0].lower():
        raise ConfigError(f"{what} {text[:60]!r} has bits behind its prefix", f"write {network}")
    if network.is_multicast or network.is_loopback or network.is_link_local or network.network_address.is_unspecified:
        raise ConfigError(f"{what} {network} is not for hosts", f"choose a private one, as {example}")
    return network


def _subnet4(text: str, dhcp: str) -> str:
    network = _network(text, "subnet")
    if not isinstance(network, IPv4Network):
        raise ConfigError(f"subnet {network} is of IPv6", "use --subnet6 for it")
    most = LONGEST_PREFIX if dhcp == "off" else LONGEST_DHCP_PREFIX
    if not SHORTEST_PREFIX <= network.prefixlen <= most:
        why = "has no room for guests" if network.prefixlen > most else "is too much for one bridge"
        raise ConfigError(f"subnet {network} {why}", f"prefixes go from /{SHORTEST_PREFIX} to /{most}")
    return str(network)


def _subnet6(text: str) -> str:
    network = _network(text, "subnet6")
    if not isinstance(network, IPv6Network):
        raise ConfigError(f"subnet6 {network} is of IPv4", "use --subnet for it")
    if network.prefixlen != SLAAC_PREFIX:
        raise ConfigError(
            f"subnet6 {network} is not a /{SLAAC_PREFIX}", "guests make their own addresses of a prefix of that length"
        )
    return str(network)
