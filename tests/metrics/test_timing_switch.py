"""The switch for measuring what timing costs: without it nothing is timed, and everything is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disk_driver import IN, disk
from tests.support.net_rig import frame, net_rig
from tvmm.kvm.histogram import set_timing


@pytest.fixture
def _off() -> Iterator[None]:
    """In this process, for the test."""
    set_timing(False)
    yield
    set_timing(True)


@pytest.mark.usefixtures("_off")
@pytest.mark.parametrize("aio", ["auto", "threads"])
async def test_disk_without_times(tmp_path: Path, aio: str) -> None:
    """Requests are served and counted."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    async with disk(path, aio=aio) as one:
        one.activate()
        for _ in range(20):
            assert (await one.ask(IN, 0, room=512)).status == 0
        assert one.runner.info().counters.reads == 20
        assert not any(times.count for times in one.runner.latencies()[0].values())


@pytest.mark.usefixtures("_off")
async def test_net_without_times() -> None:
    """Frames too."""
    async with net_rig() as rig:
        await rig.activate(0)
        data = frame(b"x" * 60)
        assert rig.send(data, 0, ())
        rig.kick(1)
        assert await rig.take(1) == [data]
        await rig.wait_used(1, 1)
        assert rig.runner.info().counters[0].tx_turns == 1
        assert not any(times.count for times in rig.runner.turns()[0])
