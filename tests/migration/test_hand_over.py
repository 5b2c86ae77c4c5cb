"""Memory that is handed over as it is: what goes wrong at every step, and what a stranger could send in its place.

Whatever does, the source goes on with memory that nobody has written to.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.migration.ends import check_one_guest, connected, impatient, paired
from tests.support.cut_wire import Cutter
from tests.support.moving_guests import PAGE, World
from tests.support.patience import PATIENT
from tvmm.migration.destination import DestinationState
from tvmm.migration.source import SourceState

MESSAGES = (
    *("Hello", "Grants", "Welcome", "Descriptors", "RoundDone", "State", "Ready", "Commit", "Running", "Goodbye"),
)
LATE = ("Running", "Goodbye")
"""The guest is the destination's before these."""


@pytest.fixture
def world() -> Iterator[World]:
    """A guest with shared memory, and a destination that can take it over."""
    made = World(shared=True)
    # It writes nothing by itself: whatever has changed was changed by the migration.
    made.source.busy_pages = 0
    yield made
    made.close()


def ram_of(world: World) -> bytes:
    """What the source has."""
    return bytes(world.source.ram.blocks["pc.ram"].view)


def check_memory(world: World, before: bytes, state: SourceState) -> None:
    """As it was before, wherever the guest is; what either side does to it later is for itself."""
    assert ram_of(world) == before
    view = world.destination.ram.blocks["pc.ram"].view
    if state is SourceState.DONE:
        assert bytes(view) == before
        view[:4] = b"runs"
        assert bytes(world.source.ram.blocks["pc.ram"].view[:4]) == b"runs"
        world.source.ram.zero()
        assert bytes(view[:4]) == b"runs"


@pytest.mark.parametrize("verify", [False, True])
async def test_memory_is_handed_over(world: World, tmp_path: Path, verify: bool) -> None:
    """No lane, no round, no page: the destination has the very same memory, and the source lets go of it."""
    before = ram_of(world)
    passed: list[str] = []

    def on_message(passing: str) -> bool:
        passed.append(passing)
        return True

    async with connected(world, tmp_path, on_message, PATIENT._replace(verify=verify)) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        assert ends.incoming.state is DestinationState.RUNNING
        assert world.running == {"destination"}
        assert world.source.memory_let_go
        status = ends.out.status
        assert (status.ram.handed_over, status.ram.total) == (2 << 20, 2 << 20)
        assert (status.ram.transferred, status.ram.normal, status.ram.rounds, status.connections) == (0, 0, 0, 0)
        assert ends.incoming.status.ram.handed_over == 2 << 20
        assert status.advice == ""
        assert status.downtime_ms is not None
        assert not world.source.hints
        check_memory(world, before, SourceState.DONE)
    assert tuple(passed[: len(MESSAGES) + 1]) == ("Wants", *MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
async def test_a_connection_that_breaks(world: World, tmp_path: Path, name: str) -> None:
    """Just before each message."""
    before = ram_of(world)
    cutter = Cutter(name)
    async with connected(world, tmp_path, cutter) as ends:
        state = await ends.out.run(trio.Event())
        assert cutter.done
        if name == "Hello":
            # As from a destination that does not know the wish: it is asked again, without.
            assert state is SourceState.DONE
            assert ends.out.status.ram.rounds
            return
        check_one_guest(world, ends)
        assert state is (SourceState.DONE if name in LATE else SourceState.FAILED)
        check_memory(world, before, state)


@pytest.mark.parametrize("name", MESSAGES)
async def test_a_connection_that_stalls(
    world: World, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From each message on nothing comes through, and nothing breaks."""
    before = ram_of(world)
    parameters = impatient(name, monkeypatch)
    async with connected(world, tmp_path, lambda passing: passing != name, parameters) as ends:
        state = await ends.out.run(trio.Event())
        check_one_guest(world, ends)
        assert state is (SourceState.DONE if name in LATE else SourceState.FAILED)
        check_memory(world, before, state)


@pytest.mark.parametrize("name", MESSAGES[: MESSAGES.index("Commit")])
async def test_cancelled_at_every_step(world: World, tmp_path: Path, name: str) -> None:
    """By the user, before the guest is given up."""
    before = ram_of(world)

    def on_message(passing: str) -> bool:
        if passing == name:
            ends.out.cancel()
        return True

    async with connected(world, tmp_path, on_message) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.CANCELLED
        check_one_guest(world, ends)
        check_memory(world, before, SourceState.CANCELLED)


@pytest.mark.parametrize("failing", ["save", "load", "start", "borrow"])
async def test_a_step_that_fails(world: World, tmp_path: Path, failing: str) -> None:
    """On either side, the one after Commit included: what the destination has written on the way is gone."""
    before = ram_of(world)
    world.source.fail_save = failing == "save"
    world.destination.fail_load = failing == "load"
    world.destination.fail_start = failing == "start"
    world.destination.fail_borrow = failing == "borrow"
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        check_one_guest(world, ends)
        check_memory(world, before, SourceState.FAILED)
        assert not world.source.memory_let_go
        if failing == "borrow":
            assert "does not map" in ends.out.status.error


async def test_a_guest_that_resets_on_the_way(world: World, tmp_path: Path) -> None:
    """Its memory is zeroed when the destination has it mapped already: that sees it too."""

    def on_message(passing: str) -> bool:
        if passing == "RoundDone":
            world.source.ram.zero()
            world.source.write_page(7, 3)
        return True

    async with connected(world, tmp_path, on_message) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        view = world.destination.ram.blocks["pc.ram"].view
        assert not any(view[: 7 * PAGE])
        assert view[7 * PAGE] == 8
        assert not any(view[8 * PAGE :])


@pytest.mark.parametrize("private", ["source", "destination", "both"])
async def test_private_memory_is_copied(tmp_path: Path, private: str) -> None:
    """And the user is told that it need not have been."""
    world = World(shared=private == "destination", shared_there=private == "source")
    try:
        async with connected(world, tmp_path) as ends:
            assert await ends.out.run(trio.Event()) is SourceState.DONE
            check_one_guest(world, ends)
            status = ends.out.status
            assert status.ram.handed_over == 0
            assert status.ram.normal
            whose = "the destination's" if private == "destination" else "the guest's"
            assert status.advice.startswith(f"{whose} memory is not shared")
            assert not world.source.memory_let_go
    finally:
        world.close()


async def test_a_destination_that_does_not_know_the_wish_gets_a_copy(world: World, tmp_path: Path) -> None:
    """An older tvmm hangs up on it."""
    wishes: list[str] = []

    def on_message(passing: str) -> bool:
        if passing == "Wants":
            wishes.append(passing)
            ends.wire.cut()
            return False
        return True

    async with connected(world, tmp_path, on_message) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        check_one_guest(world, ends)
        assert wishes == ["Wants"]
        assert ends.out.status.ram.normal


async def test_with_a_pairing_code_memory_is_copied(world: World, tmp_path: Path) -> None:
    """Who asks for encryption gets it; descriptors cannot be encrypted."""
    async with connected(world, tmp_path, secured=paired()) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        check_one_guest(world, ends)
        assert (ends.out.status.ram.handed_over, ends.out.status.advice) == (0, "")


async def test_another_user_gets_no_memory(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it taken from one: it is copied, as over a network."""
    monkeypatch.setattr("tvmm.migration.descriptors.os.geteuid", lambda: 4711)
    monkeypatch.setattr("tvmm.migration.descriptors.ROOT", 4712)
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        check_one_guest(world, ends)
        assert (ends.out.status.ram.handed_over, ends.out.status.advice) == (0, "")


async def test_nothing_stays_open(world: World, tmp_path: Path) -> None:
    """As many descriptors as before, whether it works or not."""
    for fail in (True, False):
        world.destination.fail_load = fail
        async with connected(world, tmp_path) as ends:
            # The listener and the wire are there.
            before = len(os.listdir("/proc/self/fd"))
            await ends.out.run(trio.Event())
            await ends.incoming_over.wait()
        lent = len(world.destination.lent)
        assert len(os.listdir("/proc/self/fd")) <= before + lent
        assert socket.socketpair()[0]
