"""A serial port with a sink of known size, and counters on its callbacks."""

from __future__ import annotations

from tvmm.devices.uart16550 import Uart16550

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = range(3, 8)

THRI = 0x02
OUT2 = 0x08
LOOP = 0x10
THRE_TEMT = 0x60


class Sink:
    """Keeps what is pushed; `drain` makes room by forgetting the oldest as sent."""

    def __init__(self, capacity: int = 64) -> None:
        self.capacity = capacity
        self.backlog = 0
        self.sent: list[int] = []

    def push(self, byte: int) -> None:
        """Take a byte, also beyond the capacity."""
        self.sent.append(byte)
        self.backlog += 1

    def room(self) -> int:
        """What is left of the capacity."""
        return max(self.capacity - self.backlog, 0)

    def drain(self, count: int = 1 << 30) -> None:
        """Let `count` bytes leave."""
        self.backlog -= min(count, self.backlog)


class Port:
    """A UART on a sink; `edges` and `rooms` count the calls of `irq` and `on_rx_room`."""

    def __init__(self, capacity: int = 64) -> None:
        self.edges = 0
        self.rooms = 0
        self.sink = Sink(capacity)
        self.uart = Uart16550(self.sink, self._irq, self._room)

    def _irq(self) -> None:
        self.edges += 1

    def _room(self) -> None:
        self.rooms += 1

    def read(self, register: int) -> int:
        """One byte of a register."""
        return self.uart.read(register, 1)

    def write(self, register: int, value: int) -> None:
        """One byte to a register."""
        self.uart.write(register, 1, value)

    def new_edges(self) -> int:
        """Edges since the last call."""
        count, self.edges = self.edges, 0
        return count


def with_fifo(port: Port, trigger: int, ier: int = 0x01) -> None:
    """FIFO on with trigger code `trigger`, `ier` enabled, gate open."""
    port.write(FCR, 0x01 | trigger << 6)
    port.write(MCR, OUT2)
    port.write(IER, ier)
