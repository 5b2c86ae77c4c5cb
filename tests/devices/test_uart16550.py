"""The 16550A register by register."""

from __future__ import annotations

import pytest

from tests.devices.uart_parts import (
    DLL,
    DLM,
    FCR,
    IER,
    IIR,
    LCR,
    LOOP,
    LSR,
    MCR,
    MSR,
    OUT2,
    RBR,
    SCR,
    THR,
    THRE_TEMT,
    THRI,
    Port,
    Sink,
    with_fifo,
)
from tvmm.devices.uart16550 import FIFO_SIZE, Uart16550


@pytest.fixture
def port() -> Port:
    """A port after power-on."""
    return Port()


def test_power_on_registers(port: Port) -> None:
    """After power-on nothing is enabled, the transmitter is empty and the other end is there."""
    assert [port.read(register) for register in range(8)] == [0, 0, 0x01, 0, 0, THRE_TEMT, 0xB0, 0]


def test_bytes_leave_at_once_and_in_order(port: Port) -> None:
    """What is written to THR is in the sink when the write returns."""
    for byte in b"hello":
        port.write(THR, byte)
    assert bytes(port.sink.sent) == b"hello"


def test_transmitter_is_empty_only_with_room_for_a_fifo() -> None:
    """THRE and TEMT are set exactly as long as the sink can take a whole FIFO."""
    port = Port(capacity=FIFO_SIZE + 1)
    port.write(THR, 1)
    assert port.read(LSR) == THRE_TEMT
    port.write(THR, 2)
    assert port.read(LSR) == 0
    port.sink.drain(1)
    assert port.read(LSR) == THRE_TEMT


def test_divisor_latch_hides_data_and_ier(port: Port) -> None:
    """With DLAB set, offsets 0 and 1 are the divisor and touch neither THR nor IER."""
    port.write(IER, 0x05)
    port.write(LCR, 0x83)
    port.write(DLL, 0x34)
    port.write(DLM, 0x12)
    assert (port.read(DLL), port.read(DLM)) == (0x34, 0x12)
    port.write(LCR, 0x03)
    assert (port.read(IER), port.read(LCR), port.sink.sent) == (0x05, 0x03, [])


def test_unused_bits_read_zero(port: Port) -> None:
    """IER has four bits and MCR five: drivers tell chips apart by those that do not stick."""
    port.write(IER, 0xFF)
    port.write(MCR, 0xFF)
    assert (port.read(IER), port.read(MCR)) == (0x0F, 0x1F)


def test_status_registers_are_for_reading(port: Port) -> None:
    """Writes to LSR and MSR do nothing."""
    port.write(LSR, 0xFF)
    port.write(MSR, 0xFF)
    assert (port.read(LSR), port.read(MSR)) == (THRE_TEMT, 0xB0)


def test_wide_access_is_byte_accesses_in_order(port: Port) -> None:
    """A four-byte access at LCR reaches LCR, MCR, LSR and MSR; behind the last register is nothing."""
    port.uart.write(LCR, 4, 0xFFFF_0803)
    assert port.uart.read(LCR, 4) == 0xB060_0803
    port.uart.write(SCR, 2, 0x55AA)
    assert port.uart.read(SCR, 2) == 0xFFAA


# -- receiver ------------------------------------------------------------------------------------------------


def test_without_fifo_one_byte_fits(port: Port) -> None:
    """Without the FIFO the receiver takes one byte, and asks for more when that was read."""
    assert port.uart.receive(b"abc") == 1
    assert port.uart.receive(b"bc") == 0
    assert port.read(LSR) & 0x01
    assert port.rooms == 0
    assert port.read(RBR) == ord("a")
    assert port.rooms == 1
    assert not port.read(LSR) & 0x01


def test_fifo_takes_sixteen(port: Port) -> None:
    """The FIFO takes 16 bytes and gives them back in order."""
    with_fifo(port, trigger=0)
    data = bytes(range(100, 120))
    assert port.uart.receive(data) == FIFO_SIZE
    assert bytes(port.read(RBR) for _ in range(FIFO_SIZE)) == data[:FIFO_SIZE]
    assert port.rooms == 1


def test_room_is_announced_only_after_a_refusal(port: Port) -> None:
    """A reader that was never turned away is not called."""
    port.uart.receive(b"x")
    port.read(RBR)
    assert port.rooms == 0


def test_refill_from_within_the_announcement() -> None:
    """`on_rx_room` may call `receive` there and then; every byte arrives once and in order."""
    pending = bytearray(range(200))

    def refill() -> None:
        del pending[: uart.receive(bytes(pending))]

    uart = Uart16550(Sink(), irq=lambda: None, on_rx_room=refill)
    refill()
    got = bytearray()
    while uart.read(LSR, 1) & 0x01:
        got.append(uart.read(RBR, 1))
    assert got == bytes(range(200))


@pytest.mark.parametrize(("code", "level"), [(0, 1), (1, 4), (2, 8), (3, 14)])
def test_trigger_levels(port: Port, code: int, level: int) -> None:
    """Below the trigger level IIR says timeout, from it on it says data available."""
    with_fifo(port, trigger=code)
    port.uart.receive(bytes(level - 1))
    assert port.read(IIR) == (0xCC if level > 1 else 0xC1)
    port.uart.receive(b"x")
    assert port.read(IIR) == 0xC4


def test_one_byte_per_interrupt_below_the_trigger(port: Port) -> None:
    """A read that leaves data below the trigger level brings a further edge, so that none is left behind."""
    with_fifo(port, trigger=2)
    port.uart.receive(b"abc")
    seen = []
    while port.new_edges():
        seen.append(port.read(RBR))
    assert bytes(seen) == b"abc"


def test_no_edge_while_the_line_is_high(port: Port) -> None:
    """Further bytes above the trigger level do not pulse a line that is high already."""
    with_fifo(port, trigger=0)
    port.uart.receive(b"a")
    port.uart.receive(b"b")
    assert port.new_edges() == 1


def test_fifo_switch_and_clear_empty_the_receiver(port: Port) -> None:
    """Turning the FIFO on or off, and the clear bit, drop what was received and announce the room."""
    port.uart.receive(b"ab")
    port.write(FCR, 0x01)
    assert (port.read(LSR) & 0x01, port.rooms) == (0, 1)
    port.uart.receive(bytes(20))
    port.write(FCR, 0x03)
    assert (port.read(LSR) & 0x01, port.rooms) == (0, 2)
    port.uart.receive(b"c")
    port.write(FCR, 0x00)
    assert port.read(LSR) & 0x01 == 0


def test_fcr_bits_need_the_enable_bit(port: Port) -> None:
    """A write without the enable bit turns the FIFO off and keeps no trigger level."""
    port.write(FCR, 0xC0)
    assert port.read(IIR) == 0x01
    assert port.uart.state().fcr == 0


def test_break_shows_when_its_byte_is_next(port: Port) -> None:
    """The break error is seen when the zero byte of the break is next; LSR bit 7 tells of it before."""
    with_fifo(port, trigger=0, ier=0x05)
    port.uart.receive(b"a")
    assert port.uart.receive_break()
    assert port.read(LSR) == THRE_TEMT | 0x81
    assert port.read(RBR) == ord("a")
    assert port.read(IIR) == 0xC6
    assert port.read(LSR) == THRE_TEMT | 0x91
    assert port.read(LSR) == THRE_TEMT | 0x01
    assert port.read(IIR) == 0xC4
    assert port.read(RBR) == 0


def test_break_without_room_is_refused_not_lost(port: Port) -> None:
    """`receive_break` says False without room, and the room is announced."""
    port.uart.receive(b"a")
    assert not port.uart.receive_break()
    port.read(RBR)
    assert port.rooms == 1
    assert port.uart.receive_break()
    assert port.read(LSR) & 0x11 == 0x11


# -- transmitter interrupt ---------------------------------------------------------------------------------


def test_enabling_thri_while_empty_raises_it(port: Port) -> None:
    """The interrupt comes at once, is gone after IIR reported it, and comes back on disable and enable."""
    port.write(MCR, OUT2)
    port.write(IER, THRI)
    assert port.new_edges() == 1
    assert (port.read(IIR), port.read(IIR)) == (0x02, 0x01)
    port.write(IER, THRI)
    assert port.new_edges() == 0
    port.write(IER, 0)
    port.write(IER, THRI)
    assert port.new_edges() == 1


def test_each_byte_brings_the_interrupt_back(port: Port) -> None:
    """Writing THR takes the interrupt away, and the byte's leaving raises it again."""
    port.write(MCR, OUT2)
    port.write(IER, THRI)
    port.new_edges()
    port.write(THR, 1)
    assert (port.new_edges(), port.read(IIR)) == (1, 0x02)
    port.write(THR, 2)
    assert (port.new_edges(), port.read(IIR)) == (1, 0x02)


def test_interrupt_waits_for_the_sink() -> None:
    """With a full sink the interrupt comes when `tx_room_changed` says that a FIFO fits again, and once."""
    port = Port(capacity=FIFO_SIZE)
    port.write(MCR, OUT2)
    port.write(IER, THRI)
    port.read(IIR)
    port.write(THR, 1)
    assert (port.new_edges(), port.read(IIR)) == (1, 0x01)  # the edge is the one of the enabling
    port.uart.tx_room_changed()
    assert port.new_edges() == 0
    port.sink.drain()
    port.uart.tx_room_changed()
    port.uart.tx_room_changed()
    assert (port.new_edges(), port.read(IIR)) == (1, 0x02)


def test_enabling_thri_while_full_waits_too() -> None:
    """An interrupt enabled while the sink is full comes when it drains."""
    port = Port(capacity=FIFO_SIZE)
    port.write(THR, 1)
    port.write(MCR, OUT2)
    port.write(IER, THRI)
    assert port.new_edges() == 0
    port.sink.drain()
    port.uart.tx_room_changed()
    assert port.new_edges() == 1


def test_higher_source_leaves_thri_pending(port: Port) -> None:
    """Reading IIR while it reports another source does not acknowledge the transmitter's interrupt."""
    with_fifo(port, trigger=0, ier=0x03)
    port.uart.receive(b"a")
    assert port.read(IIR) == 0xC4
    port.read(RBR)
    assert (port.read(IIR), port.read(IIR)) == (0xC2, 0xC1)


# -- modem lines, loopback, gate ----------------------------------------------------------------------------


def test_out2_gates_the_line(port: Port) -> None:
    """Without OUT2 IIR reports and no edge leaves; opening the gate lets it out."""
    port.write(IER, 0x01)
    port.uart.receive(b"a")
    assert (port.new_edges(), port.read(IIR)) == (0, 0x04)
    port.write(MCR, OUT2)
    assert port.new_edges() == 1
    port.write(MCR, 0)
    port.write(MCR, OUT2)
    assert port.new_edges() == 1


def test_loopback_data_and_overrun(port: Port) -> None:
    """In loopback THR feeds the receiver, the sink gets nothing, and the 17th byte overruns."""
    port.write(FCR, 0x01)
    port.write(MCR, LOOP)
    for byte in range(FIFO_SIZE):
        port.write(THR, byte)
    assert port.read(LSR) == THRE_TEMT | 0x01
    port.write(THR, 0x99)
    assert port.read(LSR) == THRE_TEMT | 0x03
    assert [port.read(RBR) for _ in range(FIFO_SIZE)] == list(range(FIFO_SIZE))
    assert port.sink.sent == []


def test_loopback_overrun_without_fifo_replaces(port: Port) -> None:
    """Without the FIFO the second byte replaces the first and is reported as an overrun."""
    port.write(MCR, LOOP)
    port.write(THR, 1)
    port.write(THR, 2)
    assert port.read(LSR) & 0x03 == 0x03
    assert port.read(RBR) == 2
    assert port.read(LSR) & 0x03 == 0


def test_loopback_refuses_the_line(port: Port) -> None:
    """Bytes that come during loopback are refused, and asked for when it ends."""
    port.write(MCR, LOOP)
    assert port.uart.receive(b"a") == 0
    assert not port.uart.receive_break()
    port.write(MCR, 0)
    assert (port.rooms, port.uart.receive(b"a")) == (1, 1)


def test_no_announcement_during_loopback(port: Port) -> None:
    """Room that the guest makes during loopback is announced when the loopback ends."""
    port.uart.receive(b"ab")
    port.write(MCR, LOOP)
    port.read(RBR)
    assert port.rooms == 0
    port.write(MCR, 0)
    assert port.rooms == 1


def test_loopback_break(port: Port) -> None:
    """A break that begins in loopback arrives as one; out of loopback it stays on the line."""
    port.write(LCR, 0x40)
    port.write(LCR, 0)
    assert port.read(LSR) == THRE_TEMT
    port.write(MCR, LOOP)
    port.write(LCR, 0x40)
    assert port.read(LSR) == THRE_TEMT | 0x11


def test_loopback_modem_lines_and_deltas(port: Port) -> None:
    """In loopback MCR's outputs are MSR's inputs; changes are reported once, a ring at its end."""
    port.write(MCR, LOOP)
    assert port.read(MSR) == 0x0B
    for mcr, msr in [(0x01, 0x22), (0x02, 0x13), (0x04, 0x41), (0x08, 0x8C), (0x00, 0x08), (0x00, 0x00)]:
        port.write(MCR, LOOP | mcr)
        assert port.read(MSR) == msr, hex(mcr)


def test_modem_status_interrupt(port: Port) -> None:
    """A change of the lines raises the modem status interrupt, reading MSR takes it away."""
    port.write(IER, 0x08)
    port.write(MCR, LOOP)
    port.write(MCR, OUT2)
    assert (port.new_edges(), port.read(IIR)) == (1, 0x00)
    port.read(MSR)
    assert port.read(IIR) == 0x01
