"""The general-purpose events of ACPI (ACPI 6.5, 4.8.4): block GPE0, which methods of the DSDT answer to.

Offsets into the block:

====== ==== =====================================================================
0x0    1    GPE0 status: one bit for each of 8 events; cleared by writing ones
0x1    1    GPE0 enable: which of the status bits raise the SCI
====== ==== =====================================================================

The FADT says where the block is; for event n the guest's ACPI interpreter runs ``\\_GPE._E0n``. The SCI is
delivered as pulses, by the same rule as in `tvmm.devices.acpi_pm`: when an enabled status bit appears, and again
whenever the guest writes status and leaves one set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices.common import check_record, check_uint, read_bytewise, write_bytewise

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EVENTS", "LENGTH", "AcpiGpe", "AcpiGpeState"]

LENGTH = 2
EVENTS = 8


class AcpiGpeState(NamedTuple):
    """The two registers."""

    status: int = 0
    enable: int = 0


class AcpiGpe:
    """Block GPE0 with 8 events. `sci` is called once per pulse of the SCI."""

    def __init__(self, sci: Callable[[], None]) -> None:
        self._sci = sci
        self._status = self._enable = 0
        self._line = False

    # -- the guest's side ----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`; all ones behind the registers."""
        return read_bytewise(self._byte, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """`size` bytes at `offset`, as byte writes one after the other."""
        write_bytewise(self._write_byte, offset, size, value)
        self._settle(pulse_again=offset == 0)

    def _byte(self, offset: int) -> int:
        return (self._status, self._enable)[offset] if offset < LENGTH else 0xFF

    def _write_byte(self, offset: int, value: int) -> None:
        if offset == 0:
            self._status &= ~value
        elif offset == 1:
            self._enable = value

    # -- the other side ------------------------------------------------------------------------------------

    def signal(self, event: int) -> None:
        """Event 0 to 7 has happened. The guest hears of it if it has enabled the event, or when it does."""
        self._status |= 1 << event
        self._settle(pulse_again=True)  # who tells of something new was not heard while it was pending

    @property
    def line_up(self) -> bool:
        """Whether the SCI has a cause here: a shell may pulse it once more after `restore`."""
        return self._line

    def _settle(self, pulse_again: bool = False) -> None:
        """Pulse the SCI if an enabled event is new, or, with `pulse_again`, if one is there."""
        before = self._line
        self._line = bool(self._status & self._enable)
        if self._line and (pulse_again or not before):
            self._sci()

    # -- state ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """To the state after power-on: no event, none enabled."""
        self._load(AcpiGpeState())

    def state(self) -> AcpiGpeState:
        """The registers as a record."""
        return AcpiGpeState(self._status, self._enable)

    def restore(self, state: AcpiGpeState) -> None:
        """Take over `state`; raises `ValueError` with the name of a bad field and then changes nothing."""
        check_record(state, AcpiGpeState)
        check_uint("status", state.status, 0xFF)
        check_uint("enable", state.enable, 0xFF)
        self._load(state)

    def _load(self, state: AcpiGpeState) -> None:
        self._status, self._enable = state
        self._line = bool(self._status & self._enable)
