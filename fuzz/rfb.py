"""Viewers that send anything, one after the other.

    python -m fuzz.rfb [--runs 20000] [--seed 1]

Messages that make sense, damaged ones, floods and noise, in pieces of any size, while the screen changes and updates go
out or do not. A session says events and `RfbError` and nothing else, and what it keeps stays within its bounds.
"""

from __future__ import annotations

import ctypes
from collections import Counter

from fuzz.common import Watch, fail, options
from tests.support.rfb_hostile import hostile_run

WARM_UP_RUNS = 200
REPORT_RUNS = 1000
M_MMAP_THRESHOLD = -3
"""mallopt(3): buffers of a MiB go back to the host, so that growth means a leak."""


def main() -> None:
    """All runs, and the figures."""
    chosen = options(__doc__ or "", (("runs", 20_000, "how many"), ("seed", 1, "the first run's")))
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 256 << 10)
    for seed in range(WARM_UP_RUNS):
        hostile_run(seed)
    watch = Watch()
    endings: Counter[str] = Counter()
    for number in range(chosen.runs):
        seed = chosen.seed + number
        try:
            endings[hostile_run(seed)] += 1
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        if not endings.total() % REPORT_RUNS:
            print(f"{endings.total():6} runs  {watch.line()}", flush=True)
    for ending, count in endings.most_common():
        print(f"{count:6} times {ending!r}")
    if chosen.runs >= 100 and len(endings) < 4:
        fail("the runs did not end in different ways: this shows nothing")
    watch.judge()
    print(watch.line())


if __name__ == "__main__":
    main()
