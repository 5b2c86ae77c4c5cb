"""What a plan needs to know of this host: links, routes, settings, programs. Nothing is changed here."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tvmm.errors import HostError
from tvmm.net.plan import HostFacts, Route

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tvmm.net.links import Links
    from tvmm.net.steps import RestoreSettings

__all__ = ["NFT_SECONDS", "boot_id", "check_rights", "gather", "namespace", "nft", "strict_chains"]

CAP_NET_ADMIN = 1 << 12
NFT_SECONDS = 30.0
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
"""Programs of administrators are often not on the path of users; the environment is the command line's affair."""
_NET = Path("/proc/sys/net")


def boot_id() -> str:
    """A new one each time that the host boots."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def namespace() -> int:
    """The network namespace of this thread, as its inode."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def check_rights() -> None:
    """Raise `HostError` unless this process, and programs that it starts, may change the network."""
    words = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Cap")
    )
    effective, ambient = int(words.get("CapEff", "0"), 16), int(words.get("CapAmb", "0"), 16)
    # Only root's rights, or ambient ones, are there in programs that are started.
    if not effective & CAP_NET_ADMIN or (os.geteuid() and not ambient & CAP_NET_ADMIN):
        raise HostError(
            "this changes the host's network, which needs root (CAP_NET_ADMIN)",
            "'sudo tvmm net ...'; --dry-run shows what would be done",
        )


def nft() -> str:
    """The program. Raises `HostError` if it is not installed."""
    found = shutil.which("nft", path=_SYSTEM_PATH)
    if found is None:
        raise HostError("nft, which does NAT, is not installed", "'sudo apt-get install nftables'")
    return found


def gather(links: Links, directory: Path, name: str, shared: Mapping[str, RestoreSettings]) -> HostFacts:
    """All of it. `shared` are the settings that other networks of `directory` have changed."""
    found = links.all()
    user, group = _nobody()
    return HostFacts(
        {link.name: link.mtu for link in found},
        [Route(*route) for route in links.routes()],
        _settings(),
        _has_ipv6(),
        shutil.which("dnsmasq", path=_SYSTEM_PATH) or "",
        user,
        group,
        shared,
        _seed(),
        secrets.token_hex(8),
        str(directory / name),
    )


def _has_ipv6() -> bool:
    try:
        return (_NET / "ipv6/conf/all/disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False


def _settings() -> dict[str, str]:
    """The switches for forwarding, and what the kernel changes when they are switched."""
    paths = [_NET / "ipv4/ip_forward", _NET / "ipv4/conf/all/accept_redirects"]
    for family, names in (("ipv4", ("forwarding",)), ("ipv6", ("forwarding", "accept_ra"))):
        with suppress(OSError):
            for link in sorted(os.listdir(_NET / family / "conf")):
                paths += [_NET / family / "conf" / link / name for name in names]
    found = {}
    for path in paths:
        # A link may go meanwhile.
        with suppress(OSError):
            found[str(path)] = path.read_text().strip()
    return found


def _seed() -> bytes:
    """The same on this host each time, where hosts have a number of their own."""
    try:
        return Path("/etc/machine-id").read_bytes() or secrets.token_bytes(16)
    except OSError:
        return secrets.token_bytes(16)


def _nobody() -> tuple[str, str]:
    """Who dnsmasq is to be once it has its sockets: its own user, nobody, or root where neither can be had."""
    import grp
    import pwd

    for name in ("dnsmasq", "nobody"):
        try:
            entry = pwd.getpwnam(name)
            group = grp.getgrgid(entry.pw_gid).gr_name
        except KeyError:
            continue
        if _is_mapped("uid", entry.pw_uid) and _is_mapped("gid", entry.pw_gid):
            return name, group
    return "root", "root"


def _is_mapped(kind: str, number: int) -> bool:
    """Whether there is such a user or group in this user namespace."""
    try:
        lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
    except OSError:
        return True
    ranges = [(int(first), int(count)) for first, _, count in map(str.split, lines)]
    return any(first <= number < first + count for first, count in ranges)


def strict_chains(bridge: str) -> list[str]:
    """Chains of others that drop what they do not know, as ``TABLE CHAIN (HOOK)``: they know nothing of `bridge`."""
    try:
        listed = subprocess.run(
            [nft(), "-j", "list", "ruleset"], capture_output=True, text=True, check=True, timeout=NFT_SECONDS
        )
        entries = json.loads(listed.stdout)["nftables"]
    except (OSError, ValueError, KeyError, subprocess.SubprocessError):
        return []
    found = {}
    for entry in entries:
        chain = entry.get("chain", {})
        if chain.get("policy") == "drop" and chain.get("hook") in ("input", "forward"):
            found[chain["family"], chain["table"], chain["name"]] = chain["hook"]
    for entry in entries:
        # Whoever has a rule about this bridge has thought of it.
        rule = entry.get("rule", {})
        if f'"{bridge}"' in json.dumps(rule.get("expr", [])):
            found.pop((rule["family"], rule["table"], rule["chain"]), None)
    return [f"{family} {table} {name} ({hook})" for (family, table, name), hook in found.items()]
