"""The 16550A as drivers use it, and its state record."""

from __future__ import annotations

from typing import Any

import pytest

from tests.devices.uart_parts import (
    FCR,
    IER,
    IIR,
    LCR,
    LOOP,
    LSR,
    MCR,
    MSR,
    OUT2,
    THR,
    THRE_TEMT,
    THRI,
    Port,
    with_fifo,
)
from tvmm.devices.uart16550 import FIFO_SIZE


@pytest.fixture
def port() -> Port:
    """A port after power-on."""
    return Port()


# -- as drivers use it --------------------------------------------------------------------------------------


def probe_like_linux(port: Port) -> str:
    """What Linux' 8250 driver concludes: the tests of its autoconfiguration, in their order.

    From the behaviour it documents: IER must hold four bits, loopback must turn MCR into MSR, then FCR and
    IIR tell the family, and the registers that later chips have must be absent.
    """
    saved_mcr, saved_lcr = port.read(MCR), port.read(LCR)
    port.write(IER, 0x00)
    if port.read(IER) & 0x0F != 0x00:
        return "none"
    port.write(IER, 0x0F)
    if port.read(IER) & 0x0F != 0x0F:
        return "none"
    port.write(IER, 0x00)
    port.write(MCR, LOOP | 0x0A)
    if port.read(MSR) & 0xF0 != 0x90:
        return "none"
    port.write(MCR, saved_mcr)
    port.write(LCR, 0xBF)  # where later chips keep an enhanced feature register
    port.write(FCR, 0)
    port.write(LCR, 0x00)
    port.write(FCR, 0x01)
    family = {0: "8250 or 16450", 1: "unknown", 2: "16550", 3: "16550A"}[port.read(IIR) >> 6]
    if family == "16550A":
        for lcr in (0x80, 0xBF):
            port.write(LCR, lcr)
            if port.read(2) == 0:
                return "16650 or 16850"
        port.write(LCR, 0x00)
        status = port.read(MCR)
        port.write(LCR, 0xE0)
        extended = port.read(2)
        if not (extended ^ status) & LOOP:
            port.write(LCR, 0x00)
            port.write(MCR, status ^ LOOP)
            port.write(LCR, 0xE0)
            moved = port.read(2)
            port.write(LCR, 0x00)
            port.write(MCR, status)
            if (moved ^ status) & LOOP:
                return "NS16550A"
        for lcr in (0x00, 0x80):
            port.write(LCR, lcr)
            port.write(FCR, 0x21)
            if port.read(IIR) & 0x20:
                return "16750"
        port.write(LCR, 0x00)
        port.write(IER, 0x40)
        if port.read(IER) & 0x40:
            return "XScale"
    port.write(IER, 0x00)
    port.write(LCR, saved_lcr)
    port.write(MCR, saved_mcr)
    port.write(FCR, 0x00)
    return family


def test_linux_detects_a_16550a(port: Port) -> None:
    """Linux' autoconfiguration finds a 16550A, raises no interrupt and sends nothing."""
    assert probe_like_linux(port) == "16550A"
    assert (port.edges, port.sink.sent) == (0, [])


def test_linux_startup_finds_no_bugs(port: Port) -> None:
    """The checks at opening find that enabling THRI raises it each time, so no polling timer is used."""
    port.write(FCR, 0x07)
    port.write(FCR, 0x00)
    port.write(MCR, OUT2)
    seen = []
    for _ in range(2):
        port.write(IER, THRI)
        seen.append(port.read(IIR) & 0x01)
        port.write(IER, 0)
    port.write(IER, THRI)
    lsr, iir = port.read(LSR), port.read(IIR)
    assert seen == [0, 0]
    assert lsr & 0x40
    assert not iir & 0x01


def test_interrupt_driven_output_drains() -> None:
    """A driver that fills the FIFO at each interrupt and stops when it has no more gets everything out."""
    port = Port(capacity=40)
    message = bytes(range(256))
    todo = list(message)
    with_fifo(port, trigger=2, ier=0x01)
    port.write(IER, 0x03)
    rounds = 0
    while todo:
        rounds += 1
        assert rounds < 100, "the driver was not woken"
        if not port.new_edges():
            port.sink.drain()
            port.uart.tx_room_changed()
            continue
        while port.read(IIR) & 0x0F == 0x02 and port.read(LSR) & 0x20 and todo:
            for _ in range(min(FIFO_SIZE, len(todo))):
                port.write(THR, todo.pop(0))
    assert bytes(port.sink.sent) == message


# -- state --------------------------------------------------------------------------------------------------


def test_reset_asks_again_for_what_was_refused(port: Port) -> None:
    """Reset empties the receiver; who was refused before is told that there is room."""
    port.uart.receive(b"ab")
    port.uart.reset()
    assert port.rooms == 1
    assert port.read(LSR) == THRE_TEMT


def test_restore_is_silent_and_keeps_waiting_for_room() -> None:
    """Restoring raises no edge; an interrupt that waits for room comes when the new sink has it."""
    source = Port(capacity=FIFO_SIZE)
    with_fifo(source, trigger=0, ier=THRI)
    source.read(IIR)
    source.write(THR, 1)
    target = Port()
    target.uart.restore(source.uart.state())
    assert target.edges == 0
    target.uart.tx_room_changed()
    assert (target.edges, target.read(IIR)) == (1, 0xC2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ier", 0x10),
        ("fcr", 0xC0),
        ("rx", (1, 2)),
        ("rx", (0x1000,)),
        ("thre_pending", True),
        ("divisor", 1 << 16),
        ("line_errors", 0x01),
    ],
)
def test_restore_names_the_bad_field(port: Port, field: str, value: Any) -> None:
    """A record that no port can have is refused by the name of its field, and changes nothing."""
    before = port.uart.state()
    with pytest.raises(ValueError, match=field):
        port.uart.restore(before._replace(**{field: value}))
    assert port.uart.state() == before
