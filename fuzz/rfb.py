"""Viewers that send anything, one after the other.

    python -m fuzz.rfb [--runs 20000] [--seed 1]

Messages that make sense, damaged ones, floods and noise, in pieces of any size, while the screen changes and updates go
out or do not. A session says events and `RfbError` and nothing else, and what it keeps stays within its bounds.
"""

from __future__ import annotations

import ctypes

from fuzz.common import hostile_runs
from tests.support.rfb_hostile import hostile_run

WARM_UP_RUNS = 200
REPORT_RUNS = 1000
M_MMAP_THRESHOLD = -3
"""mallopt(3): buffers of a MiB go back to the host, so that growth means a leak."""


def main() -> None:
    """All runs, and the figures."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 256 << 10)
    hostile_runs(__doc__ or "", hostile_run, 20_000, warm_up=WARM_UP_RUNS, report=REPORT_RUNS)


if __name__ == "__main__":
    main()
