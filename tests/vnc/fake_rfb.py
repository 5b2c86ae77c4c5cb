"""The least RFB server that real viewers get along with: version 3.8, a password or none, Raw, one picture."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import trio
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Event", "FakeScreen", "pattern", "response"]


def response(password: str, challenge: bytes) -> bytes:
    """What a viewer answers that knows the password (RFB 7.2.2): DES with each byte's bits the other way round."""
    key = bytes(int(f"{each:08b}"[::-1], 2) for each in password.encode()[:8].ljust(8, b"\0"))
    return Cipher(TripleDES(key * 3), modes.ECB()).encryptor().update(challenge)


class Event(NamedTuple):
    """What a viewer did."""

    kind: str
    """`key` (keysym, down), `pointer` (mask, x, y) or `cut` (text)."""
    value: tuple[object, ...]


def pattern(width: int, height: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """A picture without two equal neighbours, by rows, as R, G, B."""
    places = [(x, y) for y in range(height) for x in range(width)]
    return [((x * 7 + seed) % 256, (y * 11 + x) % 256, (x * y + 3 * seed) % 256) for x, y in places]


class FakeScreen:
    """Serves a picture and keeps what viewers do, in order, in `events`."""

    def __init__(self, width: int, height: int, picture: list[tuple[int, int, int]], password: str = "") -> None:
        self.size = width, height
        self.picture = picture
        self.password = password
        self.sessions = 0
        self._send, self.events = trio.open_memory_channel[Event](1000)
        self._streams: list[trio.abc.Stream] = []

    async def next(self, kind: str) -> tuple[object, ...]:
        """The next event of a kind; others before it are dropped."""
        while True:
            event = await self.events.receive()
            if event.kind == kind:
                return event.value

    async def say(self, text: str) -> None:
        """Put text on each viewer's clipboard."""
        data = text.encode("latin-1")
        for stream in self._streams:
            await stream.send_all(struct.pack(">BxxxI", 3, len(data)) + data)

    async def hang_up(self) -> None:
        """Close every viewer's connection."""
        for stream in list(self._streams):
            await trio.aclose_forcefully(stream)

    async def serve(self, stream: trio.abc.Stream, peer: str) -> None:
        """One viewer, until it leaves."""
        self.sessions += 1
        self._streams.append(stream)
        try:
            await self._talk(stream)
        except EOFError:
            pass
        finally:
            self._streams.remove(stream)

    async def _talk(self, stream: trio.abc.Stream) -> None:
        read = _reader(stream)
        await stream.send_all(b"RFB 003.008\n")
        await read(12)
        await stream.send_all(b"\x01\x02" if self.password else b"\x01\x01")
        await read(1)
        if self.password:
            challenge = bytes(range(16))
            await stream.send_all(challenge)
            if await read(16) != response(self.password, challenge):
                await stream.send_all(struct.pack(">II", 1, 14) + b"wrong password")
                return
        await stream.send_all(bytes(4))
        await read(1)
        layout = struct.pack(">BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
        await stream.send_all(struct.pack(">HH", *self.size) + layout + struct.pack(">I", 4) + b"fake")
        shifts = (16, 8, 0)
        while True:
            match (await read(1))[0]:
                case 0:
                    fields = struct.unpack(">xxxBBBBHHHBBBxxx", await read(19))
                    assert fields[0] == 32
                    shifts = fields[7:10]
                case 2:
                    await read(4 * struct.unpack(">xH", await read(3))[0])
                case 3:
                    if not (await read(9))[0]:
                        await stream.send_all(self._update(shifts))
                case 4:
                    down, key = struct.unpack(">BxxI", await read(7))
                    self._send.send_nowait(Event("key", (key, bool(down))))
                case 5:
                    self._send.send_nowait(Event("pointer", struct.unpack(">BHH", await read(5))))
                case 6:
                    (length,) = struct.unpack(">xxxI", await read(7))
                    self._send.send_nowait(Event("cut", ((await read(length)).decode("latin-1"),)))
                case other:
                    raise AssertionError(f"message {other}")

    def _update(self, shifts: tuple[int, ...]) -> bytes:
        head = struct.pack(">BxHHHHHi", 0, 1, 0, 0, *self.size, 0)
        pixels = (sum(value << shift for value, shift in zip(pixel, shifts, strict=True)) for pixel in self.picture)
        return head + struct.pack(f"<{len(self.picture)}I", *pixels)


def _reader(stream: trio.abc.Stream) -> Callable[[int], Awaitable[bytes]]:
    buffer = bytearray()

    async def read(count: int) -> bytes:
        while len(buffer) < count:
            data = await stream.receive_some()
            if not data:
                raise EOFError
            buffer.extend(data)
        part = bytes(buffer[:count])
        del buffer[:count]
        return part

    return read
