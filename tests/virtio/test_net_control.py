"""The network device: features by backend, configuration, control queue, receive filter."""

from __future__ import annotations

from struct import pack, unpack
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.virtio_driver import make_driver
from tests.virtio.conformance_rules import both
from tests.virtio.devices import MAC, make_net
from tvmm.errors import ConfigError
from tvmm.virtio.features import Net as Feature
from tvmm.virtio.features import Ring
from tvmm.virtio.net import Net, NetBackend, NetSettings
from tvmm.virtio.net_control import (
    ACK_ERROR,
    ACK_OK,
    AnnounceAck,
    Command,
    MacAddress,
    MacTable,
    Offloads,
    QueuePairs,
    RxMode,
    Unsupported,
    VlanFilter,
    parse,
)

if TYPE_CHECKING:
    from tvmm.virtio.net_filter import RxFilter

OTHER = bytes.fromhex("525400aaaaaa")
MULTI = bytes.fromhex("01005e000001")
BROADCAST = b"\xff" * 6


def live(features: int | None = None) -> Net:
    """An interface whose driver took `features`, or all."""
    net = make_net()
    net.negotiated(net.features if features is None else features | Ring.VERSION_1)
    return net


def table(*addresses: bytes, count: int | None = None) -> bytes:
    """An address table as in a command."""
    return pack("<I", len(addresses) if count is None else count) + b"".join(addresses)


@both
def test_layout(transport: str) -> None:
    """The fields are where the specification has them; none can be written."""
    driver = make_driver(transport, make_net)
    space = driver.stable_config(20)
    assert space[:6] == MAC
    assert unpack("<HHHIB3s", space[6:]) == (1, 2, 1500, 0xFFFF_FFFF, 0xFF, bytes(3))
    driver.initialise()
    for offset in range(20):
        driver.write_config(offset, 1, 0x55)
    assert driver.stable_config(20) == space
    assert driver.transport.mistakes == {"config-read-only": 20}


def test_offers_follow_the_backend() -> None:
    """Offloads are offered as the other end of the wire has them."""
    bare = Net(NetSettings(MAC)).features
    everything = Feature.CSUM | Feature.GUEST_CSUM | Feature.HOST_TSO4 | Feature.HOST_USO | Feature.MQ | Feature.MTU
    assert not bare & (everything | Feature.CTRL_GUEST_OFFLOADS)
    tso = Net(NetSettings(MAC, NetBackend(checksum=True, tso4=True))).features
    assert tso & Feature.HOST_TSO4
    assert not tso & (Feature.HOST_TSO6 | Feature.HOST_USO | Feature.HOST_ECN)
    for backend in (NetBackend(tso4=True), NetBackend(uso=True), NetBackend(checksum=True, ecn=True)):
        with pytest.raises(ConfigError):
            Net(NetSettings(MAC, backend))


@pytest.mark.parametrize(
    "settings",
    [
        NetSettings(MAC[:5]),
        NetSettings(MULTI),
        NetSettings(bytes(6)),
        NetSettings(MAC, pairs=0),
        NetSettings(MAC, pairs=257),
        NetSettings(MAC, mtu=67),
        NetSettings(MAC, mtu=65536),
        NetSettings(MAC, queue_size=300),
    ],
)
def test_impossible_interfaces(settings: NetSettings) -> None:
    """Settings that make no interface are refused."""
    with pytest.raises(ConfigError):
        Net(settings)


def test_where_the_control_queue_is() -> None:
    """Behind all pairs with MQ, behind the first without, nowhere without CTRL_VQ (5.1.2)."""
    assert (live().control_queue, live().usable_pairs) == (4, 2)
    assert (live(Feature.CTRL_VQ).control_queue, live(Feature.CTRL_VQ).usable_pairs) == (2, 1)
    assert live(0).control_queue is None


@pytest.mark.parametrize(
    ("command", "meaning"),
    [
        (b"\0\0\1", RxMode("promiscuous", True)),
        (b"\0\1\0", RxMode("all_multicast", False)),
        (b"\0\5\1", RxMode("no_broadcast", True)),
        (b"\1\0" + table(OTHER) + table(MULTI, MULTI), MacTable((OTHER,), (MULTI, MULTI))),
        (b"\1\0" + table() + table(), MacTable((), ())),
        (b"\1\0" + table(OTHER) + table(MULTI, count=65), MacTable((OTHER,), None)),
        (b"\1\0" + table(OTHER, count=0xFFFF_FFFF), MacTable(None, None)),
        (b"\1\1" + OTHER, MacAddress(OTHER)),
        (b"\2\0\x05\1", VlanFilter(0x105, True)),
        (b"\2\1\x05\0", VlanFilter(5, False)),
        (b"\3\0", AnnounceAck()),
        (b"\4\0\2\0", QueuePairs(2)),
        (b"\5\0" + bytes([2, 0, 0, 0, 0, 0, 0, 0x80]), Offloads(2 | 1 << 63)),
    ],
)
def test_commands(command: bytes, meaning: Command) -> None:
    """Each command as it stands; a byte more or less is none (but for tables too long to be read)."""
    assert parse(command) == meaning
    if meaning not in (MacTable((OTHER,), None), MacTable(None, None)):
        assert isinstance(parse(command[:-1]), Unsupported)
        assert isinstance(parse(command + b"\0"), Unsupported)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 6), st.integers(0, 6))
def test_any_command(data: bytes, kind: int, which: int) -> None:
    """Random bytes get an answer, and the device stays one that a record can be made of."""
    net = live()
    assert net.execute(bytes([kind, which]) + data) in (ACK_OK, ACK_ERROR)
    other = make_net()
    other.restore(net.state(), net.accepted)
    assert other.state() == net.state()


def test_commands_need_their_feature() -> None:
    """What was not negotiated is refused, and so is what never is: VLAN filters, receive-side scaling."""
    tables = b"\1\0" + table() + table()
    commands = (b"\0\0\1", b"\0\2\1", b"\1\1" + OTHER, tables, b"\3\0", b"\4\0\1\0", b"\5\0" + bytes(8))
    assert [live().execute(command) for command in commands] == [ACK_OK] * 7
    assert [live(Feature.CTRL_VQ).execute(command) for command in commands] == [ACK_ERROR] * 7
    for command in (b"\2\0\1\0", b"\4\1", b"\4\2", b"\6\0" + bytes(8), b"", b"\0"):
        assert live().execute(command) == ACK_ERROR


def test_queue_pairs() -> None:
    """One after a reset, then as many as asked for of those that there are (5.1.6.5.5.1)."""
    net = live()
    assert net.pairs == 1
    assert net.execute(b"\4\0\2\0") == ACK_OK
    assert net.pairs == 2
    for pairs in (0, 3, 0x8000):
        assert net.execute(b"\4\0" + pack("<H", pairs)) == ACK_ERROR
    assert net.pairs == 2
    net.reset()
    assert net.pairs == 1


def test_offloads() -> None:
    """All negotiated ones are on; the driver turns off and on again what it negotiated, and no more."""
    net = live(Feature.CTRL_VQ | Feature.CTRL_GUEST_OFFLOADS | Feature.CSUM | Feature.GUEST_CSUM | Feature.GUEST_TSO4)
    assert net.offloads == Feature.GUEST_CSUM | Feature.GUEST_TSO4
    assert net.execute(b"\5\0" + pack("<Q", Feature.GUEST_CSUM)) == ACK_OK
    assert net.execute(b"\5\0" + pack("<Q", Feature.GUEST_CSUM | Feature.GUEST_TSO6)) == ACK_ERROR
    assert net.offloads == Feature.GUEST_CSUM


def test_announce() -> None:
    """The bit is set with a notification and cleared by the acknowledgement (5.1.6.5.4.2)."""
    driver = make_driver("mmio", make_net)
    net = driver.device
    assert isinstance(net, Net)
    assert not net.ask_to_announce()
    driver.initialise()
    driver.shell.log.clear()
    assert net.ask_to_announce()
    assert driver.shell.interrupts() == [(None, 2)]
    assert driver.config(6, 2) == 3
    assert net.execute(b"\3\0") == ACK_OK
    assert driver.config(6, 2) == 1
    net.ask_to_announce()
    driver.reset()
    assert driver.config(6, 2) == 1


def test_link() -> None:
    """The driver hears of a cable that is pulled, and a reset does not plug it in."""
    driver = make_driver("pci", make_net)
    net = driver.device
    assert isinstance(net, Net)
    driver.initialise()
    driver.shell.log.clear()
    net.set_link(False)
    net.set_link(False)
    assert driver.shell.interrupts() == [(None, 2)]
    driver.reset()
    assert not net.link_up
    assert driver.config(6, 2) == 0


def test_mac_address() -> None:
    """The driver's own address shows in the configuration until a reset; a multicast one is none."""
    net = live()
    assert net.execute(b"\1\1" + OTHER) == ACK_OK
    assert net.execute(b"\1\1" + MULTI) == ACK_ERROR
    assert net.mac == OTHER
    copy = make_net()
    copy.restore(net.state(), net.accepted)
    copy.execute(b"\1\0" + table() + table())
    assert copy.filter.passes(OTHER)
    assert not copy.filter.passes(MAC)
    net.reset()
    assert net.mac == MAC


def test_address_comes_with_a_state() -> None:
    """A device whose guest has come from elsewhere has that one's address, also after resets, and passes it on."""
    there = live()
    state = Net(there.settings._replace(mac=OTHER)).state()
    there.restore(state, there.accepted)
    assert there.mac == there.address == there.filter.own == OTHER
    assert there.state() == state
    there.execute(b"\1\1" + MAC)
    there.reset()
    assert there.mac == there.filter.own == OTHER


@pytest.mark.parametrize("address", [b"", MAC[:5], MAC + b"\0", bytes(6), MULTI])
def test_address_that_cannot_be(address: bytes) -> None:
    """It is refused by name, and the old one stays."""
    net = live()
    with pytest.raises(ValueError, match="address"):
        net.restore(net.state()._replace(address=address), net.accepted)
    assert net.address == net.mac == MAC


def test_filter() -> None:
    """Everything at first, then what the tables and modes say (5.1.6.5.1, 5.1.6.5.2)."""
    net = live()

    def passing(where: RxFilter) -> list[bool]:
        return [where.passes(address) for address in (MAC, OTHER, MULTI, BROADCAST)]

    assert passing(net.filter) == [True] * 4
    net.execute(b"\1\0" + table() + table())
    assert passing(net.filter) == [True, False, False, True]
    net.execute(b"\1\0" + table(OTHER) + table(MULTI))
    assert passing(net.filter) == [True] * 4
    net.execute(b"\1\0" + table(count=100))
    assert passing(net.filter) == [True] * 4
    net.execute(b"\1\0" + table() + table())
    for mode, expected in (
        (0, [True, True, True, True]),
        (1, [True, False, True, True]),
        (2, [True, True, False, True]),
        (3, [True, False, False, True]),
        (4, [False, False, False, True]),
        (5, [True, False, False, False]),
    ):
        net.execute(bytes([0, mode, 1]))
        assert passing(net.filter) == expected, mode
        net.execute(bytes([0, mode, 0]))
    net.reset()
    assert passing(net.filter) == [True] * 4


def test_records_that_cannot_be() -> None:
    """Offloads, pairs and tables beyond what was negotiated are refused by name."""
    net = live()
    state = net.state()
    rules = state.filter
    for field, wrong in (
        ("pairs", state._replace(pairs=0)),
        ("pairs", state._replace(pairs=3)),
        ("offloads", state._replace(offloads=1 << 60)),
        ("unicast", state._replace(filter=rules._replace(unicast=MAC[:5]))),
        ("unicast", state._replace(filter=rules._replace(unicast=OTHER + MAC, any_unicast=False))),
        ("multicast", state._replace(filter=rules._replace(multicast=MULTI, any_multicast=True))),
        ("modes", state._replace(filter=rules._replace(modes=64))),
    ):
        fresh = make_net()
        before = fresh.state()
        with pytest.raises(ValueError, match=field):
            fresh.restore(wrong, net.accepted)
        assert fresh.state() == before
