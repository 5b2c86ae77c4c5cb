"""Writes the golden snapshot files: ``python -m tests.golden.write_snapshot``, once for each version of the format.

Files of a released version are never written again: they stand for what users keep.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

from tests.support.snapshot_files import SECRET, write_small

FOLDER = Path(__file__).parent / "snapshot-1"
FILES = {"plain": None, "sealed": SECRET}


def main() -> None:
    """Both of them."""
    FOLDER.mkdir(exist_ok=True)
    for name, secret in FILES.items():
        with tempfile.TemporaryDirectory(prefix="tvmm-") as folder:
            write_small(f"{folder}/a.snap", secret, lambda count: bytes(range(count)))
            data = Path(f"{folder}/a.snap").read_bytes()
        # Nearly all of it are holes.
        (FOLDER / f"{name}.snap.gz").write_bytes(gzip.compress(data, mtime=0))


if __name__ == "__main__":
    main()
