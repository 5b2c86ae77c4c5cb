"""Networks on paper: options, the choice of addresses, rules, dnsmasq's options, and steps with what undoes them."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmm.config.net import mac_for
from tvmm.errors import ConfigError, HostError, UserError
from tvmm.net.dnsmasq import Lease, pool, read_leases
from tvmm.net.plan import HostFacts, Plan, Route, as_shell, choose_subnet, make_plan
from tvmm.net.spec import NetworkSpec, read_forward, read_host, read_port
from tvmm.net.steps import (
    LoadTable,
    MakeBridge,
    MakeFiles,
    RemoveBridge,
    RemoveTable,
    RestoreSettings,
    StartDnsmasq,
    WriteSettings,
)

FORWARD4, FORWARD6 = "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"
ACCEPT_RA = "/proc/sys/net/ipv6/conf/eth0/accept_ra"
OFF = {FORWARD4: "0", FORWARD6: "0", ACCEPT_RA: "1", "/proc/sys/net/ipv4/conf/all/accept_redirects": "1"}


def facts(**changes: Any) -> HostFacts:
    """A host with one uplink."""
    plain = HostFacts(
        links={"lo": 65536, "eth0": 1500},
        routes=[Route("0.0.0.0/0", "eth0"), Route("192.0.2.0/24", "eth0"), Route("::/0", "eth0", True)],
        settings=OFF,
        ipv6=True,
        dnsmasq="/usr/sbin/dnsmasq",
        user="dnsmasq",
        group="nogroup",
        shared={},
        seed=b"host",
        mark="0123",
        directory="/run/tvmm/net/lan",
    )
    return plain._replace(**changes)


def planned(spec: NetworkSpec | None = None, **changes: Any) -> Plan:
    """For network lan."""
    return make_plan(spec or NetworkSpec("lan"), facts(**changes))


def action(plan: Plan, kind: type[Any]) -> Any:
    """The plan's first of a kind."""
    return next(step.action for step in plan.steps if isinstance(step.action, kind))


@pytest.mark.parametrize("name", ["", "Lan", "1lan", "lan-", "-lan", "a_b", "elevenchars", "../x", "lan\n", "l n", "ü"])
def test_bad_names(name: str) -> None:
    """A name is part of a link's, a table's and a file's."""
    with pytest.raises(ConfigError, match="cannot name a network"):
        NetworkSpec(name).check()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"subnet": "10.0.0.0"}, "no network with a prefix"),
        ({"subnet": "10.0.0.0/33"}, "no network with a prefix"),
        ({"subnet": "10.0.0.0/24; drop"}, "no network with a prefix"),
        ({"subnet": "10.0.0.5/24"}, "has bits behind its prefix; write 10.0.0.0/24"),
        ({"subnet": "10.0.0.0/30"}, "has no room for guests; prefixes go from /8 to /29"),
        ({"subnet": "10.0.0.0/31", "dhcp": "off"}, "has no room for guests; prefixes go from /8 to /30"),
        ({"subnet": "0.0.0.0/0"}, "is not for hosts"),
        ({"subnet": "127.0.0.0/24"}, "is not for hosts"),
        ({"subnet": "224.0.0.0/8"}, "is not for hosts"),
        ({"subnet": "169.254.0.0/24"}, "is not for hosts"),
        ({"subnet": "fd00::/64"}, "is of IPv6; use --subnet6"),
        ({"subnet6": "10.0.0.0/24"}, "is of IPv4; use --subnet"),
        ({"subnet6": "fd00::/80"}, "is not a /64"),
        ({"subnet6": "fd00::%eth0/64"}, "no network with a prefix"),
        ({"uplink": "a b"}, "cannot name a link"),
        ({"uplink": 'e"; accept'}, "cannot name a link"),
        ({"mtu": 1279}, "out of range"),
        ({"mtu": 65536}, "out of range"),
        ({"mtu": 575, "subnet6": "none"}, "out of range"),
        ({"domain": "a..b"}, "is none"),
        ({"domain": "a\nserver=6.6.6.6"}, "is none"),
        ({"dns": ("example.org",)}, "is no address"),
        ({"dns": ("192.0.2.1",) * 9}, "9 dns servers are too many"),
        ({"hosts": (read_host("web"), read_host("WEB"))}, "host web is given twice"),
        ({"hosts": (read_host("web=10.0.0.7"),)}, "and no subnet; add --subnet"),
        ({"hosts": (read_host("web=10.0.0.1"),), "subnet": "10.0.0.0/24"}, "its first is the host's own"),
        ({"hosts": (read_host("web=10.0.0.255"),), "subnet": "10.0.0.0/24"}, "cannot be a guest's"),
        ({"hosts": (read_host("web=10.0.1.7"),), "subnet": "10.0.0.0/24"}, "cannot be a guest's"),
        ({"forwards": (read_forward("tcp:1:10.0.0.7:1"),)}, "and no subnet"),
        ({"forwards": (read_forward("tcp:1:web:1"), read_forward("tcp:1:db:1"))}, "port tcp:1 is given twice"),
        ({"forwards": (read_forward("tcp:1:web:1"),), "nat": False}, "--forward and --no-nat do not go together"),
    ],
)
def test_bad_options(options: dict[str, Any], complaint: str) -> None:
    """Each mistake has a line of its own."""
    with pytest.raises(ConfigError, match=complaint):
        NetworkSpec("lan", **options).check()


@pytest.mark.parametrize(
    "text",
    ["", "8080", "tcp:80:web", "sctp:80:web:80", "tcp:0:web:80", "tcp:80:web:65536", "tcp:80:a b:80", "tcp:٣:a:1"],
)
def test_bad_forwards(text: str) -> None:
    """Nothing else gets into a rule."""
    with pytest.raises(ConfigError):
        read_forward(text)


def test_bad_hosts_and_ports() -> None:
    """Names are for the DNS, and one line of dnsmasq's options."""
    for text in ("", "a,b", "a\nb", "-a", "web=", "web=fd00::1", "x" * 64):
        with pytest.raises(ConfigError):
            read_host(text)
    for text in ("22", "tcp:", "tcp:x", "icmp:1"):
        with pytest.raises(ConfigError):
            read_port(text)


@given(st.text(max_size=60))
def test_no_text_gets_through(text: str) -> None:
    """Whatever is read is what was written, or an error."""
    for read in (read_forward, read_host, read_port):
        try:
            found = read(text)
        except ConfigError:
            continue
        assert read(str(found)) == found


@given(
    st.text("abcdefghij", min_size=1, max_size=10),
    st.lists(st.tuples(st.integers(0, (1 << 32) - 1), st.integers(8, 32)), max_size=20),
)
def test_chosen_subnets_overlap_nothing(name: str, routes: list[tuple[int, int]]) -> None:
    """Whatever routes there are; and it is the same again."""
    taken = [IPv4Network((address >> 32 - bits << 32 - bits, bits)) for address, bits in routes]
    found = choose_subnet(name, b"seed", taken)
    assert found.is_private
    assert found.prefixlen == 24
    assert not any(found.overlaps(network) for network in taken)
    assert choose_subnet(name, b"seed", taken) == found


def test_full_hosts() -> None:
    """Networks behind a tunnel leave the other private ones; all of them leave nothing."""
    ten = IPv4Network("10.0.0.0/8")
    assert choose_subnet("lan", b"", [ten]).subnet_of(IPv4Network("172.16.0.0/12"))
    everything = [ten, IPv4Network("172.16.0.0/12"), IPv4Network("192.168.0.0/16")]
    with pytest.raises(HostError, match="no private subnet is free"):
        choose_subnet("lan", b"", everything)


def test_default_routes_take_nothing() -> None:
    """Nor do the halves of one."""
    routes = [Route(network, "tun0") for network in ("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "::/1")]
    assert planned(routes=routes).bridge == "tvmm-lan"


def test_overlaps_are_named() -> None:
    """With the route that is in the way."""
    with pytest.raises(ConfigError, match=r"overlaps 192.0.2.0/24, to which this host has a route by eth0"):
        planned(NetworkSpec("lan", subnet="192.0.2.128/25"))
    with pytest.raises(ConfigError, match=r"overlaps fd00::/48"):
        planned(NetworkSpec("lan", subnet6="fd00:0:0:1::/64"), routes=[Route("fd00::/48", "eth0")])


def test_the_plan_of_a_plain_network() -> None:
    """Rules, then the bridge, then forwarding, then the server; the host's own way out by IPv6 is kept."""
    plan = planned()
    kinds = [type(step.action) for step in plan.steps]
    assert kinds == [LoadTable, MakeBridge, WriteSettings, WriteSettings, MakeFiles, StartDnsmasq]
    assert action(plan, WriteSettings).values == ((FORWARD4, "1"),)
    assert plan.steps[3].action == WriteSettings(((ACCEPT_RA, "2"), (FORWARD6, "1")))
    assert plan.steps[3].undo == RestoreSettings(
        "ipv6 forwarding", ((FORWARD6, "1"), (ACCEPT_RA, "2")), ((FORWARD6, "0"), (ACCEPT_RA, "1"))
    )
    bridge = action(plan, MakeBridge)
    assert bridge.alias == "tvmm-net:lan"
    assert [address.split("/")[1] for address in bridge.addresses] == ["24", "64", "64"]
    assert plan.notes == ()


def test_switches_that_are_on_are_left_alone() -> None:
    """What somebody has switched on is not ours to switch off; what another network has is both's."""
    plan = planned(settings=OFF | {FORWARD4: "1", FORWARD6: "1"})
    assert not [step for step in plan.steps if isinstance(step.undo, RestoreSettings)]
    shared = RestoreSettings("ipv4 forwarding", ((FORWARD4, "1"),), ((FORWARD4, "0"),))
    plan = planned(settings=OFF | {FORWARD4: "1", FORWARD6: "1"}, shared={"ipv4 forwarding": shared})
    assert [step.undo for step in plan.steps if isinstance(step.undo, RestoreSettings)] == [shared]
    assert action(plan, WriteSettings).values == ()


def test_what_the_kernel_changes_by_the_way_is_restored() -> None:
    """Forwarding of single links, and redirects."""
    one, redirects = "/proc/sys/net/ipv4/conf/eth1/forwarding", "/proc/sys/net/ipv4/conf/all/accept_redirects"
    other = "/proc/sys/net/ipv4/conf/eth2/forwarding"
    plan = planned(NetworkSpec("lan", subnet6="none"), settings=OFF | {one: "1", other: "0", redirects: "0"})
    [undo] = [step.undo for step in plan.steps if isinstance(step.undo, RestoreSettings)]
    assert dict(undo.before) == {FORWARD4: "0", one: "1", redirects: "0"}


def test_without_dnsmasq() -> None:
    """The plan goes on with a line that says what to give guests; --dhcp does not."""
    plan = planned(NetworkSpec("lan", subnet="10.9.8.0/24"), dnsmasq="")
    assert len(plan.steps) == 4
    [note] = plan.notes
    assert "give guests addresses from 10.9.8.64 to 10.9.8.254 with prefix 24 and gateway 10.9.8.1" in note
    assert "dport { 53" not in action(plan, LoadTable).ruleset
    with pytest.raises(HostError, match="dnsmasq, which does DHCP and DNS, is not installed"):
        planned(NetworkSpec("lan", dhcp="on"), dnsmasq="")
    assert planned(NetworkSpec("lan", dhcp="off"), dnsmasq="").notes == ()


def test_without_ipv6() -> None:
    """Nothing of it anywhere, and guests cannot send it either."""
    plan = planned(NetworkSpec("lan", subnet6="none"))
    rules, bridge = action(plan, LoadTable).ruleset, action(plan, MakeBridge)
    assert 'iifname "tvmm-lan" meta nfproto ipv6 drop' in rules
    assert not bridge.ipv6
    assert len(bridge.addresses) == 1
    assert "enable-ra" not in action(plan, MakeFiles).files[0][1]
    [note] = planned(ipv6=False).notes
    assert "this host has no IPv6" in note
    with pytest.raises(HostError, match="this host has no IPv6"):
        planned(NetworkSpec("lan", subnet6="fd00::/64"), ipv6=False)


def test_machines_have_addresses_by_name() -> None:
    """A name gets the hardware address of the machine of that name, and the next free address."""
    hosts = (read_host("db=10.9.8.2"), read_host("web"))
    spec = NetworkSpec("lan", subnet="10.9.8.0/24", hosts=hosts, forwards=(read_forward("tcp:8080:www:80"),))
    plan = planned(spec)
    options = action(plan, MakeFiles).files[0][1].splitlines()
    for name, address in (("db", "10.9.8.2"), ("web", "10.9.8.3"), ("www", "10.9.8.4")):
        assert f"dhcp-host={mac_for(name, 0).hex(':')},{name},{address}" in options
    assert "tcp dport 8080 dnat ip to 10.9.8.4:80" in action(plan, LoadTable).ruleset
    with pytest.raises(ConfigError, match="needs DHCP"):
        planned(spec._replace(dhcp="off", hosts=()))
    with pytest.raises(ConfigError, match="no address left for h5"):
        planned(NetworkSpec("lan", subnet="10.9.8.0/29", hosts=tuple(read_host(f"h{n}") for n in range(9))))


def test_mtu_of_the_uplink() -> None:
    """Guests are told what passes in one piece."""
    plan = planned(links={"eth0": 1420})
    assert action(plan, MakeBridge).mtu == 1420
    assert "dhcp-option=option:mtu,1420" in action(plan, MakeFiles).files[0][1]
    assert action(planned(links={"eth0": 9000}), MakeBridge).mtu == 0
    assert action(planned(NetworkSpec("lan", mtu=9000)), MakeBridge).mtu == 9000


def test_what_is_there_is_not_touched() -> None:
    """A link of the bridge's name, and an uplink that is not there."""
    with pytest.raises(HostError, match="there is a link tvmm-lan, and it is not of a network of tvmm's"):
        planned(links={"tvmm-lan": 1500})
    with pytest.raises(HostError, match="there is no link eth7 for an uplink; there are eth0, lo"):
        planned(NetworkSpec("lan", uplink="eth7"))


@pytest.mark.parametrize(
    ("options", "there", "not_there"),
    [
        ({}, ['ip saddr 10.9.8.0/24 oifname != "tvmm-lan" masquerade', "reject with icmpx"], ["prerouting"]),
        ({"nat": False}, [], ["masquerade", "    reject with icmpx admin-prohibited\n  }\n}"]),
        ({"isolated": True}, ["ip daddr { 10.0.0.0/8", "ip6 daddr { fc00::/7"], ['oifname "tvmm-lan" accept']),
        ({"uplink": "eth0"}, ['oifname "eth0" masquerade', 'iifname "tvmm-lan" oifname != "eth0" reject'], []),
        ({"allows": (read_port("tcp:22"),)}, ["    tcp dport 22 accept\n    reject"], []),
        ({"subnet6": "2001:db8:0:7::/64"}, ["ip6 saddr != 2001:db8:0:7::/64 drop"], ["ip6 saddr 2001"]),
    ],
)
def test_rules(options: dict[str, Any], there: list[str], not_there: list[str]) -> None:
    """Each option is a rule more or less."""
    rules = action(planned(NetworkSpec("lan", subnet="10.9.8.0/24", **options)), LoadTable).ruleset
    assert rules.startswith("create table inet tvmm_lan\n")
    for text in there:
        assert text in rules
    for text in not_there:
        assert text not in rules


def test_undoing_knows_what_is_ours() -> None:
    """A bridge by its hardware address, a table by a comment; both new each time."""
    one, other = planned(), planned(mark="4567")
    for plan in (one, other):
        undos = [step.undo for step in plan.steps]
        table, bridge = undos[0], undos[1]
        assert isinstance(table, RemoveTable)
        assert f'"{table.mark}"' in action(plan, LoadTable).ruleset
        assert isinstance(bridge, RemoveBridge)
        assert bridge.mac == action(plan, MakeBridge).mac
    assert not {step.undo for step in one.steps[:2]} & {step.undo for step in other.steps[:2]}


def test_every_step_has_its_commands() -> None:
    """For people who want to see what is done."""
    lines = [line for step in planned(NetworkSpec("lan", mtu=1400)).steps for line in as_shell(step)]
    assert "ip link set tvmm-lan up" in lines
    assert f"echo 1 > {FORWARD4}" in lines
    assert "/usr/sbin/dnsmasq --conf-file=/run/tvmm/net/lan/dnsmasq.conf" in lines


def test_pools() -> None:
    """Within the subnet, behind the host's own address."""
    assert pool("10.0.0.0/29") == ("10.0.0.2", "10.0.0.6")
    assert pool("10.0.0.0/24") == ("10.0.0.64", "10.0.0.254")
    assert pool("10.0.0.0/16") == ("10.0.64.0", "10.0.255.254")


def test_leases() -> None:
    """What dnsmasq writes; other lines, of IPv6 or of nobody, are left out."""
    text = (
        "1700000000 52:54:00:00:00:01 10.0.0.64 web 01:52\n0 52:54:00:00:00:02 10.0.0.65 * *\n"
        "duid 00:01\n1700000000 1 fd00::1 web 00:01\nx y\n\n٣ a 1.2.3.4 b c\n"
    )
    assert read_leases(text) == [
        Lease("10.0.0.64", "52:54:00:00:00:01", "web", 1700000000), Lease("10.0.0.65", "52:54:00:00:00:02", "", 0)
    ]  # fmt: skip


@given(st.text(max_size=300))
def test_any_text_is_leases(text: str) -> None:
    """Or none."""
    assert all(isinstance(lease, Lease) for lease in read_leases(text))


def test_errors_are_the_users() -> None:
    """One line and status 2."""
    assert issubclass(ConfigError, UserError)
    assert issubclass(HostError, UserError)
