"""When a guest that has arrived is announced, and when its host keeps quiet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tvmm.wiring.moving import ArrivingMachine


class Nets:
    """A machine with one network device, which counts what it is asked for."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.said: list[tuple[float, bool]] = []
        self.motion = SimpleNamespace(stage="")
        self.name = "a"
        devices = SimpleNamespace(nets={"net0": self}, taps={})
        ram = SimpleNamespace(blocks={"pc.ram": SimpleNamespace(fd=-1)})
        self.board: Any = SimpleNamespace(ram=ram, devices=devices)
        self._nursery = nursery

    def start_task(self, run: Any, name: str) -> None:
        """See `Machine`."""
        self._nursery.start_soon(run, name=name)

    def announce_arrival(self, *, by_guest: bool) -> None:
        """See `Net`."""
        self.said.append((round(trio.current_time() * 1e3), by_guest))


@pytest.mark.parametrize("stage", ["finish-migrate", "postmigrate"])
async def test_a_guest_that_moves_on_at_once_is_not_announced_here_any_more(
    stage: str, autojump_clock: MockClock
) -> None:
    """A word after it is in its next place would turn every switch back to this one."""
    async with trio.open_nursery() as nursery:
        machine = Nets(nursery)
        start = round(trio.current_time() * 1e3)
        ArrivingMachine(machine).announce()  # type: ignore[arg-type]
        await trio.sleep(0.25)
        machine.motion.stage = stage
    assert [(at - start, by_guest) for at, by_guest in machine.said] == [(0, True), (50, False), (200, False)]


async def test_a_guest_whose_next_move_failed_is_announced_to_the_end(autojump_clock: MockClock) -> None:
    """Further and further apart. Only the attempt itself silences its host."""
    async with trio.open_nursery() as nursery:
        machine = Nets(nursery)
        start = round(trio.current_time() * 1e3)
        ArrivingMachine(machine).announce()  # type: ignore[arg-type]
        await trio.sleep(0.1)
        machine.motion.stage = "finish-migrate"
        await trio.sleep(0.2)
        machine.motion.stage = ""
    assert [at - start for at, _ in machine.said] == [0, 50, 450, 800]
