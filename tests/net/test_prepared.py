"""Taps for users without rights, and machines' taps in networks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.net_state import state
from tests.support.netns import ip
from tvmm.config.net import NetConfig
from tvmm.errors import ConfigError, HostError, UserError
from tvmm.net.links import Links
from tvmm.net.membership import in_network
from tvmm.net.network import take_down, take_up
from tvmm.net.ports import BridgePort, ports_of, tap_users
from tvmm.net.prepared import (
    Prepared,
    TapRequest,
    create_tap,
    delete_tap,
    prepared_taps,
    read_prepared,
    write_prepared,
)
from tvmm.net.spec import NetworkSpec
from tvmm.net.store import Store
from tvmm.net.tap import TapSettings, open_tap

pytestmark = pytest.mark.usefixtures("network_host")

NOBODY = 65534
ALICE = TapRequest("", Prepared("alice"), NOBODY)


def show(name: str) -> dict[str, Any]:
    """A link as iproute2 has it."""
    [link] = json.loads(ip("-d", "-j", "link", "show", "dev", name))
    assert isinstance(link, dict)
    return link


def names() -> set[str]:
    """Of all links."""
    return {link["ifname"] for link in json.loads(ip("-j", "link", "show"))}


def test_aliases() -> None:
    """What is written is read; other aliases are none."""
    for prepared in (Prepared("alice"), Prepared("@kvm", "lan")):
        assert read_prepared(write_prepared(prepared)) == prepared
    assert read_prepared("tvmm:1:2:3:made") is None
    assert read_prepared("") is None


def test_a_tap_is_made_and_removed(tmp_path: Path) -> None:
    """It stays, is up, is the user's, and has room for many queues; nothing is left of it."""
    before = state(tmp_path)
    assert create_tap(ALICE._replace(mtu=1400, gid=7)) == "vt-alice"
    link = show("vt-alice")
    data = link["linkinfo"]["info_data"]
    assert (data["persist"], data["vnet_hdr"], data["multi_queue"], data["type"]) == (True, True, True, "tap")
    assert (data["user"], data["group"]) == ("nobody", "lp")
    assert (link["mtu"], "UP" in link["flags"]) == (1400, True)
    assert [(link.name, prepared) for link, prepared in prepared_taps()] == [("vt-alice", Prepared("alice"))]
    delete_tap("vt-alice")
    assert state(tmp_path) == before


def test_names_and_queues() -> None:
    """A second tap has another name; one queue is for programs that know of no more."""
    assert [create_tap(ALICE) for _ in range(3)] == ["vt-alice", "vt-alice1", "vt-alice2"]
    create_tap(ALICE._replace(ifname="one", queues=1))
    assert show("one")["linkinfo"]["info_data"]["multi_queue"] is False
    with pytest.raises(HostError, match="there is a link one already; choose another name"):
        create_tap(ALICE._replace(ifname="one"))
    assert create_tap(ALICE._replace(prepared=Prepared("@a group/"))) == "vt-a-group-"


def test_failures_leave_nothing() -> None:
    """It is made to stay at last."""
    before = names()
    with pytest.raises(HostError, match="there is no bridge br7"):
        create_tap(ALICE._replace(bridge="br7"))
    with pytest.raises(HostError, match="link up0 is no bridge"):
        create_tap(ALICE._replace(bridge="up0"))
    with pytest.raises(HostError, match="cannot set the MTU of vt-alice to 65535"):
        create_tap(ALICE._replace(mtu=65535))
    assert names() == before


def test_only_our_own_are_removed() -> None:
    """And not while they are in use."""
    ip("tuntap", "add", "dev", "mine", "mode", "tap")
    with pytest.raises(UserError, match="mine was not made by 'tvmm net create'"):
        delete_tap("mine")
    with pytest.raises(UserError, match="there is no tap other; 'tvmm net create' makes one"):
        delete_tap("other")
    create_tap(ALICE)
    with pytest.raises(UserError, match="there is no tap other; there is vt-alice"):
        delete_tap("other")
    with open_tap(TapSettings("vt-alice"), "m"):
        assert tap_users() == {"vt-alice": (os.getpid(),)}
        with pytest.raises(UserError, match=f"tap vt-alice is in use by process {os.getpid()}; stop"):
            delete_tap("vt-alice")
        delete_tap("vt-alice", force=True)
    assert "vt-alice" not in names()


def as_nobody(queues: int) -> str:
    """What a process without any right says when it opens the tap as a machine does, and sends a frame."""
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with open_tap(TapSettings("vt-alice", queues=queues), "m") as tap:
                tap.set_offload(0)
                os.write(tap.fds[0], bytes(12) + b"\xff" * 6 + b"\x52\x54\0\0\0\1" + b"\x88\xb5" + bytes(46))
                os.write(write, f"{len(tap.fds)} {tap.backend.checksum}".encode())
        except BaseException as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize("queues", [1, 3])
def test_its_user_opens_it_without_rights(queues: int) -> None:
    """As a machine's tap; it is as before when the machine ends. Others do not get it."""
    # What is imported late may not be readable for others.
    with open_tap(TapSettings(), "m"):
        pass
    create_tap(ALICE)
    before = show("vt-alice")
    for _ in range(2):
        assert as_nobody(queues) == f"{queues} True"
    after = show("vt-alice")
    assert after["ifalias"] == before["ifalias"] == "tvmm-tap:alice"
    assert after["linkinfo"]["info_data"] == before["linkinfo"]["info_data"]
    delete_tap("vt-alice")
    create_tap(ALICE._replace(uid=NOBODY - 1))
    assert "tap vt-alice belongs to another user" in as_nobody(queues)


def test_machines_join_a_network(store: Store) -> None:
    """Bridge, isolation and MTU are the network's; it does not go down while they are in it."""
    options = NetConfig(network="lan").check()
    with pytest.raises(ConfigError, match="network lan is not up; 'sudo tvmm net up lan' makes it"):
        in_network(options)
    ip("link", "add", "tvmm-lan", "type", "bridge")
    with pytest.raises(ConfigError, match="network lan is not up"):
        in_network(options)
    ip("link", "del", "tvmm-lan")
    take_up(NetworkSpec("lan", isolated=True, mtu=1400), store)
    assert in_network(NetConfig()) == NetConfig()
    assert in_network(options._replace(mtu=1300)).mtu == 1300
    joined = in_network(options)
    assert (joined.br, joined.isolated, joined.mtu) == ("tvmm-lan", True, 1400)
    with open_tap(joined, "web") as tap:
        link = show(tap.name)
        assert (link["master"], link["mtu"]) == ("tvmm-lan", 1400)
        assert link["linkinfo"]["info_slave_data"]["isolated"] is True
        assert ports_of("tvmm-lan") == [BridgePort("vt-web", "tun", "", (os.getpid(),), True)]
        for people, who in ({}, f"process {os.getpid()}"), ({os.getpid(): "web"}, "machine web"):
            with pytest.raises(UserError, match=rf"network lan is in use by {who} \(vt-web\)"):
                take_down("lan", store, names=people)
    take_down("lan", store)


def test_taps_of_a_network(store: Store) -> None:
    """An idle one does not keep the network up, and is in it again with the next."""
    spec = NetworkSpec("lan", isolated=True)
    take_up(spec, store)
    create_tap(ALICE._replace(prepared=Prepared("alice", "lan"), bridge="tvmm-lan", isolated=True))
    assert show("vt-alice")["master"] == "tvmm-lan"
    assert [port.busy for port in ports_of("tvmm-lan")] == [False]
    assert take_down("lan", store) == [
        "not removed: vt-alice, back in the network when it is up again ('tvmm net delete')"
    ]
    assert "master" not in show("vt-alice")
    assert take_up(spec, store).notes == ("vt-alice, made for this network, is in it again",)
    assert show("vt-alice")["linkinfo"]["info_slave_data"]["isolated"] is True
    with open_tap(TapSettings("vt-alice"), "m"):
        with pytest.raises(UserError, match=rf"network lan is in use by process {os.getpid()} \(vt-alice\)"):
            take_down("lan", store)
        assert "had this network" in take_down("lan", store, force=True)[0]


def test_links_tell_their_carrier() -> None:
    """Whether somebody has a tap open."""
    create_tap(ALICE)
    with Links() as links:
        idle = links.find("vt-alice")
        with open_tap(TapSettings("vt-alice"), "m"):
            used = links.find("vt-alice")
    assert idle is not None
    assert used is not None
    assert (idle.carrier, used.carrier) == (False, True)
