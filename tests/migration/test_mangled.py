"""Migrations over a wire that damages them; `fuzz/migration.py` does the same for longer."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import trio

from tests.support.mangled_runs import PATIENCE, Ending, mangled_run
from tests.support.patience import hurry
from tests.support.vitals import own_vitals

SEEDS = 48
AT_ONCE = 8


async def test_damaged_migrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides end as their tables have it, with one guest; no descriptor and no thread of a lane is left."""
    hurry(monkeypatch.setattr, **PATIENCE)
    await mangled_run(-1)
    before = own_vitals()
    seeds, endings = iter(range(SEEDS)), list[Ending]()

    async def work() -> None:
        for seed in seeds:
            endings.append(await mangled_run(seed))

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(work)
    found = Counter(ending.source.value for ending in endings)
    assert found.total() == SEEDS
    assert found["done"] > 0
    assert found["failed"] > 0
    # Each run has its own seed's faults: that they are met at all is what makes this a test.
    assert len({ending.error for ending in endings}) > 8
    assert len(own_vitals().descriptors) <= len(before.descriptors)
    assert not [thread.name for thread in threading.enumerate() if thread.name == "tvmm pages"]
