"""A bridge in a namespace, a host on it that pings all the time, and listeners at its ports."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.support.echo_peer import checksum
from tests.support.netns import ip, network_namespace

__all__ = ["BRIDGE", "GUEST", "HOST", "Frame", "Listener", "Pinger", "bridged", "echo_request"]

BRIDGE = "br0"
HOST, GUEST = "10.0.2.2", "10.0.2.15"
PATIENCE_S, LAST_ANSWER_S = 60, 5
ECHO_ID = 0x6D76
SO_TIMESTAMPNS = 35
ETH_P_ALL = 0x0003


@contextmanager
def bridged() -> Iterator[None]:
    """A namespace with a bridge that has the address `HOST`."""
    with network_namespace():
        ip("link", "set", "lo", "up")
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("address", "add", f"{HOST}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        yield


def echo_request(number: int, identity: int = ECHO_ID) -> bytes:
    """An ICMP message."""
    body = struct.pack("!HHQ", identity, number & 0xFFFF, number)
    return struct.pack("!BBH", 8, 0, checksum(b"\x08\0\0\0" + body)) + body


class Pinger:
    """Sends an echo request to `GUEST` each so many seconds, from a thread in the caller's namespace, until closed.

    `sent` has the time of each request (ns since 1970), `answers` the time of each one's answer, by its number.
    """

    def __init__(self, interval: float) -> None:
        self.sent: list[int] = []
        self.answers: dict[int, int] = {}
        self.interval = interval
        self._news = threading.Condition()
        self._stopping = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.connect((GUEST, 0))
        self._thread = threading.Thread(target=self._run, name="pinger")

    def __enter__(self) -> Pinger:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stopping = True
        self._thread.join()
        self._socket.close()

    def wait(self, count: int) -> None:
        """Until so many more requests, sent from now on, are answered. Blocks."""
        first = len(self.sent)
        with self._news:
            assert self._news.wait_for(lambda: sum(number >= first for number in self.answers) >= count, PATIENCE_S), (
                f"{GUEST} does not answer"
            )

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping:
            self._receive(due - time.monotonic())
            if time.monotonic() >= due:
                self.sent.append(time.time_ns())
                self._socket.send(echo_request(len(self.sent) - 1))
                due = max(due, time.monotonic() - self.interval) + self.interval
        # Answers come in order: behind the last there is none.
        while len(self.sent) - 1 not in self.answers and self._receive(LAST_ANSWER_S):
            pass

    def _receive(self, seconds: float) -> bool:
        if not select.select([self._socket], [], [], max(seconds, 0))[0]:
            return False
        kind, _, _, identity, _, number = struct.unpack_from("!BBHHHQ", self._socket.recv(2048), 20)
        if kind == 0 and identity == ECHO_ID:
            with self._news:
                assert number not in self.answers, f"{number} was answered twice"
                self.answers[number] = time.time_ns()
                self._news.notify_all()
        return True

    @property
    def lost(self) -> list[int]:
        """Requests without an answer, after the end."""
        return [number for number in range(len(self.sent)) if number not in self.answers]


class Frame(NamedTuple):
    """One that came out of a machine. `time_ns` is the kernel's, since 1970."""

    time_ns: int
    data: bytes

    @property
    def kind(self) -> int:
        """The EtherType."""
        return int.from_bytes(self.data[12:14], "big")


class Listener:
    """What a machine sends at its tap `name`, of the caller's namespace."""

    def __init__(self, name: str) -> None:
        self.frames: list[Frame] = []
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 25)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.bind((name, ETH_P_ALL))

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *details: object) -> None:
        self._socket.close()

    def put(self, frame: bytes) -> None:
        """Have the tap carry a frame to its machine, whatever the bridge thinks."""
        self._socket.send(frame)

    def listen(self, seconds: float = 0) -> list[Frame]:
        """All so far; waits for up to `seconds` if nothing new is there."""
        while select.select([self._socket], [], [], seconds)[0]:
            data, control, _, address = self._socket.recvmsg(65536, 64)
            [(_, _, stamp)] = control
            if address[2] != socket.PACKET_OUTGOING:
                whole, part = struct.unpack("qq", stamp)
                self.frames.append(Frame(whole * 10**9 + part, data))
            seconds = 0
        return self.frames

    def wait(self, kind: int, to: bytes = b"") -> Frame:
        """The first frame of an EtherType, to an address if one is given. Blocks."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for frame in self.frames:
                if frame.kind == kind and frame.data.startswith(to):
                    return frame
            assert time.monotonic() < deadline, f"no frame of type {kind:#06x} came"
            self.listen(1)
