"""The guest's end of the serial line for Trio tasks: waits instead of callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tvmm.serial_port import RING_BYTES

if TYPE_CHECKING:
    from tvmm.serial_port import SerialPort

__all__ = ["SerialEnd"]

GATHER_SECONDS = 0.002
"""How long bytes may gather between two takes of a guest that keeps on writing. A wake-up for each byte would cost more
than the byte; the first byte after silence is passed on at once."""


class SerialEnd:
    """One reader and any number of writers over a `SerialPort`. Must be made inside Trio."""

    def __init__(self, port: SerialPort) -> None:
        self._port = port
        self._sends: list[list[bytes]] = []
        self._finished = False
        self._busy = False
        self._token = trio.lowlevel.current_trio_token()
        self._room = trio.Event()
        self._sending = trio.Lock()
        port.on_receive_room = self._room_from_thread

    async def receive_some(self) -> bytes:
        """Bytes that the guest transmitted; they take up room until `consumed`. Empty after `finish`."""
        port, ring = self._port, self._port.ring
        while True:
            if self._busy and not self._finished and ring.room() > RING_BYTES // 2:
                self._busy = False
                await trio.sleep(GATHER_SECONDS)
            data = port.untaken()
            if data:
                port.handed_out += len(data)
                self._busy = True
                return data
            if self._finished:
                return b""
            if port.handed_out:
                raise RuntimeError("consume what was received before waiting for more")
            if port.saved or ring.arm():
                await trio.lowlevel.wait_readable(ring.event_fd)
                ring.clear_event()

    def consumed(self, count: int) -> None:
        """The first `count` bytes handed out are safe: the guest may transmit that many more."""
        self._port.handed_out -= count
        self._port.transmitted(count)

    async def send(self, data: bytes) -> None:
        """Give `data` to the guest, as fast as it reads. Several senders take turns, each with all of its bytes."""
        left = [data]
        self._sends.append(left)
        try:
            async with self._sending:
                while left[0]:
                    self._room = trio.Event()
                    left[0] = left[0][self._port.receive(left[0]) :]
                    if left[0]:
                        await self._room.wait()
        finally:
            self._sends.remove(left)

    @property
    def unsent(self) -> bytes:
        """What is left of the sends under way."""
        return b"".join(left for (left,) in self._sends)

    async def send_break(self) -> None:
        """A break, after what was sent before it."""
        async with self._sending:
            self._room = trio.Event()
            while not self._port.receive_break():
                await self._room.wait()
                self._room = trio.Event()

    def finish(self) -> None:
        """The guest writes no more: `receive_some` returns what is left, and then nothing."""
        self._finished = True
        self._port.ring.wake_reader()

    def _room_from_thread(self) -> None:
        self._token.run_sync_soon(self._set_room, idempotent=True)

    def _set_room(self) -> None:
        self._room.set()
