"""Images and ways to serve them, for the tests of disks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tvmm.errors import HostError
from tvmm.kvm.blk import in_memory
from tvmm.virtio.runner.image import DiskImage

__all__ = ["BACKENDS", "Backend", "memory_folder", "new_image"]


class Backend(NamedTuple):
    """A way to serve an image: where it lies, and options of the disk."""

    name: str
    in_memory: bool
    options: dict[str, object]


BACKENDS = (
    Backend("sync", True, {"aio": "auto"}),
    Backend("threads", False, {"aio": "threads"}),
    Backend("io_uring", False, {"aio": "io_uring"}),
    Backend("threads-direct", False, {"aio": "threads", "cache": "none"}),
    Backend("io_uring-direct", False, {"aio": "io_uring", "cache": "none"}),
    Backend("sleepy", False, {"aio": "io_uring", "poll_us": 0}),
)
"""Every engine, with and without O_DIRECT, and one that sleeps whenever there is nothing to do."""


def new_image(folder: Path, size: int = 1 << 20, content: bytes | None = None) -> Path:
    """An image file."""
    path = folder / "disk.img"
    with path.open("wb") as file:
        if content is not None:
            file.write(content)
        file.truncate(size)
    return path


def memory_folder() -> Iterator[Path]:
    """A folder on tmpfs; skips the test where there is none."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm here")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="tvmm-test-") as name:
        path = new_image(Path(name), 512)
        with DiskImage(str(path)) as image:
            if not in_memory(image.fd):
                pytest.skip("/dev/shm is not in memory here")
        yield Path(name)


def skip_without(path: Path, backend: Backend) -> None:
    """Skip where the file system has no O_DIRECT."""
    if backend.options.get("cache") == "none":
        try:
            DiskImage(str(path), direct=True).close()
        except HostError as error:
            pytest.skip(str(error))
