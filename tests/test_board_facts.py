"""What two machines have to have in common, and how a difference is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.netns import network_namespace
from tests.support.state_machines import net_devices
from tvmm import MachineConfig
from tvmm.board import Board
from tvmm.board_facts import MAX_FACTS, Facts, adopted_facts, describe_board, differences
from tvmm.errors import ProtocolError
from tvmm.state import decode, encode


def described(**options: object) -> Facts:
    """The facts of a board of these options."""
    return of_board(MachineConfig.parse(**{"memory": "64M", **options}))  # type: ignore[arg-type]


def of_board(config: MachineConfig) -> Facts:
    """The facts of a board of this configuration."""
    board = Board(config, load=False)
    try:
        return describe_board(board)
    finally:
        board.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """1 MiB."""
    path = tmp_path / "a.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.mark.kvm
def test_two_boards_of_one_configuration_do_not_differ(image: Path) -> None:
    """And their facts survive the way over the wire."""
    options = {
        "disk": [f"{image},locking=off,serial=x"],
        "device": ["virtio-console,chardev=none", "virtserialport,chardev=none,name=a", "virtio-rng", "isa-debug-exit"],
        "append": "some words",
        "cpus": 2,
    }
    first, second = described(**options), described(**options)
    assert len(first) > 25
    assert differences(first, decode(encode(second), ())) == []


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("ours", "theirs", "sentence"),
    [
        ({}, {"memory": "128M"}, "memory size is 64M here and 128M there"),
        ({"cpus": 2}, {}, "vCPU count is 2 here and 1 there"),
        ({"append": "a"}, {"append": "b"}, "kernel command line is "),
        ({"device": ["virtio-rng"]}, {}, "rng0 type (virtio-rng) is only here"),
        ({}, {"device": ["virtio-rng"]}, "rng0 place (pci 00:01.0) is only there"),
        (
            {"device": ["virtio-rng"]},
            {"device": ["virtio-rng-device"]},
            "rng0 place is pci 00:01.0 here and mmio 0xfeb00000 there",
        ),
        ({"device": ["isa-debug-exit"]}, {"device": ["isa-debug-exit,iobase=0x510"]}, "device 0 is isa-debug-exit,"),
        (
            {"device": ["virtio-rng"]},
            {"device": ["virtio-rng,max-bytes=5,period=1000"]},
            "rng0 rate limit is none here and 5 bytes in 1000000000 ns there",
        ),
        (
            {"device": ["virtio-keyboard,id=a"]},
            {"device": ["virtio-tablet,id=a,serial=x"]},
            "a kind is keyboard here and tablet there",
        ),
        (
            {"device": ["virtio-tablet"]},
            {"device": ["virtio-tablet,serial=x"]},
            "tablet0 serial is none here and x there",
        ),
        (
            {"device": ["virtio-console,chardev=none"]},
            {"device": ["virtio-console,chardev=none", "virtserialport,chardev=none,name=agent"]},
            "console0 port 1 (port agent) is only there",
        ),
    ],
)
def test_a_difference_is_a_sentence(ours: dict[str, object], theirs: dict[str, object], sentence: str) -> None:
    """It names what differs, with both values."""
    found = differences(described(**ours), described(**theirs))
    assert [line for line in found if line.startswith(sentence)], found


@pytest.mark.kvm
def test_disks_differ_in_size_serial_and_mode(image: Path, tmp_path: Path) -> None:
    """Each in a sentence of its own."""
    other = tmp_path / "b.img"
    other.write_bytes(bytes(2 << 20))
    found = differences(
        described(disk=[f"{image},locking=off,serial=one,queues=2"]),
        described(disk=[f"{other},locking=off,readonly=on,queue-size=64"]),
    )
    for sentence in (
        "disk0 size is 1M here and 2M there",
        "disk0 serial is one here and none there",
        "disk0 mode is read-write here and read-only there",
        "disk0 queue sizes is 2x256 here and 64 there",
    ):
        assert sentence in found


@pytest.mark.kvm
def test_nets_differ_in_address_and_pairs() -> None:
    """The tap's name is the host's affair and no fact."""
    config = net_devices(0)
    with network_namespace():
        ours = of_board(config)
        net = config.nets[0]._replace(mac=b"\x52\x54\0\0\0\1", queues=1, ifname="another")
        theirs = of_board(config._replace(nets=(net, config.nets[1])))
    found = differences(ours, theirs)
    assert "net0 address is 52:54:00:12:34:50 here and 52:54:00:00:00:01 there" in found
    assert "net0 pairs is 2 here and 1 there" in found
    assert [line for line in found if line.startswith("net0 feature MQ (offered) is only here")]
    assert not [line for line in found if "tvmm" in line or "another" in line or line.startswith("net1")]


def test_addresses_that_nobody_chose_are_adopted() -> None:
    """Those without mac= only; and only if both sides have such a device."""
    config = MachineConfig.parse(net=["tap", "tap,mac=52:54:00:00:00:01"])
    adopted = adopted_facts(config)
    assert adopted == {"net0 address"}
    ours, theirs = (tuple((f"net{number} address", f"{side}{number}") for number in range(2)) for side in ("a", "b"))
    assert differences(ours, theirs, adopted=adopted) == ["net1 address is a1 here and b1 there"]
    assert differences(ours[:1], (), adopted=adopted) == ["net0 address (a0) is only here"]
    assert differences((), theirs[:1], adopted=adopted) == ["net0 address (b0) is only there"]


@pytest.mark.parametrize(
    "theirs",
    [
        None,
        5,
        ((),),
        (("a",),),
        (("a", 5),),
        (("", "b"),),
        (("a", "b\n"),),
        (("a", "b" * 301),),
        (("a", "b"), ("a", "c")),
        tuple((str(number), "b") for number in range(MAX_FACTS + 1)),
        [("a", "b")],
    ],
)
def test_what_is_no_list_of_facts_is_refused(theirs: object) -> None:
    """A peer may send anything."""
    with pytest.raises(ProtocolError, match="the description of the machine"):
        differences((("a", "b"),), theirs)


SOME = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy"))


@given(SOME, SOME)
def test_there_is_a_sentence_for_each_difference(ours: dict[str, str], theirs: dict[str, str]) -> None:
    """One for each name that is not on both sides with the same value, and no other."""
    found = differences(tuple(ours.items()), tuple(theirs.items()))
    assert len(found) == sum(ours.get(name) != theirs.get(name) for name in "abc")
