"""The control queue as a driver uses it: what it says is done on the wire and in the servers before it is answered."""

from __future__ import annotations

import threading
from struct import pack

import pytest

from tests.support.driver_ring import Buffer
from tests.support.net_rig import MAC, frame, net_rig
from tests.virtio.ring_parts import FEATURES, feature_names
from tvmm.virtio.features import Net as Feature
from tvmm.virtio.net_control import ACK_ERROR, ACK_OK
from tvmm.virtio.runner.net_orders import NO_ANSWER

CONTROL = Feature.CTRL_VQ | Feature.CTRL_RX | Feature.CTRL_RX_EXTRA | Feature.CTRL_MAC_ADDR
RECEIVE = CONTROL | Feature.MRG_RXBUF
OFFLOADS = Feature.GUEST_CSUM | Feature.GUEST_TSO4 | Feature.CTRL_GUEST_OFFLOADS
OTHER = bytes.fromhex("525400000002")
GROUP = bytes.fromhex("01005e000001")

each_features = pytest.mark.parametrize("features", FEATURES, ids=feature_names)


def table(*addresses: bytes) -> bytes:
    """One table of a MAC_TABLE_SET command."""
    return pack("<I", len(addresses)) + b"".join(addresses)


@each_features
async def test_filters_hold_from_the_answer_on(features: int) -> None:
    """Before a table is set everything passes; then what is in it, and the own address, until another one is set."""
    async with net_rig() as rig:
        await rig.activate(features | RECEIVE)
        rig.fill(200)
        await rig.arrive(frame(b"all", OTHER))
        assert await rig.receive(1) == [(1, frame(b"all", OTHER))]
        assert await rig.command(b"\1\0" + table() + table(GROUP)) == ACK_OK
        for destination in (OTHER, GROUP, b"\1" * 6, MAC):
            await rig.arrive(frame(b"some", destination))
        assert await rig.receive(2) == [(1, frame(b"some", GROUP)), (1, frame(b"some"))]
        assert await rig.command(b"\1\1" + OTHER) == ACK_OK
        for destination in (MAC, OTHER):
            await rig.arrive(frame(b"moved", destination))
        assert await rig.receive(1) == [(1, frame(b"moved", OTHER))]
        assert await rig.command(b"\0\0\1") == ACK_OK
        await rig.arrive(frame(b"promiscuous"))
        assert await rig.receive(1) == [(1, frame(b"promiscuous"))]
        info = rig.runner.info()
        assert info.mac == OTHER
        assert info.counters[0].rx_filtered == 3


async def test_a_command_that_is_still_to_come_is_waited_for() -> None:
    """Memory of the guest may follow it: the server's thread has command and answer brought before it looks at them."""
    async with net_rig() as rig:
        await rig.activate(RECEIVE)
        brought: list[int] = []

        def fetch(block: str, offset: int, length: int) -> None:
            if threading.current_thread() is not threading.main_thread():
                brought.append(length)

        rig.ram.has = lambda block, offset, length: False
        rig.ram.fetch = fetch
        assert await rig.command(b"\0\0\1") == ACK_OK
        rig.ram.has = rig.ram.fetch = None
        assert sum(brought) == len(b"\0\0\1") + 1


async def test_a_reset_forgets_filters() -> None:
    """The next driver hears everything again, at the device's own address."""
    async with net_rig() as rig:
        for _ in range(2):
            await rig.activate(RECEIVE)
            rig.fill(200)
            await rig.arrive(frame(b"x", OTHER))
            assert await rig.receive(1) == [(1, frame(b"x", OTHER))]
            assert await rig.command(b"\1\0" + table() + table()) == ACK_OK
            assert await rig.command(b"\1\1" + OTHER) == ACK_OK
            await rig.reset()
        assert rig.runner.info().mac == MAC


async def test_offloads_follow_the_driver() -> None:
    """On the wire as negotiated before the first frame, then as ordered; none that was not negotiated."""
    async with net_rig() as rig:
        await rig.activate(CONTROL | OFFLOADS)
        assert rig.wire.orders == [("offload", Feature.GUEST_CSUM | Feature.GUEST_TSO4, True)]
        assert await rig.command(b"\5\0" + pack("<Q", Feature.GUEST_CSUM)) == ACK_OK
        assert await rig.command(b"\5\0" + pack("<Q", Feature.GUEST_TSO6)) == ACK_ERROR
        assert await rig.command(b"\5\0" + pack("<Q", 0)) == ACK_OK
        assert rig.wire.orders[1:] == [("offload", Feature.GUEST_CSUM, True), ("offload", 0, True)]
        assert rig.runner.info().offloads == 0


async def test_what_the_host_refuses_is_not_so() -> None:
    """The driver gets an error, and the device stays as it was."""
    async with net_rig(pairs=2) as rig:
        await rig.activate(CONTROL | OFFLOADS | Feature.MQ)
        rig.wire.refuses = True
        assert await rig.command(b"\5\0" + pack("<Q", 0)) == ACK_ERROR
        assert await rig.command(b"\4\0" + pack("<H", 2)) == ACK_ERROR
        info = rig.runner.info()
        assert (info.offloads, info.pairs) == (Feature.GUEST_CSUM | Feature.GUEST_TSO4, 1)
        rig.wire.refuses = False
        assert await rig.command(b"\4\0" + pack("<H", 2)) == ACK_OK
        assert rig.runner.info().pairs == 2


@each_features
async def test_pairs_come_and_go(features: int) -> None:
    """Frames for a pair move when the driver has asked for it, not before and not after; a reset takes all but one."""
    async with net_rig(pairs=3) as rig:
        await rig.activate(features | RECEIVE | Feature.MQ)
        for pair in range(3):
            rig.fill(200, index=2 * pair)
        await rig.arrive(frame(b"early"), 2)
        for pairs in (3, 3, 1, 2, 3):
            before = rig.runner.info().counters
            assert await rig.command(b"\4\0" + pack("<H", pairs)) == ACK_OK
            for pair in range(3):
                await rig.arrive(frame(bytes([pair])), pair)
                rig.send(frame(bytes([0x10 + pair])), 0x1000 * pair, index=2 * pair + 1)
                rig.kick(2 * pair + 1)
                await rig.wait_used(2 * pair + 1)
                if pair < pairs:
                    assert await rig.receive(1, 2 * pair) == [(1, frame(bytes([pair])))]
                    assert await rig.take(1, pair) == [frame(bytes([0x10 + pair]))]
            await rig.settle()
            after = rig.runner.info().counters
            for pair in range(pairs, 3):
                assert after[pair].rx_frames == before[pair].rx_frames
                assert after[pair].tx_link_down == before[pair].tx_link_down + 1
        assert [order[1:] for order in rig.wire.orders if order[0] == "attach"] == [
            (1, True), (2, True), (1, False), (2, False), (1, True), (2, True),
        ]  # fmt: skip
        assert await rig.command(b"\4\0" + pack("<H", 4)) == ACK_ERROR
        assert await rig.command(b"\4\0" + pack("<H", 0)) == ACK_ERROR
        await rig.reset()
        assert [order for order in rig.wire.orders if order[0] == "attach"][6:] == [
            ("attach", 1, False), ("attach", 2, False),
        ]  # fmt: skip


async def test_control_is_the_third_queue_without_mq() -> None:
    """Where the driver did not take MQ, on a device that has it; the next driver finds it where it belongs."""
    async with net_rig(pairs=2) as rig:
        for features, index in ((RECEIVE, 2), (RECEIVE | Feature.MQ, 4), (RECEIVE, 2)):
            await rig.activate(features)
            assert rig.model.control_queue == index
            assert await rig.command(b"\0\0\1") == ACK_OK
            rig.fill(100)
            await rig.arrive(frame())
            assert await rig.receive(1) == [(1, frame())]
            await rig.reset()


async def test_announcements() -> None:
    """The guest is asked, and acknowledges."""
    async with net_rig() as rig:
        await rig.activate(CONTROL | Feature.GUEST_ANNOUNCE | Feature.STATUS)
        with rig.bus_lock:
            assert rig.runner.announce()
            assert rig.model.read_config(6, 2) == 3
        assert await rig.command(b"\3\0") == ACK_OK
        with rig.bus_lock:
            assert rig.model.read_config(6, 2) == 1


@pytest.mark.parametrize("length", [1, 2, 4097, 1 << 20])
async def test_odd_commands_are_refused(length: int) -> None:
    """Too short, unknown, endless: an error, and the next one is obeyed."""
    async with net_rig() as rig:
        await rig.activate(CONTROL)
        assert await rig.command(b"\x63" * min(length, 1 << 19)) == ACK_ERROR
        assert await rig.command(b"\0\0\1") == ACK_OK


async def test_a_command_in_pieces() -> None:
    """However the driver cuts it."""
    async with net_rig() as rig:
        await rig.activate(CONTROL)
        gpa = 0xF0_0000
        rig.ram.write(gpa, b"\1\1" + OTHER + b"\xee\xee")
        rig.drivers[2].add([Buffer(gpa + at, 1, at >= 8) for at in range(10)])
        rig.kick(2)
        assert [length for _, length in await rig.wait_used(2)] == [1]
        assert rig.ram.read(gpa + 8, 2) == b"\0\xee"
        assert rig.runner.info().mac == OTHER


async def test_no_room_for_the_answer() -> None:
    """No command at all: the driver has to reset the device, and can."""
    async with net_rig() as rig:
        await rig.activate(CONTROL)
        rig.drivers[2].add([Buffer(0xF0_0000, 3)])
        rig.kick(2)
        await rig.until(lambda: rig.resets == [f"queue 2: {NO_ANSWER}"])
        await rig.reset()
        await rig.activate(CONTROL)
        assert await rig.command(b"\0\0\1") == ACK_OK
