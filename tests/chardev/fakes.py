"""A guest with a ring and a FIFO, actions that remember, and a backend for tests of the hub alone."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tvmm.chardev.port import Line

RING_BYTES = 64 * 1024


class FakeGuest:
    """Both sides of a guest end: `write`, `received` and `finish` are the guest's, the rest is `GuestEnd`."""

    def __init__(self) -> None:
        self.written = 0
        self.received = bytearray()
        self.breaks_at: list[int] = []
        self.reads = True
        self.fifo_bytes = 16
        self._ring = bytearray()
        self._handed_out = 0
        self._finished = False
        self._changed = trio.lowlevel.ParkingLot()

    async def write(self, data: bytes) -> None:
        """Transmit `data`, waiting for room as a guest does that polls THRE."""
        rest = data
        while rest:
            while (room := RING_BYTES - len(self._ring)) <= 0:
                await self._changed.park()
            self._ring += rest[:room]
            self.written += len(rest[:room])
            rest = rest[room:]
            self._changed.unpark_all()

    async def write_chunks(self, data: bytes, seed: int = 1) -> None:
        """`write` in pieces of odd sizes, with a chance for others between them."""
        sizes = random.Random(seed)
        while data:
            size = sizes.choice((1, 3, 17, 555, 4097, 30011))
            await self.write(data[:size])
            data = data[size:]
            await trio.lowlevel.checkpoint()

    def finish(self) -> None:
        """The guest writes no more."""
        self._finished = True
        self._changed.unpark_all()

    def set_reads(self, reads: bool) -> None:
        """Whether the guest reads its port."""
        self.reads = reads
        self._changed.unpark_all()

    async def wait_received(self, count: int) -> bytes:
        """The first bytes received, once there are `count`."""
        while len(self.received) < count:
            await self._changed.park()
        return bytes(self.received)

    async def receive_some(self) -> bytes:
        """See `GuestEnd`."""
        assert not self._handed_out
        await trio.lowlevel.checkpoint()
        while not self._ring and not self._finished:
            await self._changed.park()
        self._handed_out = len(self._ring)
        return bytes(self._ring)

    def consumed(self, count: int) -> None:
        """See `GuestEnd`."""
        assert count <= self._handed_out
        self._handed_out -= count
        del self._ring[:count]
        self._changed.unpark_all()

    async def send(self, data: bytes) -> None:
        """See `GuestEnd`. Takes a FIFO's worth of bytes at a time."""
        for start in range(0, len(data), self.fifo_bytes):
            while not self.reads:
                await self._changed.park()
            self.received += data[start : start + self.fifo_bytes]
            self._changed.unpark_all()
            await trio.lowlevel.checkpoint()

    async def send_break(self) -> None:
        """See `GuestEnd`."""
        self.breaks_at.append(len(self.received))
        self._changed.unpark_all()
        await trio.lowlevel.checkpoint()


class FakeActions:
    """`Actions` that keep what they were asked for and answer with the command in capitals."""

    def __init__(self) -> None:
        self.quits = trio.Event()
        self.commands: list[str] = []
        self.warnings: list[str] = []
        self.error: Exception | None = None

    def quit(self) -> None:
        """See `Actions`."""
        self.quits.set()

    async def command(self, line: str) -> str:
        """See `Actions`."""
        self.commands.append(line)
        if self.error is not None:
            raise self.error
        return line.upper() + "\n"

    def warn(self, message: str) -> None:
        """See `Actions`."""
        self.warnings.append(message)


class HoldingBackend:
    """A backend in memory that holds the guest and takes bytes only while `open` is set."""

    path = ""
    patience = 3.0

    def __init__(self) -> None:
        self.taken = bytearray()
        self.open = trio.Event()
        self.error: BaseException | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was acquired."""

    async def run(self, line: Line) -> None:
        """Take everything that comes, once open."""
        with line.follow(holding=True) as follower:
            while (piece := await follower.wait()) is not None:
                await self.open.wait()
                if self.error is not None:
                    raise self.error
                self.taken += piece.data
                follower.took(piece)


def odd_bytes(count: int, *, without: bytes = b"") -> bytes:
    """`count` bytes that repeat nowhere, so that a hole, a repetition or an exchange shows."""
    return random.Random(count).randbytes(count * 2).translate(None, without)[:count]


def open_descriptors() -> dict[int, str]:
    """Descriptors of this process and what they are open on."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that lists
            continue
    return found
