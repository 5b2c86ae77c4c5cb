"""Serial output to a file: how many bytes a second the guest gets rid of.

    python -m bench.serial [MEBIBYTES [RUNS]]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.common import Figures, free_folder, have_qemu, in_turns, qemu_command, report, tvmm_command


def rate(command: list[str], file: Path, expected: int) -> float:
    """KiB/s by the guest's own clock; checks that every byte is in the file."""
    file.unlink(missing_ok=True)
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    text = file.read_bytes()
    found = re.search(rb"emitted (\d+) bytes in (\d+) us", text)
    if found is None or int(found[1]) != expected or len(text) < expected:
        raise SystemExit(f"{command[0]}: {len(text)} bytes came, and no word that {expected} were emitted")
    return expected / 1024 / (int(found[2]) / 1e6)


def main() -> None:
    """Measure and print."""
    size = int(float(sys.argv[1]) * (1 << 20)) if len(sys.argv) > 1 else 1 << 20
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    folder = free_folder("serial")
    append = f"run=emit,{size} then=poweroff"
    try:
        our_file, their_file = folder / "tvmm", folder / "qemu"
        measures: list[Callable[[], float]] = [
            lambda: rate(tvmm_command(append, serial=f"file={our_file}"), our_file, size)
        ]
        if have_qemu():
            measures.append(lambda: rate(qemu_command(append, serial=f"file:{their_file}"), their_file, size))
        figures: list[Figures] = in_turns(runs, *measures)
    finally:
        shutil.rmtree(folder)
    theirs = figures[1] if len(figures) > 1 else None
    report(f"serial output of {size >> 10} KiB to a file", "KiB/s", figures[0], theirs, "at least 1.0")


if __name__ == "__main__":
    main()
