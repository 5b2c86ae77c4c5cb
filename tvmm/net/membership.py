"""``network=NAME`` of a machine's network device: into the bridge that ``tvmm net up NAME`` has made."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.errors import ConfigError
from tvmm.net.links import Links

if TYPE_CHECKING:
    from tvmm.config.net import NetConfig

__all__ = ["Membership", "find_network", "in_network"]

ORDINARY_MTU = 1500


class Membership(NamedTuple):
    """What a tap of a network is like; `mtu` 0: as usual."""

    bridge: str
    isolated: bool
    mtu: int


def find_network(name: str) -> Membership:
    """The network of this name in this network namespace. Raises `ConfigError` if it is not up."""
    bridge_name = f"tvmm-{name}"
    with Links() as links:
        bridge = links.find(bridge_name)
    first, *words = bridge.alias.split(" ") if bridge else [""]
    # The journal is root's; the bridge says it to everybody.
    if bridge is None or bridge.kind != "bridge" or first != f"tvmm-net:{name}":
        raise ConfigError(f"network {name} is not up", f"'sudo tvmm net up {name}' makes it; see 'tvmm net list'")
    return Membership(bridge_name, "isolated" in words, bridge.mtu if bridge.mtu != ORDINARY_MTU else 0)


def in_network(options: NetConfig) -> NetConfig:
    """The same with what its network asks for: bridge, isolation, and the MTU if none is given."""
    if not options.network:
        return options
    found = find_network(options.network)
    return options._replace(
        br=found.bridge, isolated=options.isolated or found.isolated, mtu=options.mtu or found.mtu
    )
