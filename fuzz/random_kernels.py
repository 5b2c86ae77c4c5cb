"""Boot kernels of random code, whole and damaged, and files of noise; each for a bounded time.

    python -m fuzz.random_kernels [--seeds 500] [--first 0] [--milliseconds 400] [--seconds 900]

Every run must end as the guest's own end, as a refusal of its file, or cancelled while it still runs; must leave no
descriptor and no thread; and must be gone soon after it was cancelled. The process's memory must not grow with the
runs. Seed N is always the same kernel: `--first N --seeds 1` repeats one.
"""

from __future__ import annotations

import tempfile
import traceback
from collections import Counter
from pathlib import Path

import trio

from fuzz.common import Watch, fail, options
from tests.support.hostile_runs import Result, run_sample

WARM_UP = 60
"""Runs after which everything is imported and Python's allocator has seen a machine of each kind."""
LEAVING_LIMIT_S = 5.0
HANG_S = 60.0
"""What one run may take at the very most; a hang ends here, with the stacks of all threads."""


async def main() -> None:
    """All runs, then the figures."""
    chosen = options(
        __doc__ or "",
        (
            ("seeds", 500, "how many kernels"),
            ("first", 0, "seed of the first"),
            ("milliseconds", 400, "how long each may run"),
            ("seconds", 900, "begin no run after this long"),
        ),
    )
    ends: Counter[tuple[str, str]] = Counter()
    slowest = Result(-1, "", "", "", 0.0)
    watch = whole = Watch()
    with tempfile.TemporaryDirectory(prefix="tvmm-fuzz-") as folder:
        for count, seed in enumerate(range(chosen.first, chosen.first + chosen.seeds)):
            if whole.seconds > chosen.seconds:
                break
            try:
                with trio.fail_after(HANG_S):
                    result = await run_sample(seed, Path(folder, "kernel"), chosen.milliseconds / 1000)
            except (Exception, BaseExceptionGroup):
                traceback.print_exc()
                fail(f"seed {seed}")
            ends[result.kind, result.end] += 1
            slowest = max(slowest, result, key=lambda each: each.leaving)
            if result.leaving > LEAVING_LIMIT_S:
                fail(f"seed {seed}: the machine took {result.leaving:.1f} s to end")
            if count == WARM_UP:
                watch = Watch()
            if count % 50 == 49 or count > WARM_UP:
                watch.judge()
            if count % 50 == 49:
                print(f"{count + 1:5} kernels  {watch.line()}", flush=True)
    for (kind, end), number in sorted(ends.items()):
        print(f"{kind:10} {end:10} {number:5}")
    print(f"{sum(ends.values())} kernels in {whole.seconds:.0f} s")
    print(f"slowest end {slowest.leaving:.3f} s, of seed {slowest.seed}")
    print(f"since the warm-up: {watch.line()}")


if __name__ == "__main__":
    trio.run(main)
