"""The server in C against the one in plain Python: the same guest, the same programs, and the same comes of it."""

from __future__ import annotations

import os
import socket
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.plain_vsock import PlainVsock
from tests.support.vsock_rig import GUEST_CID, VsockRig, listen_at, packet
from tvmm.kvm.vring_records import F_EVENT_IDX, F_RING_PACKED
from tvmm.virtio.vsock import HOST_CID, Op, Packet

PORTS = (7, 8)
"""Somebody listens at the first one."""
LENGTHS = (0, 1, 100, 5000, 60000)


class Send(NamedTuple):
    """A packet. `port` is the host's, or counts connections by programs; `honest`: with the right count of bytes."""

    op: int
    guest_port: int
    port: int
    length: int
    flags: int
    room: int
    honest: bool
    cuts: tuple[int, ...]


class Act(NamedTuple):
    """What program number `which` does."""

    what: str
    which: int
    length: int


class Call(NamedTuple):
    """A program wants a port of the guest."""

    port: int


sends = st.builds(
    Send,
    st.sampled_from([*range(1, 8), Op.RW, Op.RW, Op.RW, Op.REQUEST, Op.RESPONSE, Op.RESPONSE, Op.CREDIT_UPDATE, 0, 9]),
    st.sampled_from([1, 2, 80, 81]),
    st.sampled_from([7, 7, 7, 8, -1, -2]),
    st.sampled_from(LENGTHS),
    st.integers(0, 3),
    st.sampled_from([0, 10, 5000, 1 << 20, 1 << 20]),
    st.booleans(),
    st.lists(st.integers(1, 200), max_size=3).map(tuple),
)
acts = st.builds(
    Act,
    st.sampled_from(["send", "send", "read", "read", "close", "shut-write", "shut-read"]),
    st.integers(0, 3),
    st.sampled_from(LENGTHS),
)
calls = st.builds(Call, st.sampled_from([80, 81]))
requests = st.just(Send(Op.REQUEST, 1, 7, 0, 0, 1 << 20, True, ()))


class World:
    """One of the two, with its programs. `heard`: packets by ports, data of those next to each other put together."""

    def __init__(self, path: str) -> None:
        self.listener = listen_at(f"{path}_{PORTS[0]}")
        self.listener.setblocking(False)
        self.programs: list[socket.socket] = []
        self.heard: dict[tuple[int, int], list[tuple[Packet, bytes]]] = defaultdict(list)

    def hear(self, head: Packet, data: bytes) -> None:
        """A packet to the guest."""
        log = self.heard[head.dst_port, head.src_port]
        if log and log[-1][0].op == head.op == Op.RW:
            data = log.pop()[1] + data
        log.append((head._replace(length=len(data)), data))

    def accept(self) -> None:
        """Those that the guest has reached."""
        try:
            while True:
                program, _ = self.listener.accept()
                program.setblocking(False)
                self.programs.append(program)
        except BlockingIOError:
            pass

    def act(self, act: Act) -> object:
        """What the program gets to see."""
        if act.which >= len(self.programs):
            return None
        program = self.programs[act.which]
        try:
            if act.what == "send":
                return program.send(bytes(index * 7 & 0xFF for index in range(act.length)))
            if act.what == "read":
                return program.recv(act.length)
            if act.what == "close":
                program.close()
                return None
            program.shutdown(socket.SHUT_WR if act.what == "shut-write" else socket.SHUT_RD)
        except OSError as error:
            return error.errno
        return None

    def close(self) -> None:
        """All ends."""
        self.listener.close()
        for program in self.programs:
            program.close()


class Pair:
    """Both worlds."""

    def __init__(self, folder: Path, features: int) -> None:
        (folder / "c").mkdir()
        (folder / "py").mkdir()
        self.rig = VsockRig(folder / "c", features, rx_bytes=9000)
        self.plain = PlainVsock(GUEST_CID, str(folder / "py" / "v"))
        self.worlds = World(self.rig.path), World(self.plain.path)
        self.host_ports: list[int] = []

    def do(self, action: Send | Act | Call) -> None:
        """In both, and compare."""
        if isinstance(action, Call):
            ends = [self._program(world) for world in self.worlds]
            assert self.rig.engine.call(ends[0].detach(), action.port)
            self.plain.call(ends[1], action.port)
            self.host_ports.append((1 << 30) + len(self.host_ports))
        elif isinstance(action, Act):
            seen = [world.act(action) for world in self.worlds]
            assert seen[0] == seen[1], action
        else:
            self._send(action)
        for _ in range(3):
            self.rig.step()
            for delivery in self.rig.received():
                self.worlds[0].hear(*delivery)
            self.plain.look()
            for head, data in self.plain.out:
                self.worlds[1].hear(head, data)
            self.plain.out.clear()
        for world in self.worlds:
            world.accept()
        assert self.worlds[0].heard == self.worlds[1].heard, action
        assert self.rig.engine.connections == len(self.plain.connections) + len(self.plain.draining), action

    @staticmethod
    def _program(world: World) -> socket.socket:
        """The end that it has given to the server."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        world.programs.append(ours)
        return theirs

    def _send(self, action: Send) -> None:
        port = action.port
        if port < 0:
            port = self.host_ports[port] if -port <= len(self.host_ports) else 99
        data = bytes(index & 0xFF for index in range(action.length)) if action.op == Op.RW else b""
        got = self.worlds[1].heard.get((action.guest_port, port), [])
        forwarded = sum(head.length for head, _ in got) if action.honest else action.room * 3
        head = packet(
            action.op, action.guest_port, port, data, flags=action.flags, room=action.room, forwarded=forwarded
        )
        self.rig.send(head, data, action.cuts)
        self.plain.take(head, data)

    def close(self) -> None:
        """Both."""
        self.rig.close()
        self.plain.close()
        for world in self.worlds:
            world.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([0, F_EVENT_IDX, F_RING_PACKED]),
    st.lists(st.one_of(requests, sends, sends, acts, acts, calls), min_size=3, max_size=25),
)
def test_the_same_comes_of_everything(features: int, actions: list[Send | Act | Call]) -> None:
    """Every packet of every connection, what programs read, and how many connections are left."""
    before = len(os.listdir("/proc/self/fd"))
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(Path(folder), (1 << 32) | features)
        try:
            for action in actions:
                pair.do(action)
            assert pair.rig.engine.counters.malformed == pair.plain.dropped
            assert pair.rig.engine.counters.no_credit == pair.plain.overdrawn
        finally:
            pair.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_addresses_are_what_they_say() -> None:
    """Of packets in both: the host's, the guest's."""
    head = packet(Op.RW, 1, 2, b"x")
    assert head[:4] == (GUEST_CID, HOST_CID, 1, 2)
    assert Packet.parse(head.pack()) == head
