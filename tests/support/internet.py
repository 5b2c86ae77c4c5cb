"""A host with a way out: its "internet" is a second network namespace with a name server and a web server."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.netns import ip
from tests.support.process import read_until

__all__ = ["DNS_NAME", "HOST_ADDRESS", "SERVER", "WEB_PAGE", "internet", "need_passt"]

SERVER, HOST_ADDRESS = "192.0.2.1", "192.0.2.2"
SERVER6, HOST_ADDRESS6 = "2001:db8::1", "2001:db8::2"
DNS_NAME = "web.example"
WEB_PAGE = "a page of the internet"


def need_passt() -> None:
    """Skip the test where it is not installed."""
    if shutil.which("passt") is None:
        pytest.skip("passt is not installed: apt-get install passt")


@contextmanager
def internet(directory: Path, *, inside: str = "", servers: bool = False) -> Iterator[None]:
    """In this thread's namespace, or in that named `inside`: a link with a default route, and who is behind it.

    `servers`: a name server that knows `DNS_NAME`, and a web server with `WEB_PAGE`, both at `SERVER`.
    """
    far = f"tvmm-far-{os.getpid()}"
    here = ("-n", inside) if inside else ()
    ip("netns", "add", far)
    try:
        ip(*here, "link", "set", "lo", "up")
        ip("-n", far, "link", "set", "lo", "up")
        ip(*here, "link", "add", "out", "type", "veth", "peer", "in", "netns", far)
        for where, name, address, address6 in (
            (here, "out", HOST_ADDRESS, HOST_ADDRESS6),
            (("-n", far), "in", SERVER, SERVER6),
        ):
            ip(*where, "address", "add", f"{address}/24", "dev", name)
            ip(*where, "address", "add", f"{address6}/64", "dev", name, "nodad")
            ip(*where, "link", "set", name, "up")
        ip(*here, "route", "add", "default", "via", SERVER)
        ip(*here, "-6", "route", "add", "default", "via", SERVER6)
        allow_pings(inside)
        processes = start_servers(far, directory) if servers else []
        try:
            yield
        finally:
            for process in processes:
                process.kill()
                process.wait()
    finally:
        ip("netns", "delete", far)


def allow_pings(inside: str) -> None:
    """As systemd has it on hosts; a new namespace allows them to nobody."""
    under = ("ip", "netns", "exec", inside) if inside else ()
    knob = "/proc/sys/net/ipv4/ping_group_range"
    subprocess.run([*under, "sh", "-c", f"echo 0 2147483647 > {knob}"], check=True)


def start_servers(far: str, directory: Path) -> list[subprocess.Popen[bytes]]:
    """Both, ready."""
    for tool in ("dnsmasq", "busybox"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed: apt-get install dnsmasq-base busybox-static")
    (directory / "index.html").write_text(WEB_PAGE)
    dns = subprocess.Popen(
        [
            *("ip", "netns", "exec", far, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts"),
            *("--no-resolv", "--pid-file=", "--user=root", "--log-facility=-", "--bind-interfaces"),
            *(f"--listen-address={SERVER}", f"--address=/{DNS_NAME}/{SERVER}"),
        ],
        stderr=subprocess.PIPE,
    )
    assert dns.stderr is not None
    read_until(dns.stderr, b"started")
    web = subprocess.Popen(
        ["ip", "netns", "exec", far, "busybox", "httpd", "-f", "-vv", "-p", f"{SERVER}:80", "-h", directory]
    )
    return [dns, web]
