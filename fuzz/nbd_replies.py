"""NBD servers that say anything, one after the other.

    python -m fuzz.nbd_replies [--runs 5000] [--seed 1]

Replies that keep the rules, replies that break them, damaged ones and noise, in pieces of any size, to the requests of
a disk. What the driver gets is what a twin in plain Python makes of the same bytes, a connection is lost if and only if
the twin gives it up, nothing beside the buffers is written, and the next server has what is left.
"""

from __future__ import annotations

from collections import Counter

from fuzz.common import Watch, fail, options
from tests.support.nbd_hostile import hostile_run

WARM_UP_RUNS = 50
REPORT_RUNS = 500


def main() -> None:
    """All runs, and the figures."""
    chosen = options(__doc__ or "", (("runs", 5_000, "how many"), ("seed", 1, "the first run's")))
    for seed in range(WARM_UP_RUNS):
        hostile_run(seed)
    watch = Watch()
    endings: Counter[str] = Counter()
    for number in range(chosen.runs):
        seed = chosen.seed + number
        try:
            endings[hostile_run(seed)] += 1
        except BaseException as error:
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
