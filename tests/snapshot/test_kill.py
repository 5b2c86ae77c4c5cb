"""A machine's process is killed while it saves: the file is the old one or the new one, whole, and nothing else is
left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tvmm.kvm.serve import Waker
from tvmm.snapshot.reader import Reading, SnapshotFile

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

LONGEST_S = 0.4
"""Several saves of the child take that long."""


def check(path: Path) -> None:
    """Header, description and every chunk."""
    waker = Waker()
    with SnapshotFile(str(path)) as file, Reading(file) as reading:
        reading.run(waker)
        assert reading.done == reading.total
    waker.close()


def one_cycle(path: Path, after_s: float) -> bool:
    """Go on with what is in the file, save it, kill it after a while. Whether another file is there now."""
    before = path.stat().st_ino if path.exists() else 0
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.support.saving_child", str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        threading.Event().wait(after_s)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(30)
        child.stdout.close()
    litter = {each.name for each in path.parent.iterdir()} - {path.name}
    # A complete file that was about to take the old one's place, for some microseconds; the next save takes it away.
    assert litter <= {f".{path.name}.tvmm-new"}
    if path.exists():
        check(path)
    return path.exists() and path.stat().st_ino != before


def cycles(path: Path, count: int, seed: int) -> int:
    """How many of so many ended with a new file."""
    dice = random.Random(seed)
    return sum(one_cycle(path, dice.random() * LONGEST_S) for _ in range(count))


def test_three_kills(tmp_path: Path) -> None:
    """The short form of the soak."""
    cycles(tmp_path / "guest.snap", 3, 5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_kills(tmp_path: Path) -> None:
    """Some fall into a save, some between two."""
    new = cycles(tmp_path / "guest.snap", 100, 7)
    assert new > 10
