"""Frames between a driver's rings and the host's network, through a real tap."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from struct import pack

import pytest
import trio

from tests.support.net_rig import MAC, PATIENCE_S, Received, frame, net_rig
from tests.support.netns import ip, network_namespace
from tvmm.net.tap import Tap, TapSettings, open_tap
from tvmm.virtio.features import Net as Feature

MERGEABLE = Feature.MRG_RXBUF
ETH_P_ALL = 3
TYPE = 0x88B5
HOST = bytes.fromhex("525400000099")
NEEDS_CSUM, GSO_TCPV4 = 1, 1


@pytest.fixture(autouse=True)
def _namespace() -> Iterator[None]:
    with network_namespace():
        yield


@pytest.fixture
def tap() -> Iterator[Tap]:
    """With two queues."""
    with open_tap(TapSettings(queues=2), "m") as made:
        yield made


@pytest.fixture
def host(tap: Tap) -> Iterator[socket.socket]:
    """The host's side of the wire."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ALL)) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        made.bind((tap.name, ETH_P_ALL))
        yield made


async def hear(host: socket.socket, kind: int = TYPE) -> bytes:
    """The next frame of this type from the guest; the host's own chatter is left out."""
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                data, (_, _, direction, _, _) = host.recvfrom(1 << 17)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(host)
                continue
            if direction != socket.PACKET_OUTGOING and data[12:14] == pack(">H", kind):
                return data


def segment(length: int, header: bytes) -> bytes:
    """A TCP segment over IPv4 of so many bytes of payload, that the host is to divide."""
    tcp = pack(">HHIIBBHHH", 1000, 2000, 1, 0, 0x50, 0x10, 1000, 0, 0)
    packet = pack(">BBHHHBBH4s4s", 0x45, 0, 40 + length, 1, 0, 64, 6, 0, b"\x0a\0\0\x0f", b"\x0a\0\0\x02")
    return header + HOST + MAC + b"\x08\0" + packet + tcp + bytes(length)


def gso_header(size: int, kind: int = GSO_TCPV4, csum_start: int = 34) -> bytes:
    """As a driver writes it (5.1.6)."""
    return pack("<BBHHHHH", NEEDS_CSUM, kind, 54, size, csum_start, 16, 0)


async def test_frames_both_ways(tap: Tap, host: socket.socket) -> None:
    """What the guest sends the host hears, and the other way round, byte by byte."""
    async with net_rig(pairs=2, backend=tap.backend, wire=tap) as rig:
        await rig.activate(MERGEABLE)
        rig.send(frame(b"from the guest" * 90, HOST))
        rig.kick(1)
        assert await hear(host) == frame(b"from the guest" * 90, HOST)[12:]
        rig.fill(1000)
        data = frame(b"from the host" * 100)
        host.send(data[12:])
        heard: list[Received] = []
        while not any(got.data == data for got in heard):
            heard = await rig.receive(1)
        assert [got.buffers for got in heard if got.data == data] == [2]


async def test_long_segments_go_through(tap: Tap, host: socket.socket) -> None:
    """64 KiB in one frame; a header that asks for the impossible loses its own frame only."""
    async with net_rig(pairs=2, backend=tap.backend, wire=tap) as rig:
        await rig.activate(MERGEABLE)
        good = segment(65000, gso_header(1448))
        headers = gso_header(0), gso_header(1448, 99), gso_header(1448, 0, 60000)
        bad = [segment(5000, header) for header in headers]
        for number, data in enumerate([*bad, good]):
            rig.send(data, number << 17)
        rig.kick(1)
        heard = await hear(host, 0x0800)
        assert len(heard) == len(good) - 12
        assert heard[54:] == bytes(65000)
        assert len(await rig.wait_used(1, 4)) == 4
        counters = rig.runner.info().counters[0]
        assert (counters.tx_refused, counters.tx_frames) == (3, 1)


async def test_an_interface_that_is_down_loses_frames(tap: Tap, host: socket.socket) -> None:
    """And works again when it is up."""
    async with net_rig(pairs=2, backend=tap.backend, wire=tap) as rig:
        await rig.activate(MERGEABLE)
        ip("link", "set", tap.name, "down")
        rig.send(frame(b"lost", HOST))
        rig.kick(1)
        await rig.wait_used(1)
        assert rig.runner.info().counters[0].tx_refused == 1
        ip("link", "set", tap.name, "up")
        rig.send(frame(b"heard", HOST))
        rig.kick(1)
        with pytest.raises(OSError, match="down"):
            host.recv(100)
        assert await hear(host) == frame(b"heard", HOST)[12:]
        assert rig.failures == []


async def test_a_tap_that_is_removed(tap: Tap) -> None:
    """The driver's link goes down, the machine is told once, and what is sent is given back."""
    async with net_rig(pairs=2, backend=tap.backend, wire=tap) as rig:
        await rig.activate(MERGEABLE | Feature.STATUS | Feature.MQ | Feature.CTRL_VQ)
        rig.fill(1000)
        assert await rig.command(b"\4\0" + pack("<H", 2)) == 0
        ip("link", "del", tap.name)
        await rig.until(lambda: bool(rig.failures))
        assert rig.failures == [f"{tap.name}: No such device"]
        rig.send(frame())
        rig.kick(1)
        await rig.wait_used(1)
        assert await rig.command(b"\4\0" + pack("<H", 1)) == 1
        assert not rig.runner.info().link_up
        await rig.reset()
        assert len(rig.failures) == 1


async def test_pairs_are_queues_of_the_tap(tap: Tap, host: socket.socket) -> None:
    """The host uses those that the driver has asked for."""

    def queues() -> tuple[int, int]:
        data = json.loads(ip("-d", "-j", "link", "show", tap.name))[0]["linkinfo"]["info_data"]
        return data["numqueues"], data["numdisabled"]

    async with net_rig(pairs=2, backend=tap.backend, wire=tap) as rig:
        await rig.activate(MERGEABLE | Feature.MQ | Feature.CTRL_VQ)
        for pairs in (2, 1, 2):
            assert await rig.command(b"\4\0" + pack("<H", pairs)) == 0
            assert queues() == (pairs, 2 - pairs)
        rig.send(frame(b"second", HOST), index=3)
        rig.kick(3)
        assert await hear(host) == frame(b"second", HOST)[12:]
        await rig.reset()
        assert queues() == (1, 1)
