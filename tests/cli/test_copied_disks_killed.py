"""Processes that are killed while a disk is copied, by the command line: the source's image is never in doubt."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.migrating import Place
from tests.support.process import PROMPT, call, command, until

pytestmark = [pytest.mark.guest, pytest.mark.timeout(120)]

MIB = 1 << 20
RIGHT = "blkcheck: 4096 blocks, 0 errors, 0 unreadable"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """32 MiB of zeroes."""
    path = tmp_path / "here.img"
    path.touch()
    os.truncate(path, 32 * MIB)
    return path


@pytest.fixture
def source(image: Path) -> Iterator[Place]:
    """A guest that has filled half of it."""
    place = Place(f"here-{os.getpid()}", "--memory", "64M", "--disk", str(image))
    place.read_until(PROMPT)
    place.ask("blkfill 0 16 7 0")
    yield place
    place.close()


def waiting(tmp_path: Path, *more: str) -> Place:
    """A machine that wants the disk."""
    disk = ",".join([f"{tmp_path}/copy.img,copy=on", *more])
    place = Place(
        f"there-{os.getpid()}", "--memory", "64M", "--incoming", f"unix:{tmp_path}/there", "--disk", disk
    )
    place.listening()
    return place


def move(source: Place, tmp_path: Path, *options: str) -> tuple[str, ...]:
    """The order."""
    address = ("--to", f"unix:{tmp_path}/there")
    return ("migrate", source.name, *address, "--copy-storage", "--max-downtime", "10s", *options)


def test_the_destination_is_killed(source: Place, image: Path, tmp_path: Path) -> None:
    """The guest goes on, a part of a copy is left that nobody takes for a disk, and the next try is a good one."""
    there, copy = waiting(tmp_path), tmp_path / "copy.img"
    order = command(*move(source, tmp_path, "--bandwidth", "4M"))
    with subprocess.Popen(order, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as verb:
        until(lambda: copy.stat().st_blocks > 0)
        there.process.kill()
        _, said = verb.communicate(timeout=60)
        assert verb.returncode == 2
        assert "its guest goes on at the source" in said
    there.close()
    assert RIGHT in source.ask("blkcheck 0 16 7")
    status, _, said = call("run", "--incoming", "defer", "--disk", f"{copy},copy=on")
    assert status == 2
    assert "has 33554432 bytes already" in said
    assert "overwrite=on" in said

    there = waiting(tmp_path, "overwrite=on")
    status, told, said = call(*move(source, tmp_path, "--verify"))
    assert status == 0, said
    assert "for 32M in" in told
    assert source.process.wait(30) == 4
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(image.read_bytes()).digest()
    assert RIGHT in there.ask("blkcheck 0 16 7")
    there.close()


@pytest.mark.slow
def test_the_source_is_killed(source: Place, image: Path, tmp_path: Path) -> None:
    """Its image is whole, and the destination waits for another guest with nothing left of this one."""
    there, copy = waiting(tmp_path), tmp_path / "copy.img"
    order = command(*move(source, tmp_path, "--bandwidth", "4M"))
    with subprocess.Popen(order, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as verb:
        until(lambda: copy.stat().st_blocks > 0)
        source.process.kill()
        there.listening()
        assert verb.wait(30) == 2
    assert copy.stat().st_size == 0

    again = Place(f"again-{os.getpid()}", "--memory", "64M", "--disk", str(image))
    again.read_until(PROMPT)
    assert RIGHT in again.ask("blkcheck 0 16 7")
    status, _, said = call(*move(again, tmp_path))
    assert status == 0, said
    assert RIGHT in there.ask("blkcheck 0 16 7")
    again.close()
    there.close()
    assert copy.stat().st_size == 32 * MIB
