"""Engines and images for the tests of disks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.virtio.runner.disks import BACKENDS, SIZE, Backend, memory_folder, new_image, skip_without


@pytest.fixture(params=BACKENDS[:-1], ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each engine."""
    assert isinstance(request.param, Backend)
    return request.param


@pytest.fixture
def path(backend: Backend, tmp_path: Path) -> Iterator[Path]:
    """An image of ones where that engine wants it."""
    if not backend.in_memory:
        path = new_image(tmp_path, SIZE, b"\x11" * SIZE)
        skip_without(path, backend)
        yield path
        return
    for folder in memory_folder():
        yield new_image(folder, SIZE, b"\x11" * SIZE)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """An image for what has nothing to do with engines."""
    return new_image(tmp_path, SIZE)
