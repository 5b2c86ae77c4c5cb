"""``tvmm net``: what is typed, and what is printed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_completion import completions
from tests.support.net_state import need_programs, state, uplink
from tests.support.netns import ip, network_namespace
from tvmm.cli import main
from tvmm.cli.completers import group_names, network_names, prepared_tap_names, user_names
from tvmm.cli.net import tap_request
from tvmm.cli.parser import verb_parser
from tvmm.cli.verbs import find_verb
from tvmm.errors import ConfigError
from tvmm.net import do, host
from tvmm.net.prepared import Prepared
from tvmm.net.tap import TapSettings, open_tap

COMMANDS = ("up", "down", "list", "show", "create", "delete")


@pytest.fixture
def base(registry: Path) -> Iterator[Path]:
    """A namespace with a way out, and a runtime directory."""
    need_programs("nft", "dnsmasq")
    with network_namespace():
        uplink()
        yield registry
        for path in registry.glob("net/*.json"):
            main(["net", "down", path.stem, "--force"])


def told(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> tuple[str, str]:
    """Output and messages of a command."""
    capsys.readouterr()
    assert main(["net", *words]) == status
    found = capsys.readouterr()
    return found.out, found.err


def test_a_network_from_up_to_down(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command has something to say about it."""
    before = state(base)
    assert "no network is up; 'tvmm net up NAME' makes one" in told(capsys, "list")[1]
    out, err = told(capsys, "up", "lan", "--subnet", "10.9.8.0/24", "--host", "db", "--forward", "tcp:8080:web:80")
    lines = [line.split(None, 1) for line in out.splitlines()]
    assert ["bridge", "tvmm-lan"] in lines
    assert ["IPv4", "10.9.8.0/24, the host is 10.9.8.1, NAT"] in lines
    assert ["DHCP", "yes, and DNS for lan.internal"] in lines
    assert ["db", "10.9.8.2"] in lines
    assert ["forward", "tcp:8080:web:80"] in lines
    assert err == "tvmm: next: 'tvmm run --net tap,network=lan'\n"
    out, err = told(capsys, "list")
    assert re.search(r"^lan +tvmm-lan +10\.9\.8\.0/24 +fd\S+/64 +yes +\d+ +- +0 +up$", out, re.MULTILINE)
    (base / "net/lan/leases").write_text("0 52:54:00:00:00:01 10.9.8.64 web *\n")
    with open_tap(TapSettings(br="tvmm-lan"), "m"):
        out, _ = told(capsys, "show", "lan")
        assert f"port       process {os.getpid()} (vt-m)" in out
        assert re.search(r"^10\.9\.8\.64 +52:54:00:00:00:01 +web +never$", out, re.MULTILINE)
        _, err = told(capsys, "down", "lan", status=2)
        assert f"network lan is in use by process {os.getpid()} (vt-m)" in err
    out, _ = told(capsys, "list", "--json")
    [network] = json.loads(out)["networks"]
    assert (network["name"], network["state"], network["address"]) == ("lan", "up", "10.9.8.1")
    assert network["hosts"] == {"db": "10.9.8.2", "web": "10.9.8.3"}
    assert network["leases"] == [{"address": "10.9.8.64", "mac": "52:54:00:00:00:01", "name": "web", "expires": 0}]
    assert json.loads(told(capsys, "show", "lan", "--json")[0]) == network
    assert "network lan is down" in told(capsys, "down", "lan")[1]
    assert state(base) == before


def test_up_twice(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second finds it; with other options it does not do."""
    told(capsys, "up", "lan", "--no-nat")
    assert "network lan is up already" in told(capsys, "up", "lan", "--no-nat")[1]
    _, err = told(capsys, "up", "lan", status=2)
    assert "network lan is up with other options: nat is off, asked for is on; 'tvmm net down lan' first" in err


def test_dry_run_is_a_script_that_does_it(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It changes nothing by itself; a shell that reads it makes the same network."""
    before = state(base)
    script, _ = told(capsys, "up", "lan", "--dry-run", "--mtu", "1400", "--subnet", "10.9.8.0/24", "--no-dhcp")
    assert state(base) == before
    assert not (base / "net").exists()
    subprocess.run(["sh", "-e"], input=script, text=True, check=True)
    [link] = json.loads(ip("-j", "-d", "link", "show", "dev", "tvmm-lan"))
    assert (link["mtu"], link["ifalias"], link["linkinfo"]["info_kind"]) == (1400, "tvmm-net:lan", "bridge")
    assert "ip saddr 10.9.8.0/24" in state(base)["rules"]


def test_damage_is_shown(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is gone, what is of others, what cannot be read."""
    told(capsys, "up", "lan")
    ip("link", "del", "tvmm-lan")
    assert "damaged: bridge tvmm-lan is gone" in told(capsys, "list")[0]
    told(capsys, "down", "lan")
    ip("link", "add", "tvmm-x", "type", "bridge")
    ip("link", "set", "tvmm-x", "alias", "tvmm-net:x")
    out, _ = told(capsys, "list")
    assert re.search(r"^x +tvmm-x +- +- +- +- +- +0 +up \(of another user\)$", out, re.MULTILINE)
    assert "network y is not up; there is x" in told(capsys, "show", "y", status=2)[1]
    (base / "net").mkdir(0o700)
    (base / "net/bad.json").write_text("{")
    assert "bad.json cannot be read" in told(capsys, "list")[1]
    (base / "net/bad.json").unlink()
    (base / "net").rmdir()


def test_without_dnsmasq(base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said what guests need; --dhcp fails."""
    folder = base / "bin"
    folder.mkdir(0o700, parents=True)
    (folder / "nft").symlink_to(host.nft())
    monkeypatch.setattr(host, "_SYSTEM_PATH", str(folder))
    out, err = told(capsys, "up", "lan", "--subnet", "10.9.8.0/24")
    assert "dnsmasq is not installed: no DHCP, no DNS; give guests addresses from 10.9.8.64 to 10.9.8.254" in err
    assert "DHCP       no: give guests their addresses, and 10.9.8.1 as their gateway" in out
    told(capsys, "down", "lan")
    _, err = told(capsys, "up", "lan", "--dhcp", status=2)
    assert "dnsmasq, which does DHCP and DNS, is not installed; 'sudo apt-get install dnsmasq-base'" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_asked_to_end(
    number: int, base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of it: all is undone, and the status is that of the signal."""
    before = state(base), signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(do, "_start_dnsmasq", lambda *arguments: os.kill(os.getpid(), number))
        told(capsys, "up", "lan", status=128 + number)
    assert (state(base), signal.getsignal(number)) == before


def test_taps_for_users(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Made, listed, removed."""
    told(capsys, "up", "lan", "--isolated", "--mtu", "1400")
    out, err = told(capsys, "create", "--user", "nobody", "--network", "lan")
    assert out == "vt-nobody\n"
    assert "for nobody: 'tvmm run --net tap,ifname=vt-nobody'; 'tvmm net delete vt-nobody' removes it" in err
    out, _ = told(capsys, "list")
    assert re.search(r"^vt-nobody +nobody +lan +tvmm-lan +1400 +-$", out, re.MULTILINE)
    assert "port       vt-nobody, for nobody, which nobody uses" in told(capsys, "show", "lan")[0]
    with open_tap(TapSettings("vt-nobody"), "m"):
        assert f"process {os.getpid()}" in told(capsys, "list")[0]
        assert "is in use by process" in told(capsys, "delete", "vt-nobody", status=2)[1]
    [tap] = json.loads(told(capsys, "list", "--json")[0])["taps"]
    assert (tap["name"], tap["owner"], tap["network"], tap["in_use"]) == ("vt-nobody", "nobody", "lan", False)
    assert "tap vt-nobody is removed" in told(capsys, "delete", "vt-nobody")[1]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["up"], "the following arguments are required: NAME"),
        (["up", "Lan"], "'Lan' cannot name a network; it has 1 to 10 small letters"),
        (["up", "lan", "--subnet", "10.0.0.0/31"], "has no room for guests"),
        (["up", "lan", "--subnet", "203.0.113.0/25"], "overlaps 203.0.113.0/24, to which this host has a route by up0"),
        (["up", "lan", "--mtu", "x"], "'x' is no number"),
        (["up", "lan", "--dhcp", "--no-dhcp"], "--dhcp and --no-dhcp do not go together"),
        (["up", "lan", "--forward", "8080:80"], "forward '8080:80' is none; write PROTOCOL:PORT:GUEST:PORT"),
        (["up", "lan", "--uplink", "eth7"], "there is no link eth7 for an uplink; there are lo, up0, up1"),
        (["up", "lan", "--isolate"], "did you mean '--isolated'"),
        (["down", "lan"], "network lan is not up"),
        (["down", "../x"], "cannot name a network"),
        (["create"], "a tap needs an owner; add --user or --group"),
        (["create", "--user", "no-such-user"], "there is no user 'no-such-user'"),
        (["create", "--group", "no-such-group"], "there is no group 'no-such-group'"),
        (["create", "--user", "0", "--network", "lan"], "network lan is not up; 'sudo tvmm net up lan' makes it"),
        (["create", "--user", "0", "--network", "lan", "--br", "b"], "--network and --br do not go together"),
        (["create", "--user", "0", "--br", "b"], "there is no bridge b"),
        (["create", "--user", "0", "--queues", "0"], "0 queues are out of range; they go from 1 to 256"),
        (["create", "--user", "0", "--isolated"], "--isolated is of a bridge; add --network or --br"),
        (["create", "a/b", "--user", "0"], "cannot name an interface"),
        (["create", "--user", "0", "--mtu", "3"], "it is 68 to 65535 or 0"),
        (["delete", "lo"], "lo was not made by 'tvmm net create'"),
    ],
)
def test_mistakes(words: list[str], complaint: str, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, and nothing is done."""
    before = state(base)
    out, err = told(capsys, *words, status=2)
    assert out == ""
    assert complaint in err
    assert err.count("\n") == 1
    assert state(base) == before


def test_owners() -> None:
    """By name or number, user or group."""
    assert tap_request({"user": "root"})[1:4] == (Prepared("root"), 0, -1)
    assert tap_request({"user": "0", "queues": 1})[1:4] == (Prepared("root"), 0, -1)
    assert tap_request({"group": "root"})[1:4] == (Prepared("@root"), -1, 0)
    assert tap_request({"user": "3999999", "group": "root"})[1:4] == (Prepared("3999999"), 3999999, 0)
    with pytest.raises(ConfigError, match="there is no user '4294967295'"):
        tap_request({"user": "4294967295"})


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A description, examples that are right, lines that fit."""
    assert main(["net", command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "examples:\n  tvmm net" in out
    assert all(len(line) <= 110 for line in out.splitlines())
    verb = find_verb("net")
    assert verb is not None
    for line in out.partition("examples:")[2].splitlines():
        if line.startswith("  tvmm net"):
            verb_parser(verb).options(line.partition("   ")[0].partition("|")[0].split()[2:])


def test_completion(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands, networks, taps, users."""
    assert sorted(completions("tvmm net d", tmp_path)) == ["delete", "down"]
    assert completions("tvmm run --net tap,netw", tmp_path) == ["tap,network="]
    assert completions("tvmm run --net tap,network=", tmp_path) == []
    assert completions("tvmm net up lan --su", tmp_path) == ["--subnet", "--subnet6"]
    told(capsys, "up", "lan")
    told(capsys, "create", "--user", "nobody")
    assert completions("tvmm run --net tap,network=", tmp_path) == ["tap,network=lan"]
    assert network_names("l") == ["lan"]
    assert network_names("x") == []
    assert prepared_tap_names("vt") == ["vt-nobody"]
    assert "nobody" in user_names("nob")
    assert "nogroup" in group_names("nog")
    assert set(completions("tvmm net down ", tmp_path)) == {"lan", "--force", "--help"}
    told(capsys, "delete", "vt-nobody")
