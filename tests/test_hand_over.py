"""Guests whose memory is handed over to another machine on this host, and handed on, and kept after all."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.churn import summary
from tests.support.cut_wire import Cutter, Wire
from tests.support.moving_guests import PAGE
from tests.support.patience import PATIENT
from tests.test_histories import Place, everything, surroundings
from tests.wiring.guests import PROMPT, GuestShell
from tvmm import Machine, MachineConfig
from tvmm.config.incoming import IncomingConfig
from tvmm.errors import UserError
from tvmm.testing import booted

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

SHARED = MachineConfig.parse(memory="64M,shared=on", cpus=2)
LOAD = "churn rate=2000 pages=8M"


def waiting(config: MachineConfig, uri: str) -> Machine:
    """One that waits for a guest."""
    return Machine(config._replace(incoming=IncomingConfig(uri).check()))


async def begin(vm: Machine) -> None:
    """Have the guest check its memory and its clocks without end."""
    await vm.send_serial(LOAD + "\n")
    await vm.wait_serial("churning")


async def end(vm: Machine) -> None:
    """Nothing was wrong."""
    await vm.send_serial("q")
    said = summary((await vm.wait_serial(PROMPT)).decode())
    assert said.damage() == {}


@pytest.mark.parametrize("times", [4, pytest.param(100, marks=pytest.mark.slow)])
async def test_from_hand_to_hand(tmp_path: Path, times: int) -> None:
    """Again and again, under load; in the end the memory is that of a machine like others, and is copied over TCP."""
    open_files: list[int] = []

    async def stand(config: MachineConfig, uri: str, task_status: trio.TaskStatus[Machine]) -> None:
        """A machine that waits for the guest, until that has gone on."""
        async with waiting(config, uri) as vm:
            task_status.started(vm)
            await vm.wait()

    with trio.fail_after(30 + 2 * times):
        async with trio.open_nursery() as nursery, booted(SHARED) as first:
            here = first
            await begin(here)
            for number in range(times):
                uri = f"unix:{tmp_path}/{number}"
                there = await nursery.start(stand, SHARED, uri)
                status = await here.migrate(uri, PATIENT)
                await there.wait_arrival()
                assert (status.ram.handed_over, status.ram.transferred) == (64 << 20, 0)
                assert (await here.wait()).kind == "migrated"
                here = there
                open_files.append(len(os.listdir("/proc/self/fd")))
            assert max(open_files) <= open_files[0] + 64, open_files
            last = await nursery.start(stand, MachineConfig.parse(memory="64M", cpus=2), "tcp:127.0.0.1:0")
            status = await here.migrate(last.moves.migration_status().listening, PATIENT)
            await last.wait_arrival()
            assert status.ram.normal
            await end(last)
            await last.send_serial("poweroff\n")


def differing(one: bytes, other: bytes, size: int = 1 << 20) -> int:
    """How many pages are not the same."""
    found = 0
    for at in range(0, len(one), size):
        if one[at : at + size] != other[at : at + size]:
            found += 1 if size == PAGE else differing(one[at : at + size], other[at : at + size], PAGE)
    return found


@asynccontextmanager
async def wired(tmp_path: Path, on_message: Callable[[str], bool]) -> AsyncIterator[Wire]:
    """Between a source and its destination."""
    wire = Wire(f"{tmp_path}/wire", f"{tmp_path}/there", on_message)
    async with trio.open_nursery() as nursery:
        await nursery.start(wire.run)
        yield wire
        nursery.cancel_scope.cancel()


async def test_a_guest_that_stays_after_all(tmp_path: Path) -> None:
    """Cut off, cancelled or too slow at every step up to the last one: it goes on where it was, memory and clocks."""
    steps = ("Descriptors", "RoundDone", "State", "Ready", "Commit")
    cutter = Cutter("")
    with trio.fail_after(120):
        async with booted(SHARED) as vm, wired(tmp_path, cutter):
            await begin(vm)
            for step in steps:
                cutter.name, cutter.done = step, False
                try:
                    async with waiting(SHARED, f"unix:{tmp_path}/there"):
                        with pytest.raises(UserError):
                            await vm.migrate(f"unix:{tmp_path}/wire", PATIENT)
                except* UserError:
                    # The destination's end of it.
                    pass
                assert cutter.done
                assert vm.motion.running
                await vm.send_serial("m")
                await vm.wait_serial("longest pause ")
            async with waiting(SHARED, f"unix:{tmp_path}/there") as there:
                await vm.migrate(f"unix:{tmp_path}/wire", PATIENT)
                await there.wait_arrival()
                await end(there)


async def test_loading_changes_no_page_of_the_source(tmp_path: Path) -> None:
    """With a device of every kind: just before Commit the source's memory is what it was when the guest was paused,
    and what the destination has of its own is no more than KVM's clocks, if any.
    """
    before: dict[str, bytes] = {}
    changed: dict[str, int] = {}

    def on_message(passing: str) -> bool:
        blocks = vm.board.ram.blocks
        if passing == "State":
            before.update({name: bytes(block.view) for name, block in blocks.items()})
        elif passing == "Ready":
            assert {name: bytes(block.view) for name, block in blocks.items()} == before
            for name, block in there.board.ram.blocks.items():
                assert block.fd < 0
                data = bytes(block.view)
                changed[name] = differing(data, before[name])
        return True

    def shared(side: str) -> MachineConfig:
        config = everything(tmp_path, side)
        return config._replace(memory=config.memory._replace(shared=True))

    with trio.fail_after(120):
        async with surroundings(tmp_path), booted(shared("here")) as vm, wired(tmp_path, on_message):
            place = Place(vm, tmp_path)
            for line in ("screen mode 640x480", "balloon", "rng 0 64", "vcon open 0", "blkfill 0 2 7 0"):
                await place.ask(line)
            async with waiting(shared("there"), f"unix:{tmp_path}/there") as there:
                await vm.migrate(f"unix:{tmp_path}/wire", PATIENT)
                await there.wait_arrival()
                assert "0 errors, 0 unreadable" in await GuestShell(there).ask("blkcheck 0 2 7")
    assert set(changed) == {"pc.ram", "vga.vram"}
    assert changed["vga.vram"] == 0
    assert changed["pc.ram"] <= 2


async def test_memory_of_one_side_alone(tmp_path: Path) -> None:
    """It is copied, and the status says how it could have been otherwise."""
    private = MachineConfig.parse(memory="64M", cpus=2)
    async with booted(private) as vm, waiting(SHARED, f"unix:{tmp_path}/there") as there:
        status = await vm.migrate(f"unix:{tmp_path}/there", PATIENT)
        await there.wait_arrival()
        assert status.ram.handed_over == 0
        assert "the guest's memory is not shared" in status.advice
        assert "two" in await GuestShell(there).ask("echo one two")


async def test_a_source_that_is_left_behind_cannot_harm_its_guest(tmp_path: Path) -> None:
    """Whatever is done to its memory, its guest's is another one by then."""
    async with booted(SHARED) as vm, waiting(SHARED, f"unix:{tmp_path}/there") as there:
        await begin(vm)
        await vm.migrate(f"unix:{tmp_path}/there", PATIENT)
        await there.wait_arrival()
        await vm.wait()
        assert all(block.fd < 0 for block in vm.board.ram.blocks.values())
        vm.board.ram.zero()
        await end(there)
