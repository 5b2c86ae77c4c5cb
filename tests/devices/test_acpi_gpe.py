"""General-purpose events: when the SCI is pulsed, and that none is lost."""

from __future__ import annotations

from tvmm.devices.acpi_gpe import AcpiGpe, AcpiGpeState

STATUS, ENABLE = 0, 1


class Rig:
    """A block that counts its pulses."""

    def __init__(self) -> None:
        self.pulses = 0
        self.gpe = AcpiGpe(self._pulse)

    def _pulse(self) -> None:
        self.pulses += 1


def test_an_event_that_is_not_enabled_waits() -> None:
    """Its bit is there; the pulse comes when it is enabled, and once."""
    rig = Rig()
    rig.gpe.signal(5)
    assert (rig.gpe.read(STATUS, 1), rig.pulses) == (0x20, 0)
    rig.gpe.write(ENABLE, 1, 0x20)
    rig.gpe.write(ENABLE, 1, 0x20)
    assert rig.pulses == 1


def test_an_enabled_event_pulses_each_time() -> None:
    """One that happens again while it is pending is told of again: what it is about may be new."""
    rig = Rig()
    rig.gpe.write(ENABLE, 1, 0xFF)
    rig.gpe.signal(0)
    rig.gpe.signal(0)
    assert rig.pulses == 2


def test_what_is_left_pending_pulses_again() -> None:
    """A handler that clears one of two events is interrupted for the other one, as a level would."""
    rig = Rig()
    rig.gpe.write(ENABLE, 1, 0xFF)
    rig.gpe.signal(1)
    rig.gpe.signal(2)
    rig.gpe.write(STATUS, 1, 0x02)
    assert (rig.gpe.read(STATUS, 1), rig.pulses) == (0x04, 3)
    rig.gpe.write(STATUS, 1, 0x04)
    assert (rig.gpe.read(STATUS, 1), rig.pulses) == (0, 3)


def test_both_registers_as_one_word() -> None:
    """Low byte status, high byte enable; behind them nothing answers."""
    rig = Rig()
    rig.gpe.write(STATUS, 2, 0x2000)
    rig.gpe.signal(5)
    assert rig.gpe.read(STATUS, 2) == 0x2020
    assert rig.gpe.read(2, 2) == 0xFFFF


def test_restored_with_a_cause() -> None:
    """Nothing is pulsed by restoring: the shell may do it once more, since there is a cause."""
    rig = Rig()
    rig.gpe.restore(AcpiGpeState(0x21, 0x20))
    assert (rig.gpe.line_up, rig.pulses) == (True, 0)
    rig.gpe.reset()
    assert not rig.gpe.line_up
    assert rig.gpe.state() == AcpiGpeState()
