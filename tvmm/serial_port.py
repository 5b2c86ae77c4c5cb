"""COM1 as a part of the board: the UART model, its transmit ring in C, and what the host's side needs of both.

Three parties meet here. vCPU threads access registers under the bus lock, or not at all where the C step
serves them from what `_publish` said last. The pump (a Trio task, see `chardev/guest_end.py`) takes transmitted
bytes out of the ring and puts received ones into the model's FIFO. A vCPU that wrote into a full ring waits on
`call_when_ready`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tvmm.devices.uart16550 import Uart16550
from tvmm.kvm.uart import TransmitRing

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmm.bus import Hold

__all__ = ["COM1_IRQ", "COM1_PORT", "PORT_COUNT", "SerialPort"]

COM1_PORT = 0x3F8
COM1_IRQ = 4
PORT_COUNT = 8

RING_BYTES = 1 << 16
"""What may wait for a slow reader before the guest has to wait."""


def _nobody_waits() -> None:
    """Stands in for the pump while there is none."""


class SerialPort:
    """A 16550A whose transmitted bytes wait in `ring`. A bus device; the bus lock is held around `read` and `write`."""

    def __init__(self, irq: Callable[[], None], bus_lock: threading.Lock) -> None:
        self.ring = TransmitRing(COM1_PORT, RING_BYTES)
        self.on_receive_room: Callable[[], None] = _nobody_waits
        self._published: tuple[bool, int] | None = None
        self._irq = irq
        self.model = Uart16550(self.ring, self._interrupt, self._receive_room)
        self.received = 0
        self._bus_lock = bus_lock
        self._hold_lock = threading.Lock()
        self._held: list[Callable[[], None]] = []
        self._publish()

    def close(self) -> None:
        """Free the ring; no vCPU may run any more."""
        self.ring.close()

    def reset(self) -> None:
        """Registers and FIFO as after power-on; what was transmitted stays for the reader."""
        self.model.reset()
        self._publish()

    # --- the guest's side, under the bus lock ---

    def read(self, offset: int, size: int) -> int:
        """A register read that the C step left to the model."""
        value = self.model.read(offset, size)
        self._publish()
        return value

    def write(self, offset: int, size: int, value: int) -> Hold | None:
        """A register write that the C step left to the model; a full ring holds the vCPU."""
        self.model.write(offset, size, value)
        self._publish()
        return None if self.ring.room() else self

    def _publish(self) -> None:
        fast = self.model.fast_path()
        if fast != self._published:
            self._published = fast
            self.ring.publish(fast.tx, fast.lsr)

    def _interrupt(self) -> None:
        # First what the C step may answer: the guest may read the line status before we are done here.
        self._publish()
        self._irq()

    def _receive_room(self) -> None:
        self.on_receive_room()

    def call_when_ready(self, callback: Callable[[], None]) -> bool:
        """See `Hold`."""
        with self._hold_lock:
            if self.ring.room():
                return False
            self._held.append(callback)
            return True

    # --- the host's side, on any thread ---

    def transmitted(self, count: int) -> None:
        """The reader has dealt with the first `count` bytes of the ring."""
        with self._hold_lock:
            self.ring.consume(count)
            held, self._held = self._held, []
        for callback in held:
            callback()
        with self._bus_lock:
            self.model.tx_room_changed()
            self._publish()

    def receive(self, data: bytes) -> int:
        """Offer `data` to the guest: how many bytes the FIFO took. For the rest wait for `on_receive_room`."""
        with self._bus_lock:
            taken = self.model.receive(data)
            self._publish()
        self.received += taken
        return taken

    def receive_break(self) -> bool:
        """A break condition on the line. False: the FIFO is full, wait for `on_receive_room`."""
        with self._bus_lock:
            taken = self.model.receive_break()
            self._publish()
        return taken
