"""A socket device's engine in C without its thread: a driver on one side, unix sockets on the other.

`step` has it do all that there is to do. So what comes of an action is there when the next one is thought of.
"""

from __future__ import annotations

import os
import socket
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tests.support.driver_ring import Buffer, Driver, lay_out, make_driver
from tvmm.config.memory import MemoryConfig
from tvmm.kvm.device_log import DeviceLog
from tvmm.kvm.memory_map import MemoryMap
from tvmm.kvm.serve import SERVE_CONTROL
from tvmm.kvm.vring import Vring
from tvmm.kvm.vring_records import RING_FEATURES
from tvmm.kvm.vsock import EVENT, RX, TX, VsockEngine
from tvmm.memory.ram import GuestRam
from tvmm.virtio.vsock import HEADER_LENGTH, HOST_CID, STREAM, Op, Packet

__all__ = ["GUEST_CID", "Delivery", "VsockRig", "listen_at", "packet"]

GUEST_CID = 3
RAM_BYTES = 16 << 20
QUEUE_STRIDE = 0x4_0000
TX_PLACES, TX_PLACE = 0x10_0000, 0x1_2000
RX_PLACES = 0x80_0000
ROOM = 1 << 20


class Delivery(NamedTuple):
    """A packet to the guest."""

    head: Packet
    data: bytes = b""


def packet(
    op: int,
    src_port: int = 5000,
    dst_port: int = 7,
    data: bytes = b"",
    *,
    src_cid: int = GUEST_CID,
    dst_cid: int = HOST_CID,
    kind: int = STREAM,
    flags: int = 0,
    room: int = ROOM,
    forwarded: int = 0,
) -> Packet:
    """The guest's, with room for much."""
    return Packet(src_cid, dst_cid, src_port, dst_port, len(data), kind, op, flags, room, forwarded)


def listen_at(path: str, backlog: int = 256) -> socket.socket:
    """A program's socket for the guest's connections."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(backlog)
    listener.settimeout(5)
    return listener


class VsockRig:
    """See the module. `words` are those that `step` came back with, with the queue that each is about."""

    def __init__(self, folder: Path, features: int = 1 << 32, *, rx_bytes: int = 4096, rx_count: int = 64) -> None:
        self.path = str(folder / "v")
        self.ram = GuestRam(MemoryConfig(RAM_BYTES))
        self.log = DeviceLog(self.ram)
        self.memory = MemoryMap(self.ram, self.log)
        self.engine = VsockEngine(GUEST_CID, self.path, 0)
        self.features = features
        self.rx_bytes = rx_bytes
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        self.rings: dict[int, Vring] = {}
        self.drivers: dict[int, Driver] = {}
        self.words: list[tuple[int, int]] = []
        self._rx_places: dict[int, int] = {}
        self._tx_places: dict[int, int] = {}
        for index in (RX, TX, EVENT):
            self.start(index)
        self.offer(rx_count)

    def close(self) -> None:
        """All of it."""
        self.engine.close()
        for fd in self.kicks + self.calls:
            os.close(fd)
        self.memory.close()
        self.log.close()
        self.ram.close()

    def start(self, index: int, size: int = 64) -> None:
        """A queue with nothing in it."""
        base = 0x1_0000 + index * QUEUE_STRIDE
        self.ram.write(base, bytes(QUEUE_STRIDE))
        config, tables = lay_out(size, self.features & RING_FEATURES, base)
        self.drivers[index] = make_driver(self.ram, config, tables)
        self.drivers[index].ask_for_interrupt()
        self.rings[index] = Vring(self.memory)
        assert not self.rings[index].configure(config)
        self.engine.start(index, self.rings[index], self.kicks[index], self.calls[index])

    def offer(self, count: int, length: int | None = None, *, cut: int = 0) -> None:
        """Receive buffers, all published; `cut`: in two pieces, the first with so many bytes."""
        length = length or self.rx_bytes
        taken = set(self._rx_places.values())
        free = [at for at in range(RX_PLACES, RAM_BYTES - length, max(length, 4096)) if at not in taken]
        for at in free[:count]:
            pieces = [Buffer(at + a, b - a, True) for a, b in pairwise([0, *([cut] if cut else []), length])]
            number = self.drivers[RX].add(pieces)
            assert number is not None
            self._rx_places[number] = at
        self.drivers[RX].publish()

    def send(self, head: Packet, data: bytes = b"", cuts: tuple[int, ...] = ()) -> None:
        """A packet of the guest's, in pieces that end at `cuts`; published, and carried out with the next step."""
        whole = head.pack() + data
        taken = set(self._tx_places.values())
        at = next(TX_PLACES + slot * TX_PLACE for slot in range(64) if TX_PLACES + slot * TX_PLACE not in taken)
        assert len(whole) <= TX_PLACE
        self.ram.write(at, whole)
        edges = sorted({0, *(cut for cut in cuts if cut < len(whole)), len(whole)})
        pieces = [Buffer(at + a, b - a) for a, b in pairwise(edges)]
        number = self.drivers[TX].add(pieces)
        assert number is not None
        self._tx_places[number] = at
        self.drivers[TX].publish()

    def step(self) -> None:
        """All that there is to do."""
        while (word := self.engine.step()) != SERVE_CONTROL:
            self.words.append((word, self.engine.queue))
        for number, _ in self.drivers[TX].collect():
            del self._tx_places[number]

    def received(self, *, offer: bool = True) -> list[Delivery]:
        """What has come since last time. The buffers are offered again."""
        found = []
        for number, length in self.drivers[RX].collect():
            data = self.ram.read(self._rx_places.pop(number), length)
            head = Packet.parse(data)
            assert head.length == length - HEADER_LENGTH, "the used length is that of the packet"
            found.append(Delivery(head, data[HEADER_LENGTH:]))
        if offer:
            self.offer(len(found))
        return found

    def exchange(self, head: Packet, data: bytes = b"", cuts: tuple[int, ...] = ()) -> list[Delivery]:
        """A packet, and what comes of it."""
        self.send(head, data, cuts)
        self.step()
        return self.received()

    def open(self, port: int = 7, guest_port: int = 5000) -> socket.socket:
        """A connection by the guest: the end of the program that it reached."""
        with listen_at(f"{self.path}_{port}") as listener:
            answers = self.exchange(packet(Op.REQUEST, guest_port, port))
            os.unlink(f"{self.path}_{port}")
            assert [answer.head.op for answer in answers] == [Op.RESPONSE], answers
            program, _ = listener.accept()
        program.setblocking(False)
        return program

    def call(self, port: int = 80) -> tuple[socket.socket, list[Delivery]]:
        """A connection by a program: its end, and what the guest got to hear."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs.setblocking(False)
        ours.setblocking(False)
        if not self.engine.call(theirs.fileno(), port):
            theirs.close()
            return ours, []
        theirs.detach()
        self.step()
        return ours, self.received()
