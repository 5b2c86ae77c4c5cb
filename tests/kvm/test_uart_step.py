"""The serial accesses that the C step serves, against the Python model that is the truth."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmm.devices.uart16550 import Uart16550
from tvmm.kvm.calls import ffi, lib
from tvmm.kvm.uart import TransmitRing
from tvmm.serial_port import COM1_PORT, RING_BYTES, SerialPort

MCR, READY = 4, 0x0B


class PlainRing:
    """`TransmitRing` in plain Python."""

    def __init__(self, capacity: int) -> None:
        self.bytes = bytearray()
        self.capacity = capacity

    def push(self, byte: int) -> None:
        """As the ring's."""
        self.bytes.append(byte)

    def room(self) -> int:
        """As the ring's."""
        return max(0, self.capacity - len(self.bytes))


class Twin:
    """One port served as on a running machine, C first, and its plain twin, driven with the same accesses."""

    def __init__(self) -> None:
        self.edges = [0, 0]
        self.port = SerialPort(lambda: self._edge(0), threading.Lock())
        self.plain_ring = PlainRing(RING_BYTES)
        self.plain = Uart16550(self.plain_ring, lambda: self._edge(1), lambda: None)
        self.write(MCR, READY)  # A guest that listens: before that the port holds input that the bare model takes.

    def _edge(self, which: int) -> None:
        self.edges[which] += 1

    def write(self, offset: int, value: int) -> None:
        """One byte to a register of both."""
        data = ffi.new("uint8_t *", value)
        if not lib.tvmm_uart_access(self.port.ring.raw, offset, 0, data):
            self.port.write(offset, 1, value)
        self.plain.write(offset, 1, value)

    def read(self, offset: int) -> tuple[int, int]:
        """One byte from a register of both."""
        data = ffi.new("uint8_t *")
        served = lib.tvmm_uart_access(self.port.ring.raw, offset, 1, data)
        value = int(data[0]) if served else self.port.read(offset, 1)
        return value, self.plain.read(offset, 1)

    def receive(self, data: bytes) -> None:
        """Bytes from the line to both."""
        assert self.port.receive(data) == self.plain.receive(data)

    def drain(self, count: int) -> None:
        """The reader takes up to `count` bytes."""
        count = min(count, len(self.plain_ring.bytes))
        del self.plain_ring.bytes[:count]
        self.port.transmitted(count)
        self.plain.tx_room_changed()


@pytest.fixture
def ring() -> Iterator[TransmitRing]:
    """A ring of 32 bytes."""
    made = TransmitRing(COM1_PORT, 32)
    yield made
    made.close()


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 7), st.integers(0, 255)),
        st.tuples(st.just("write"), st.just(0), st.integers(0, 255)),
        st.tuples(st.just("read"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("read"), st.just(5), st.just(0)),
        st.tuples(st.just("receive"), st.integers(1, 20), st.integers(0, 255)),
        st.tuples(st.just("drain"), st.integers(1, 40), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=150)
@given(OPERATIONS)
def test_c_and_python_agree(operations: list[tuple[str, int, int]]) -> None:
    """Any sequence of accesses gives the same values, the same bytes and the same interrupts on both ways."""
    twin = Twin()
    try:
        for kind, number, value in operations:
            if kind == "write":
                twin.write(number, value)
            elif kind == "read":
                found, expected = twin.read(number)
                assert found == expected, f"register {number}"
            elif kind == "receive":
                twin.receive(bytes([value]) * number)
            else:
                twin.drain(number)
            assert twin.port.ring.peek() == bytes(twin.plain_ring.bytes)
            assert twin.edges[0] == twin.edges[1]
    finally:
        twin.port.close()


def test_polled_output_needs_no_python() -> None:
    """After the usual set-up (8n1, FIFO on, no interrupts) data and line status are served in C."""
    twin = Twin()
    try:
        for offset, value in ((3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3), (1, 0)):
            twin.write(offset, value)
        before = twin.port.ring.fast_accesses
        for byte in b"hello":
            assert twin.read(5) == (0x60, 0x60)
            twin.write(0, byte)
        writes, reads = (now - then for now, then in zip(twin.port.ring.fast_accesses, before, strict=True))
        assert (writes, reads) == (5, 5)
    finally:
        twin.port.close()


def test_ring_keeps_order_across_its_end(ring: TransmitRing) -> None:
    """Bytes come out as they went in, however often the ring has wrapped."""
    sent, got = bytearray(), bytearray()
    for number in range(10000):
        ring.push(number & 0xFF)
        sent.append(number & 0xFF)
        if number % 7 == 0:
            part = ring.peek()[: 1 + number % 11]
            got += part
            ring.consume(len(part))
    while part := ring.peek():
        got += part
        ring.consume(len(part))
    assert got == sent
    assert ring.lost == 0


def test_ring_has_slack_and_counts_what_it_loses(ring: TransmitRing) -> None:
    """Room counts down to 0 at the capacity; pushes behind it fill the slack; then bytes are lost and counted."""
    for _ in range(32):
        ring.push(1)
    assert ring.room() == 0
    for _ in range(4096):
        ring.push(2)
    assert ring.lost == 0
    ring.push(3)
    assert ring.lost == 1


def test_a_sleeping_reader_is_woken_once(ring: TransmitRing) -> None:
    """`arm` promises one event with the next byte, and none if bytes are waiting already."""
    assert ring.arm()
    ring.push(65)
    ring.push(66)
    assert not ring.arm()
    ring.clear_event()
    assert ring.peek() == b"AB"
