"""Guests with a balloon that move: free pages stay behind, and what the balloon has given back is not fetched again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.patience import PATIENT
from tvmm import Machine, MachineConfig
from tvmm.config.incoming import IncomingConfig
from tvmm.errors import IncomingFailed
from tvmm.migration.status import MigrationParameters
from tvmm.testing import PROMPT, booted, pair

if TYPE_CHECKING:
    from pathlib import Path

    from tvmm.wiring.balloon import BalloonPart

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

MIB = 1 << 20
HINTS = "virtio-balloon,free-page-hint=on"
SLOW = PATIENT._replace(bandwidth=60 * MIB)
"""So that the guest has told of its free pages before most of them are sent."""


async def ask(vm: Machine, line: str) -> str:
    """What the guest prints for a command, up to the next prompt."""
    await vm.send_serial(line + "\n")
    return (await vm.wait_serial(PROMPT)).decode(errors="replace")


async def use(vm: Machine, mib: int) -> None:
    """Have the guest write so many MiB of checked pages, all of them at least once."""
    while True:
        assert " 0 errors" in await ask(vm, f"dirty 0 {mib * MIB} 1")
        if f"checked {mib * 256} pages: 0 errors" in await ask(vm, "check"):
            return


def balloon_of(vm: Machine) -> BalloonPart:
    """The host's side."""
    assert vm.board.devices is not None
    assert vm.board.devices.balloon is not None
    return vm.board.devices.balloon


def command_of(vm: Machine) -> int:
    """What the driver reads of requests for hints."""
    return balloon_of(vm).runner.model.read_config(8, 4)


@pytest.mark.parametrize("ring", ["", "packed=on", "transport=mmio"])
async def test_free_pages_are_not_sent(ring: str) -> None:
    """Pages that the guest has written and does not use any more are spared; those that it uses are right."""
    device = ",".join(filter(None, [HINTS, ring]))
    append = "packed" if "packed" in ring else ""
    async with pair(MachineConfig.parse(memory="128M", append=append, device=[device])) as machines:
        source, there = machines.source, machines.destination
        await use(source, 90)
        await use(source, 16)
        await ask(source, "balloon")
        await source.migrate(machines.uri, SLOW)
        await there.wait_arrival()
        ram = source.moves.migration_status().ram
        assert 60 * 256 < ram.spared == balloon_of(source).info().counters["spared"] <= 128 * 256
        assert ram.normal < 40 * 256
        assert await balloon_of(there).resident() < 60 * MIB
        assert "checked 4096 pages: 0 errors" in await ask(there, "check")
        assert command_of(there) == 1
        await use(there, 90)
        assert "hinted" in await ask(there, "balloon")


@pytest.mark.parametrize("memory", ["128M", "128M,shared=on"])
async def test_pages_that_are_used_again_are_sent(memory: str) -> None:
    """The guest takes pages that it has just told of, while the first pass goes on, and finds them over there."""
    config = MachineConfig.parse(memory=memory, device=[HINTS])
    # Over a unix socket shared memory would be handed over, and nothing sent at all.
    waiting = config._replace(incoming=IncomingConfig("tcp:127.0.0.1:0"))
    async with booted(config) as source, Machine(waiting) as there:
        await use(source, 90)
        await use(source, 8)
        await ask(source, "balloon")
        async with trio.open_nursery() as nursery:
            uri = there.moves.migration_status().listening
            nursery.start_soon(source.migrate, uri, SLOW._replace(bandwidth=30 * MIB))
            while not balloon_of(source).info().counters["spared"]:
                await trio.sleep(0.005)
            await source.send_serial(f"dirty 20000 {60 * MIB} 60 spin\n")
        await there.wait_arrival()
        await there.send_serial("q")
        assert " 0 errors" in (await there.wait_serial(PROMPT)).decode()
        assert " 0 errors" in await ask(there, "check")
        assert source.moves.migration_status().ram.spared > 0


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ("virtio-balloon", SLOW),
        (HINTS, SLOW._replace(verify=True)),
    ],
)
async def test_moves_without_hints(options: str, parameters: MigrationParameters) -> None:
    """Of a device that has none, or where both sides are to be compared."""
    async with pair(MachineConfig.parse(memory="64M", device=[options])) as machines:
        await use(machines.source, 30)
        await ask(machines.source, "balloon")
        await machines.source.migrate(machines.uri, parameters)
        await machines.destination.wait_arrival()
        assert machines.source.moves.migration_status().ram.spared == 0
        assert " 0 errors" in await ask(machines.destination, "check")


async def begin_and_cancel(source: Machine, waiting: Machine, uri: str) -> None:
    """The guest stays when it has told of free pages; who waits for it hears of that."""
    async with waiting:
        await source.moves.start_migration(uri, SLOW._replace(bandwidth=4 * MIB))
        while not balloon_of(source).info().counters["hinted"]:
            await trio.sleep(0.005)
        source.moves.cancel_migration()
        await waiting.wait_arrival()


async def test_a_move_that_is_cancelled(tmp_path: Path) -> None:
    """The guest has its pages back."""
    config = MachineConfig.parse(memory="64M", device=[HINTS])
    uri = f"unix:{tmp_path / 'migration'}"
    async with booted(config) as source:
        await use(source, 40)
        await use(source, 8)
        await ask(source, "balloon")
        with pytest.raises(IncomingFailed):
            await begin_and_cancel(source, Machine(config._replace(incoming=IncomingConfig(uri))), uri)
        assert (await source.moves.wait_migration()).state == "cancelled"
        assert command_of(source) == 1
        assert "checked 2048 pages: 0 errors" in await ask(source, "check")
        await use(source, 40)


@pytest.mark.parametrize("memory", ["128M", "128M,shared=on"])
async def test_what_the_balloon_has_stays_away(memory: str) -> None:
    """Neither side has more memory for the guest than the guest has, however often it moves."""
    config = MachineConfig.parse(memory=memory, device=["virtio-balloon"])
    async with pair(config) as machines:
        source, there = machines.source, machines.destination
        await use(source, 100)
        await use(source, 16)
        await ask(source, "balloon")
        part = balloon_of(source)
        part.set_memory(40 * MIB)
        while part.info().actual != 40 * MIB:
            await trio.sleep(0.005)
        assert await part.resident() <= 40 * MIB
        await source.migrate(machines.uri, PATIENT)
        await there.wait_arrival()
        assert await part.resident() <= 40 * MIB
        assert await balloon_of(there).resident() <= 44 * MIB
        assert balloon_of(there).info().actual == 40 * MIB
        assert "checked 4096 pages: 0 errors" in await ask(there, "check")
