"""Each test has a registry of its own and an environment without colours or completion."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory that this process registers machines in; short, because socket paths must be."""
    with tempfile.TemporaryDirectory(prefix="tvmm-") as directory:
        base = Path(directory) / "run"
        monkeypatch.setenv("TVMM_RUNTIME_DIR", str(base))
        yield base


@pytest.fixture(autouse=True)
def plain_environment(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user's shell set must not matter."""
    for name in ("_ARGCOMPLETE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
