"""Registers of the 16550A, its state record, and what makes a record one that a port can have."""

from __future__ import annotations

from typing import NamedTuple

from tvmm.devices.common import check_bits, check_flag, check_record, check_uint

FIFO_SIZE = 16

# Register offsets. 0 and 1 are the divisor latch while LCR bit 7 (DLAB) is set.
DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)

IER_RECEIVED = 0x01
IER_THR_EMPTY = 0x02
IER_LINE_STATUS = 0x04
IER_MODEM_STATUS = 0x08

# IIR, highest priority first.
IIR_LINE_STATUS = 0x06
IIR_RECEIVED = 0x04
IIR_TIMEOUT = 0x0C
IIR_THR_EMPTY = 0x02
IIR_MODEM_STATUS = 0x00
IIR_NONE = 0x01
IIR_FIFO_ENABLED = 0xC0

FCR_ENABLE = 0x01
FCR_CLEAR_RX = 0x02
FCR_KEPT = 0xC1  # enable and trigger level; DMA mode moves pins that a PC does not connect
TRIGGER_LEVELS = (1, 4, 8, 14)

LCR_BREAK = 0x40
LCR_DLAB = 0x80

MCR_OUT2 = 0x08
MCR_LOOP = 0x10
MCR_MASK = 0x1F

LSR_DATA_READY = 0x01
LSR_OVERRUN = 0x02
LSR_PARITY = 0x04
LSR_FRAMING = 0x08
LSR_BREAK = 0x10
LSR_TX_EMPTY = 0x60  # THRE and TEMT
LSR_FIFO_ERROR = 0x80
CHARACTER_ERRORS = LSR_PARITY | LSR_FRAMING | LSR_BREAK
LINE_ERRORS = CHARACTER_ERRORS | LSR_OVERRUN

MSR_RING = 0x40
MSR_DELTAS = 0x0F
MSR_TRAILING_RING = 0x04
MODEM_LINES = 0xB0  # DCD, DSR and CTS: the other end is always there and always ready

DIVISOR_9600 = 12


class FastPath(NamedTuple):
    """Which accesses may be served without the model, until the next access to the model or call of it.

    `tx`: a one-byte write to offset 0 is a `push` and nothing else. `lsr`: what a one-byte read of offset 5
    gives, without THRE and TEMT (0x60, both set if and only if the sink has room for `FIFO_SIZE` bytes), or
    -1 if that read has a side effect.
    """

    tx: bool
    lsr: int


class Uart16550State(NamedTuple):
    """The registers, and what hangs on them.

    `rx` is the receive FIFO, oldest first: the byte, and its LSR error bits shifted left by 8.
    `thre_pending` is the THR-empty interrupt, `thre_waiting` says that it comes when the sink has room,
    `rx_refused` that `on_rx_room` is owed.
    """

    ier: int = 0
    fcr: int = 0
    lcr: int = 0
    mcr: int = 0
    scr: int = 0
    divisor: int = DIVISOR_9600
    line_errors: int = 0
    modem_deltas: int = 0
    rx: tuple[int, ...] = ()
    thre_pending: bool = False
    thre_waiting: bool = False
    rx_refused: bool = False


def check_state(state: Uart16550State) -> None:
    """Raise `ValueError` with the name of the field if no port can be in `state`."""
    check_record(state, Uart16550State)
    ier = check_bits("ier", state.ier, 0x0F)
    fcr = check_bits("fcr", state.fcr, FCR_KEPT)
    if fcr and not fcr & FCR_ENABLE:
        raise ValueError("fcr has a trigger level without the FIFO")
    check_uint("lcr", state.lcr, 0xFF)
    check_bits("mcr", state.mcr, MCR_MASK)
    check_uint("scr", state.scr, 0xFF)
    check_uint("divisor", state.divisor, 0xFFFF)
    check_bits("line_errors", state.line_errors, LINE_ERRORS)
    check_bits("modem_deltas", state.modem_deltas, MSR_DELTAS)
    if type(state.rx) is not tuple or len(state.rx) > (FIFO_SIZE if fcr else 1):
        raise ValueError("rx is not a tuple that fits the FIFO")
    for position, entry in enumerate(state.rx):
        # The errors of the oldest byte are in line_errors already.
        check_bits("rx", entry, 0xFF | CHARACTER_ERRORS << 8 if position else 0xFF)
    pending = check_flag("thre_pending", state.thre_pending)
    waiting = check_flag("thre_waiting", state.thre_waiting)
    if (pending or waiting) and not ier & IER_THR_EMPTY:
        raise ValueError("thre_pending or thre_waiting without the interrupt enabled in ier")
    if pending and waiting:
        raise ValueError("thre_pending and thre_waiting exclude each other")
    check_flag("rx_refused", state.rx_refused)
