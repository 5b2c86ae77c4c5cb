"""Starting and stopping of vCPUs and devices together, with fakes for both."""

from __future__ import annotations

import pytest
import trio

from tvmm.run_control import RunControl


class FakeVcpu:
    """Stops at once, or when it is let."""

    def __init__(self) -> None:
        self.held = True
        self.stopped = trio.Event()
        self.stopped.set()

    def hold(self) -> None:
        """Noted."""
        self.held = True

    def release(self) -> None:
        """Noted."""
        self.held = False

    async def wait_not_running(self) -> None:
        """As long as the test likes."""
        await self.stopped.wait()


class FakeDevices:
    """Holds are counted; `slow` keeps one from ending."""

    def __init__(self) -> None:
        self.holds = 0
        self.slow = False

    async def hold(self) -> None:
        """Counted once it is done."""
        if self.slow:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        self.holds += 1

    def release(self) -> None:
        """Undo one."""
        self.holds -= 1


def make() -> tuple[RunControl, FakeVcpu, FakeDevices, list[str]]:
    """A machine of one vCPU, running."""
    vcpu, devices, events = FakeVcpu(), FakeDevices(), list[str]()
    control = RunControl([vcpu], devices, events.append)  # type: ignore[list-item, arg-type]
    control.start()
    return control, vcpu, devices, events


async def test_stop_and_start() -> None:
    """Both are held once and released once, and each change is told once."""
    control, vcpu, devices, events = make()
    for _ in range(2):
        await control.stop("io-error")
    assert (vcpu.held, devices.holds, control.state) == (True, 1, "io-error")
    for _ in range(2):
        control.start()
    assert (vcpu.held, devices.holds, control.state) == (False, 0, "running")
    assert events == ["RESUME", "STOP", "RESUME"]


@pytest.mark.parametrize("slow", ["vcpu", "devices"])
async def test_cancelled_stop_changes_nothing(slow: str) -> None:
    """The guest goes on as if nobody had asked, and a later stop works."""
    control, vcpu, devices, events = make()
    if slow == "vcpu":
        vcpu.stopped = trio.Event()
    devices.slow = slow == "devices"
    with trio.move_on_after(0):
        await control.stop()
    assert (vcpu.held, devices.holds, control.state) == (False, 0, "running")
    vcpu.stopped.set()
    devices.slow = False
    await control.stop()
    assert (vcpu.held, devices.holds, control.state) == (True, 1, "paused")
    assert events == ["RESUME", "STOP"]


async def test_lines_go_on_before_the_guest_does() -> None:
    """Whoever waits since the machine was saved is told at each start, while the vCPUs are still held."""
    vcpu, seen = FakeVcpu(), list[bool]()
    control = RunControl([vcpu], None, lambda event: None, lambda: seen.append(vcpu.held))  # type: ignore[list-item]
    vcpu.hold()
    control.start()
    control.start()
    assert seen == [True]
