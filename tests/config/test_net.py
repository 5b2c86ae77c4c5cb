"""Network devices: what ``--net`` takes, what it refuses, and MAC addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.config.limits import NO_LIMITS
from tvmm.config.net import NET_PROPERTIES, NetConfig, mac_for, parse_nets
from tvmm.config.net_user import Forward
from tvmm.errors import ConfigError

MAC = bytes.fromhex("5254000abcde")

NETS = {
    "tap": NetConfig(),
    "type=tap": NetConfig(),
    "tap,ifname=vm0,persist=on": NetConfig(ifname="vm0", persist=True),
    "tap,fd=5,mtu=9000": NetConfig(fd=5, mtu=9000),
    "tap,fd=0": NetConfig(fd=0),
    "tap,br=br0,isolated=on": NetConfig(br="br0", isolated=True),
    "tap,network=lan": NetConfig(network="lan"),
    "tap,network=lan,ifname=vm0,isolated=on,mtu=1400": NetConfig(network="lan", ifname="vm0", isolated=True, mtu=1400),
    "tap,mac=52:54:00:0a:BC:de,id=lan": NetConfig(mac=MAC, id="lan"),
    "tap,mac=52-54-00-0a-bc-de": NetConfig(mac=MAC),
    "tap,queues=4,queue-size=1024": NetConfig(queues=4, queue_size=1024),
    "tap,csum=off,tso4=off,tso6=off,ecn=off,uso=off": NetConfig(
        csum=False, tso4=False, tso6=False, ecn=False, uso=False
    ),
    "tap,ip=10.0.2.1/24+fd00:0::1/64": NetConfig(ip=("10.0.2.1/24", "fd00::1/64")),
    "tap,link=off,transport=mmio,poll-us=100": NetConfig(link=False, transport="mmio", poll_us=100),
    "tap,packed=on,in_order=on,event_idx=off,indirect_desc=off": NetConfig(
        packed=True, in_order=True, event_idx=False, indirect_desc=False
    ),
}

NETS |= {
    "user": NetConfig("user"),
    "user,hostfwd=tcp::2222-:22": NetConfig("user", hostfwd=(Forward("tcp", "", 2222, "", 22),)),
    "user,hostfwd=:127.0.0.1:1-10.0.2.15:2,hostfwd=udp:[::1]:53-[fec0::15]:53": NetConfig(
        "user", hostfwd=(Forward("tcp", "127.0.0.1", 1, "10.0.2.15", 2), Forward("udp", "::1", 53, "fec0::15", 53))
    ),
    "user,ipv6=off,net=10.9.0.0/255.255.0.0,host=10.9.0.1,dhcpstart=10.9.1.1,dns=10.9.0.3,mtu=65520": NetConfig(
        "user", ipv6=False, net="10.9.0.0/16", host="10.9.0.1", dhcpstart="10.9.1.1", dns="10.9.0.3", mtu=65520
    ),
    "user,ipv6-net=fd00::/64,ipv6-host=fd00::1,resolver=9.9.9.9+2620:fe::fe,dnssearch=a.example+b.example": NetConfig(
        "user", ipv6_net="fd00::/64", ipv6_host="fd00::1", resolver=("9.9.9.9", "2620:fe::fe"),
        dnssearch="a.example+b.example",
    ),
    "stream,path=/run/a,,b": NetConfig("stream", path="/run/a,b"),
    "stream,fd=5": NetConfig("stream", fd=5),
}  # fmt: skip

BAD_NETS = {
    "": "net is empty",
    "tpa": "did you mean 'tap'",
    "usr": "did you mean 'user'",
    "user,hostfwd=tcp::22": "net property hostfwd 'tcp::22' is no rule; write tcp:ADDR:PORT-GUEST:PORT",
    "user,hostfwd=icmp::22-:22": "is no rule",
    "user,hostfwd=tcp:localhost:22-:22": "address 'localhost' is no address",
    "user,hostfwd=tcp::0-:22": "has a port out of range; ports are 1 to 65535",
    "user,hostfwd=tcp::22-:65536": "has a port out of range",
    "user,hostfwd=tcp::2222-:22,hostfwd=tcp:0.0.0.0:2222-:23": "this port of the host is forwarded twice",
    "user,hostfwd=tcp::2222-10.0.2.16:22": "leads to another guest; leave the address out: it is 10.0.2.15",
    "user,hostfwd=tcp:127.0.0.1:2222-:22,ipv4=off": "is of a protocol that is off",
    "user,hostfwd=" + "+".join(f"tcp::{port}-:{port}" for port in range(1, 66)): "has 65 rules; at most 64",
    "user,ipv4=off,ipv6=off": "has nothing to carry",
    "user,net=10.0.2.1/24": "is no network; write ADDR/PREFIX",
    "user,net=10.0.2.0/29": "has too few addresses",
    "user,net=fec0::/64": "that one is called ipv6-net",
    "user,ipv6-net=fec0::/48": "is not /64 of IPv6",
    "user,ipv6-net=10.0.0.0/8": "is not /64 of IPv6",
    "user,host=10.0.3.2": "'10.0.3.2' is no host's address in 10.0.2.0/24",
    "user,dhcpstart=10.0.2.255": "is no host's address in",
    "user,host=10.0.2.15": "host and dhcpstart are the same",
    "user,host=fec0::2": "is of IPv6",
    "user,ipv6-host=10.0.2.2": "is of IPv4",
    "user,dns=10.0.2.3,resolver=10.0.0.1": "dns and resolver do not go together",
    "user,resolver=10.0.0.1+10.0.0.2+10.0.0.3+10.0.0.4": "4 addresses; at most 3",
    "user,resolver=0.0.0.0": "is no host's address",
    "user,dnssearch=a b": "is no list of domains",
    "user,mtu=65535": "too large for passt; at most 65520",
    "user,br=br0": "net user and br do not go together; it is for --net tap",
    "user,queues=2": "net user and queues do not go together",
    "user,fd=5": "it is for --net tap and --net stream",
    "tap,hostfwd=tcp::2222-:22": "net tap and hostfwd do not go together; it is for --net user",
    "tap,ipv6-net=fec0::/64": "net tap and ipv6-net do not go together",
    "stream": "needs one of path and fd",
    "stream,path=a,fd=5": "needs one of path and fd",
    "stream,path=": "is no path",
    "stream,path=" + "a" * 108: "longer than 107 bytes",
    "stream,path=a,ip=10.0.0.1/8": "net stream and ip do not go together",
    "tap,ifnmae=x": "did you mean 'ifname'",
    "tap,ifname=": "cannot name an interface",
    "tap,ifname=a234567890123456": "1 to 15 bytes",
    "tap,ifname=a/b": "cannot name an interface",
    "tap,ifname=tap%d": "without blanks, '/', ':' and '%'",
    "tap,ifname=..": "cannot name an interface",
    "tap,br=a b": "net property br 'a b' cannot name",
    "tap,network=a b": "'a b' cannot name a network",
    "tap,network=": "cannot name a network",
    "tap,network=lan,br=br0": "net network=lan and br do not go together; the network has a bridge",
    "tap,network=lan,ip=10.0.0.1/8": "net network=lan and ip do not go together",
    "tap,fd=5,network=lan": "net fd=5 and network do not go together",
    "tap,fd=5,ifname=x": "net fd=5 and ifname do not go together",
    "tap,fd=0,ip=10.0.0.1/8": "net fd=0 and ip do not go together",
    "tap,fd=5,br=br0": "fd=5 and br",
    "tap,fd=5,persist=on": "fd=5 and persist",
    "tap,fd=5,isolated=on": "fd=5 and isolated",
    "tap,fd=5,queues=2": "fd=5 has one queue",
    "tap,fd=-1": "from 0 to",
    "tap,mtu=67": "it is 68 to 65535 or 0",
    "tap,mtu=65536": "out of range",
    "tap,mac=01:00:5e:00:00:01": "is a multicast address; the first byte has to be even: 00:00:5e:00:00:01",
    "tap,mac=52:54:00:12:34": "is no MAC address; write six bytes",
    "tap,mac=52:54:00:12:34:5": "is no MAC address",
    "tap,mac=52:54:00:12:34:gg": "is no MAC address",
    "tap,mac=00:00:00:00:00:00": "is all zero",
    "tap,mac=": "is no MAC address",
    "tap,queues=0": "from 1 to 256",
    "tap,queues=257": "from 1 to 256",
    "tap,isolated=on": "isolated=on has no bridge",
    "tap,persist=on": "persist=on has no ifname",
    "tap,br=br0,ip=10.0.0.1/8": "a tap in a bridge has no address",
    "tap,ip=10.0.0.1": "'10.0.0.1' is no address with a prefix",
    "tap,ip=10.0.0.1/33": "no address with a prefix",
    "tap,ip=10.0.0.1/8+": "'' is no address with a prefix",
    "tap,ip=fe80::1%eth0/64": "no address with a prefix",
    "tap,ip=224.0.0.1/4": "no host's address",
    "tap,ip=0.0.0.0/0": "no host's address",
    "tap,ip=10.0.0.1/8+10.0.0.1/8": "is given twice",
    "tap,ip=" + "+".join(f"10.0.0.{host}/8" for host in range(1, 18)): "17 addresses; at most 16",
    "tap,csum=maybe": "neither on nor off",
}


@pytest.mark.parametrize(("text", "net"), NETS.items())
def test_nets(text: str, net: NetConfig) -> None:
    """Each spelling gives its record, and the record's spelling gives it again."""
    assert parse_nets((text,)) == (net,)
    assert NetConfig.parse(net.spelling()) == net


@pytest.mark.parametrize(("text", "complaint"), BAD_NETS.items())
def test_bad_nets(text: str, complaint: str) -> None:
    """Each mistake is told in one line that says what is possible."""
    with pytest.raises(ConfigError) as caught:
        parse_nets((text,))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_none_stands_alone() -> None:
    """``none`` is no device; beside another, or with options, it is a mistake."""
    assert parse_nets(("none",)) == parse_nets(()) == ()
    for values in (("none", "tap"), ("tap", "none"), ("none", "none")):
        with pytest.raises(ConfigError, match="none stands beside another"):
            parse_nets(values)
    with pytest.raises(ConfigError, match="none takes no options"):
        parse_nets(("none,id=x",))


@pytest.mark.parametrize(
    ("net", "complaint"),
    [
        (NetConfig(type="vde"), "there are: tap, user, stream"),
        (NetConfig(ifname="a/b"), "cannot name an interface"),
        (NetConfig(mac=b"\1\2\3\4\5\6"), "multicast"),
        (NetConfig(mac=b"\2\2"), "no MAC address"),
        (NetConfig(ip=("10.0.0.1",)), "no address with a prefix"),
        (NetConfig(mtu=1), "68 to 65535"),
    ],
)
def test_nets_made_by_hand_are_checked(net: NetConfig, complaint: str) -> None:
    """check() holds a record from a program to the same ranges."""
    with pytest.raises(ConfigError, match=complaint):
        net.check()


@pytest.mark.parametrize(
    ("text", "offloads"),
    [
        ("tap", {"csum", "tso4", "tso6", "ecn", "uso"}),
        ("tap,csum=off", set()),
        ("tap,tso4=off", {"csum", "tso6", "ecn", "uso"}),
        ("tap,tso4=off,tso6=off", {"csum", "uso"}),
        ("tap,ecn=off,uso=off", {"csum", "tso4", "tso6"}),
    ],
)
def test_offloads_have_what_they_need(text: str, offloads: set[str]) -> None:
    """Without checksums there are no segments, and ECN needs TCP segments (virtio 1.3, 5.1.3.1)."""
    assert NetConfig.parse(text).offloads == offloads


@given(st.text(max_size=80), st.integers(0, 40))
def test_macs_are_stable_and_unicast(name: str, index: int) -> None:
    """A machine's name gives the same address each time: QEMU's prefix, locally administered, unicast."""
    mac = mac_for(name, index)
    assert mac == mac_for(name, index)
    assert len(mac) == 6
    assert mac[:3] == b"\x52\x54\x00"
    assert mac != mac_for(name, index + 1)


def test_a_mac_of_ones_own_wins() -> None:
    """The address is the one given, or that of the machine's name."""
    assert NetConfig(mac=MAC).address("web", 0) == MAC
    assert NetConfig().address("web", 0) == mac_for("web", 0) != mac_for("db", 0)
    assert mac_for("web", 0).hex(":") == "52:54:00:98:1e:bd"


def test_each_field_is_a_property() -> None:
    """The table has the fields of the record, in their order, with their defaults."""
    plain = [prop for prop in NET_PROPERTIES if not prop.attribute.startswith("limits.")]
    assert (*(prop.attribute for prop in plain), "limits") == NetConfig._fields
    assert {**{prop.attribute: prop.default for prop in plain}, "limits": NO_LIMITS} == NetConfig._field_defaults
