"""POST port, debug exit, and the two reset registers."""

from __future__ import annotations

import pytest

from tvmm.devices.misc import DebugExit, PostPort, SystemControl


def test_post_keeps_the_last_code() -> None:
    """The last byte written is there to be looked at."""
    post = PostPort()
    for code in (0x01, 0x42):
        post.write(0, 1, code)
    assert (post.code, post.read(0, 1)) == (0x42, 0x42)


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (0x10, 0x21), (0x7F, 0xFF), (0x80, 0x01)])
def test_debug_exit_status(value: int, status: int) -> None:
    """The exit status is twice the value plus one, as far as a process can say it, for any size of access."""
    statuses: list[int] = []
    port = DebugExit(statuses.append)
    for size in (1, 2, 4):
        port.write(0, size, value)
    assert statuses == [status] * 3
    assert port.read(0, 1) == 0


class Counter:
    """Counts its calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_fast_reset_on_the_rising_bit() -> None:
    """Port 0x92 resets when bit 0 goes from 0 to 1, and keeps the A20 bit."""
    resets = Counter()
    control = SystemControl(resets)
    assert control.read(0, 1) == 0x02
    control.write(0, 1, 0x00)
    assert (control.read(0, 1), resets.count) == (0x00, 0)
    control.write(0, 1, 0x03)
    control.write(0, 1, 0x01)
    assert (control.read(0, 1), resets.count) == (0x01, 1)


def test_reset_control_as_linux_writes_it() -> None:
    """Port 0xcf9 resets at the second of the two writes of a reboot, which sets bit 2."""
    resets = Counter()
    control = SystemControl(resets)
    kind = control.read(1, 1) & ~0x0E
    control.write(1, 1, kind | 0x02)
    assert resets.count == 0
    control.write(1, 1, kind | 0x06)
    assert resets.count == 1


def test_the_two_ports_are_apart() -> None:
    """What is written to one does not show in the other."""
    control = SystemControl(Counter())
    control.write(1, 1, 0x0A)
    assert (control.read(0, 1), control.read(1, 1)) == (0x02, 0x0A)
