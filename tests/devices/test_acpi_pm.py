"""The ACPI PM1a block."""

from __future__ import annotations

import pytest

from tvmm.devices.acpi_pm import TIMER_HZ, AcpiPm

STATUS, ENABLE, CONTROL, TIMER = 0, 2, 4, 8
PWRBTN, TMR = 0x0100, 0x0001
HALF = 1 << 23
SECOND = 1_000_000_000


class Block:
    """The block on a clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now_ns = 5 * SECOND
        self.pulses = 0
        self.deadlines = 0
        self.slept: list[int] = []
        self.pm = AcpiPm(self._sci, self.slept.append, lambda: self.now_ns, self._deadline)

    def _sci(self) -> None:
        self.pulses += 1

    def _deadline(self) -> None:
        self.deadlines += 1

    def read(self, offset: int) -> int:
        """A 16-bit register."""
        return self.pm.read(offset, 2)

    def write(self, offset: int, value: int) -> None:
        """A 16-bit register."""
        self.pm.write(offset, 2, value)


@pytest.fixture
def block() -> Block:
    """A block after power-on."""
    return Block()


def test_power_button_pulses_once_enabled(block: Block) -> None:
    """A press sets PWRBTN_STS; the SCI comes with the enable bit, and the guest clears the status with a one."""
    block.pm.press_power_button()
    assert (block.read(STATUS), block.pulses) == (PWRBTN, 0)
    block.write(ENABLE, PWRBTN)
    assert block.pulses == 1
    block.write(STATUS, PWRBTN)
    assert (block.read(STATUS), block.pulses) == (0, 1)
    block.pm.press_power_button()
    assert block.pulses == 2


def test_a_press_that_nobody_took_can_be_repeated(block: Block) -> None:
    """Pressing again while the status is still set pulses again."""
    block.write(ENABLE, PWRBTN)
    block.pm.press_power_button()
    block.pm.press_power_button()
    assert block.pulses == 2


def test_an_event_left_behind_pulses_again(block: Block) -> None:
    """When the guest clears one event and another is pending, the SCI comes again, as a level would have it."""
    block.write(ENABLE, PWRBTN | TMR)
    block.now_ns += 3 * SECOND
    block.pm.tick()
    block.pm.press_power_button()
    pulses = block.pulses
    block.write(STATUS, TMR)
    assert (block.read(STATUS), block.pulses) == (PWRBTN, pulses + 1)


def test_only_writes_to_status_pulse_again(block: Block) -> None:
    """Other registers can be written while an event is pending without a further pulse."""
    block.write(ENABLE, PWRBTN)
    block.pm.press_power_button()
    block.write(CONTROL, 0)
    block.write(ENABLE, PWRBTN | TMR)
    assert block.pulses == 1


def test_zeros_written_to_status_clear_nothing(block: Block) -> None:
    """Status bits are cleared by ones only, each byte by itself."""
    block.pm.press_power_button()
    block.write(STATUS, 0)
    block.pm.write(STATUS, 1, 0xFF)
    assert block.read(STATUS) == PWRBTN
    block.pm.write(STATUS + 1, 1, 0x01)
    assert block.read(STATUS) == 0


def test_enable_keeps_the_fixed_events(block: Block) -> None:
    """Timer, global lock, buttons and RTC can be enabled and read back, reserved bits cannot."""
    block.write(ENABLE, 0xFFFF)
    assert block.read(ENABLE) == 0x0721


@pytest.mark.parametrize("kind", [0, 5, 7])
def test_sleep(block: Block, kind: int) -> None:
    """SLP_EN reports SLP_TYP, reads back as zero, and without it SLP_TYP is only kept."""
    block.write(CONTROL, kind << 10)
    assert block.slept == []
    block.write(CONTROL, kind << 10 | 1 << 13)
    assert block.slept == [kind]
    assert block.read(CONTROL) == kind << 10 | 1


def test_sci_en_is_always_on(block: Block) -> None:
    """There is no legacy mode: SCI_EN reads one whatever is written."""
    block.write(CONTROL, 0)
    assert block.read(CONTROL) & 1


def test_timer_counts_at_its_rate(block: Block) -> None:
    """One second is 3,579,545 ticks; the counter has 24 bits and cannot be written."""
    block.pm.write(TIMER, 4, 0)
    before = block.pm.read(TIMER, 4)
    block.now_ns += SECOND
    assert block.pm.read(TIMER, 4) - before == TIMER_HZ
    block.now_ns += 1000 * SECOND
    assert block.pm.read(TIMER, 4) == 1001 * TIMER_HZ % (1 << 24)
    assert block.pm.read(TIMER + 3, 1) == 0


def test_gap_reads_all_ones(block: Block) -> None:
    """Between control and timer there is nothing."""
    assert block.read(6) == 0xFFFF


def test_carry_status_without_interrupt_needs_no_deadline(block: Block) -> None:
    """The carry is seen when somebody looks; nobody has to be woken for it."""
    assert block.pm.next_deadline_ns() is None
    block.now_ns += HALF * SECOND // TIMER_HZ
    assert block.read(STATUS) == 0
    block.now_ns += SECOND // TIMER_HZ + 1
    assert (block.read(STATUS), block.pulses) == (TMR, 0)
    block.write(STATUS, TMR)
    assert block.read(STATUS) == 0


def test_carry_interrupt_comes_at_the_deadline(block: Block) -> None:
    """With TMR_EN the deadline is each change of bit 23, `tick` there pulses, and not before."""
    block.write(ENABLE, TMR)
    assert block.deadlines == 1
    for number in range(1, 4):
        deadline = block.pm.next_deadline_ns()
        assert deadline is not None
        block.now_ns = deadline - 1
        block.pm.tick()
        assert block.pulses == number - 1
        block.now_ns = deadline
        block.pm.tick()
        assert block.pulses == number
        assert block.pm.next_deadline_ns() is None
        assert block.pm.read(TIMER, 4) & (HALF - 1) == 0
        block.write(STATUS, TMR)
    block.write(ENABLE, 0)
    assert block.pm.next_deadline_ns() is None


def test_timer_goes_on_elsewhere(block: Block) -> None:
    """After a move to a host with another clock, timer and the carry not yet seen go on from where they were."""
    block.write(ENABLE, TMR)
    block.now_ns += 3 * SECOND
    state = block.pm.state()
    other = Block()
    other.now_ns = 77
    other.pm.restore(state)
    assert other.pulses == 0
    assert other.pm.read(TIMER, 4) == block.pm.read(TIMER, 4)
    assert (other.read(STATUS), other.pulses) == (TMR, 1)


def test_a_shell_without_deadlines() -> None:
    """The callback for deadlines can be left out."""
    pm = AcpiPm(lambda: None, lambda kind: None, lambda: 0)
    pm.write(ENABLE, 2, TMR)
    pm.reset()
    assert pm.read(ENABLE, 2) == 0
