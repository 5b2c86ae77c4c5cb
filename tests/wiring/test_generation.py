"""The generation ID of a machine with the built-in guest: when it stays, when it changes, and what the guest hears."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.wiring.guests import PROMPT, GuestShell, guest
from tests.wiring.moves import destination, move
from tvmm import Machine, MachineConfig
from tvmm.control.machine_target import MachineTarget
from tvmm.errors import ConfigError
from tvmm.wiring.restoring import restored

pytestmark = pytest.mark.guest

CHOSEN = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"


class Seen(NamedTuple):
    """What the guest says."""

    guid: str
    notifications: int
    changes: int


async def look(shell: GuestShell) -> Seen:
    """Ask the guest, and see to it that clients hear of the same."""
    found = re.search(r"genid: (\S+) at 0xf6000, (\d+) notifications, (\d+) changes", await shell.ask("genid"))
    assert found
    assert MachineTarget(shell.vm).generation_id() == found[1]
    return Seen(found[1], int(found[2]), int(found[3]))


async def test_each_machine_has_its_own() -> None:
    """A UUID that was made up, and nothing that the guest would have to hear of."""
    async with guest() as one, guest() as other:
        first, second = await look(one), await look(other)
    assert (first.notifications, second.notifications) == (0, 0)
    assert uuid.UUID(first.guid).version == 4
    assert first.guid != second.guid


async def test_the_user_may_choose_it() -> None:
    """For a guest that was cloned by other means."""
    async with guest(device=[f"vmgenid,guid={CHOSEN.upper()}"]) as shell:
        assert await look(shell) == Seen(CHOSEN, 0, 0)


def test_only_once() -> None:
    """Two would contradict each other."""
    with pytest.raises(ConfigError, match="one generation ID"):
        MachineConfig.parse(device=["vmgenid", f"vmgenid,guid={CHOSEN}"])


@pytest.mark.parametrize("text", ["vmgenid,guid=x", "vmgenid,guid=", f"vmgenid,guid={CHOSEN}0"])
def test_what_is_no_id(text: str) -> None:
    """Refused with an example."""
    with pytest.raises(ConfigError, match="324e6eaf"):
        MachineConfig.parse(device=[text])


async def test_a_new_generation_is_told_once() -> None:
    """The guest finds the new one, and has been interrupted once for it."""
    async with guest() as shell:
        before = await look(shell)
        await shell.vm.pause()
        shell.vm.board.begin_generation()
        await shell.vm.resume()
        after = await look(shell)
        assert (after.notifications, after.changes) == (1, 1)
        assert after.guid != before.guid
        assert await look(shell) == after


async def test_a_reset_keeps_it() -> None:
    """It is the same guest, with memory that was zeroed."""
    async with guest() as shell:
        before = await look(shell)
        await shell.vm.reset()
        await shell.vm.wait_serial(PROMPT)
        assert await look(shell) == before


async def test_a_guest_that_moves_keeps_it() -> None:
    """It comes along, and goes into memory again when that is zeroed."""
    async with guest() as shell, destination(shell.vm.config) as other:
        before = await look(shell)
        await move(shell.vm, other.vm)
        assert await look(other) == before
        await other.vm.reset()
        await other.vm.wait_serial(PROMPT)
        assert await look(other) == before


async def test_restored_guests_get_one_each(tmp_path: Path) -> None:
    """Two that are made from one file, in one process: each has an ID of its own, has been told of it once, and gets
    other random bytes; what they had in memory is the same, and what one writes the other does not see.
    """
    path = tmp_path / "guest.snap"
    async with guest(device=["virtio-rng"]) as shell:
        await shell.ask("rng 0 64")
        before = await look(shell)
        await shell.vm.save(str(path))
        assert await look(shell) == before
    async with restored(path, load="demand") as vm, restored(path, load="demand") as other:
        shells = GuestShell(vm), GuestShell(other)
        for shell in shells:
            await shell.vm.resume()
        seen = [await look(shell) for shell in shells]
        assert [(each.notifications, each.changes) for each in seen] == [(1, 1), (1, 1)]
        assert len({before.guid, *(each.guid for each in seen)}) == 3
        assert (await shells[0].ask("rng 0 64")).splitlines()[1] != (await shells[1].ask("rng 0 64")).splitlines()[1]
        await shells[0].ask("poke 0x2000000 0x12345678")
        assert "78 56 34 12" in await shells[0].ask("mem 0x2000000 4")
        assert "00 00 00 00" in await shells[1].ask("mem 0x2000000 4")


async def test_told_while_nobody_listened() -> None:
    """A guest that has not come to its driver yet finds the event when it enables it."""
    async with guest() as shell:
        await shell.vm.pause()
        shell.vm.board.begin_generation()
        await shell.vm.resume()
        assert shell.vm.board.gpe.state().status
        seen = await look(shell)
        assert seen.notifications == 0  # what is known when the driver comes is no news
        assert not shell.vm.board.gpe.state().status


async def test_clients_are_told() -> None:
    """`tvmm info` has it too."""
    async with Machine(MachineConfig.parse(memory="64M", device=[f"vmgenid,guid={CHOSEN}"])) as vm:
        assert MachineTarget(vm).info()["generation-id"] == CHOSEN
