"""Frames behind their lengths, the twin of tvmm/kvm/net_stream.c, and a wire whose far end a test has."""

from __future__ import annotations

import os
import socket
import struct

import trio

from tests.support.net_rig import HEADER, PATIENCE_S
from tvmm.kvm.net import STREAM_FRAME_MAX
from tvmm.virtio.net import NetBackend

__all__ = ["StreamPeer", "framed", "unframed"]

SHORTEST = 14


def framed(*frames: bytes) -> bytes:
    """As they are on the wire. What the device has in front of a frame is not part of it."""
    return b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)


def unframed(data: bytes) -> tuple[list[bytes], bytes, int | None]:
    """Whole frames, what is left, and the length that no frame has, if there is one."""
    frames: list[bytes] = []
    while len(data) >= 4:
        (length,) = struct.unpack_from("!I", data)
        if length > STREAM_FRAME_MAX:
            return frames, data, length
        if len(data) < 4 + length:
            break
        if length >= SHORTEST:
            frames.append(data[4 : 4 + length])
        data = data[4 + length :]
    return frames, data, None


class StreamPeer:
    """A `Wire` over a stream socket, and the peer: `far` is its end."""

    is_stream = True
    name = "peer"
    backend = NetBackend()

    def __init__(self, *, send_buffer: int = 0) -> None:
        self.fds: tuple[int, ...] = ()
        self._old: list[int] = []
        self._send_buffer = send_buffer
        self._unread = b""
        self.far: trio.SocketStream
        self.fds = (self.connect(),)

    def connect(self) -> int:
        """A new connection; its near end."""
        near, far = socket.socketpair()
        near.setblocking(False)
        if self._send_buffer:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)
        self.far = trio.SocketStream(trio.socket.from_stdlib_socket(far))
        self._unread = b""
        self._old.append(near.detach())
        return self._old[-1]

    def close(self) -> None:
        """All near ends; and the far one."""
        for fd in self._old:
            os.close(fd)
        self.far.socket.close()

    async def send(self, data: bytes) -> None:
        """Bytes for the device."""
        with trio.fail_after(PATIENCE_S):
            await self.far.send_all(data)

    async def take(self, count: int) -> list[bytes]:
        """Frames from the device, each as a driver would write it: with a header of zeros."""
        found: list[bytes] = []
        with trio.fail_after(PATIENCE_S):
            while True:
                frames, self._unread, wrong = unframed(self._unread)
                assert wrong is None
                found += [HEADER + frame for frame in frames]
                if len(found) >= count:
                    return found
                self._unread += await self.far.receive_some()

    def set_offload(self, features: int) -> None:
        """There are none."""

    def attach(self, pair: int, on: bool) -> None:
        """There is one pair."""

    def set_carrier(self, up: bool) -> None:
        """It has none to show."""
