"""A guest that writes faster than its pages can be sent: slowed until it can be moved, or left alone and told why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from tvmm import Machine, MachineConfig
from tvmm.config.incoming import IncomingConfig
from tvmm.errors import IncomingFailed
from tvmm.migration import policy
from tvmm.migration.status import MigrationParameters, MigrationStatus
from tvmm.testing import PROMPT, VmPair

pytestmark = [pytest.mark.guest, pytest.mark.vm(memory="96M"), pytest.mark.timeout(180)]

SLOW = 8 << 20
"""Bytes/s: what even a guest that gets little of its processor writes anew in a fraction of the time it takes."""
FAST = 20 << 20
"""Enough for one that is held nearly all the time, and not for one that is not, on a fast host and on a busy one."""


class Watched(NamedTuple):
    """What a source said on its way: the percentages that its guest was slowed by, and the names of its events."""

    throttles: list[int]
    events: list[str]


def watch(vm: Machine) -> Watched:
    """From now on."""
    seen = Watched([], [])

    def hear(name: str, data: dict[str, object]) -> None:
        seen.events.append(name)
        if name.startswith("MIGRATION"):
            seen.throttles.append(vm.moves.migration_status().throttle_percent)

    vm.listeners.append(hear)
    return seen


async def flat_out(vm: Machine, size: str) -> None:
    """The guest has written every page of that much memory, and does so again and again."""
    await vm.send_serial(f"dirty 0 {size} 1\n")
    await vm.wait_serial(PROMPT)
    await vm.send_serial(f"dirty 0 {size} 600\n")
    await vm.send_serial("m")
    await vm.wait_serial("mark 1")


async def is_whole(vm: Machine) -> None:
    """The guest stops writing, and finds every page as it wrote it."""
    await vm.send_serial("q")
    told = (await vm.wait_serial(PROMPT)).decode()
    assert " 0 errors" in told, told
    await vm.send_serial("check\n")
    told = (await vm.wait_serial(PROMPT)).decode()
    assert re.search(r"checked \d+ pages: 0 errors", told), told


def throttles(vm: Machine) -> list[str]:
    """Tasks that hold its vCPUs."""
    return [task.name for task in vm.nursery.child_tasks if "throttle" in task.name]


async def test_slowed_until_it_moves(vm_pair: VmPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, up to the cap at most; then it is moved, and is slowed no more."""
    source, destination, uri = vm_pair
    # What the pause is expected to be counts; a busy host may need longer for it.
    monkeypatch.setattr(policy, "OVERRUN", 100)
    with trio.fail_after(150):
        await flat_out(source, "8M")
        seen = watch(source)
        parameters = MigrationParameters(max_downtime_ms=100, bandwidth=FAST, timeout_s=140)
        status = await source.migrate(uri, parameters)
        await destination.wait_arrival()
        steps = sorted(set(seen.throttles))
        assert steps[0] == 0
        assert seen.throttles == sorted(seen.throttles)
        assert steps[-1] <= parameters.max_throttle_percent
        assert status.expected_downtime_ms is not None
        assert status.expected_downtime_ms <= parameters.max_downtime_ms
        await is_whole(destination)
        if len(steps) == 1:
            pytest.skip("this host is so busy that the guest wrote slowly by itself")


async def fails(vm: Machine, tmp_path: Path, parameters: MigrationParameters) -> MigrationStatus:
    """Try to move the guest, until the machine that waits for it hears that it stays."""
    uri = f"unix:{tmp_path}/migration"

    async def wait_there() -> None:
        async with Machine(MachineConfig.parse(memory="96M")._replace(incoming=IncomingConfig(uri))):
            await vm.moves.start_migration(uri, parameters)
            await trio.sleep_forever()

    with pytest.raises(IncomingFailed, match="its source keeps it: the guest did not come to rest"):
        await wait_there()
    return await vm.moves.wait_migration()


async def test_left_alone(vm: Machine, tmp_path: Path) -> None:
    """It may not be slowed: the time is up, the user reads figures, and the guest has noticed nothing."""
    with trio.fail_after(100):
        await flat_out(vm, "4M")
        seen = watch(vm)
        parameters = MigrationParameters(max_downtime_ms=50, bandwidth=SLOW, timeout_s=1.5, max_throttle_percent=0)
        status = await fails(vm, tmp_path, parameters)
        assert "did not come to rest within 1.5 s" in status.error
        assert re.search(r"\d+ pages dirty after round \d+, \d+ MB/s, a pause of \d+ ms where 50 ms", status.error)
        assert "--max-downtime" in status.error_hint
        assert (status.state, status.guest) == ("failed", "source")
        assert set(seen.throttles) == {0}
        assert "STOP" not in seen.events
        assert not throttles(vm)
        assert vm.run_state() == "running"
        await is_whole(vm)


async def test_slowed_in_vain(vm: Machine, tmp_path: Path) -> None:
    """Up to a cap that is too low: the time is up, and the guest has all of its processor again."""
    with trio.fail_after(100):
        await flat_out(vm, "4M")
        seen = watch(vm)
        parameters = MigrationParameters(max_downtime_ms=20, bandwidth=SLOW, timeout_s=6, max_throttle_percent=20)
        status = await fails(vm, tmp_path, parameters)
        assert "did not come to rest within 6 s" in status.error
        assert set(seen.throttles) == {0, 20}
        assert "STOP" not in seen.events
        while throttles(vm):
            await trio.sleep(0.01)
        await is_whole(vm)
