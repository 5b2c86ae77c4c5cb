"""A network of `tvmm net up` from inside: the tiny Linux gets its address by DHCP, finds names, and gets out by NAT."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.linux.saved import CID, GUEST_SEES
from tests.linux.shell import Shell, inside
from tests.support.net_state import need_programs
from tests.support.process import call, started

pytestmark = [pytest.mark.linux, pytest.mark.timeout(1200)]

INTERNET = "203.0.113.1"


@contextmanager
def outside(namespace: str) -> Iterator[str]:
    """A namespace behind the uplink of `namespace`; what it is called."""
    name = f"{namespace}-out"
    for line in (
        f"netns add {name}",
        f"-n {namespace} link set lo up",
        f"-n {namespace} link add up0 type veth peer name up0 netns {name}",
        f"-n {namespace} address add 203.0.113.2/24 dev up0",
        f"-n {namespace} link set up0 up",
        f"-n {namespace} route add default via {INTERNET}",
        f"-n {name} link set lo up",
        f"-n {name} address add {INTERNET}/24 dev up0",
        f"-n {name} link set up0 up",
    ):
        subprocess.run(["ip", *line.split()], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@contextmanager
def network(namespace: str, directory: Path, *options: str) -> Iterator[None]:
    """Network lan, for the length of the block, and nothing of it afterwards."""
    net(namespace, directory, "up", "lan", *options)
    try:
        yield
    finally:
        net(namespace, directory, "down", "lan", "--force")
    assert not (directory / "net").exists()


def net(namespace: str, directory: Path, *words: str) -> str:
    """`tvmm net` in the namespace: what it prints."""
    environment = {"TVMM_RUNTIME_DIR": str(directory), "PATH": "/usr/sbin:/usr/bin:/bin"}
    status, out, err = call("net", *words, env=environment, under=inside(namespace))
    assert status == 0, err
    return out


def test_dhcp_dns_and_nat(saved_linux: Path, namespace: str) -> None:
    """The machine's name is its guest's in the DNS; the network names the machine, and has a lease for it."""
    need_programs("nft", "dnsmasq")
    options = ("--subnet", "10.9.8.0/24", "--host", "web=10.9.8.7", "--mtu", "1400")
    with tempfile.TemporaryDirectory(prefix="tvmm-") as name, outside(namespace):
        directory = Path(name)
        with network(namespace, directory, *options), started(
            *("restore", f"{saved_linux}", "--name", "web", "--net", f"tap,network=lan,{GUEST_SEES}"),
            *("--vsock", f"{directory / 'vsock'},cid={CID}"),
            environment={"TVMM_RUNTIME_DIR": str(directory)},
            under=inside(namespace),
        ) as process:
            shell = Shell(process, restored=True)
            assert shell.read("/sys/class/net/eth0/mtu") == "1400"
            shell.run("ip link set eth0 up && busybox udhcpc -i eth0 -s /etc/udhcpc -nqf -t 10")
            assert "10.9.8.7/24" in shell.run("ip address show dev eth0")
            assert "10.9.8.7" in shell.run("busybox nslookup web.lan.internal")
            assert "10.9.8.1" in shell.run("busybox nslookup host.lan.internal")
            assert "1 packets received" in shell.run(f"ping -c 1 {INTERNET}")
            shown = json.loads(net(namespace, directory, "show", "lan", "--json"))
            assert [port["machines"] for port in shown["ports"]] == [["web"]]
            assert [(lease["address"], lease["name"]) for lease in shown["leases"]] == [("10.9.8.7", "web")]
            status, _, err = call(
                "net", "down", "lan", env={"TVMM_RUNTIME_DIR": str(directory)}, under=inside(namespace)
            )
            assert status == 2
            assert "network lan is in use by machine web (vt-web); stop them first" in err
            shell.power_off()
