"""Taps that go along over a unix socket, with the memory or beside copies of it: what is asked for, and what comes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.migration.ends import check_one_guest, connected, paired
from tests.support.moving_guests import World
from tvmm.migration import descriptors, hand_over
from tvmm.migration.destination import DestinationState
from tvmm.migration.source import SourceState


@pytest.fixture(params=[True, False], ids=["handed over", "copied"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """A guest with taps, pipes in their place, and a destination that waits for one of them."""
    made = World(shared=request.param)
    made.source.busy_pages = 0
    made.source.tap_queues = {"tap0": list(os.pipe()), "tap1": list(os.pipe())}
    made.destination.late_taps = ["tap0"]
    yield made
    for fds in made.source.tap_queues.values():
        for fd in fds:
            os.close(fd)
    made.close()


def same_files(ours: list[int], theirs: list[int]) -> bool:
    """Whether they are the same, in their order."""
    return [os.fstat(fd).st_ino for fd in ours] == [os.fstat(fd).st_ino for fd in theirs]


async def test_what_is_waited_for_comes(world: World, tmp_path: Path) -> None:
    """All of its queues and nothing else; the source lets go of that one."""
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        check_one_guest(world, ends)
        assert world.destination.taps_came is not None
        assert set(world.destination.taps_came) == {"tap0"}
        assert same_files(world.destination.taken, world.source.tap_queues["tap0"])
        assert world.source.taps_gone == {"tap0"}


async def test_nothing_is_waited_for(world: World, tmp_path: Path) -> None:
    """The destination has taps of its own: nothing is sent."""
    world.destination.late_taps = []
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.DONE
        check_one_guest(world, ends)
        assert not world.destination.taps_came
        assert not world.source.taps_gone


async def test_another_one_is_waited_for(world: World, tmp_path: Path) -> None:
    """It does not come, and the guest stays, before it was stopped."""
    world.destination.late_taps = ["tap7"]
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert world.running == {"source"}
        assert ends.out.status.error == "the destination refuses the machine: tap tap7 is in use"
        assert ends.incoming.state is DestinationState.WAITING
        assert not world.source.taps_gone


async def test_with_a_pairing_code_nothing_comes(world: World, tmp_path: Path) -> None:
    """Descriptors cannot be encrypted."""
    async with connected(world, tmp_path, secured=paired()) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert "refuses the machine: tap tap0 is in use" in ends.out.status.error
        assert world.destination.taps_came is None


async def test_another_user_gets_none(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are they taken from one."""
    monkeypatch.setattr("tvmm.migration.descriptors.os.geteuid", lambda: 4711)
    monkeypatch.setattr("tvmm.migration.descriptors.ROOT", 4712)
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        assert "refuses the machine: tap tap0 is in use" in ends.out.status.error
        assert world.destination.taps_came is None


@pytest.mark.parametrize("step", ["Descriptors", "State", "Commit"])
async def test_a_connection_that_breaks(world: World, tmp_path: Path, step: str) -> None:
    """Before Commit the taps are the source's, and what the destination had of them is closed by it."""
    before = len(os.listdir("/proc/self/fd"))

    def on_message(passing: str) -> bool:
        if passing == step:
            ends.wire.cut()
            return False
        return True

    async with connected(world, tmp_path, on_message) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        check_one_guest(world, ends)
        assert not world.source.taps_gone
        await ends.incoming_over.wait()
    kept = len(world.destination.taken) + len(world.destination.lent)
    assert len(os.listdir("/proc/self/fd")) <= before + kept


HOSTILE: dict[str, tuple[Callable[[str, int], str], str]] = {
    "from the end": (lambda name, number: f"tap {name} {1 - number}", "in another place than its own"),
    "without a number": (lambda name, number: f"tap {name}", "in another place than its own"),
    "no taps at all": (lambda name, number: f"pat {name} {number}", "other blocks of memory"),
}


@pytest.mark.parametrize("lie", HOSTILE)
async def test_a_source_that_names_them_otherwise(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    """It is refused before anything is taken."""
    naming, sentence = HOSTILE[lie]
    queue = hand_over._queue

    def wrong(name: str, number: int) -> str:
        """What the source says; the destination knows how it should be."""
        return naming(name, number)

    taken_out = hand_over._taken_out

    def with_the_right_one(files: dict[str, int]) -> dict[str, list[int]]:
        with monkeypatch.context() as context:
            context.setattr(hand_over, "_queue", queue)
            return taken_out(files)

    monkeypatch.setattr(hand_over, "_queue", wrong)
    monkeypatch.setattr(hand_over, "_taken_out", with_the_right_one)
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        check_one_guest(world, ends)
        assert sentence in ends.out.status.error
        assert world.destination.taps_came is None


async def test_more_than_can_be_sent(world: World, tmp_path: Path) -> None:
    """Said by the source, which keeps its guest."""
    pipe = world.source.tap_queues["tap0"]
    world.source.tap_queues["tap0"] = pipe * (descriptors.MAX_DESCRIPTORS // 2 + 1)
    async with connected(world, tmp_path) as ends:
        assert await ends.out.run(trio.Event()) is SourceState.FAILED
        check_one_guest(world, ends)
        assert "descriptors cannot be handed over at once, 128 can" in ends.out.status.error
    world.source.tap_queues["tap0"] = pipe


def test_names_of_features() -> None:
    """A tap whose interface is called memfd is no memory."""
    features = frozenset({"memfd", "postcopy", hand_over.tap_feature("memfd"), hand_over.tap_feature("tap0")})
    assert hand_over.taps_in(features) == {"memfd", "tap0"}
    assert hand_over.only_here(features) == features - {"postcopy"}
