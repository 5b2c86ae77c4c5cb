"""Holding several things: all of them or none."""

from __future__ import annotations

import pytest

from tvmm.virtio.runner.base import hold_all


class Recorder:
    """A holder that counts, and fails if told so."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.holds = 0
        self._failure = failure

    async def hold(self) -> None:
        if self._failure is not None:
            raise self._failure
        self.holds += 1

    def release(self) -> None:
        self.holds -= 1


async def test_all_are_held() -> None:
    holders = [Recorder(), Recorder()]
    await hold_all(holders)
    assert [holder.holds for holder in holders] == [1, 1]


async def test_a_failure_leaves_none_held() -> None:
    holders = [Recorder(), Recorder(), Recorder(OSError("no")), Recorder()]
    with pytest.raises(OSError, match="no"):
        await hold_all(holders)
    assert [holder.holds for holder in holders] == [0, 0, 0, 0]
