"""One guest that moves a hundred times between machines of this process, which has no more of anything in the end."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from tests.support.churn import summary
from tests.support.vitals import Vitals, allocated_kib, own_vitals
from tvmm import Machine, MachineConfig
from tvmm.config.incoming import IncomingConfig
from tvmm.migration.status import MigrationParameters
from tvmm.testing import PROMPT

pytestmark = pytest.mark.guest

WAYS = (
    MigrationParameters(10_000),
    MigrationParameters(10_000, connections=2),
    MigrationParameters(10_000, compress="zstd"),
    MigrationParameters(10_000, verify=True),
)
GROWTH_KIB = 2048
"""What may be allocated at one moment and not at another: Python's own pools come and go by the mebibyte."""


class Levels(NamedTuple):
    """What must not grow. `allocated_kib` is what malloc has given away."""

    vitals: Vitals
    tasks: int
    allocated_kib: int

    def __str__(self) -> str:
        vitals = self.vitals
        return (
            f"{len(vitals.descriptors)} descriptors, {vitals.threads} threads, {self.tasks} tasks,"
            f" {self.allocated_kib} KiB allocated, {vitals.anonymous_kib} KiB resident"
        )


def levels() -> Levels:
    """Of this process."""
    return Levels(own_vitals(), task_count(), allocated_kib())


def task_count() -> int:
    """Of all that Trio runs."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    waiting, count = [root], 0
    while waiting:
        count += 1
        for nursery in waiting.pop().child_nurseries:
            waiting += nursery.child_tasks
    return count


class Host:
    """Holds machines open until they are let go of, in any order."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._gone: dict[Machine, tuple[trio.Event, trio.Event]] = {}

    async def open(self, config: MachineConfig) -> Machine:
        """A new machine."""
        machine: Machine = await self._nursery.start(self._hold, config)
        return machine

    async def _hold(self, config: MachineConfig, task_status: trio.TaskStatus[Machine]) -> None:
        leave, left = trio.Event(), trio.Event()
        async with Machine(config) as machine:
            self._gone[machine] = (leave, left)
            task_status.started(machine)
            await leave.wait()
        left.set()

    async def close(self, machine: Machine) -> None:
        """It is closed when this returns."""
        leave, left = self._gone.pop(machine)
        leave.set()
        await left.wait()


async def travel(tmp_path: Path, transport: str, moves: int, first_look: int) -> tuple[Levels, Levels]:
    """Levels after `first_look` moves and after all `moves`; the guest is well."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8 << 20))
    config = MachineConfig.parse(memory="64M", disk=[f"{image},transport={transport}"])
    seen = {}
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        here = await host.open(config)
        await here.resume()
        await here.wait_serial(PROMPT)
        await here.send_serial("churn rate=2000 pages=8M mib=4\n")
        await here.wait_serial("churning")
        for number in range(1, moves + 1):
            uri = f"unix:{tmp_path}/{number % 2}"
            there = await host.open(config._replace(incoming=IncomingConfig(uri)))
            await here.migrate(uri, WAYS[number % len(WAYS)])
            await there.wait_arrival()
            await host.close(here)
            here = there
            if number in (first_look, moves):
                seen[number] = levels()
                print(f"after {number} moves: {seen[number]}")
        await here.send_serial("q")
        said = summary((await here.wait_serial(PROMPT)).decode())
        print(said)
        assert said.damage() == {}
        await host.close(here)
    return seen[first_look], seen[moves]


def check(first: Levels, last: Levels) -> None:
    """Nothing has become more. Threads that wait for work are Trio's, and go after a while."""
    assert len(last.vitals.descriptors) <= len(first.vitals.descriptors), (first, last)
    assert last.tasks <= first.tasks
    assert last.vitals.threads <= first.vitals.threads + 4
    assert last.allocated_kib <= first.allocated_kib + GROWTH_KIB


@pytest.mark.parametrize("transport", ["pci", "mmio"])
async def test_a_few_moves(tmp_path: Path, transport: str) -> None:
    """There and back, in each way once before the first look."""
    check(*await travel(tmp_path, transport, 8, 4))


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_hundred_moves(tmp_path: Path) -> None:
    """Fifty times there and back."""
    check(*await travel(tmp_path, "pci", 100, 20))
