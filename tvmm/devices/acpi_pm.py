"""The fixed ACPI power management registers (ACPI 6.5, 4.8.3): power button, sleep, power management timer.

Offsets into the block:

====== ==== =====================================================================
0x0    2    PM1a status: bit 0 timer carry, bit 8 power button; cleared by writing ones
0x2    2    PM1a enable: which of the status bits raise the SCI
0x4    2    PM1a control: bit 0 SCI_EN, bits 10-12 SLP_TYP, bit 13 SLP_EN (reads 0)
0x8    4    timer: 24 bits at 3.579545 MHz, reads only
====== ==== =====================================================================

There is no legacy mode to switch from (the FADT has no SMI command port), so SCI_EN is always one.

The SCI is level-triggered by the book and delivered as pulses here. So that no event is lost, `sci` is
called when an enabled status bit appears, and again whenever the guest writes status and leaves one set:
where a level would interrupt again at the end of the handler.

The timer costs nothing while it is only read. Its carry bit is worked out when somebody looks; only while the
guest has enabled the carry's interrupt is there a deadline, every 2.3 s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tvmm.devices.common import check_bits, check_record, check_uint, read_bytewise, write_bytewise

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LENGTH", "TIMER_HZ", "AcpiPm", "AcpiPmState"]

LENGTH = 12
TIMER_HZ = 3_579_545
TIMER_OFFSET = 8
TIMER_BITS = 24

TIMER_STATUS = 0x0001
POWER_BUTTON = 0x0100
STATUS_BITS = TIMER_STATUS | POWER_BUTTON
# Timer, global lock, power button, sleep button, RTC. The last two and the lock have no event here, but a
# driver that enables them reads the bit back to see whether the hardware is there.
ENABLE_BITS = 0x0721

SCI_EN = 0x01
SLP_TYP_SHIFT = 2  # in the high byte of the control register
SLP_EN = 0x20  # in the high byte

NS_LIMIT = (1 << 63) - 1
"""292 years in nanoseconds: more than any machine runs, and what fits where 64 bits are meant."""


class AcpiPmState(NamedTuple):
    """The registers.

    `timer_ns` is how long the timer has run, `carries` how often its bit 23 had changed when the status
    register was last brought up to date.
    """

    status: int = 0
    enable: int = 0
    slp_typ: int = 0
    timer_ns: int = 0
    carries: int = 0


class AcpiPm:
    """The PM1a event, control and timer block.

    `sci` is called once per pulse of the SCI. `on_sleep` gets the SLP_TYP (0 to 7) of each write that sets
    SLP_EN; what it means is the platform's choice, made in the DSDT's ``_Sx`` objects. `monotonic_ns` is the
    clock of the timer. `on_deadline_changed` is called when `next_deadline_ns` has another answer than
    before; a shell that keeps no deadlines lets the guest find the carry when it next looks.
    """

    def __init__(
        self,
        sci: Callable[[], None],
        on_sleep: Callable[[int], None],
        monotonic_ns: Callable[[], int],
        on_deadline_changed: Callable[[], None] | None = None,
    ) -> None:
        self._monotonic_ns = monotonic_ns
        self._on_sleep = on_sleep
        self._sci = sci
        self._on_deadline_changed = on_deadline_changed or _nobody_asked
        self._load(AcpiPmState())

    def _load(self, state: AcpiPmState) -> None:
        self._status = state.status
        self._enable = state.enable
        self._slp_typ = state.slp_typ
        self._started_ns = self._monotonic_ns() - state.timer_ns
        self._carries = state.carries
        self._line = bool(self._status & self._enable)
        self._announced = self.next_deadline_ns()

    # -- the guest's side ----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`; a wide read sees the timer at one moment. All ones between registers."""
        ticks = self._ticks()
        self._catch_up(ticks)
        value = read_bytewise(lambda at: self._byte(at, ticks), offset, size)
        self._settle()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """`size` bytes at `offset`, as byte writes one after the other."""
        self._catch_up(self._ticks())
        write_bytewise(self._write_byte, offset, size, value)
        self._settle(pulse_again=offset < 2)
        self._check_deadline()

    def _byte(self, offset: int, ticks: int) -> int:
        if offset < 2:
            return self._status >> (8 * offset) & 0xFF
        if offset < 4:
            return self._enable >> (8 * (offset - 2)) & 0xFF
        if offset == 4:
            return SCI_EN
        if offset == 5:
            return self._slp_typ << SLP_TYP_SHIFT
        if TIMER_OFFSET <= offset < LENGTH:
            return (ticks & (1 << TIMER_BITS) - 1) >> (8 * (offset - TIMER_OFFSET)) & 0xFF
        return 0xFF

    def _write_byte(self, offset: int, value: int) -> None:
        if offset < 2:
            self._status &= ~(value << (8 * offset))
        elif offset < 4:
            shift = 8 * (offset - 2)
            self._enable = (self._enable & ~(0xFF << shift) | value << shift) & ENABLE_BITS
        elif offset == 5:
            self._slp_typ = value >> SLP_TYP_SHIFT & 7
            if value & SLP_EN:
                self._on_sleep(self._slp_typ)

    # -- the other side ------------------------------------------------------------------------------------

    def press_power_button(self) -> None:
        """Set PWRBTN_STS. The guest hears of it if it has enabled the event, or when it does."""
        self._status |= POWER_BUTTON
        self._settle(pulse_again=True)  # who presses a second time saw nothing happen the first time

    def next_deadline_ns(self) -> int | None:
        """When, on the clock of `monotonic_ns`, `tick` is to be called; None if there is no need."""
        if not self._enable & TIMER_STATUS or self._status & TIMER_STATUS:
            return None
        ticks = (self._carries + 1) << (TIMER_BITS - 1)
        return self._started_ns - (-ticks * 1_000_000_000 // TIMER_HZ)  # rounded up: not before the carry

    def tick(self) -> None:
        """Raise the SCI if the timer's carry is due. For the deadline; harmless at other times."""
        self._catch_up(self._ticks())
        self._settle()
        self._check_deadline()

    # -- inside --------------------------------------------------------------------------------------------

    def _ticks(self) -> int:
        return (self._monotonic_ns() - self._started_ns) * TIMER_HZ // 1_000_000_000

    def _catch_up(self, ticks: int) -> None:
        """Set TMR_STS if bit 23 of the timer has changed since the last time."""
        carries = ticks >> (TIMER_BITS - 1)
        if carries > self._carries:
            self._carries = carries
            self._status |= TIMER_STATUS

    def _settle(self, pulse_again: bool = False) -> None:
        """Pulse the SCI if an enabled event is new, or, with `pulse_again`, if one is there."""
        before = self._line
        self._line = bool(self._status & self._enable)
        if self._line and (pulse_again or not before):
            self._sci()

    def _check_deadline(self) -> None:
        deadline = self.next_deadline_ns()
        if deadline != self._announced:
            self._announced = deadline
            self._on_deadline_changed()

    @property
    def line_up(self) -> bool:
        """Whether the SCI has a cause: a shell may pulse it once more after `restore`."""
        return self._line

    # -- state ---------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """To the state after power-on, with the timer at zero."""
        announced = self._announced
        self._load(AcpiPmState())
        if announced is not None:
            self._on_deadline_changed()

    def state(self) -> AcpiPmState:
        """The registers as a record. The clock moves on, and with it `timer_ns`."""
        timer_ns = self._monotonic_ns() - self._started_ns
        return AcpiPmState(self._status, self._enable, self._slp_typ, timer_ns, self._carries)

    def restore(self, state: AcpiPmState) -> None:
        """Take over `state`; the timer goes on from where it was, on this clock.

        Raises `ValueError` with the name of the field for a record that cannot be, and then changes nothing.
        """
        check_record(state, AcpiPmState)
        check_bits("status", state.status, STATUS_BITS)
        check_bits("enable", state.enable, ENABLE_BITS)
        check_uint("slp_typ", state.slp_typ, 7)
        ticks = check_uint("timer_ns", state.timer_ns, NS_LIMIT) * TIMER_HZ // 1_000_000_000
        check_uint("carries", state.carries, ticks >> (TIMER_BITS - 1))
        self._load(state)
        self._on_deadline_changed()


def _nobody_asked() -> None:
    """For a shell that keeps no deadlines."""
