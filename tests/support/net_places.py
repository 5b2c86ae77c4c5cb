"""Places around a host's namespace: guests at its bridges, and an internet behind its uplink; each a namespace.

Traffic stays in there. Programs run in them; addresses are those for documentation (RFC 5737, RFC 3849).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.netns import ip
from tests.support.process import read_until, until

__all__ = ["INTERNET", "INTERNET6", "Place", "guest", "internet", "service"]

INTERNET, INTERNET6 = "203.0.113.1", "2001:db8:1::1"
HOST, HOST6 = "203.0.113.2", "2001:db8:1::2"
SECONDS = 60

_SERVICE = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], int(sys.argv[2])), family=family) as server:
    print("ready", flush=True)
    while True:
        peer, address = server.accept()
        with peer:
            peer.sendall(address[0].encode())
"""
_ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as peer:
    print(peer.makefile().read())
"""
_DHCP = """#!/bin/sh
if [ "$1" = bound ]; then
    ip address add "$ip/$mask" dev "$interface" && ip route add default via "$router"
    echo "LEASE $ip $dns $domain"
fi
"""


class Place(NamedTuple):
    """A namespace with one link, eth0."""

    name: str

    def run(self, *command: str, check: bool = True) -> str:
        """What a program there prints."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, *command], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return done.stdout

    def address(self, address: str, gateway: str = "") -> None:
        """Give it one."""
        ip("-n", self.name, "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        if gateway:
            ip("-n", self.name, "-6" if ":" in gateway else "-4", "route", "add", "default", "via", gateway)

    def dhcp(self, folder: Path, hostname: str) -> list[str]:
        """Ask for an address, and take it: address, DNS server, domain."""
        script = folder / "udhcpc"
        script.write_text(_DHCP)
        script.chmod(0o755)
        out = self.run("busybox", "udhcpc", "-i", "eth0", "-s", str(script), "-nqf", "-t", "10",
                       "-x", f"hostname:{hostname}")  # fmt: skip
        [line] = [line for line in out.splitlines() if line.startswith("LEASE")]
        return line.split()[1:]

    def slaac(self) -> str:
        """The address that it has made of a router's prefix."""

        def found() -> list[str]:
            lines = ip("-n", self.name, "-6", "-o", "address", "show", "dev", "eth0", "scope", "global", "-tentative")
            return [line.split()[3].partition("/")[0] for line in lines.splitlines()]

        until(found)
        return found()[0]

    def ask(self, address: str, port: int, seconds: float = 10) -> str:
        """What a `service` there says: the address that asked, as it sees it; '' if there is no connection."""
        return self.run(sys.executable, "-c", _ASK, address, str(port), str(seconds), check=False).strip()

    def resolve(self, name: str, server: str, kind: str = "A") -> str:
        """By DNS."""
        return self.run("dig", f"@{server}", name, kind, "+short", "+tries=3", "+time=3").strip()

    def pings(self, address: str, seconds: int = 5) -> bool:
        """Whether an answer comes."""
        out = self.run("busybox", "ping", "-c", "1", "-W", str(seconds), address, check=False)
        return "1 packets received" in out


@contextmanager
def _namespace(name: str) -> Iterator[Place]:
    full = f"tvmm-{name}-{os.getpid()}"
    ip("netns", "add", full)
    try:
        ip("-n", full, "link", "set", "lo", "up")
        yield Place(full)
    finally:
        ip("netns", "del", full)


@contextmanager
def internet() -> Iterator[Place]:
    """Behind link up0, which has the default routes."""
    ip("link", "set", "lo", "up")
    with _namespace("internet") as place:
        ip("link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", place.name)
        ip("link", "set", "up0", "up")
        ip("-n", place.name, "link", "set", "eth0", "up")
        for address, gateway in ((f"{HOST}/24", INTERNET), (f"{HOST6}/64", INTERNET6)):
            ip("address", "add", address, "dev", "up0", *(["nodad"] if ":" in address else []))
            ip("-6" if ":" in address else "-4", "route", "add", "default", "via", gateway)
        place.address(f"{INTERNET}/24")
        place.address(f"{INTERNET6}/64")
        yield place


@contextmanager
def guest(name: str, bridge: str, *, isolated: bool = False) -> Iterator[Place]:
    """At a bridge of the caller's namespace, as a machine's tap would be."""
    with _namespace(name) as place:
        ip("link", "add", f"p-{name}", "type", "veth", "peer", "name", "eth0", "netns", place.name)
        ip("link", "set", f"p-{name}", "master", bridge)
        if isolated:
            ip("link", "set", f"p-{name}", "type", "bridge_slave", "isolated", "on")
        ip("link", "set", f"p-{name}", "up")
        ip("-n", place.name, "link", "set", "eth0", "up")
        yield place


@contextmanager
def service(place: Place | None, address: str, port: int) -> Iterator[None]:
    """Somebody who tells each who connects his address; None is the caller's namespace."""
    under = ["ip", "netns", "exec", place.name] if place else []
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen([*under, sys.executable, "-c", _SERVICE, address, str(port)], stdout=subprocess.PIPE)
        )
        stack.callback(process.kill)
        read_until(process.stdout, b"ready\n")
        yield
