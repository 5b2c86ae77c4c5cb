"""Fixtures of the tests of both ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.migration.handshakes import Met, met_on_lanes, met_on_streams
from tests.migration.rig import Group
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


@pytest.fixture(params=[met_on_streams, met_on_lanes], ids=["stream", "lane"])
def met(request: pytest.FixtureRequest) -> Met:
    """Both kinds of connections."""
    kind: Met = request.param
    return kind


@pytest.fixture
def group(tmp_path: Path) -> Group:
    """A host with a CA."""
    return Group(tmp_path)
