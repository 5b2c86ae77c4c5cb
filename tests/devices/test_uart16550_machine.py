"""The 16550A against a second model that was written from the data sheet in another way.

For each access the reference goes through the moments that the chip goes through (register acknowledged, byte
gone, time passed), works out the interrupt line at each of them from scratch, and counts where it rises.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.devices.uart_parts import LSR, THR, Port, Sink
from tvmm.devices.uart16550 import Uart16550

CAPACITY = 20  # a little more than a FIFO, so that the transmitter is now empty and now busy


class Reference:
    """A 16550A in terms of what is true now; `edges` and `rooms` count like those of `Port`."""

    def __init__(self) -> None:
        self.sink = Sink(CAPACITY)
        self.registers = {"ier": 0, "fcr": 0, "lcr": 0, "mcr": 0, "scr": 0, "dll": 12, "dlm": 0}
        self.fifo: list[tuple[int, bool]] = []  # byte, is it a break
        self.overrun = self.broken = False
        self.changed_lines = 0
        self.thr_empty_seen = self.thre_latched = False
        self.edges = self.rooms = 0
        self.owed = False
        self.high = False

    def bit(self, register: str, number: int) -> bool:
        """One bit of a register."""
        return bool(self.registers[register] >> number & 1)

    def depth(self) -> int:
        """How many received bytes there is place for."""
        return 16 if self.bit("fcr", 0) else 1

    def inputs(self) -> dict[str, bool]:
        """The modem lines as the receiver sees them."""
        if self.bit("mcr", 4):
            return {
                "cts": self.bit("mcr", 1),
                "dsr": self.bit("mcr", 0),
                "ri": self.bit("mcr", 2),
                "dcd": self.bit("mcr", 3),
            }
        return {"cts": True, "dsr": True, "ri": False, "dcd": True}

    def sources(self, timed_out: bool = True) -> list[int]:
        """IIR codes of all that is pending and enabled, highest priority first."""
        trigger = [1, 4, 8, 14][self.registers["fcr"] >> 6] if self.bit("fcr", 0) else 1
        return [
            code
            for code, active in [
                (6, self.bit("ier", 2) and (self.overrun or self.broken)),
                (4, self.bit("ier", 0) and len(self.fifo) >= trigger),
                (12, self.bit("ier", 0) and 0 < len(self.fifo) < trigger and timed_out),
                (2, self.thre_latched),
                (0, self.bit("ier", 3) and self.changed_lines != 0),
            ]
            if active
        ]

    def moment(self, timed_out: bool = True, thr_empty: bool | None = None) -> None:
        """Let the chip come to rest, and see whether the line rose."""
        if thr_empty is None:
            thr_empty = self.sink.room() >= 16
        may_interrupt = thr_empty and self.bit("ier", 1)
        if not may_interrupt:
            self.thre_latched = False
        elif not self.thr_empty_seen:
            self.thre_latched = True
        self.thr_empty_seen = may_interrupt
        if self.fifo and self.fifo[0][1]:
            self.broken = True
            self.fifo[0] = (self.fifo[0][0], False)
        high = bool(self.sources(timed_out)) and self.bit("mcr", 3) and not self.bit("mcr", 4)
        if high and not self.high:
            self.edges += 1
        self.high = high

    def offer(self) -> None:
        """Pay an owed announcement if there is room."""
        if self.owed and not self.bit("mcr", 4) and len(self.fifo) < self.depth():
            self.owed = False
            self.rooms += 1

    def arrive(self, byte: int, is_break: bool) -> None:
        """The loop brings a byte to the receiver."""
        if len(self.fifo) < self.depth():
            self.fifo.append((byte, is_break))
        else:
            self.overrun = True
            if self.depth() == 1:
                self.fifo = [(byte, is_break)]

    def read(self, offset: int) -> int:
        """One register."""
        self.moment()
        value = self._read(offset)
        self.moment()
        self.offer()
        return value

    def _read(self, offset: int) -> int:
        registers = self.registers
        dlab = self.bit("lcr", 7)
        if offset == 0 and not dlab:
            if not self.fifo:
                return 0
            byte, _ = self.fifo.pop(0)
            self.moment(timed_out=False)
            return byte
        if offset == 2:
            code = next(iter(self.sources()), 1)
            if code == 2:
                self.thre_latched = False
            return code | (0xC0 if self.bit("fcr", 0) else 0)
        if offset == 5:
            value = (0x60 if self.sink.room() >= 16 else 0) | (1 if self.fifo else 0)
            value |= (2 if self.overrun else 0) | (16 if self.broken else 0)
            if self.bit("fcr", 0) and (self.broken or any(is_break for _, is_break in self.fifo)):
                value |= 0x80
            self.overrun = self.broken = False
            return value
        if offset == 6:
            bits = {"cts": 4, "dsr": 5, "ri": 6, "dcd": 7}
            value = sum(1 << bits[name] for name, on in self.inputs().items() if on) | self.changed_lines
            self.changed_lines = 0
            return value
        name = {0: "dll", 1: "dlm" if dlab else "ier", 3: "lcr", 4: "mcr", 7: "scr"}[offset]
        return registers[name]

    def write(self, offset: int, value: int) -> None:
        """One register."""
        self.moment()
        self._write(offset, value)
        self.moment()
        self.offer()

    def _write(self, offset: int, value: int) -> None:
        registers = self.registers
        dlab = self.bit("lcr", 7)
        if offset == 0 and not dlab:
            self.moment(thr_empty=False)
            if self.bit("mcr", 4):
                self.arrive(value, False)
            else:
                self.sink.push(value)
        elif offset == 0:
            registers["dll"] = value
        elif offset == 1:
            registers["dlm" if dlab else "ier"] = value if dlab else value % 16
        elif offset == 2:
            on = bool(value & 1)
            if on != self.bit("fcr", 0) or (on and value & 2):
                self.fifo = []
            registers["fcr"] = value & 0xC1 if on else 0
        elif offset == 3:
            begins = value & 0x40 and not self.bit("lcr", 6)
            registers["lcr"] = value
            if begins and self.bit("mcr", 4):
                self.arrive(0, True)
        elif offset == 4:
            old = self.inputs()
            registers["mcr"] = value % 32
            new = self.inputs()
            for number, name in enumerate(["cts", "dsr", "ri", "dcd"]):
                if old[name] and not new[name] if name == "ri" else old[name] != new[name]:
                    self.changed_lines |= 1 << number
        elif offset == 7:
            registers["scr"] = value

    def receive(self, data: bytes) -> int:
        """The line brings `data`."""
        taken = data[: 0 if self.bit("mcr", 4) else self.depth() - len(self.fifo)]
        self.fifo += [(byte, False) for byte in taken]
        self.owed = len(taken) < len(data)
        self.moment()
        return len(taken)

    def receive_break(self) -> bool:
        """The line breaks."""
        if self.bit("mcr", 4) or len(self.fifo) >= self.depth():
            self.owed = True
            return False
        self.fifo.append((0, True))
        self.moment()
        return True


SPECIAL = [0x00, 0x01, 0x02, 0x03, 0x07, 0x08, 0x0B, 0x0F, 0x18, 0x40, 0x80, 0x81, 0xC1, 0xFF]


class UartMachine(RuleBasedStateMachine):
    """The model and the reference side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.port = Port(CAPACITY)
        self.reference = Reference()

    @rule(offset=st.integers(0, 7))
    def read(self, offset: int) -> None:
        """The guest reads a register."""
        if offset == LSR:
            self.check_fast_lsr()
        assert self.port.read(offset) == self.reference.read(offset)

    @rule(offset=st.integers(0, 7), value=st.sampled_from(SPECIAL) | st.integers(0, 255))
    def write(self, offset: int, value: int) -> None:
        """The guest writes a register."""
        if offset == THR:
            self.check_fast_tx(value)
        self.port.write(offset, value)
        self.reference.write(offset, value)

    @rule(trigger=st.integers(0, 3), ier=st.integers(0, 15))
    def configure(self, trigger: int, ier: int) -> None:
        """The guest opens the port as a driver does, so that the deep states are reached often."""
        for offset, value in [(3, 0x03), (2, trigger << 6 | 0x01), (4, 0x0B), (1, ier)]:
            self.write(offset, value)

    @rule(mcr=st.integers(0, 15), loop=st.booleans())
    def move_modem_lines(self, mcr: int, loop: bool) -> None:
        """The guest sets its outputs, in loopback or out of it."""
        self.write(4, mcr | (0x10 if loop else 0))

    @rule(count=st.integers(1, 16))
    def read_data(self, count: int) -> None:
        """The guest reads the receiver, each time looking at LSR or not."""
        for number in range(count):
            self.read(0)
            if number % 3:
                self.read(LSR)

    @rule(data=st.binary(max_size=20))
    def receive(self, data: bytes) -> None:
        """Bytes come over the line."""
        assert self.port.uart.receive(data) == self.reference.receive(data)

    @rule()
    def receive_break(self) -> None:
        """A break comes over the line."""
        assert self.port.uart.receive_break() == self.reference.receive_break()

    @rule(count=st.integers(1, 20), told=st.booleans())
    def drain(self, count: int, told: bool) -> None:
        """The sink sends, and tells the port or not."""
        self.port.sink.drain(count)
        self.reference.sink.drain(count)
        if told:
            self.port.uart.tx_room_changed()
            self.reference.moment()

    @rule()
    def move(self) -> None:
        """The port is saved and a fresh one goes on in its place."""
        before = self.port
        self.port = Port(CAPACITY)
        self.port.sink = before.sink
        self.port.uart = Uart16550(before.sink, self.port._irq, self.port._room)
        self.port.uart.restore(before.uart.state())
        self.port.edges, self.port.rooms = before.edges, before.rooms

    def twin(self) -> Port:
        """A port in the same state, on a sink of its own with the same room."""
        twin = Port(CAPACITY)
        twin.sink.backlog = self.port.sink.backlog
        twin.uart.restore(self.port.uart.state())
        return twin

    def check_fast_lsr(self) -> None:
        """Where the fast path would answer for LSR, the model gives the same and does not change."""
        fast, twin = self.port.uart.fast_path().lsr, self.twin()
        state, value = twin.uart.state(), twin.read(LSR)
        if fast >= 0:
            assert value == fast | (0x60 if twin.sink.room() >= 16 else 0)
            assert (twin.uart.state(), twin.edges, twin.rooms) == (state, 0, 0)
        else:
            assert twin.uart.state() != state or self.port.uart.state().thre_waiting

    def check_fast_tx(self, value: int) -> None:
        """Where the fast path would push a byte, the model does that and nothing else."""
        fast, twin = self.port.uart.fast_path().tx, self.twin()
        state = twin.uart.state()
        twin.write(THR, value)
        if fast:
            assert (twin.uart.state(), twin.sink.sent, twin.edges, twin.rooms) == (state, [value], 0, 0)

    @invariant()
    def same_calls_and_bytes(self) -> None:
        """Edges, announcements and bytes sent are the same on both sides."""
        assert (self.port.edges, self.port.rooms) == (self.reference.edges, self.reference.rooms)
        assert self.port.sink.sent == self.reference.sink.sent


UartMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestUartAgainstReference = UartMachine.TestCase
