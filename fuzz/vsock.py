"""Guests and programs that do anything with sockets, for long: the server in C against the one in plain Python.

    python -m fuzz.vsock [--runs 2000] [--seed 1]

Each run is some hundred packets of the guest's, right and wrong ones, and deeds of programs on the host, in both
worlds; every packet to the guest, every byte and the number of connections have to be the same in both.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from fuzz.common import Watch, options
from tests.kvm.test_vsock_twin import LENGTHS, Act, Call, Pair, Send
from tvmm.kvm.vring_records import F_EVENT_IDX, F_RING_PACKED
from tvmm.virtio.vsock import Op

ACTIONS = 120
WARM_UP_RUNS = 20
REPORT_RUNS = 100
DEEDS = ("send", "send", "send", "read", "read", "read", "close", "shut-write", "shut-read")


def action(source: random.Random) -> Send | Act | Call:
    """The next thing that somebody does."""
    kind = source.random()
    if kind < 0.1:
        return Send(Op.REQUEST, source.choice((1, 2)), 7, 0, 0, source.choice((0, 1 << 20)), True, ())
    if kind < 0.15:
        return Call(source.choice((80, 81)))
    if kind < 0.3:
        room = source.choice((0, 5000, 1 << 20))
        return Send(Op.RESPONSE, source.choice((80, 81)), source.choice((-1, -2)), 0, 0, room, True, ())
    if kind < 0.65:
        return Act(source.choice(DEEDS), source.randrange(8), source.choice(LENGTHS))
    op = source.choice((Op.RW, Op.RW, Op.RW, Op.CREDIT_UPDATE, Op.SHUTDOWN, source.randrange(10)))
    return Send(
        op,
        source.choice((1, 2, 80, 81)),
        source.choice((7, 7, 8, -1, -2)),
        source.choice(LENGTHS),
        source.randrange(4),
        source.choice((0, 10, 5000, 1 << 20)),
        source.random() < 0.8,
        tuple(source.randrange(1, 200) for _ in range(source.randrange(3))),
    )


def one_run(seed: int) -> int:
    """How many connections there were."""
    source = random.Random(seed)
    features = source.choice((0, F_EVENT_IDX, F_RING_PACKED))
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(Path(folder), (1 << 32) | features)
        try:
            for _ in range(ACTIONS):
                pair.do(action(source))
            counted = pair.rig.engine.counters
            return counted.by_guest + counted.by_host
        finally:
            pair.close()


def main() -> None:
    """All runs, and the figures."""
    chosen = options(__doc__ or "", (("runs", 2000, "how many"), ("seed", 1, "the first run's")))
    for seed in range(WARM_UP_RUNS):
        one_run(seed)
    watch = Watch()
    connections = 0
    for number in range(chosen.runs):
        seed = chosen.seed + number
        try:
            connections += one_run(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        if not (number + 1) % REPORT_RUNS:
            print(f"{number + 1:6} runs  {connections} connections  {watch.line()}", flush=True)
    watch.judge()
    print(watch.line())


if __name__ == "__main__":
    main()
