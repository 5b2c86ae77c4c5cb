"""An ICMP echo peer on a TAP of the test's own, which answers as it is told: in place of the host's network stack."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable

import trio

__all__ = ["EchoPeer", "checksum", "honest", "twice", "wrong_checksum", "wrong_payload"]

ETH_P_IP = 0x0800
ICMP_AT, PAYLOAD_AT = 34, 42
ECHO_REPLY, ECHO_REQUEST = 0, 8

Answer = Callable[[bytes], Iterable[bytes]]
"""From the payload of a request to those of its answers."""


def checksum(data: bytes) -> int:
    """Of RFC 1071; `data` has an even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def honest(icmp: bytes) -> list[bytes]:
    """One answer with what was asked."""
    return [icmp]


def twice(icmp: bytes) -> list[bytes]:
    """The same answer two times."""
    return [icmp, icmp]


def wrong_payload(icmp: bytes) -> list[bytes]:
    """A bit of the payload's last byte is another one; the checksum is right."""
    changed = icmp[:2] + b"\0\0" + icmp[4:-1] + bytes([icmp[-1] ^ 1])
    return [changed[:2] + checksum(changed).to_bytes(2, "big") + changed[4:]]


def wrong_checksum(icmp: bytes) -> list[bytes]:
    """A bit of the payload's last byte is another one, and the checksum tells."""
    return [icmp[:-1] + bytes([icmp[-1] ^ 1])]


class EchoPeer:
    """Answers on link `name`, of this thread's namespace, until cancelled. `answer` may be changed at any time."""

    def __init__(self, name: str) -> None:
        self.answer: Answer = honest
        self.requests = 0
        self._socket = trio.socket.from_stdlib_socket(
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        )
        self._name = name

    async def run(self) -> None:
        """To be started in a nursery."""
        with self._socket as link:
            await link.bind((self._name, ETH_P_IP))
            while True:
                frame = await link.recv(65536)
                if len(frame) <= PAYLOAD_AT or frame[23] != 1 or frame[ICMP_AT] != ECHO_REQUEST:
                    continue
                self.requests += 1
                icmp = bytes([ECHO_REPLY, 0, 0, 0]) + frame[ICMP_AT + 4 :]
                icmp = icmp[:2] + checksum(icmp).to_bytes(2, "big") + icmp[4:]
                # Two addresses change places, which no checksum notices.
                head = frame[6:12] + frame[:6] + frame[12:26] + frame[30:34] + frame[26:30]
                for answer in self.answer(icmp):
                    await link.send(head + answer)
