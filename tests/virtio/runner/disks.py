"""Images and ways to serve them, for the tests of disks."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tvmm.errors import HostError
from tvmm.kvm.blk import in_memory
from tvmm.virtio.runner.image import DiskImage

__all__ = [
    "BACKENDS",
    "SIZE",
    "Backend",
    "loop_device",
    "memory_folder",
    "new_image",
    "remount_read_only",
    "skip_without",
    "small_tmpfs",
]


SIZE = 4 << 20
"""Of the image that `path` is, in bytes."""


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


def small_tmpfs(size: int) -> Iterator[Path]:
    """A folder on a file system of `size` bytes; skips the test for who may not mount one."""
    with tempfile.TemporaryDirectory(prefix="tvmm-test-") as name:
        _command("mount", "-t", "tmpfs", "-o", f"size={size}", "tvmm-test", name)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def remount_read_only(folder: Path) -> None:
    """A `small_tmpfs`."""
    _command("mount", "-o", "remount,ro", str(folder))


def loop_device(path: Path) -> Iterator[Path]:
    """A block device whose contents are the file's; skips the test for who may not make one."""
    device = _command("losetup", "--find", "--show", str(path))
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def _command(*words: str) -> str:
    if os.geteuid():
        pytest.skip(f"only root may use {words[0]}")
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"no {words[0]} here")
    if done.returncode:
        pytest.skip(f"{words[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def skip_without(path: Path, backend: Backend) -> None:
    """Skip where the file system has no O_DIRECT."""
    if backend.options.get("cache") == "none":
        try:
            DiskImage(str(path), direct=True).close()
        except HostError as error:
            pytest.skip(str(error))
