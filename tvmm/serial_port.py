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
from tvmm.devices.uart16550_registers import IER_RECEIVED, LSR, MCR_LOOP
from tvmm.kvm.uart import TransmitRing

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tvmm.bus import Hold

__all__ = ["COM1_IRQ", "COM1_PORT", "PORT_COUNT", "SerialPort"]

COM1_PORT = 0x3F8
COM1_IRQ = 4
PORT_COUNT = 8

MCR_DTR_RTS = 0x03
IDLE_POLLS = 64
"""Line status reads in a row, with nothing written in between, that only a guest does which waits for input."""

RING_BYTES = 1 << 16
"""What may wait for a slow reader before the guest has to wait."""


def _nobody_waits() -> None:
    """Stands in for the pump while there is none."""


class SerialPort:
    """A 16550A whose transmitted bytes wait in `ring`. A bus device; the bus lock is held around `read` and `write`."""

    def __init__(self, irq: Callable[[], None], bus_lock: AbstractContextManager[object]) -> None:
        self.ring = TransmitRing(COM1_PORT, RING_BYTES)
        self.on_receive_room: Callable[[], None] = _nobody_waits
        self._published: tuple[bool, int] | None = None
        self._irq = irq
        self._listening = False
        self._held_input = False
        self._polls = 0
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
        self._listening = self._held_input = False
        self._publish()
        # Who waits for room in the FIFO that was just emptied is to offer its bytes again.
        self._receive_room()

    # --- the guest's side, under the bus lock ---

    def read(self, offset: int, size: int) -> int:
        """A register read that the C step left to the model."""
        value = self.model.read(offset, size)
        if self._held_input and offset == LSR:
            self._polls += 1
            if self._polls >= IDLE_POLLS:
                self._listen()
        self._publish()
        return value

    def write(self, offset: int, size: int, value: int) -> Hold | None:
        """A register write that the C step left to the model; a full ring holds the vCPU."""
        self.model.write(offset, size, value)
        self._polls = 0
        if not self._listening:
            state = self.model.state()
            if state.ier & IER_RECEIVED or (state.mcr & MCR_DTR_RTS and not state.mcr & MCR_LOOP):
                self._listen()
        self._publish()
        return None if self.ring.room() else self

    def _publish(self) -> None:
        fast = self.model.fast_path()
        if self._held_input:
            fast = fast._replace(tx=False, lsr=-1)  # The model has to see what the guest does with the line.
        if fast != self._published:
            self._published = fast
            self.ring.publish(fast.tx, fast.lsr)

    def _listen(self) -> None:
        """The guest takes input from now on.

        Before that it is held here: a driver that sets its UART up clears the FIFO, and what was typed or piped in
        early would be lost. A guest listens when it raises DTR or RTS, enables the receive interrupt, or polls for
        input.
        """
        self._listening = True
        if self._held_input:
            self._held_input = False
            self._receive_room()

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
            # Who was interrupted in its wait comes again.
            if callback not in self._held:
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
            if self._listening:
                taken = self.model.receive(data)
            else:
                taken, self._held_input = 0, True
            self._publish()
        self.received += taken
        return taken

    def receive_break(self) -> bool:
        """A break condition on the line. False: the FIFO is full, wait for `on_receive_room`."""
        with self._bus_lock:
            taken = self._listening and self.model.receive_break()
            self._held_input = not self._listening
            self._publish()
        return taken
