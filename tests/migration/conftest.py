"""Fixtures of the tests of both ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.moving_guests import World
from tests.support.patience import hurry


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds for a real peer takes a moment."""
    hurry(monkeypatch.setattr)


@pytest.fixture
def world() -> Iterator[World]:
    """A guest at its source."""
    made = World()
    yield made
    made.close()
