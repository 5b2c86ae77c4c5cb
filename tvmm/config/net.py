"""``--net none``, ``tap``, ``user`` and ``stream`` with their ``key=val``: network devices, and what they lead to."""

from __future__ import annotations

from typing import NamedTuple

from tvmm.config.limits import NET_WORDS, NO_LIMITS, Limits, limit_properties, with_limits
from tvmm.config.net_user import USER_PROPERTIES, Forward, check_user
from tvmm.config.options import join_options, split_commas
from tvmm.config.properties import (
    ID,
    POLL,
    QUEUE_SIZE,
    RING,
    Codec,
    Property,
    check_values,
    parse_values,
    spelled,
    with_defaults,
)
from tvmm.errors import ConfigError

__all__ = ["IFNAME_LIMIT", "MAX_PAIRS", "NET_PROPERTIES", "NetConfig", "mac_for", "parse_nets", "properties_of"]

MAX_PAIRS = 256
"""Queues that a Linux TAP can have."""

IFNAME_LIMIT = 15
"""Bytes of an interface's name besides the final NUL (IFNAMSIZ)."""

MAX_FD = (1 << 20) - 1
MIN_MTU, MAX_MTU = 68, 65535
MAX_ADDRESSES = 16

_MAC_PREFIX = bytes.fromhex("525400")
"""QEMU's: locally administered, unicast."""

_NEEDS_CSUM = ("tso4", "tso6", "uso")

_OF_TAPS = ("ifname", "br", "network", "isolated", "persist", "ip", "queues")
_OF_USER = tuple(row.attribute for row in USER_PROPERTIES)
_BELONGS = {
    **dict.fromkeys(_OF_TAPS, ("tap",)),
    **dict.fromkeys(_OF_USER, ("user",)),
    "fd": ("tap", "stream"),
    "path": ("stream",),
}
"""Fields that not every type has, and the types that do."""

PATH_LIMIT = 107
"""Bytes of a unix socket's path besides the final NUL."""


class NetConfig(NamedTuple):
    """One network device, connected to a TAP, to `passt` (user), or to whoever listens at a unix socket (stream).

    `id` is '' until `MachineConfig.check` gives it by position. `ifname` '' has a name made up; `fd` is an
    open TAP, or a connected stream socket, in place of one by name. `mtu` 0: leave it alone. `mac` b'': by the
    machine's name, see `address`. `queues` counts pairs. The offloads `csum` to `uso` are upper limits, see
    `offloads`. `ip` are addresses of the host's side with their prefix length. `network` is one of ``tvmm net up``, in
    place of `br`. What `user` has: see `tvmm.config.net_user`. `limits` bound the guest's frames.
    """

    type: str = "tap"
    id: str = ""
    ifname: str = ""
    fd: int | None = None
    br: str = ""
    network: str = ""
    mtu: int = 0
    mac: bytes = b""
    queues: int = 1
    queue_size: int = 256
    csum: bool = True
    tso4: bool = True
    tso6: bool = True
    ecn: bool = True
    uso: bool = True
    isolated: bool = False
    persist: bool = False
    ip: tuple[str, ...] = ()
    path: str = ""
    hostfwd: tuple[Forward, ...] = ()
    ipv4: bool = True
    ipv6: bool = True
    net: str = ""
    host: str = ""
    dhcpstart: str = ""
    ipv6_net: str = ""
    ipv6_host: str = ""
    dns: str = ""
    resolver: tuple[str, ...] = ()
    dnssearch: str = ""
    link: bool = True
    transport: str = "pci"
    packed: bool = False
    in_order: bool = False
    event_idx: bool = True
    indirect_desc: bool = True
    poll_us: int = 32
    limits: Limits = NO_LIMITS

    @classmethod
    def parse(cls, text: str) -> NetConfig:
        """From a value of ``--net`` other than ``none``. Raises `ConfigError`."""
        return cls(**with_limits(parse_values(text, "net", NET_PROPERTIES, first="type"))).check()

    def check(self) -> NetConfig:
        """The same record, if its fields are in range and go together; raises `ConfigError` otherwise."""
        check_values(self, "net", NET_PROPERTIES)
        self.limits.check("net", NET_WORDS)
        self._check_type()
        for name in ("ifname", "br"):
            if getattr(self, name):
                _read_ifname(getattr(self, name), f"net property {name}")
        if self.mac:
            _read_mac(":".join(f"{byte:02x}" for byte in self.mac), "net property mac")
        _read_addresses("+".join(self.ip), "net property ip")
        self._check_fd()
        if self.network:
            self._check_network()
        if self.isolated and not (self.br or self.ifname or self.network):
            raise ConfigError("net isolated=on has no bridge", "add br=BRIDGE, or ifname= of a tap that is in one")
        if self.persist and not self.ifname:
            raise ConfigError("net persist=on has no ifname", "add ifname=NAME, so that the tap can be found again")
        if self.ip and self.br:
            raise ConfigError(
                f"net ip and br={self.br} do not go together", "a tap in a bridge has no address: the bridge has it"
            )
        return self

    def _check_network(self) -> None:
        _read_network(self.network, "net property network")
        for name in ("br", "ip"):
            if getattr(self, name):
                raise ConfigError(
                    f"net network={self.network} and {name} do not go together",
                    "the network has a bridge, with the host's addresses on it",
                )

    def _check_type(self) -> None:
        """Options of other types; and each type's own."""
        for name, types in _BELONGS.items():
            if self.type not in types and getattr(self, name) != self._field_defaults[name]:
                raise ConfigError(
                    f"net {self.type} and {name.replace('_', '-')} do not go together",
                    f"it is for {' and '.join(f'--net {one}' for one in types)}",
                )
        if self.type == "user":
            check_user(self)
        if self.type == "stream" and (self.fd is None) == (not self.path):
            raise ConfigError("net stream needs one of path and fd", "write path=SOCKET: where the other end listens")
        if len(self.path.encode("utf-8", "surrogateescape")) > PATH_LIMIT:
            raise ConfigError(f"net property path is longer than {PATH_LIMIT} bytes", "a unix socket cannot be there")

    def _check_fd(self) -> None:
        if self.fd is None:
            return
        for name in ("ifname", "br", "network", "ip", "persist", "isolated"):
            if getattr(self, name):
                raise ConfigError(
                    f"net fd={self.fd} and {name} do not go together",
                    "who opened the tap has set it up",
                )
        if self.queues > 1:
            raise ConfigError(f"net fd={self.fd} has one queue", "leave queues out, or use ifname=")

    @property
    def offloads(self) -> frozenset[str]:
        """Those of csum, tso4, tso6, ecn and uso that are on, and have what they need (virtio 1.3, 5.1.3.1)."""
        if not self.csum:
            return frozenset()
        wanted = {"csum", *(name for name in _NEEDS_CSUM if getattr(self, name))}
        return frozenset(wanted | {"ecn"} if self.ecn and wanted & {"tso4", "tso6"} else wanted)

    def address(self, machine_name: str, index: int) -> bytes:
        """The MAC of the guest's side, for device `index` of the machine; a guest that arrives may bring its own."""
        return self.mac or mac_for(machine_name, index)

    def spelling(self) -> str:
        """The command line's spelling of this device, without options that have their default."""
        return join_options({"type": self.type, **spelled(self, NET_PROPERTIES)}, first="type")


def mac_for(machine_name: str, index: int) -> bytes:
    """Six bytes that are the same each time for device `index` of a machine of this name."""
    # Not at the top of the file: it takes longer to import than the rest of this module.
    from hashlib import sha256

    return _MAC_PREFIX + sha256(f"{index}/{machine_name}".encode("utf-8", "surrogateescape")).digest()[:3]


def parse_nets(values: tuple[str, ...]) -> tuple[NetConfig, ...]:
    """From all values of ``--net``: none at all for ``none``. Raises `ConfigError`."""
    if "none" in values:
        if len(values) > 1:
            raise ConfigError("net none stands beside another net", "write --net none alone, or leave it out")
        return ()
    for value in values:
        if split_commas(value)[0] == "none":
            raise ConfigError("net none takes no options", "write --net none, or --net tap,... or --net user,...")
    return tuple(map(NetConfig.parse, values))


def _read_ifname(text: str, what: str) -> str:
    """An interface's name as Linux allows it (dev_valid_name), without '%', which asks for a number."""
    size = len(text.encode("utf-8", "surrogateescape"))
    bad = not text.isprintable() or any(character in "/:% \t" for character in text)
    if not 0 < size <= IFNAME_LIMIT or bad or text in (".", ".."):
        raise ConfigError(
            f"{what} {text[:40]!r} cannot name an interface",
            f"it has 1 to {IFNAME_LIMIT} bytes without blanks, '/', ':' and '%'",
        )
    return text


def _read_network(text: str, what: str) -> str:
    """The name of a network of ``tvmm net``."""
    # Not at the top of the file: few machines need it.
    from tvmm.net.spec import check_network_name

    return check_network_name(text)


def _read_mac(text: str, what: str) -> bytes:
    """Six bytes of a unicast address."""
    parts = text.replace("-", ":").split(":")
    digits = frozenset("0123456789abcdefABCDEF")
    if len(parts) != 6 or not all(len(part) == 2 and digits.issuperset(part) for part in parts):
        raise ConfigError(f"{what} {text[:40]!r} is no MAC address", "write six bytes: 52:54:00:12:34:56")
    mac = bytes.fromhex("".join(parts))
    if mac[0] & 1:
        raise ConfigError(
            f"{what} {text!r} is a multicast address",
            f"the first byte has to be even: {mac[0] & 0xFE:02x}{text[2:]}",
        )
    if not any(mac):
        raise ConfigError(f"{what} is all zero", "write six bytes: 52:54:00:12:34:56")
    return mac


def _read_addresses(text: str, what: str) -> tuple[str, ...]:
    """``ADDR/PREFIX+ADDR/PREFIX`` in their shortest spelling."""
    if not text:
        return ()
    # Not at the top of the file: few machines need it, and it is not small.
    from ipaddress import ip_interface

    found: list[str] = []
    for part in text.split("+"):
        try:
            interface = ip_interface(part if "/" in part and "%" not in part else "")
        except ValueError:
            raise ConfigError(
                f"{what} {part[:60]!r} is no address with a prefix", "write ADDR/PREFIX: 10.0.2.1/24, or fd00::1/64"
            ) from None
        if interface.ip.is_multicast or interface.ip.is_unspecified:
            raise ConfigError(f"{what} {part!r} is no host's address")
        if interface.with_prefixlen in found:
            raise ConfigError(f"{what} {part!r} is given twice")
        found.append(interface.with_prefixlen)
    if len(found) > MAX_ADDRESSES:
        raise ConfigError(f"{what} has {len(found)} addresses", f"at most {MAX_ADDRESSES} are possible")
    return tuple(found)


def _read_path(text: str, what: str) -> str:
    if not text or "\0" in text:
        raise ConfigError(f"{what} {text!r} is no path")
    return text


_IFNAME = Codec(_read_ifname, str)

NET_PROPERTIES = with_defaults(
    NetConfig,
    Property("type", "choice", None, "what the device is connected to", choices=("tap", "user", "stream")),
    ID,
    Property("ifname", "name", None, "the tap's name; one that exists is used as it is", otherwise="made up",
             codec=_IFNAME),
    Property("fd", "integer", None, "descriptor of an open tap or stream socket, in place of ifname or path", 0, MAX_FD,
             otherwise="none"),
    Property("br", "name", None, "bridge to put the tap into", otherwise="none", codec=_IFNAME),
    Property("network", "name", None, "network of 'tvmm net up' to be in, in place of br", otherwise="none",
             codec=Codec(_read_network, str)),
    Property("mtu", "integer", None, "largest packet, for the tap and the guest", MIN_MTU, MAX_MTU, or_zero=True,
             otherwise="0: the tap's own"),
    Property("mac", "address", None, "the guest's MAC address", otherwise="by the machine's name",
             codec=Codec(_read_mac, lambda mac: mac.hex(":"))),
    Property("queues", "integer", None, "pairs of queues", 1, MAX_PAIRS),
    QUEUE_SIZE,
    Property("csum", "boolean", None, "leave checksums to the other side, as far as the host can"),
    Property("tso4", "boolean", None, "TCP over IPv4 in segments of up to 64 KiB; needs csum"),
    Property("tso6", "boolean", None, "the same over IPv6; needs csum"),
    Property("ecn", "boolean", None, "segments with ECN; needs tso4 or tso6"),
    Property("uso", "boolean", None, "UDP in segments; needs csum"),
    Property("isolated", "boolean", None, "no traffic with other isolated ports of the bridge"),
    Property("persist", "boolean", None, "keep the tap when the machine ends"),
    Property("ip", "addresses", None, "the host's address on the tap: ADDR/PREFIX, several with '+'",
             otherwise="none", codec=Codec(_read_addresses, "+".join)),
    Property("path", "path", None, "stream: unix socket of the other end", otherwise="none",
             codec=Codec(_read_path, str)),
    *USER_PROPERTIES,
    Property("link", "boolean", None, "whether the cable is plugged in"),
    *RING,
    POLL,
    *limit_properties(NET_WORDS),
)  # fmt: skip
"""What ``--net`` and ``--device virtio-net`` take."""


def properties_of(kind: str) -> tuple[Property, ...]:
    """Those of `NET_PROPERTIES` that a network of this type has; all of them for a word that is no type."""
    others = [name for name, kinds in _BELONGS.items() if kind in ("tap", "user", "stream") and kind not in kinds]
    return tuple(prop for prop in NET_PROPERTIES if prop.attribute not in others)
