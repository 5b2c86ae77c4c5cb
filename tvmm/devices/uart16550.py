"""A 16550A serial port (National Semiconductor PC16550D data sheet) as it is wired on a PC.

The guest's side is the eight registers; the other side is a `TxSink` for what the guest sends and `receive`
for what it is to get. There is no baud rate: a byte that the guest writes is in the sink at once, so the
transmitter holding register and the shift register empty together, and both read as empty as long as the
sink has room for a full FIFO. Word length and parity change nothing, bytes go through whole.

What differs from a line with a baud rate, on purpose:

* Character timeout. A 16550A reports data below the trigger level when four character times have passed
  without a further byte or a read. Here they have always passed: the sender hands over what it has in one
  piece, waiting would only add latency (and a timer per port). The trigger level still chooses between "data
  available" and "timeout" in IIR. A read that leaves data below the trigger level restarts the timeout, as
  in hardware, so the line falls and rises: a driver that takes one byte per interrupt gets an interrupt for
  each.
* Overrun. `receive` takes what fits and says how much that was, so nothing from outside is ever lost and the
  overrun error occurs in loopback only, where guest software can still provoke it to find the FIFO's size.
* While in loopback the receiver is off the line. Bytes that come then would be lost in hardware; `receive`
  refuses them and asks for them again when the loopback ends.

The interrupt line leaves the chip through a gate that the OUT2 pin opens, and loopback turns OUT2 off at the
pin: no interrupt reaches the interrupt controller during loopback, whatever IIR says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tvmm.devices.common import read_bytewise, write_bytewise
from tvmm.devices.uart16550_registers import (
    CHARACTER_ERRORS,
    DATA,
    FCR_CLEAR_RX,
    FCR_ENABLE,
    FCR_KEPT,
    FIFO_SIZE,
    IER,
    IER_LINE_STATUS,
    IER_MODEM_STATUS,
    IER_RECEIVED,
    IER_THR_EMPTY,
    IIR_FCR,
    IIR_FIFO_ENABLED,
    IIR_LINE_STATUS,
    IIR_MODEM_STATUS,
    IIR_NONE,
    IIR_RECEIVED,
    IIR_THR_EMPTY,
    IIR_TIMEOUT,
    LCR,
    LCR_BREAK,
    LCR_DLAB,
    LSR,
    LSR_BREAK,
    LSR_DATA_READY,
    LSR_FIFO_ERROR,
    LSR_OVERRUN,
    LSR_TX_EMPTY,
    MCR,
    MCR_LOOP,
    MCR_MASK,
    MCR_OUT2,
    MODEM_LINES,
    MSR,
    MSR_RING,
    MSR_TRAILING_RING,
    SCR,
    TRIGGER_LEVELS,
    FastPath,
    Uart16550State,
    check_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FIFO_SIZE", "PORT_COUNT", "FastPath", "TxSink", "Uart16550", "Uart16550State"]

PORT_COUNT = 8


class TxSink(Protocol):
    """Where the guest's bytes go. It has slack behind `room`, so that a `push` never fails."""

    def push(self, byte: int) -> None:
        """Take one byte."""

    def room(self) -> int:
        """How many bytes it can take before the transmitter must look busy."""


class Uart16550:
    """The serial port.

    `irq` is called at each rising edge of the interrupt line, `on_rx_room` when there is room again after
    `receive` or `receive_break` refused something. `on_rx_room` may call `receive` there and then.
    """

    def __init__(self, tx: TxSink, irq: Callable[[], None], on_rx_room: Callable[[], None]) -> None:
        self._tx = tx
        self._irq = irq
        self._on_rx_room = on_rx_room
        self._load(Uart16550State())

    def _load(self, state: Uart16550State) -> None:
        self._ier = state.ier
        self._fcr = state.fcr
        self._lcr = state.lcr
        self._mcr = state.mcr
        self._scr = state.scr
        self._divisor = state.divisor
        self._errors = state.line_errors
        self._modem_deltas = state.modem_deltas
        self._rx = list(state.rx)
        self._thre_pending = bool(state.thre_pending)
        self._thre_waiting = bool(state.thre_waiting)
        self._rx_refused = bool(state.rx_refused)
        self._line = self._gated()

    # -- the guest's side ----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`, as byte reads one after the other; all ones outside of the registers."""
        if size == 1:
            return self._read_byte(offset)
        return read_bytewise(self._read_byte, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """`size` bytes at `offset`, as byte writes one after the other; nothing outside of the registers."""
        if size == 1:
            self._write_byte(offset, value & 0xFF)
        else:
            write_bytewise(self._write_byte, offset, size, value)

    def _read_byte(self, offset: int) -> int:
        if offset == LSR:
            return self._read_lsr()
        if offset == IIR_FCR:
            return self._read_iir()
        if offset == DATA:
            return self._divisor & 0xFF if self._lcr & LCR_DLAB else self._read_rbr()
        if offset == IER:
            return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
        if offset == LCR:
            return self._lcr
        if offset == MCR:
            return self._mcr
        if offset == MSR:
            return self._read_msr()
        if offset == SCR:
            return self._scr
        return 0xFF

    def _write_byte(self, offset: int, value: int) -> None:
        if offset == DATA:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF00 | value
            else:
                self._write_thr(value)
        elif offset == IER:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0xFF | value << 8
            else:
                self._write_ier(value & 0x0F)
        elif offset == IIR_FCR:
            self._write_fcr(value)
        elif offset == LCR:
            self._write_lcr(value)
        elif offset == MCR:
            self._write_mcr(value & MCR_MASK)
        elif offset == SCR:
            self._scr = value
        # LSR and MSR are for reading; the data sheet keeps writes to them for factory tests.

    def _read_rbr(self) -> int:
        if not self._rx:
            return 0
        byte = self._rx.pop(0) & 0xFF
        self._show_errors_of_oldest()
        # The timeout starts anew with a read: the line falls unless something else holds it, and rises again
        # because the time is up at once.
        self._settle(timeout=False)
        self._settle()
        self._announce_room()
        return byte

    def _write_thr(self, value: int) -> None:
        interrupts = self._ier & IER_THR_EMPTY
        if interrupts:
            self._thre_pending = self._thre_waiting = False
            self._settle()
        if self._mcr & MCR_LOOP:
            self._loop_back(value)
        else:
            self._tx.push(value)
        if interrupts:
            self._thre_waiting = True
            self._settle()

    def _write_ier(self, value: int) -> None:
        changed = self._ier ^ value
        self._ier = value
        if changed & IER_THR_EMPTY:
            # Enabled while THR is empty, the interrupt comes at once; otherwise when THR gets empty.
            self._thre_pending = False
            self._thre_waiting = bool(value & IER_THR_EMPTY)
        self._settle()

    def _read_iir(self) -> int:
        self._settle()
        source = self._interrupt_source()
        if source == IIR_THR_EMPTY:  # read as the source, it is acknowledged
            self._thre_pending = False
            self._settle()
        return source | IIR_FIFO_ENABLED if self._fcr & FCR_ENABLE else source

    def _write_fcr(self, value: int) -> None:
        # Without bit 0 the others do not count. Clearing the transmit FIFO has nothing to clear: what was
        # written has left for the sink.
        value = value if value & FCR_ENABLE else 0
        if value & FCR_CLEAR_RX or (value ^ self._fcr) & FCR_ENABLE:
            self._rx.clear()
        self._fcr = value & FCR_KEPT
        self._settle()
        self._announce_room()

    def _write_lcr(self, value: int) -> None:
        break_begins = value & ~self._lcr & LCR_BREAK
        self._lcr = value
        if break_begins and self._mcr & MCR_LOOP:
            self._loop_back(LSR_BREAK << 8)
        self._settle()

    def _write_mcr(self, value: int) -> None:
        before = self._modem_lines()
        self._mcr = value
        after = self._modem_lines()
        deltas = (before ^ after) >> 4
        if after & MSR_RING:  # only the end of a ring is reported
            deltas &= ~MSR_TRAILING_RING
        self._modem_deltas |= deltas
        self._settle()
        self._announce_room()

    def _read_lsr(self) -> int:
        value = self._quiet_lsr() | self._errors
        if self._tx.room() >= FIFO_SIZE:
            value |= LSR_TX_EMPTY
        self._errors = 0
        self._settle()
        return value

    def _read_msr(self) -> int:
        value = self._modem_lines() | self._modem_deltas
        self._modem_deltas = 0
        self._settle()
        return value

    # -- the other side ------------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview) -> int:
        """Put the front of `data` into the receiver and return how many bytes fitted.

        If that is not all of it, `on_rx_room` is called when the guest has made room.
        """
        room = 0 if self._mcr & MCR_LOOP else self._rx_depth() - len(self._rx)
        taken = data[:room]
        self._rx += taken
        self._rx_refused = len(taken) < len(data)
        self._settle()
        return len(taken)

    def receive_break(self) -> bool:
        """Let the guest see a break: a zero byte with the break error. False, and nothing done, without room.

        After False, `on_rx_room` is called when the guest has made room.
        """
        if self._mcr & MCR_LOOP or len(self._rx) >= self._rx_depth():
            self._rx_refused = True
            return False
        self._rx.append(LSR_BREAK << 8)
        self._show_errors_of_oldest()
        self._settle()
        return True

    def tx_room_changed(self) -> None:
        """To be called when the sink got room: a THR-empty interrupt that waited for it is raised."""
        self._settle()

    def fast_path(self) -> FastPath:
        """What may be served without the model until its next access or call."""
        quiet = not self._errors and not self._thre_waiting
        return FastPath(
            tx=not (self._lcr & LCR_DLAB or self._mcr & MCR_LOOP or self._ier & IER_THR_EMPTY),
            lsr=self._quiet_lsr() if quiet else -1,
        )

    # -- lines, FIFO and interrupt -------------------------------------------------------------------------

    def _rx_depth(self) -> int:
        return FIFO_SIZE if self._fcr & FCR_ENABLE else 1

    def _quiet_lsr(self) -> int:
        """The bits of LSR that reading does not clear, without those of the transmitter."""
        value = LSR_DATA_READY if self._rx else 0
        if self._fcr & FCR_ENABLE:
            hidden = any(entry >> 8 for entry in self._rx)
            value |= LSR_FIFO_ERROR if hidden or self._errors & CHARACTER_ERRORS else 0
        return value

    def _modem_lines(self) -> int:
        if not self._mcr & MCR_LOOP:
            return MODEM_LINES
        # DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
        mcr = self._mcr
        return (mcr & 0x01) << 5 | (mcr & 0x02) << 3 | (mcr & 0x0C) << 4

    def _loop_back(self, entry: int) -> None:
        """The transmitter's output arrives at the receiver, which has room or overruns."""
        if len(self._rx) < self._rx_depth():
            self._rx.append(entry)
            self._show_errors_of_oldest()
            return
        self._errors |= LSR_OVERRUN
        if not self._fcr & FCR_ENABLE:  # the new byte replaces the old; a FIFO stays as it was
            self._rx[0] = entry
            self._show_errors_of_oldest()

    def _show_errors_of_oldest(self) -> None:
        """A byte's errors enter LSR when it is next to be read, and stay there until LSR is read."""
        if self._rx:
            self._errors |= self._rx[0] >> 8
            self._rx[0] &= 0xFF

    def _announce_room(self) -> None:
        if self._rx_refused and not self._mcr & MCR_LOOP and len(self._rx) < self._rx_depth():
            self._rx_refused = False
            self._on_rx_room()

    def _interrupt_source(self, timeout: bool = True) -> int:
        """The enabled source of the highest priority as IIR reports it; `timeout`: has the time passed."""
        ier = self._ier
        if ier & IER_LINE_STATUS and self._errors:
            return IIR_LINE_STATUS
        if ier & IER_RECEIVED and self._rx:
            if not self._fcr & FCR_ENABLE or len(self._rx) >= TRIGGER_LEVELS[self._fcr >> 6]:
                return IIR_RECEIVED
            if timeout:
                return IIR_TIMEOUT
        if self._thre_pending:
            return IIR_THR_EMPTY
        if ier & IER_MODEM_STATUS and self._modem_deltas:
            return IIR_MODEM_STATUS
        return IIR_NONE

    def _settle(self, timeout: bool = True) -> None:
        """Bring the interrupt line to what the registers say, and call `irq` if it rose."""
        if self._thre_waiting and self._tx.room() >= FIFO_SIZE:
            self._thre_waiting = False
            self._thre_pending = True
        before = self._line
        self._line = self._gated(timeout)
        if self._line and not before:
            self._irq()

    def _gated(self, timeout: bool = True) -> bool:
        gate_open = self._mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
        return gate_open and self._interrupt_source(timeout) != IIR_NONE

    @property
    def line_up(self) -> bool:
        """Whether the interrupt line is up: a shell may raise the edge once more after `restore`."""
        return self._line

    # -- state ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """To the state after power-on. What was refused before is asked for again."""
        refused = self._rx_refused
        self._load(Uart16550State())
        if refused:
            self._on_rx_room()

    def state(self) -> Uart16550State:
        """The registers as a record."""
        return Uart16550State(
            self._ier, self._fcr, self._lcr, self._mcr, self._scr, self._divisor, self._errors,
            self._modem_deltas, tuple(self._rx), self._thre_pending, self._thre_waiting, self._rx_refused,
        )  # fmt: skip

    def restore(self, state: Uart16550State) -> None:
        """Take over `state`. No edge is raised: one that came before is in the interrupt controller's state.

        A sink that has room then wants `tx_room_changed` called. Raises `ValueError` with the name of the
        field for a record that no port can have, and changes nothing.
        """
        check_state(state)
        self._load(state)
