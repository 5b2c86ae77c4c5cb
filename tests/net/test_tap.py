"""Taps in a network namespace: made, found, set up, and left as they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.netns import ip, network_namespace
from tvmm.errors import ConfigError, HostError
from tvmm.net import tun
from tvmm.net.links import Links
from tvmm.net.tap import FLAGS, TapSettings, open_tap, restore_leftovers
from tvmm.virtio.features import Net as Feature
from tvmm.virtio.net import NetBackend

EVERY_GUEST = (
    Feature.GUEST_CSUM | Feature.GUEST_TSO4 | Feature.GUEST_TSO6 | Feature.GUEST_ECN | Feature.GUEST_USO4
    | Feature.GUEST_USO6
)  # fmt: skip


@pytest.fixture(autouse=True)
def _namespace() -> Iterator[None]:
    with network_namespace():
        yield


def show(name: str) -> dict[str, Any]:
    """A link as iproute2 has it."""
    [link] = json.loads(ip("-d", "-j", "link", "show", "dev", name))
    assert isinstance(link, dict)
    return link


def names() -> set[str]:
    """Of all links."""
    return {link["ifname"] for link in json.loads(ip("-j", "link", "show"))}


def comparable(name: str) -> dict[str, Any]:
    """What a machine could have changed."""
    link = show(name)
    slave = link.get("linkinfo", {}).get("info_slave_data", {})
    kept = {key: link.get(key) for key in ("mtu", "master", "ifalias")}
    addresses = json.loads(ip("-j", "addr", "show", "dev", name))[0]["addr_info"]
    given = sorted((entry["local"], entry["prefixlen"]) for entry in addresses if entry["scope"] == "global")
    return kept | {"up": "UP" in link["flags"], "isolated": slave.get("isolated"), "ip": given}


def test_a_tap_is_made_and_goes() -> None:
    """Up, with the machine's name in its own and in its alias whose it is; gone when closed."""
    with open_tap(TapSettings(), "web") as tap:
        assert tap.name == "vt-web"
        link = show("vt-web")
        assert "UP" in link["flags"]
        assert link["ifalias"].startswith(f"tvmm:{os.getpid()}:")
        assert link["linkinfo"]["info_data"]["vnet_hdr"] is True
        assert len(tap.fds) == 1
    assert names() == {"lo"}


def test_names_are_short_and_unique() -> None:
    """15 bytes at most; a name that is taken gives way to a number."""
    with open_tap(TapSettings(), "a machine/with a long name") as one, open_tap(
        TapSettings(), "a machine/with a long name"
    ) as other:
        assert one.name == "vt-a-machine-wi"
        assert other.name == "tvmm0"


def test_offloads_are_what_host_and_user_allow() -> None:
    """All of them on a Linux of today; none without checksums."""
    with open_tap(TapSettings(), "m") as tap:
        assert tap.backend == NetBackend(True, True, True, True, True)
        tap.set_offload(EVERY_GUEST)
        tap.set_offload(0)
        tap.set_offload(EVERY_GUEST & ~Feature.GUEST_USO6)
    with open_tap(TapSettings(offloads=frozenset({"csum", "tso6"})), "m") as tap:
        assert tap.backend == NetBackend(checksum=True, tso6=True)
    with open_tap(TapSettings(offloads=frozenset({"tso4", "uso", "ecn"})), "m") as tap:
        assert tap.backend == NetBackend()


def test_each_pair_has_a_queue() -> None:
    """The first is attached; the others can be, again and again."""
    with open_tap(TapSettings(queues=3), "m") as tap:
        assert len(set(tap.fds)) == 3
        data = show(tap.name)["linkinfo"]["info_data"]
        assert (data["numqueues"], data["numdisabled"]) == (1, 2)
        for on in (True, True, False, False, True):
            tap.attach(2, on)
        data = show(tap.name)["linkinfo"]["info_data"]
        assert (data["numqueues"], data["numdisabled"]) == (2, 1)


def test_carrier_follows() -> None:
    """What the host sees of the cable."""
    with open_tap(TapSettings(), "m") as tap:
        tap.set_carrier(False)
        assert "NO-CARRIER" in show(tap.name)["flags"]
        tap.set_carrier(True)
        assert "NO-CARRIER" not in show(tap.name)["flags"]


def test_a_removed_tap_is_an_error_in_words() -> None:
    """Each method says so, and closing does not mind."""
    with open_tap(TapSettings(queues=2), "m") as tap:
        ip("link", "del", tap.name)
        actions: list[Callable[[], None]] = [
            lambda: tap.set_offload(0), lambda: tap.attach(1, True), lambda: tap.set_carrier(False)
        ]  # fmt: skip
        for action in actions:
            with pytest.raises(HostError, match=r"tap vt-m: cannot .* it has been removed"):
                action()


def test_everything_at_once() -> None:
    """MTU, bridge and isolation on a tap that is made; addresses on one without a bridge."""
    ip("link", "add", "br0", "type", "bridge")
    with open_tap(TapSettings(br="br0", mtu=9000, isolated=True), "m") as tap:
        assert comparable(tap.name) | {"ifalias": None} == {
            "mtu": 9000, "master": "br0", "up": True, "isolated": True, "ip": [], "ifalias": None,
        }  # fmt: skip
    with open_tap(TapSettings(ip=("10.9.0.1/24", "fd00::1/64")), "m") as tap:
        assert comparable(tap.name)["ip"] == [("10.9.0.1", 24), ("fd00::1", 64)]
    assert names() == {"lo", "br0"}


def test_an_existing_tap_is_left_as_it_was() -> None:
    """Whatever was changed on it, its own alias included; and twice in a row."""
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "add", "br1", "type", "bridge")
    ip("tuntap", "add", "dev", "mine", "mode", "tap")
    ip("link", "set", "mine", "mtu", "1400", "alias", "of alias=somebody", "master", "br1")
    ip("addr", "add", "10.8.0.1/24", "dev", "mine")
    before = comparable("mine")
    for _ in range(2):
        options = TapSettings("mine", br="br0", mtu=2000, isolated=True, ip=("10.9.0.1/24", "10.8.0.1/24"))
        with open_tap(options, "m"):
            during = comparable("mine")
            assert (during["mtu"], during["master"], during["up"], during["isolated"]) == (2000, "br0", True, True)
            assert during["ip"] == [("10.8.0.1", 24), ("10.9.0.1", 24)]
        assert comparable("mine") == before


def test_nothing_to_change_changes_nothing() -> None:
    """A tap that somebody prepared for a user without rights keeps even its alias."""
    ip("tuntap", "add", "dev", "mine", "mode", "tap", "multi_queue")
    ip("link", "set", "mine", "up", "alias", "hands off")
    before = comparable("mine")
    for queues in (1, 2):
        with open_tap(TapSettings("mine", queues=queues), "m") as tap:
            assert comparable("mine") == before
            assert len(tap.fds) == queues
    assert comparable("mine") == before


def test_a_persistent_tap_stays() -> None:
    """As it was set up; the next machine finds it."""
    ip("link", "add", "br0", "type", "bridge")
    for _ in range(2):
        with open_tap(TapSettings("keep", persist=True, br="br0"), "m"):
            assert comparable("keep")["master"] == "br0"
        assert comparable("keep") == {
            "mtu": 1500, "master": "br0", "up": True, "isolated": False, "ip": [], "ifalias": None,
        }  # fmt: skip


def test_a_failure_half_way_leaves_nothing() -> None:
    """No tap that was made, no change on one that was there."""
    ip("tuntap", "add", "dev", "mine", "mode", "tap")
    before = comparable("mine")
    for ifname in ("", "mine"):
        with pytest.raises(HostError, match=r"cannot set the MTU of .* to 65535"):
            open_tap(TapSettings(ifname, mtu=65535, ip=("10.9.0.1/24",)), "m")
        with pytest.raises(ConfigError, match="is in no bridge; add br=BRIDGE"):
            open_tap(TapSettings(ifname, isolated=True), "m")
    assert names() == {"lo", "mine"}
    assert comparable("mine") == before


def test_mistakes_have_a_line_and_a_way_out() -> None:
    """A bridge that is not there, a link that is no tap, one queue where two are wanted, a name in use."""
    with pytest.raises(HostError, match="no bridge br7, and no other either; 'sudo ip link add br7 type bridge"):
        open_tap(TapSettings(br="br7"), "m")
    ip("link", "add", "br0", "type", "bridge")
    with pytest.raises(HostError, match="there is no bridge br7, but br0; "):
        open_tap(TapSettings(br="br7"), "m")
    with pytest.raises(HostError, match="link br0 is no tap but a bridge; choose another ifname"):
        open_tap(TapSettings("br0"), "m")
    with pytest.raises(HostError, match="link lo is no tap; choose"):
        open_tap(TapSettings("lo"), "m")
    ip("tuntap", "add", "dev", "one", "mode", "tap")
    with pytest.raises(HostError, match=r"tap one has one queue, or is a tun; leave queues out, or .* multi_queue"):
        open_tap(TapSettings("one", queues=2), "m")
    fd = tun.open_tun()
    try:
        tun.attach_interface(fd, "one", FLAGS)
        with pytest.raises(HostError, match="tap one is in use by another program; 'ip -d link show one' shows it"):
            open_tap(TapSettings("one"), "m")
    finally:
        os.close(fd)
    with open_tap(TapSettings(queues=2), "m") as tap, pytest.raises(
        HostError, match=f"tap vt-m is in use by the machine in process {os.getpid()}"
    ):
        open_tap(TapSettings(tap.name, queues=2), "m")


def test_inherited_descriptors() -> None:
    """A tap with the right flags is taken as it is; anything else is refused with the reason."""
    fd = tun.open_tun()
    tun.attach_interface(fd, "given", FLAGS)
    with open_tap(TapSettings(fd=fd), "m") as tap:
        assert (tap.name, tap.fds) == ("given", (fd,))
        assert comparable("given") | {"mtu": 0} == {
            "mtu": 0, "master": None, "up": False, "isolated": None, "ip": [], "ifalias": None,
        }  # fmt: skip
    assert "given" not in names()
    with pytest.raises(ConfigError, match=f"net fd={fd} is not open; the program that starts tvmm has to pass it on"):
        open_tap(TapSettings(fd=fd), "m")
    with open("/dev/null", "rb") as null, pytest.raises(ConfigError, match="is no tap; it has to come from"):
        open_tap(TapSettings(fd=null.fileno()), "m")
    fd = tun.open_tun()
    tun.attach_interface(fd, "given", FLAGS & ~tun.IFF_VNET_HDR)
    with pytest.raises(ConfigError, match=f"net fd={fd} is given, opened without IFF_VNET_HDR; open it with it"):
        open_tap(TapSettings(fd=fd), "m")
    os.close(fd)


VICTIM = """
import sys
from tvmm.net.tap import TapSettings, open_tap
with open_tap(TapSettings("mine", br="br0", mtu=2000, ip=("10.9.0.1/24",)), "victim"), open_tap(
    TapSettings("made", queues=2), "victim"
):
    print("ready", flush=True)
    sys.stdin.read()
"""


def start_victim() -> subprocess.Popen[str]:
    """Another process with a machine's network, set up."""
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_a_killed_machine_left_is_undone_by_the_next() -> None:
    """A living machine's links are left alone; a dead one's are restored by whoever sets a tap up next."""
    ip("link", "add", "br0", "type", "bridge")
    ip("tuntap", "add", "dev", "mine", "mode", "tap")
    before = comparable("mine")
    with start_victim() as victim:
        try:
            during = comparable("mine")
            assert (during["master"], during["mtu"]) == ("br0", 2000)
            with open_tap(TapSettings(), "other"):
                assert comparable("mine") == during
            with pytest.raises(HostError, match=f"tap mine is in use by the machine in process {victim.pid}"):
                open_tap(TapSettings("mine"), "other")
            assert comparable("mine") == during
        finally:
            victim.send_signal(signal.SIGKILL)
    assert comparable("mine") == during
    with open_tap(TapSettings(), "other"):
        assert comparable("mine") == before
    assert names() == {"lo", "br0", "mine"}


def test_a_tap_that_outlives_its_maker_is_removed() -> None:
    """One whose alias says that a machine made it, and that machine is dead; other links that say so are not."""
    ip("tuntap", "add", "dev", "old", "mode", "tap")
    ip("link", "add", "br0", "type", "bridge")
    namespace = os.stat("/proc/self/ns/pid").st_ino
    for name in ("old", "br0"):
        ip("link", "set", name, "alias", f"tvmm:1:1:{namespace}:made")
    with Links() as links:
        assert sorted(restore_leftovers(links)) == ["br0", "old"]
    assert names() == {"lo", "br0"}


def test_two_machines_undo_their_own() -> None:
    """In one process, on two taps, closed in the order in which they were opened."""
    for name in ("a", "b"):
        ip("tuntap", "add", "dev", name, "mode", "tap")
    before = comparable("a"), comparable("b")
    one = open_tap(TapSettings("a", mtu=2000), "one")
    other = open_tap(TapSettings("b", mtu=3000), "other")
    one.close()
    assert comparable("a") == before[0]
    assert comparable("b")["mtu"] == 3000
    other.close()
    assert comparable("b") == before[1]
    other.close()


def without_right(script: str) -> str:
    """What a process prints that runs as root, but without CAP_NET_ADMIN."""
    code = f"""
import ctypes, os, sys
if len(sys.argv) == 1:
    assert ctypes.CDLL(None).prctl({PR_CAPBSET_DROP}, {CAP_NET_ADMIN}, 0, 0, 0) == 0
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], "again"])
from tvmm.errors import UserError
from tvmm.net.tap import TapSettings, open_tap
try:
    {script}
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


PR_CAPBSET_DROP, CAP_NET_ADMIN = 24, 12


def test_without_the_right_a_prepared_tap_works() -> None:
    """One that is made is refused with the ways out; one that needs a change too; one that needs none is used."""
    refused = without_right("open_tap(TapSettings(), 'm')")
    assert refused.startswith("cannot make tap vt-m: this needs the right CAP_NET_ADMIN; run tvmm as root, or have ")
    assert "'sudo tvmm net create --user $USER' tells its name for --net tap,ifname=NAME" in refused
    ip("tuntap", "add", "dev", "mine", "mode", "tap", "user", "0")
    before = comparable("mine")
    refused = without_right("open_tap(TapSettings('mine'), 'm')")
    assert refused.startswith("cannot change tap mine (it is down): this needs the right CAP_NET_ADMIN; ")
    assert "'sudo ip link set mine up' once" in refused
    assert comparable("mine") == before
    ip("link", "set", "mine", "up")
    assert without_right("print(open_tap(TapSettings('mine'), 'm').name)") == "mine"
    ip("tuntap", "add", "dev", "theirs", "mode", "tap", "user", "12345")
    assert without_right("open_tap(TapSettings('theirs'), 'm')").startswith("tap theirs belongs to another user; ")
