"""One guest that moves many times by post-copy, with a connection that is cut at a random moment: no wrong byte.

Its pages check themselves, and so does what it writes to its disk and reads back, also while pages are missing.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from tests.support.churn import summary
from tests.test_convergence import flat_out
from tests.test_moves_many import Host
from tvmm import Machine, MachineConfig
from tvmm.config.incoming import IncomingConfig
from tvmm.errors import UserError
from tvmm.kvm.uffd import Uffd
from tvmm.migration import policy
from tvmm.migration.status import MigrationParameters
from tvmm.testing import PROMPT

pytestmark = pytest.mark.guest

WAYS = (
    MigrationParameters(10_000, postcopy="now", bandwidth=40 << 20),
    MigrationParameters(10_000, postcopy="now", bandwidth=20 << 20, connections=2),
    MigrationParameters(10_000, postcopy="now", bandwidth=10 << 20, compress="zstd"),
)
CUT_WITHIN_SECONDS = 0.25


@pytest.fixture(autouse=True)
def _userfaultfd() -> None:
    try:
        Uffd().close()
    except UserError as error:
        pytest.skip(str(error))


async def cut_once(here: Machine, seconds: float) -> bool:
    """Within its post-copy, if that lasts so long; mended at once."""
    while here.moves.migration_status().state in ("setup", "active", "device"):
        await trio.sleep(0.001)
    await trio.sleep(seconds)
    try:
        here.moves.pause_migration()
    except UserError:
        return False
    while not (postcopy := here.moves.migration_status().postcopy) or not postcopy.waiting:
        if here.moves.migration_status().state == "completed":
            return False
        await trio.sleep(0.001)
    await here.moves.recover_migration("")
    return True


async def travel(tmp_path: Path, moves: int, seed: int) -> int:
    """How many of `moves` were cut."""
    chance = random.Random(seed)
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8 << 20))
    config = MachineConfig.parse(memory="64M", disk=[f"{image}"])
    cuts = 0
    async with trio.open_nursery() as nursery:
        host = Host(nursery)
        here = await host.open(config)
        await here.resume()
        await here.wait_serial(PROMPT)
        await here.send_serial("churn rate=20000 pages=24M mib=4\n")
        await here.wait_serial("churning")
        for number in range(moves):
            uri = f"unix:{tmp_path}/{number % 2}"
            there = await host.open(config._replace(incoming=IncomingConfig(uri)))
            await here.moves.start_migration(uri, WAYS[number % len(WAYS)])
            cuts += await cut_once(here, chance.random() * CUT_WITHIN_SECONDS)
            status = await here.moves.wait_migration()
            assert status.state == "completed", status.reason
            await there.wait_arrival()
            await host.close(here)
            here = there
        await here.send_serial("q")
        said = summary((await here.wait_serial(PROMPT)).decode())
        print(cuts, "cuts;", said)
        assert said.damage() == {}
        assert said.disk_requests
        await host.close(here)
    return cuts


@pytest.mark.timeout(60)
async def test_a_few_moves(tmp_path: Path) -> None:
    """In each way once."""
    await travel(tmp_path, 3, 1)


@pytest.mark.timeout(60)
async def test_a_guest_that_never_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes flat out over a slow network: post-copy begins by itself, where pre-copy would have slowed it down."""
    # What the pause is expected to be counts; a busy host may need longer for it.
    monkeypatch.setattr(policy, "OVERRUN", 4000)
    config = MachineConfig.parse(memory="64M")
    uri = f"unix:{tmp_path}/there"
    # What a guest writes anew that gets next to nothing of its processor.
    way = MigrationParameters(5, postcopy="allow", bandwidth=4 << 20)
    async with Machine(config) as here, Machine(config._replace(incoming=IncomingConfig(uri))) as there:
        await here.resume()
        await here.wait_serial(PROMPT)
        await flat_out(here, "2M")
        status = await here.migrate(uri, way)
        assert status.postcopy is not None
        assert not status.throttle_percent
        await there.wait_arrival()
        while there.moves.migration_status().state != "completed":
            await trio.sleep(0.01)
        progress = there.moves.migration_status().postcopy
        assert progress is not None
        print(status.total_ms, status.downtime_ms, progress)
        await there.pause()
        await there.resume()


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_hundred_moves(tmp_path: Path) -> None:
    """Most of them are cut."""
    assert await travel(tmp_path, 100, 2) >= 50
