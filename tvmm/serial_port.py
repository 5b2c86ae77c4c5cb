"""COM1 as a part of the board: the UART model, its transmit ring in C, and what the host's side needs of both.

Three parties meet here. vCPU threads access registers under the bus lock, or not at all where the C step
serves them from what `_publish` said last. The pump (a Trio task, see `chardev/guest_end.py`) takes transmitted
bytes out of the ring and puts received ones into the model's FIFO. A vCPU that wrote into a full ring waits on
`call_when_ready`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices.uart16550 import Uart16550
from tvmm.devices.uart16550_registers import IER_RECEIVED, LSR, MCR_LOOP, Uart16550State
from tvmm.kvm.uart import RING_SLACK, TransmitRing
from tvmm.records import check_bytes, check_flag, check_record

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tvmm.bus import Hold

__all__ = ["COM1_IRQ", "COM1_PORT", "PORT_COUNT", "SerialPort", "SerialState"]

COM1_PORT = 0x3F8
COM1_IRQ = 4
PORT_COUNT = 8

MCR_DTR_RTS = 0x03
IDLE_POLLS = 64
"""Line status reads in a row, with nothing written in between, that only a guest does which waits for input."""

RING_BYTES = 1 << 16
"""What may wait for a slow reader before the guest has to wait."""


MAX_WAITING = 1 << 20
"""Bytes of input in a record: more than queues here take, and a peer is not to have this side keep without end."""


def _nobody_waits() -> None:
    """Stands in for the pump while there is none."""


def _nobody_types() -> bytes:
    """As above."""
    return b""


def _nobody_passes_on(data: bytes) -> None:
    """As above."""


class SerialState(NamedTuple):
    """The port, to be saved. `listening`: the guest has begun to take input. `unsent`: transmitted bytes that nobody on
    this side has been given. `waiting`: input that the FIFO had no room for.
    """

    model: Uart16550State
    listening: bool = False
    unsent: bytes = b""
    waiting: bytes = b""


class SerialPort:
    """A 16550A whose transmitted bytes wait in `ring`. A bus device; the bus lock is held around `read` and `write`."""

    def __init__(self, irq: Callable[[], None], bus_lock: AbstractContextManager[object]) -> None:
        self.ring = TransmitRing(COM1_PORT, RING_BYTES)
        self.on_receive_room: Callable[[], None] = _nobody_waits
        self.queued_input: Callable[[], bytes] = _nobody_types
        """Input that somebody waits to offer; and `put_back_input` has it offered on the side that it was saved for."""
        self.put_back_input: Callable[[bytes], None] = _nobody_passes_on
        self._published: tuple[bool, int] | None = None
        self._irq = irq
        self._listening = False
        self._held_input = False
        self._polls = 0
        self.model = Uart16550(self.ring, self._interrupt, self._receive_room)
        self.received = 0
        self.handed_out = 0
        """Bytes at the front of the ring that the reader has and has not dealt with."""
        self.saved = False
        """The state has been saved or restored, and nothing goes in or out until `go_on`."""
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
            if self.saved:
                return 0
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
            if self.saved:
                return False
            taken = self._listening and self.model.receive_break()
            self._held_input = not self._listening
            self._publish()
        return taken

    def untaken(self) -> bytes:
        """Transmitted bytes that the reader has not got yet."""
        return b"" if self.saved else self.ring.peek()[self.handed_out :]

    # --- saving: no vCPU runs ---

    def save(self) -> SerialState:
        """The port as a record; what the reader has been given is its own. Nothing moves then until `go_on`."""
        with self._bus_lock:
            self.saved = True
            unsent = self.ring.peek()[self.handed_out :]
            return SerialState(self.model.state(), self._listening, unsent, self.queued_input()[:MAX_WAITING])

    def restore(self, state: SerialState) -> None:
        """Take over `state`, with an empty ring. Nothing moves then until `go_on`.

        Raises `ValueError` with the name of a bad field, and then changes nothing.
        """
        check_record(state, SerialState)
        listening = check_flag("listening", state.listening)
        unsent = check_bytes("unsent", state.unsent, 0, RING_BYTES + RING_SLACK)
        waiting = check_bytes("waiting", state.waiting, 0, MAX_WAITING)
        with self._bus_lock:
            self.model.restore(state.model)
            self.saved = True
            self._listening, self._held_input = listening, False
            for byte in unsent:
                self.ring.push(byte)
            self._publish()
        self.put_back_input(waiting)

    def redeliver(self) -> None:
        """Raise the interrupt's edge once more if it is up. Under the bus lock."""
        if self.model.line_up:
            self._irq()

    def go_on(self) -> None:
        """Bytes move again: the machine is about to run. On any thread, also if nothing was saved."""
        if not self.saved:
            return
        with self._bus_lock:
            self.saved = False
            self.model.tx_room_changed()
            self._publish()
        self.ring.wake_reader()
        self._receive_room()
