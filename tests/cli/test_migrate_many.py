"""A guest that moves again and again between processes, with memory, disk and network under load all the time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.churn import Summary
from tests.support.migrating import Chain, bridged
from tests.support.netns import network_namespace

pytestmark = pytest.mark.guest

LOOK_EVERY = 20
"""Moves after which the guest is asked how it is."""
MAX_DRIFT_US_PER_MOVE = 50
"""kvmclock's and the TSC's rates agree, and a move reads both of them once on each side."""


@pytest.fixture(autouse=True)
def bridge() -> Iterator[None]:
    """Nothing of this reaches the host's network."""
    with network_namespace(), bridged():
        yield


def look(chain: Chain, said: Summary) -> None:
    """Nothing is wrong, lost or twice; echoes that were under way in a pause may be lost, one a move."""
    damage = said.damage()
    assert damage.pop("lost", 0) <= chain.moves, said
    assert damage == {}, f"after {chain.moves} moves: {said} {chain.complaints}"
    assert said.drift_us <= 1000 + MAX_DRIFT_US_PER_MOVE * chain.moves, said
    assert said.disk_requests > 0
    assert said.echoes > 0


def travel(chain: Chain, moves: int) -> None:
    """So many moves in a row; the guest is well at each look, and in the end."""
    for number in range(1, moves + 1):
        chain.move()
        if not number % LOOK_EVERY:
            said = chain.here.summary()
            print(f"{number} moves: {chain.figures}; {said}", flush=True)
            look(chain, said)
    said = chain.finish()
    some = chain.seen[:: max(moves // 10, 1)]
    print(f"{moves} moves: {chain.figures}; {said}; KiB {[seen.anonymous_kib for seen in some]}, "
          f"descriptors {[len(seen.descriptors) for seen in some]}, threads {[seen.threads for seen in some]}")
    look(chain, said)
    assert chain.complaints == []
    # What a process holds does not grow with the number of moves that its guest has behind it.
    assert len(chain.seen[-1].descriptors) <= max(len(seen.descriptors) for seen in chain.seen[: len(chain.seen) // 2])


@pytest.mark.parametrize(("transport", "ring", "moves"), [("pci", "", 5), ("mmio", "packed=on", 4)])
def test_a_few_moves(tmp_path: Path, transport: str, ring: str, moves: int) -> None:
    """Each move in another way; four of them are two round trips."""
    with Chain(tmp_path, transport, ring) as chain:
        travel(chain, moves)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("transport", "ring", "moves"),
    [("pci", "", 200), ("mmio", "packed=on", 100), ("mmio", "", 20), ("pci", "packed=on,in_order=on", 20)],
)
def test_many_moves(tmp_path: Path, transport: str, ring: str, moves: int) -> None:
    """Two hundred in a row; a hundred as fifty round trips; some with the other transports and rings."""
    with Chain(tmp_path, transport, ring) as chain:
        travel(chain, moves)
