"""Devices of one or two ports: POST code, debug exit, system control."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices.common import check_bits, check_record, check_uint, read_bytewise, write_bytewise

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DebugExit",
    "DebugExitState",
    "PostPort",
    "PostPortState",
    "SystemControl",
    "SystemControlState",
]


class PostPortState(NamedTuple):
    """The last code that was written."""

    code: int = 0


class PostPort:
    """Port 0x80: firmware and boot code write progress codes here, kernels write to it to let time pass.

    `code` is the last byte written, the first thing to look at when a guest hangs early.
    """

    def __init__(self) -> None:
        self.code = 0

    def read(self, offset: int, size: int) -> int:
        """The last code, as the latch of the DMA page register behind this port gives it back."""
        if size == 1 and offset == 0:
            return self.code
        return read_bytewise(lambda at: 0xFF if at else self.code, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep the code."""
        if offset == 0:
            self.code = value & 0xFF

    def reset(self) -> None:
        """To the state after power-on."""
        self.code = 0

    def state(self) -> PostPortState:
        """The last code as a record."""
        return PostPortState(self.code)

    def restore(self, state: PostPortState) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        check_record(state, PostPortState)
        self.code = check_uint("code", state.code, 0xFF)


class DebugExitState(NamedTuple):
    """Nothing: the port remembers nothing."""


class DebugExit:
    """A port by which a guest ends the machine with a status, as QEMU's ``isa-debug-exit``.

    A write of `value` calls `on_exit` with the exit status ``value << 1 | 1``, of which a process has eight
    bits: the status is always odd, so that it cannot be mistaken for success.
    """

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit

    def read(self, offset: int, size: int) -> int:
        """Zero."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """End the machine; the whole value counts, at whatever offset."""
        self._on_exit((value << 1 | 1) & 0xFF)

    def reset(self) -> None:
        """Nothing to do."""

    def state(self) -> DebugExitState:
        """An empty record."""
        return DebugExitState()

    def restore(self, state: DebugExitState) -> None:
        """Nothing to take over; raises `ValueError` if `state` is not the right record."""
        check_record(state, DebugExitState)


class SystemControlState(NamedTuple):
    """The bits of ports 0x92 and 0xcf9 that can be written."""

    port_92: int = 0x02
    port_cf9: int = 0


class SystemControl:
    """The two registers of a chip set by which a guest resets the machine.

    Offset 0 is system control port A (port 0x92): bit 0 going from 0 to 1 resets, bit 1 is the fast A20
    gate. The gate reads back and does nothing else: address line 20 is always on, as no guest that boots
    here needs the wrap of an 8086; it starts open for that reason. Offset 1 is the reset control register
    (port 0xcf9 of Intel's south bridges): bit 2 going from 0 to 1 resets, bits 1 and 3 choose between kinds
    of reset that are one and the same here, and read back.
    """

    PORT_92, PORT_CF9 = 0, 1
    A20 = 0x02
    FAST_RESET = 0x01
    CF9_RESET = 0x04
    WRITABLE = (A20 | FAST_RESET, 0x0E)
    RESETS = (FAST_RESET, CF9_RESET)

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self._on_reset = on_reset
        self._values = list(SystemControlState())

    def read(self, offset: int, size: int) -> int:
        """Bits that cannot be written read zero."""
        return read_bytewise(self._read_byte, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the bits that can be, and ask for a reset if the bit for it rises."""
        write_bytewise(self._write_byte, offset, size, value)

    def _read_byte(self, offset: int) -> int:
        return self._values[offset] if offset < len(self._values) else 0xFF

    def _write_byte(self, offset: int, value: int) -> None:
        if offset < len(self._values):
            rising = value & ~self._values[offset]
            self._values[offset] = value & self.WRITABLE[offset]
            if rising & self.RESETS[offset]:
                self._on_reset()

    def reset(self) -> None:
        """To the state after power-on."""
        self._values = list(SystemControlState())

    def state(self) -> SystemControlState:
        """Both registers as a record."""
        return SystemControlState(*self._values)

    def restore(self, state: SystemControlState) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        check_record(state, SystemControlState)
        check_bits("port_92", state.port_92, self.WRITABLE[self.PORT_92])
        check_bits("port_cf9", state.port_cf9, self.WRITABLE[self.PORT_CF9])
        self._values = list(state)
