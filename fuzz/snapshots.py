"""Snapshot files that somebody has damaged, with digests that are right all the same.

    python -m fuzz.snapshots [--runs 5000] [--seed 1]

Bytes of header, table, description and pages are changed, files cut or made longer, plain and encrypted ones. Each
is read to its end, or refused with an `ImageError`; nothing else may come of it.
"""

from __future__ import annotations

from fuzz.common import hostile_runs
from tests.support.snapshot_files import hostile_run

WARM_UP_RUNS = 50
REPORT_RUNS = 500


def main() -> None:
    """All runs, and the figures."""
    hostile_runs(__doc__ or "", hostile_run, 5_000, warm_up=WARM_UP_RUNS, report=REPORT_RUNS)


if __name__ == "__main__":
    main()
