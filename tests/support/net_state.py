"""The whole state of a network namespace, and of a directory: to compare before and after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.netns import ip

__all__ = ["need_programs", "state", "uplink"]

_CHANGING = ("stats", "stats64", "valid_life_time", "preferred_life_time", "flags", "operstate")
_CACHES = ("route/", "neigh/", "/stable_secret", "ipv4/tcp_", "/gc_", "fs/")
"""Settings that count, or cannot be read."""


def need_programs(*names: str) -> None:
    """Skip the test if one of these is not installed."""
    for name in names:
        if shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            pytest.skip(f"{name} is not installed: apt-get install nftables dnsmasq-base iproute2 busybox-static")


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        kept = [key for key in value if key not in _CHANGING and not key.endswith("_timer")]
        return {key: _steady(value[key]) for key in kept}
    return [_steady(entry) for entry in value] if isinstance(value, list) else value


def _settings() -> dict[str, str]:
    found = {}
    for family in ("ipv4", "ipv6"):
        for folder, _, names in os.walk(f"/proc/sys/net/{family}"):
            for name in names:
                path = f"{folder}/{name}"
                if not any(part in path for part in _CACHES):
                    try:
                        found[path] = Path(path).read_text()
                    except OSError:
                        continue
    return found


def state(directory: Path) -> dict[str, Any]:
    """Links, addresses, routes, rules, settings; processes with `directory` in their command line; files in it."""
    processes = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in words and b"dnsmasq" in words:
            processes.append(words)
    nft = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    return {
        "links": _steady(json.loads(ip("-d", "-j", "link"))),
        "addresses": _steady(json.loads(ip("-j", "addr"))),
        "routes": sorted(ip("route", "show", "table", "all").splitlines()),
        "routes6": sorted(ip("-6", "route", "show", "table", "all").splitlines()),
        "rules": nft.stdout,
        "settings": _settings(),
        "processes": processes,
        "files": sorted(str(path) for path in directory.rglob("*") if path.name != ".lock" or path.parent != directory),
    }


def uplink() -> None:
    """A way out of this namespace, that leads nowhere: up0, with the default route."""
    ip("link", "set", "lo", "up")
    ip("link", "add", "up0", "type", "veth", "peer", "name", "up1")
    # Addresses that the kernel would make later are no part of what is compared.
    for link in ("up0", "up1"):
        ip("link", "set", link, "addrgenmode", "none")
        ip("link", "set", link, "up")
    ip("address", "add", "203.0.113.2/24", "dev", "up0")
    ip("route", "add", "default", "via", "203.0.113.1")
