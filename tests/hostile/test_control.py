"""Hostile clients at the control socket and the console of a machine with a guest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import trio

from tests.support.hostile_clients import ask, noise_at_console, noise_at_control
from tests.support.vitals import own_vitals
from tvmm import Machine, MachineConfig

pytestmark = pytest.mark.guest

SECONDS = 60
TASKS, SESSIONS = 4, 8
GROWTH_LIMIT_KIB = 16 << 10


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A registry with a short name: the paths of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="tvmm-") as directory:
        yield Path(directory)


async def _sessions(path: Path, console: Path, seed: int) -> None:
    random = Random(seed)
    for _ in range(SESSIONS):
        await noise_at_control(path, random)
        await noise_at_console(console, random)


async def test_hostile_clients(runtime: Path) -> None:
    """Meanwhile and afterwards the machine answers, and it keeps neither their descriptors nor much memory."""
    config = MachineConfig.parse(name="target", memory="64M", runtime_dir=runtime)
    control, console = runtime / "target/control.sock", runtime / "target/console.sock"
    with trio.fail_after(SECONDS):
        async with Machine(config) as vm:
            await vm.resume()
            await vm.wait_serial("tvmm> ")
            await vm.control_ready.wait()
            await ask(control, "query-status")
            before = own_vitals()
            async with trio.open_nursery() as nursery:
                for seed in range(TASKS):
                    nursery.start_soon(_sessions, control, console, seed)
                for _ in range(5):
                    await ask(control, "query-status")
            await ask(control, "query-status")
            await vm.reset()
            await vm.resume()
            # The last sessions end a moment after their clients.
            while len(own_vitals().descriptors) > len(before.descriptors):
                await ask(control, "query-name")
            assert own_vitals().anonymous_kib - before.anonymous_kib < GROWTH_LIMIT_KIB
            assert vm.outcome is None
    assert list(runtime.glob("target*")) == []
