"""What ``--net user`` takes besides: addresses of the network that the guest sees, and forwarded ports.

The words, and the addresses that hold while nothing is said, are those of QEMU's ``-netdev user``: a guest that was
set up for the one finds the other.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tvmm.config.properties import Codec, Property
from tvmm.errors import ConfigError

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    from tvmm.config.net import NetConfig

__all__ = ["USER_PROPERTIES", "Forward", "UserAddresses", "check_user", "read_forwards", "user_addresses"]

NET, NET6 = "10.0.2.0/24", "fec0::/64"
HOST_AT, GUEST_AT, GUEST6_AT = 2, 15, 0x15
"""In the network: the gateway, which stands for the host, and the guest."""
PREFIX6 = 64
LONGEST_PREFIX = 28
"""Of a network where there is room for both."""
MAX_FORWARDS = 64
MAX_RESOLVERS = 3
MAX_MTU = 65520
"""The largest that passt takes."""

_FORWARD = re.compile(
    r"(?P<protocol>tcp|udp|):(?P<address>\[[^]]*\]|[^:]*):(?P<host>\d{1,5})-(?P<guest>\[[^]]*\]|[^:]*):(?P<port>\d{1,5})"
)


class Forward(NamedTuple):
    """A port of the host that leads into the guest. `address` '' means each that the host has."""

    protocol: str
    address: str
    host_port: int
    guest: str
    guest_port: int

    def __str__(self) -> str:
        host, guest = (f"[{at}]" if ":" in at else at for at in (self.address, self.guest))
        return f"{self.protocol}:{host}:{self.host_port}-{guest}:{self.guest_port}"


class UserAddresses(NamedTuple):
    """As the guest sees them. `host` is the gateway; connections to it reach the host's loopback."""

    net: IPv4Network
    host: IPv4Address
    guest: IPv4Address
    net6: IPv6Network
    host6: IPv6Address
    guest6: IPv6Address


def _read_address(text: str, what: str) -> str:
    from ipaddress import ip_address

    try:
        address = ip_address("" if "%" in text else text)
    except ValueError:
        raise ConfigError(f"{what} {text[:60]!r} is no address", "write it as 10.0.2.2, or fec0::2") from None
    if address.is_multicast or address.is_unspecified:
        raise ConfigError(f"{what} {text!r} is no host's address")
    return str(address)


def _read_resolvers(text: str, what: str) -> tuple[str, ...]:
    found = tuple(_read_address(part, what) for part in text.split("+")) if text else ()
    if len(found) > MAX_RESOLVERS:
        raise ConfigError(f"{what} has {len(found)} addresses", f"at most {MAX_RESOLVERS} are possible")
    return found


def _read_network(text: str, what: str) -> str:
    from ipaddress import ip_network

    try:
        return str(ip_network("" if "%" in text else text))
    except ValueError:
        raise ConfigError(
            f"{what} {text[:60]!r} is no network", "write ADDR/PREFIX, as 10.0.2.0/24 or fec0::/64, without host bits"
        ) from None


def _read_search(text: str, what: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,255}(\+[A-Za-z0-9.-]{1,255}){0,5}", text):
        raise ConfigError(f"{what} {text[:60]!r} is no list of domains", "write DOMAIN, several with '+', at most 6")
    return text


def read_forwards(text: str, what: str = "net property hostfwd") -> tuple[Forward, ...]:
    """``tcp:[ADDR]:PORT-[GUEST]:PORT``, several with '+'. Raises `ConfigError` naming `what`."""
    found: list[Forward] = []
    for part in text.split("+") if text else ():
        match = _FORWARD.fullmatch(part)
        if not match:
            raise ConfigError(
                f"{what} {part[:80]!r} is no rule",
                "write tcp:ADDR:PORT-GUEST:PORT or udp:..., where ADDR and GUEST may be empty: tcp:127.0.0.1:2222-:22",
            )
        addresses = [match[name].strip("[]") for name in ("address", "guest")]
        # 0.0.0.0 is QEMU's word for all of them.
        address, guest = (
            _read_address(at, f"{what} {part!r}: address") if at not in ("", "0.0.0.0") else "" for at in addresses
        )
        ports = [int(match[name]) for name in ("host", "port")]
        if not all(0 < port < 1 << 16 for port in ports):
            raise ConfigError(f"{what} {part!r} has a port out of range", "ports are 1 to 65535")
        forward = Forward(match["protocol"] or "tcp", address, ports[0], guest, ports[1])
        if any(forward[:3] == other[:3] for other in found):
            raise ConfigError(f"{what} {part!r}: this port of the host is forwarded twice")
        found.append(forward)
    if len(found) > MAX_FORWARDS:
        raise ConfigError(f"{what} has {len(found)} rules", f"at most {MAX_FORWARDS} are possible")
    return tuple(found)


def user_addresses(config: NetConfig) -> UserAddresses:
    """What the options and their defaults come to. Raises `ConfigError` for what does not go together."""
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

    net, net6 = ip_network(config.net or NET), ip_network(config.ipv6_net or NET6)
    if not isinstance(net, IPv4Network):
        raise ConfigError(f"net property net {config.net!r} is of IPv6", "that one is called ipv6-net")
    if net.prefixlen > LONGEST_PREFIX:
        raise ConfigError(f"net property net {config.net!r} has too few addresses", f"at most /{LONGEST_PREFIX}")
    if not isinstance(net6, IPv6Network) or net6.prefixlen != PREFIX6:
        raise ConfigError(f"net property ipv6-net {config.ipv6_net!r} is not /{PREFIX6} of IPv6")
    last = min(GUEST_AT, net.num_addresses - 2)
    host, guest = IPv4Address(config.host or net[HOST_AT]), IPv4Address(config.dhcpstart or net[last])
    host6 = IPv6Address(config.ipv6_host or net6[HOST_AT])
    for name, address, of in (("host", host, net), ("dhcpstart", guest, net), ("ipv6-host", host6, net6)):
        if address not in of or address in (of.network_address, of.broadcast_address):
            raise ConfigError(f"net property {name} {str(address)!r} is no host's address in {of}")
    if host == guest:
        raise ConfigError(f"net properties host and dhcpstart are the same: {host}")
    return UserAddresses(net, host, guest, net6, host6, net6[GUEST6_AT])


def check_user(config: NetConfig) -> None:
    """Raise `ConfigError` for options of ``--net user`` that do not go together."""
    for name in ("host", "dhcpstart"):
        if ":" in getattr(config, name):
            raise ConfigError(f"net property {name} {getattr(config, name)!r} is of IPv6")
    if config.ipv6_host and ":" not in config.ipv6_host:
        raise ConfigError(f"net property ipv6-host {config.ipv6_host!r} is of IPv4")
    addresses = user_addresses(config)
    if not (config.ipv4 or config.ipv6):
        raise ConfigError("net user with ipv4=off and ipv6=off has nothing to carry", "leave one of them on")
    if config.dns and config.resolver:
        raise ConfigError(
            "net properties dns and resolver do not go together", "dns leads to the first one in /etc/resolv.conf"
        )
    if config.mtu > MAX_MTU:
        raise ConfigError(f"net property mtu {config.mtu} is too large for passt", f"at most {MAX_MTU}")
    for forward in read_forwards("+".join(map(str, config.hostfwd))):
        if forward.guest not in ("", str(addresses.guest), str(addresses.guest6)):
            raise ConfigError(
                f"net property hostfwd '{forward}' leads to another guest",
                f"leave the address out: it is {addresses.guest} (see dhcpstart)",
            )
        if not (config.ipv6 if ":" in forward.address else config.ipv4 or not forward.address):
            raise ConfigError(f"net property hostfwd '{forward}' is of a protocol that is off")


_ADDRESS, _NETWORK = Codec(_read_address, str), Codec(_read_network, str)

USER_PROPERTIES = (
    Property("hostfwd", "rules", None, "user: ports of the host that lead into the guest: tcp:[ADDR]:PORT-[GUEST]:PORT"
             " or udp:..., may be repeated, or with '+'", otherwise="none", repeats=True,
             codec=Codec(read_forwards, lambda forwards: "+".join(map(str, forwards)))),
    Property("ipv4", "boolean", None, "user: carry IPv4"),
    Property("ipv6", "boolean", None, "user: carry IPv6, if the host has it"),
    Property("net", "network", None, "user: the network that the guest sees", otherwise=NET, codec=_NETWORK),
    Property("host", "address", None, "user: the gateway in it, which stands for the host", otherwise="the second",
             codec=_ADDRESS),
    Property("dhcpstart", "address", None, "user: the guest's address, by DHCP", otherwise="the fifteenth",
             codec=_ADDRESS),
    Property("ipv6-net", "network", None, "user: the same of IPv6, of 64 bits", otherwise=NET6, codec=_NETWORK),
    Property("ipv6-host", "address", None, "user: the gateway in it", otherwise="the second", codec=_ADDRESS),
    Property("dns", "address", None, "user: where the guest finds the host's name server, set by hand in it",
             otherwise="none", codec=_ADDRESS),
    Property("resolver", "addresses", None, "user: name servers in place of those in /etc/resolv.conf, with '+'",
             otherwise="the host's", codec=Codec(_read_resolvers, "+".join)),
    Property("dnssearch", "domains", None, "user: where the guest looks for short names, several with '+'",
             otherwise="the host's", codec=Codec(_read_search, str)),
)  # fmt: skip
"""Rows of `NET_PROPERTIES`, without defaults."""
