"""What a network of `tvmm net up` does to packets: addresses, names, NAT, isolation. Guests are namespaces."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.net_places import INTERNET, INTERNET6, Place, guest, internet, service
from tests.support.net_state import need_programs
from tests.support.netns import network_namespace
from tests.support.process import read_until, until
from tvmm.config.net import mac_for
from tvmm.net.dnsmasq import read_leases
from tvmm.net.network import take_down, take_up
from tvmm.net.spec import NetworkSpec, read_forward, read_host, read_port
from tvmm.net.store import Store

pytestmark = pytest.mark.timeout(180)

LAN = NetworkSpec("lan", subnet="10.9.8.0/24")
HOST = "10.9.8.1"


@pytest.fixture(autouse=True)
def outside() -> Iterator[Place]:
    """This thread is the host; what is behind its uplink."""
    need_programs("nft", "dnsmasq", "busybox", "dig")
    with network_namespace(), internet() as place:
        yield place


@contextmanager
def up(tmp_path: Path, *specs: NetworkSpec) -> Iterator[Store]:
    """Networks, for as long as the block."""
    store = Store(tmp_path / "net")
    try:
        for spec in specs:
            take_up(spec, store)
        yield store
    finally:
        for name in store.names():
            take_down(name, store, force=True)


def test_addresses_names_and_the_way_out(tmp_path: Path, outside: Place) -> None:
    """DHCP, the DNS with guests' names and those of others, NAT of both families, and IPv6 by advertisement."""
    name_server = subprocess.Popen(
        ["ip", "netns", "exec", outside.name, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-hosts",
         "--no-resolv", "--address=/www.example/192.0.2.80", f"--listen-address={INTERNET}", "--bind-interfaces",
         "--pid-file="],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    spec = LAN._replace(hosts=(read_host("web=10.9.8.7"),), dns=(INTERNET,), domain="lab.internal")
    with name_server:
        try:
            read_until(name_server.stderr, b"started")
            with up(tmp_path, spec) as store, guest("a", "tvmm-lan") as one, guest("b", "tvmm-lan") as two:
                one.run("ip", "link", "set", "eth0", "address", mac_for("web", 0).hex(":"))
                assert one.dhcp(tmp_path, "whoever") == ["10.9.8.7", HOST, "lab.internal"]
                address, *_ = two.dhcp(tmp_path, "other")
                assert two.resolve("web.lab.internal", HOST) == "10.9.8.7"
                assert one.resolve("other.lab.internal", HOST) == address
                assert one.resolve("host.lab.internal", HOST) == HOST
                assert one.resolve("www.example", HOST) == "192.0.2.80"
                assert one.resolve("none.lab.internal", HOST) == ""
                leases = read_leases((store.directory / "lan/leases").read_text())
                assert {(lease.address, lease.name) for lease in leases} == {("10.9.8.7", "web"), (address, "other")}
                assert one.pings(address)
                assert one.pings(INTERNET)
                with service(outside, INTERNET, 80), service(outside, INTERNET6, 80):
                    assert one.ask(INTERNET, 80) == "203.0.113.2"
                    assert two.slaac().startswith("fd")
                    assert two.ask(INTERNET6, 80) == "2001:db8:1::2"
        finally:
            name_server.kill()


def fixed(place: Place, number: int, network: str = "10.9.8") -> Place:
    """With an address of its own."""
    place.address(f"{network}.{number}/24", f"{network}.1")
    return place


def test_the_host_is_closed(tmp_path: Path, outside: Place) -> None:
    """Its services are not the guests', at none of its addresses, but for those that were allowed; it answers pings."""
    with up(tmp_path, LAN._replace(dhcp="off", allows=(read_port("tcp:81"),))), guest("a", "tvmm-lan") as one:
        fixed(one, 20)
        with service(None, "0.0.0.0", 80), service(None, "0.0.0.0", 81), service(one, "0.0.0.0", 80):
            assert one.pings(HOST)
            for address in (HOST, "203.0.113.2"):
                assert one.ask(address, 80) == ""
                assert one.ask(address, 81) == "10.9.8.20"
            # The other way round nothing is closed.
            assert Place.ask(outside, "203.0.113.2", 80) == INTERNET
            assert _ask_from_here("10.9.8.20", 80) == HOST


def _ask_from_here(address: str, port: int) -> str:
    import socket

    with socket.create_connection((address, port), timeout=10) as peer:
        return peer.makefile().read()


def test_guests_are_not_reached_from_outside(tmp_path: Path, outside: Place) -> None:
    """With NAT only by a forward; without it as they are."""
    forwards = (read_forward("tcp:8080:10.9.8.20:80"),)
    outside.run("ip", "route", "add", "10.9.8.0/24", "via", "203.0.113.2")
    with up(tmp_path, LAN._replace(dhcp="off", forwards=forwards)), guest("a", "tvmm-lan") as one:
        fixed(one, 20)
        with service(one, "0.0.0.0", 80), guest("b", "tvmm-lan") as two:
            fixed(two, 21)
            assert outside.ask("10.9.8.20", 80) == ""
            assert outside.ask("203.0.113.2", 8080) == INTERNET
            assert _ask_from_here("203.0.113.2", 8080) == "203.0.113.2"
            # A neighbour by the host's address: it goes by way of the host, both ways.
            assert two.ask("203.0.113.2", 8080) == HOST
    with up(tmp_path, LAN._replace(dhcp="off", nat=False)), guest("a", "tvmm-lan") as one:
        fixed(one, 20)
        with service(one, "0.0.0.0", 80), service(outside, INTERNET, 80):
            assert outside.ask("10.9.8.20", 80) == INTERNET
            assert one.ask(INTERNET, 80) == "10.9.8.20"


def test_strange_addresses_go_nowhere(tmp_path: Path, outside: Place) -> None:
    """A guest sends under its own network's addresses only."""
    for network in ("10.1.1.0/24", "10.9.8.0/24"):
        outside.run("ip", "route", "add", network, "via", "203.0.113.2")
    with up(tmp_path, LAN._replace(dhcp="off", nat=False)), guest("a", "tvmm-lan") as one:
        fixed(one, 20)
        one.run("ip", "address", "add", "10.1.1.1/32", "dev", "eth0")
        assert one.pings(INTERNET)
        assert "1 packets received" not in one.run(
            "busybox", "ping", "-c", "1", "-W", "1", "-I", "10.1.1.1", INTERNET, check=False
        )


def test_isolation(tmp_path: Path, outside: Place) -> None:
    """No guest reaches another, neither by the bridge nor by way of the host, nor a private network; all get out."""
    spec = LAN._replace(isolated=True)
    outside.run("ip", "route", "add", "10.9.9.0/24", "via", "203.0.113.2")
    with (
        up(tmp_path, spec, NetworkSpec("other", subnet="10.9.9.0/24", nat=False, dhcp="off")),
        guest("a", "tvmm-lan", isolated=True) as one,
        guest("b", "tvmm-lan", isolated=True) as two,
        guest("c", "tvmm-other") as three,
        service(outside, INTERNET, 80),
    ):
        fixed(three, 30, "10.9.9")
        addresses = [place.dhcp(tmp_path, "x")[0] for place in (one, two)]
        with service(two, "0.0.0.0", 80), service(three, "0.0.0.0", 80):
            assert one.ask(addresses[1], 80, 2) == ""
            # By way of the host, as one who does not want to know what is near.
            one.run("ip", "route", "add", f"{addresses[1]}/32", "via", HOST)
            assert one.ask(addresses[1], 80, 2) == ""
            assert one.ask("10.9.9.30", 80, 2) == ""
            assert one.ask(INTERNET, 80) == "203.0.113.2"
            assert three.pings(INTERNET)
        six = two.slaac()
        one.slaac()
        assert not one.pings(six, 1)
        assert one.pings(INTERNET6)


def test_networks_are_apart(tmp_path: Path, outside: Place) -> None:
    """One does not reach into another that has NAT; each has a server of its own."""
    specs = (LAN, NetworkSpec("other", subnet="10.9.9.0/24"))
    with up(tmp_path, *specs), guest("a", "tvmm-lan") as one, guest("b", "tvmm-other") as two:
        assert one.dhcp(tmp_path, "a")[1] == HOST
        address, server, domain = two.dhcp(tmp_path, "b")
        assert (server, domain) == ("10.9.9.1", "other.internal")
        assert not one.pings(address, 1)
        assert two.pings(INTERNET)


def test_the_only_uplink(tmp_path: Path, outside: Place) -> None:
    """Other ways are closed."""
    with up(tmp_path, LAN._replace(uplink="lo", dhcp="off")), guest("a", "tvmm-lan") as one:
        fixed(one, 20)
        assert not one.pings(INTERNET, 1)
    with up(tmp_path, LAN._replace(uplink="up0", dhcp="off")), guest("a", "tvmm-lan") as one:
        fixed(one, 20)
        assert one.pings(INTERNET)


def test_leases_are_listed_until_the_end(tmp_path: Path, outside: Place) -> None:
    """The file is dnsmasq's, who is nobody by then; nothing of it stays."""
    with up(tmp_path, LAN) as store, guest("a", "tvmm-lan") as one:
        address, *_ = one.dhcp(tmp_path, "one")
        until(lambda: read_leases((store.directory / "lan/leases").read_text()))
        [lease] = read_leases((store.directory / "lan/leases").read_text())
        assert (lease.address, lease.name) == (address, "one")
        assert lease.expires > 0
    assert not store.directory.exists()
