"""The serial port's transmit ring, shared between vCPU threads (in C, without the GIL) and the pump that empties it."""

from __future__ import annotations

import os

from tvmm.kvm.calls import ffi, lib

__all__ = ["RING_SLACK", "TransmitRing"]

RING_SLACK = 4096
"""Bytes that fit beyond the capacity, as in shim.c."""


class TransmitRing:
    """A bounded byte queue with an eventfd for its reader.

    `push` and `room` make it the sink of a `Uart16550`; `publish` tells the C step which accesses it may serve.
    """

    def __init__(self, port: int, capacity: int) -> None:
        """`capacity` in bytes: what may wait for the reader before the line status says 'busy'."""
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.raw = lib.tvmm_uart_new(port, capacity, self.event_fd)
        self.lost = 0
        self._buffer = ffi.new("uint8_t[]", capacity + RING_SLACK)
        self._capacity = capacity + RING_SLACK

    def close(self) -> None:
        """Free it. No vCPU may run any more."""
        if self.event_fd >= 0:
            lib.tvmm_uart_free(self.raw)
            self.raw = ffi.NULL
            os.close(self.event_fd)
            self.event_fd = -1

    def push(self, byte: int) -> None:
        """Append one byte; it is lost, and counted, only if capacity and slack are both full."""
        if not lib.tvmm_uart_push(self.raw, byte):
            self.lost += 1

    def room(self) -> int:
        """Bytes that fit before the guest has to wait."""
        return int(lib.tvmm_uart_room(self.raw))

    def publish(self, tx: bool, lsr: int) -> None:
        """Which accesses the C step may serve: see `FastPath` of the UART model."""
        lib.tvmm_uart_publish(self.raw, tx, lsr)

    def peek(self) -> bytes:
        """All that waits, left in place."""
        count = lib.tvmm_uart_peek(self.raw, self._buffer, self._capacity)
        return bytes(ffi.buffer(self._buffer, count))

    def consume(self, count: int) -> None:
        """Drop the first `count` bytes: there is room again."""
        lib.tvmm_uart_consume(self.raw, count)

    def arm(self) -> bool:
        """Ask for an event with the next byte; False if bytes are waiting already."""
        return bool(lib.tvmm_uart_arm(self.raw))

    def wake_reader(self) -> None:
        """Let a reader that armed itself look again."""
        os.eventfd_write(self.event_fd, 1)

    def clear_event(self) -> None:
        """Take the event back, so that the descriptor reads as not ready."""
        try:
            os.eventfd_read(self.event_fd)
        except BlockingIOError:
            return

    @property
    def fast_accesses(self) -> tuple[int, int]:
        """(writes, reads) that the C step served."""
        return int(self.raw.fast_writes), int(self.raw.fast_reads)
