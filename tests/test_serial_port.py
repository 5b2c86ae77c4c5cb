"""COM1 as a part of the board: early input is kept, a full ring holds, nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tvmm.kvm.calls import ffi, lib
from tvmm.serial_port import IDLE_POLLS, RING_BYTES, SerialPort

DATA, IER, FCR, LCR, MCR, LSR = 0, 1, 2, 3, 4, 5


@pytest.fixture
def port() -> Iterator[SerialPort]:
    """A port whose guest has not touched it yet."""
    made = SerialPort(lambda: None, threading.Lock())
    yield made
    made.close()


def received(port: SerialPort) -> bytes:
    """What the guest finds in the FIFO."""
    found = bytearray()
    while port.read(LSR, 1) & 1:
        found.append(port.read(DATA, 1))
    return bytes(found)


def linux_autoconfig(port: SerialPort) -> None:
    """What a driver does to a UART before anybody opens it: loopback test, FIFO cleared, a read to clear interrupts."""
    for offset, value in ((IER, 0), (MCR, 0x1A), (MCR, 0), (FCR, 1), (FCR, 7), (FCR, 0), (LCR, 3)):
        port.write(offset, 1, value)
    port.read(DATA, 1)


def test_the_line_status_is_true_when_the_interrupt_comes() -> None:
    """A vCPU that is interrupted for a byte, and polls the status at once and in C, sees that there is one."""
    seen: list[bool | None] = []

    def interrupted() -> None:
        data = ffi.new("uint8_t *")
        served = lib.tvmm_uart_access(made.ring.raw, LSR, 1, data)
        seen.append(bool(data[0] & 1) if served else None)

    made = SerialPort(interrupted, threading.Lock())
    try:
        made.write(MCR, 1, 0x0B)
        made.write(IER, 1, 1)
        made.receive(b"x")
        assert seen == [True]
    finally:
        made.close()


def test_early_input_waits_until_the_guest_listens(port: SerialPort) -> None:
    """Bytes that come before the driver is ready are refused, and taken, unharmed, when DTR and RTS rise."""
    woken = []
    port.on_receive_room = lambda: woken.append(True)
    assert port.receive(b"early") == 0
    linux_autoconfig(port)
    assert not woken
    port.write(FCR, 1, 1)
    port.write(MCR, 1, 0x0B)
    assert woken
    assert port.receive(b"early") == 5
    assert received(port) == b"early"


def test_the_receive_interrupt_is_as_good_as_the_lines(port: SerialPort) -> None:
    """A guest that never sets the modem lines but enables the interrupt gets its input."""
    assert port.receive(b"x") == 0
    port.write(IER, 1, 1)
    assert port.receive(b"x") == 1


def test_a_guest_that_only_polls_gets_its_input(port: SerialPort) -> None:
    """Polling for input without any set-up opens the line; polling between transmitted bytes does not."""
    assert port.receive(b"x") == 0
    data = ffi.new("uint8_t *", 65)
    for _ in range(4 * IDLE_POLLS):
        port.read(LSR, 1)
        if not lib.tvmm_uart_access(port.ring.raw, DATA, 0, data):
            port.write(DATA, 1, 65)
    assert port.receive(b"x") == 0
    for _ in range(IDLE_POLLS):
        port.read(LSR, 1)
    assert port.receive(b"x") == 1
    assert received(port) == b"x"


def test_a_reset_closes_the_line_again(port: SerialPort) -> None:
    """After a reset the next driver has to say that it is ready."""
    port.write(MCR, 1, 3)
    assert port.receive(b"a") == 1
    port.reset()
    assert port.receive(b"b") == 0


def test_a_full_ring_holds_the_writer_and_lets_go_once(port: SerialPort) -> None:
    """The write that fills the ring comes back with a hold; taking bytes out calls back once."""
    hold = None
    for count in range(RING_BYTES):
        assert hold is None, count
        hold = port.write(DATA, 1, 0x41)
    assert hold is not None
    called = []
    assert hold.call_when_ready(lambda: called.append(True))
    assert not port.read(LSR, 1) & 0x20
    port.transmitted(100)
    port.transmitted(100)
    assert called == [True]
    assert not hold.call_when_ready(lambda: called.append(True))
    assert port.read(LSR, 1) & 0x20


# --- saving ---


def test_a_port_goes_on_in_another(port: SerialPort) -> None:
    """Registers, FIFO, what nobody was given and what nobody took move; bytes that the reader has do not."""
    port.write(MCR, 1, 0x0B)
    port.write(FCR, 1, 1)
    for byte in b"for the reader":
        port.write(DATA, 1, byte)
    port.handed_out = len("for the ")
    assert port.receive(b"typed") == 5
    port.queued_input = lambda: b" behind"
    state = port.save()
    assert (state.listening, state.unsent, state.waiting) == (True, b"reader", b" behind")
    other = SerialPort(lambda: None, threading.Lock())
    passed_on: list[bytes] = []
    other.put_back_input = passed_on.append
    try:
        other.restore(state)
        assert passed_on == [b" behind"]
        assert other.save()._replace(waiting=b" behind") == state
        assert other.untaken() == b""
        other.go_on()
        assert other.untaken() == b"reader"
        assert received(other) == b"typed"
    finally:
        other.close()


def test_nothing_moves_between_save_and_go_on(port: SerialPort) -> None:
    """Input is refused and offered again, output stays; the side that goes on has all of it."""
    port.write(MCR, 1, 0x0B)
    port.write(DATA, 1, ord("x"))
    woken = []
    port.on_receive_room = lambda: woken.append("room")
    before = port.save()
    assert port.receive(b"a") == 0
    assert not port.receive_break()
    assert port.untaken() == b""
    assert port.save() == before
    port.go_on()
    assert woken == ["room"]
    assert port.untaken() == b"x"
    assert port.receive(b"a") == 1


def test_input_is_held_on_the_other_side_if_it_was(port: SerialPort) -> None:
    """A guest that does not listen yet gets its early input after the move, once it does."""
    assert port.receive(b"early") == 0
    other = SerialPort(lambda: None, threading.Lock())
    try:
        other.restore(port.save())
        other.go_on()
        assert other.receive(b"early") == 0
        other.write(MCR, 1, 0x03)
        assert other.receive(b"early") > 0
    finally:
        other.close()


def test_an_interrupt_that_is_up_is_raised_again() -> None:
    """Its edge may have been lost on the way to the interrupt controller; without a cause there is none."""
    edges: list[str] = []
    made = SerialPort(lambda: edges.append("edge"), threading.Lock())
    try:
        made.redeliver()
        assert edges == []
        made.write(MCR, 1, 0x0B)
        made.write(IER, 1, 1)
        made.receive(b"x")
        state = made.save()
    finally:
        made.close()
    other = SerialPort(lambda: edges.append("again"), threading.Lock())
    try:
        other.restore(state)
        assert edges == ["edge"]
        other.redeliver()
        assert edges == ["edge", "again"]
    finally:
        other.close()


def test_records_that_cannot_be_are_refused(port: SerialPort) -> None:
    """By field, with nothing changed."""
    before = port.save()
    for wrong, word in (
        (before._replace(listening=2), "listening"),  # type: ignore[arg-type]
        (before._replace(unsent=bytes(1 << 20)), "unsent"),
        (before._replace(waiting=bytes((1 << 20) + 1)), "waiting"),
        (before._replace(model=before.model._replace(ier=255)), "ier"),
        (before.model, "SerialState"),
    ):
        with pytest.raises(ValueError, match=word):
            port.restore(wrong)  # type: ignore[arg-type]
        assert port.save() == before
