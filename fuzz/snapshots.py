"""Snapshot files that somebody has damaged, with digests that are right all the same.

    python -m fuzz.snapshots [--runs 5000] [--seed 1]

Bytes of header, table, description and pages are changed, files cut or made longer, plain and encrypted ones. Each
is read to its end, or refused with an `ImageError`; nothing else may come of it.
"""

from __future__ import annotations

from fuzz.common import hostile_runs
from tests.support.snapshot_files import hostile_run

if __name__ == "__main__":
    hostile_runs(__doc__ or "", hostile_run)
