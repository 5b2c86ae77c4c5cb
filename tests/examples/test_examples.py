"""Each example runs as a user would run it, and prints what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"

PROMISED = {
    "talk_to_a_guest.py": ["hello from the outside", "the guest ended with poweroff"],
    "two_machines.py": ["left with 1 CPUs: poweroff", "right with 2 CPUs: poweroff"],
    "look_inside.py": ["vCPU 0 stands at 0x", "written from out"],
    "ci": ["7 passed"],
}


def test_every_example_is_tested() -> None:
    """No example is left to rot."""
    assert {path.name for path in EXAMPLES.iterdir() if path.name != "__pycache__"} == set(PROMISED)


@pytest.mark.guest
@pytest.mark.parametrize("name", sorted(PROMISED))
def test_example(name: str) -> None:
    """It ends well and prints what it promises."""
    run = ["-m", "pytest", "-p", "no:cacheprovider"] if (EXAMPLES / name).is_dir() else []
    done = subprocess.run(
        [sys.executable, *run, str(EXAMPLES / name)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in PROMISED[name]:
        assert words in done.stdout
