"""Networks in a namespace: up, down, and everything as it was; also after a failure or a kill at any point."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.net_state import state
from tests.support.netns import ip
from tests.support.process import until
from tvmm.errors import ConfigError, HostError, UserError
from tvmm.net import do, host, network
from tvmm.net.links import Links
from tvmm.net.membership import find_network
from tvmm.net.network import take_down, take_up
from tvmm.net.plan import IPV4_FORWARD, IPV6_FORWARD
from tvmm.net.spec import NetworkSpec, read_forward
from tvmm.net.store import Store

pytestmark = pytest.mark.usefixtures("network_host")

LAN = NetworkSpec("lan")


def setting(path: str) -> str:
    """Of /proc/sys."""
    return Path(path).read_text().strip()


def test_up_and_down(store: Store, tmp_path: Path) -> None:
    """All is there, and then nothing is left."""
    before = state(tmp_path)
    done = take_up(LAN, store)
    assert done.made
    assert done.notes == ()
    during = state(tmp_path)
    assert "tvmm-lan" in {link["ifname"] for link in during["links"]}
    assert len(during["processes"]) == 1
    assert "masquerade" in during["rules"]
    assert (setting(IPV4_FORWARD), setting(IPV6_FORWARD)) == ("1", "1")
    assert stat.S_IMODE(store.path("lan").stat().st_mode) == 0o600
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    assert take_down("lan", store) == []
    assert state(tmp_path) == before


def test_up_again(store: Store, tmp_path: Path) -> None:
    """With the same options nothing happens; others are refused, and named."""
    spec = LAN._replace(isolated=True)
    journal = take_up(spec, store).journal
    before = state(tmp_path)
    for again in (spec, spec._replace(subnet=journal.fact("subnet"))):
        assert not take_up(again, store).made
    with pytest.raises(UserError, match="up with other options: nat is on, asked for is off; isolated is on, asked"):
        take_up(LAN._replace(nat=False), store)
    after = state(tmp_path)
    for what in ("rules", "settings", "processes", "files"):
        assert after[what] == before[what]


def test_the_same_addresses_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests keep theirs when a network was down for a while."""
    monkeypatch.setattr(host, "_seed", lambda: b"machine-id")
    first = take_up(LAN, store).journal
    take_down("lan", store)
    second = take_up(LAN, store).journal
    assert (first.fact("subnet"), first.fact("subnet6")) == (second.fact("subnet"), second.fact("subnet6"))


def test_networks_share_forwarding(store: Store, tmp_path: Path) -> None:
    """It is switched off with the last, in whatever order they go; subnets are different ones."""
    before = state(tmp_path)
    for order in (("a", "b", "c"), ("c", "a", "b")):
        subnets = {take_up(NetworkSpec(name), store).journal.fact("subnet") for name in "abc"}
        assert len(subnets) == 3
        for name in order:
            assert (setting(IPV4_FORWARD), setting(IPV6_FORWARD)) == ("1", "1")
            take_down(name, store)
        assert state(tmp_path) == before


def test_forwarding_of_others_stays(store: Store, tmp_path: Path) -> None:
    """What was on is not switched off; what somebody switches meanwhile is left alone."""
    Path(IPV4_FORWARD).write_text("1")
    Path("/proc/sys/net/ipv6/conf/up0/forwarding").write_text("1")
    Path("/proc/sys/net/ipv6/conf/up0/accept_ra").write_text("0")
    before = state(tmp_path)
    take_up(LAN, store)
    take_down("lan", store)
    assert state(tmp_path) == before
    take_up(LAN, store)
    Path(IPV6_FORWARD).write_text("2")
    take_down("lan", store)
    assert setting(IPV6_FORWARD) == "2"


def test_redirects_are_as_they_were(store: Store, tmp_path: Path) -> None:
    """The kernel switches them with forwarding."""
    Path("/proc/sys/net/ipv4/conf/all/accept_redirects").write_text("0")
    before = state(tmp_path)
    take_up(LAN, store)
    take_down("lan", store)
    assert state(tmp_path) == before


def test_users_change_things(store: Store, tmp_path: Path) -> None:
    """A bridge that was deleted, a table that was flushed, a server that was killed: no errors."""
    before = state(tmp_path)
    take_up(LAN, store)
    ip("link", "del", "tvmm-lan")
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    [pid] = do.dnsmasq_pids(f"{store.directory}/lan/dnsmasq.conf")
    os.kill(pid, signal.SIGKILL)
    until(lambda: not do.dnsmasq_pids(f"{store.directory}/lan/dnsmasq.conf"))
    take_down("lan", store)
    assert state(tmp_path) == before


def test_what_took_the_place_is_left_alone(store: Store, tmp_path: Path) -> None:
    """A bridge and a table of the same names, that somebody else made."""
    take_up(LAN, store)
    ip("link", "del", "tvmm-lan")
    ip("link", "add", "tvmm-lan", "type", "bridge")
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    subprocess.run(["nft", "add", "table", "inet", "tvmm_lan"], check=True)
    take_down("lan", store)
    after = state(tmp_path)
    assert "tvmm-lan" in {link["ifname"] for link in after["links"]}
    assert "tvmm_lan" in after["rules"]


def test_a_damaged_network_is_made_anew(store: Store, tmp_path: Path) -> None:
    """If nobody is in it; else whoever is has to be asked."""
    take_up(LAN, store)
    ip("link", "del", "tvmm-lan")
    done = take_up(LAN, store)
    assert done.made
    assert done.notes == ("network lan was damaged (bridge tvmm-lan is gone): it is made anew",)
    assert find_network("lan").bridge == "tvmm-lan"
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    ip("link", "add", "p0", "type", "veth", "peer", "name", "p1")
    ip("link", "set", "p0", "master", "tvmm-lan")
    with pytest.raises(UserError, match=r"damaged \(table tvmm_lan is gone\), and in use by link p0; .* --force"):
        take_up(LAN, store)


def test_down_asks_who_is_there(store: Store) -> None:
    """Ports are named; --force does not mind them."""
    take_up(LAN, store)
    ip("link", "add", "p0", "type", "veth", "peer", "name", "p1")
    ip("link", "set", "p0", "master", "tvmm-lan")
    with pytest.raises(UserError, match="network lan is in use by link p0; stop them first, or"):
        take_down("lan", store)
    assert take_down("lan", store, force=True) == ["link p0 had this network, and have none now"]


def test_not_ours(store: Store) -> None:
    """A network that is not up, and a bridge of somebody else's."""
    with pytest.raises(UserError, match="network lan is not up; 'tvmm net up lan' makes it"):
        take_down("lan", store)
    ip("link", "add", "tvmm-lan", "type", "bridge")
    with pytest.raises(UserError, match="there is a link tvmm-lan, but no journal that says that tvmm made it"):
        take_down("lan", store)
    with pytest.raises(HostError, match="there is a link tvmm-lan, and it is not of a network of tvmm's"):
        take_up(LAN, store)
    with pytest.raises(ConfigError, match="network lan is not up"):
        find_network("lan")
    with pytest.raises(ConfigError, match="cannot name a network"):
        take_down("../../etc/passwd", store)
    take_up(NetworkSpec("a"), store)
    with pytest.raises(UserError, match="network b is not up; there is a"):
        take_down("b", store)


def test_a_table_of_somebody_else(store: Store, tmp_path: Path) -> None:
    """It stays, and the network is not made."""
    subprocess.run(["nft", "add", "table", "inet", "tvmm_lan"], check=True)
    before = state(tmp_path)
    with pytest.raises(HostError, match=r"nft says: .*File exists; .*'sudo nft delete table inet tvmm_lan'"):
        take_up(LAN, store)
    assert state(tmp_path) == before


def test_nft_is_missing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is done."""
    before = state(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(host, "_SYSTEM_PATH", str(tmp_path))
        with pytest.raises(HostError, match=r"nft, which does NAT, is not installed; 'sudo"):
            take_up(LAN, store)
    assert state(tmp_path) == before


def test_no_rights(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is done, with the way to look at it."""
    script = """
import os, sys
from pathlib import Path
from tvmm.errors import HostError
from tvmm.net.network import plan, take_up
from tvmm.net.spec import NetworkSpec
from tvmm.net.store import Store
store = Store(Path(sys.argv[1]))
# What is imported late may not be readable for others.
plan(NetworkSpec("lan"), store)
os.setgid(65534); os.setuid(65534)
assert len(plan(NetworkSpec("lan"), store).steps) == 6
try:
    take_up(NetworkSpec("lan"), store)
except HostError as error:
    print(error)
"""
    found = subprocess.run(
        [sys.executable, "-c", script, "/nonexistent/net"], capture_output=True, text=True, check=True
    )
    assert "which needs root (CAP_NET_ADMIN); 'sudo tvmm net ...'; --dry-run shows" in found.stdout


def test_dnsmasq_does_not_start(store: Store, tmp_path: Path) -> None:
    """What it says is told, and all is undone: somebody has its port."""
    import socket

    before = state(tmp_path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 53))
        with pytest.raises(HostError, match=r"dnsmasq did not start: failed to create listening socket .* in use; "):
            take_up(LAN, store)
    assert state(tmp_path) == before


FAILURES = ["_nft", "_make_bridge", "_write", "_make_files", "_start_dnsmasq"]


@pytest.mark.parametrize("function", FAILURES)
def test_a_failing_step(function: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever it is, before it or behind it: nothing is left."""
    before = state(tmp_path)
    real: Callable[..., Any] = getattr(do, function)
    for early in (True, False):
        failed: list[int] = []

        def failing(*arguments: Any, early: bool = early, failed: list[int] = failed, **more: Any) -> Any:
            if failed:
                return real(*arguments, **more)
            failed.append(1)
            if not early:
                real(*arguments, **more)
            raise HostError("it does not work")

        with monkeypatch.context() as patch:
            patch.setattr(do, function, failing)
            with pytest.raises(HostError, match="it does not work"):
                take_up(LAN, store)
        assert state(tmp_path) == before


def test_an_undo_that_fails_is_kept(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal still has what is left, and a second try goes on there."""
    before = state(tmp_path)
    take_up(LAN, store)

    def failing(*arguments: Any) -> None:
        raise HostError("it does not work")

    with monkeypatch.context() as patch:
        patch.setattr(do, "_restore", failing)
        with pytest.raises(HostError, match="it does not work"):
            take_down("lan", store)
    journal = store.read("lan")
    assert journal is not None
    assert not journal.complete
    assert len(journal.undos) == 4
    take_down("lan", store)
    assert state(tmp_path) == before


class Killer:
    """Ends this process for good at one of the moments that matter; counts them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0

    def moment(self) -> None:
        """It may be now."""
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str) -> None:
        """Before and after each call of a function."""
        real = getattr(owner, name)

        def replaced(*arguments: Any, **more: Any) -> Any:
            self.moment()
            found = real(*arguments, **more)
            self.moment()
            return found

        setattr(owner, name, replaced)


def killed_up(store: Store, at: int) -> int:
    """`take_up` in a process that is killed at moment `at`; how many moments there were, if it got through."""
    pid = os.fork()
    if pid == 0:
        try:
            killer = Killer(at)
            for owner, name in (
                (os, "replace"), (do, "_nft"), (do, "_write"), (do, "_start_dnsmasq"), (do, "_make_files"),
                (Links, "change"), (Links, "make_bridge"), (Links, "address"), (os, "unlink"),
            ):  # fmt: skip
                killer.around(owner, name)
            take_up(LAN, store)
            os._exit(killer.count)
        finally:
            os._exit(255)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return 0
    assert os.WEXITSTATUS(status) != 255
    return os.WEXITSTATUS(status)


@pytest.mark.timeout(300)
def test_killed_at_every_moment(store: Store, tmp_path: Path) -> None:
    """`down` then undoes what there is, to the last bit; or there is nothing, and no journal."""
    before = state(tmp_path)
    at = 1
    while True:
        moments = killed_up(store, at)
        if moments:
            assert moments == at - 1
            take_down("lan", store)
            assert state(tmp_path) == before
            break
        if store.path("lan").exists():
            take_down("lan", store)
        else:
            # Killed before the first journal was whole: what there is of it goes with the next that is up.
            take_up(LAN, store)
            take_down("lan", store)
        assert state(tmp_path) == before, f"moment {at}"
        at += 1
    assert at > 40


def test_up_after_a_kill(store: Store, tmp_path: Path) -> None:
    """What was left is undone first."""
    before = state(tmp_path)
    for at in (10, 25):
        assert killed_up(store, at) == 0
        done = take_up(LAN, store)
        assert done.notes == ("undid what was left of network lan",)
        take_down("lan", store)
        assert state(tmp_path) == before


def test_programs_outlive_who_started_them(store: Store, tmp_path: Path) -> None:
    """A network cannot go down while an nft of a killed `up` still runs: it would load its rules afterwards."""
    before = state(tmp_path)
    fifo, wrapper = tmp_path / "fifo", tmp_path / "nft"
    os.mkfifo(fifo)
    wrapper.write_text(f'#!/bin/sh\nread line < {fifo}\nexec {host.nft()} "$@"\n')
    wrapper.chmod(0o700)
    pid = os.fork()
    if pid == 0:
        do.nft = lambda: str(wrapper)  # type: ignore[attr-defined]
        try:
            take_up(LAN, store)
        finally:
            os._exit(1)
    # The wrapper has the fifo open as soon as this opens too.
    with open(fifo, "w") as gate:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with open("/proc/thread-self/ns/net", "rb"):
            waiting = subprocess.Popen(
                [sys.executable, "-c", DOWN, str(store.directory)], stdout=subprocess.PIPE, text=True
            )
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "waits\n"
        gate.write("go\n")
    assert waiting.stdout.read() == "down\n"
    assert waiting.wait(60) == 0
    fifo.unlink()
    wrapper.unlink()
    assert state(tmp_path) == before


DOWN = """
import sys, time
from pathlib import Path
from tvmm.net.network import take_down
from tvmm.net import store
def look(seconds, real=time.sleep, said=[]):
    if not said:
        said.append(1)
        print("waits", flush=True)
    real(seconds)
store.time.sleep = look
take_down("lan", store.Store(Path(sys.argv[1])))
print("down", flush=True)
"""


def test_other_places(store: Store, tmp_path: Path) -> None:
    """A journal of another network namespace is left alone, or forgotten by force; one of another boot is old."""
    before = state(tmp_path)
    journal = take_up(LAN, store).journal
    store.write(journal._replace(namespace=1))
    for action in (lambda: take_down("lan", store), lambda: take_up(LAN, store)):
        with pytest.raises(HostError, match="network lan was set up in another network namespace; do this there, or"):
            action()
    assert "was of another network namespace" in take_down("lan", store, force=True)[0]
    assert not store.names()
    assert not do.dnsmasq_pids(f"{store.directory}/lan/dnsmasq.conf")
    assert find_network("lan").bridge == "tvmm-lan"
    # Here it is ours again.
    store.directory.mkdir(0o700)
    store.write(journal)
    take_down("lan", store)
    assert state(tmp_path) == before
    journal = take_up(LAN, store).journal
    ip("link", "del", "tvmm-lan")
    store.write(journal._replace(boot="another", undos=journal.undos[4:]))
    assert "or boot" in take_down("lan", store)[0]
    assert not store.directory.exists()


def test_spoilt_journals(store: Store) -> None:
    """An error that names the file; other networks come and go all the same."""
    take_up(NetworkSpec("good"), store)
    store.path("bad").write_text("{")
    for action in (lambda: take_up(NetworkSpec("bad"), store), lambda: take_down("bad", store)):
        with pytest.raises(HostError, match=r"bad.json cannot be read"):
            action()
    take_down("good", store)
    store.path("bad").unlink()
    store.path("bad").symlink_to("/etc/passwd")
    with pytest.raises(HostError, match="cannot read"):
        take_down("bad", store)
    store.path("bad").unlink()


def test_many_at_once(store: Store, tmp_path: Path) -> None:
    """Ups and downs of several processes wait for one another, and leave nothing."""
    before = state(tmp_path)
    script = """
import sys
from pathlib import Path
from tvmm.net.network import take_down, take_up
from tvmm.net.spec import NetworkSpec
from tvmm.net.store import Store
store = Store(Path(sys.argv[1]))
for _ in range(1):
    take_up(NetworkSpec(sys.argv[2]), store)
    take_down(sys.argv[2], store)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(store.directory), name]) for name in ("a", "b", "c")
    ]
    assert [process.wait(100) for process in processes] == [0, 0, 0]
    assert state(tmp_path) == before


def test_strict_firewalls_are_pointed_out(store: Store) -> None:
    """Another table that drops what it does not know; unless it knows the bridge."""
    rules = "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; %s }; }"
    subprocess.run(["nft", rules % ""], check=True)
    [note] = take_up(LAN, store).notes
    assert "ip filter FORWARD (forward) drops what it does not know: have it accept tvmm-lan" in note
    take_down("lan", store)
    subprocess.run(["nft", "flush ruleset; " + rules % 'iifname "tvmm-lan" accept;'], check=True)
    assert take_up(LAN, store).notes == ()


def test_interrupted(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle is undone as an error is."""
    before = state(tmp_path)

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(do, "_start_dnsmasq", interrupted)
        with pytest.raises(KeyboardInterrupt):
            take_up(LAN, store)
    assert state(tmp_path) == before
    assert threading.active_count() >= 1
    assert network.plan(LAN._replace(forwards=(read_forward("tcp:80:web:80"),)), store).steps
