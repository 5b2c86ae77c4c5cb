"""What a virtqueue costs: chains per second through pop and push, in C and in the plain twin.

    python -m bench.rings [RUNS]

Each pass fills a queue (not measured), then takes and returns all of it in batches with a decision on an interrupt
after each batch, as a device does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from bench.common import RUNS, Figures
from tests.support.driver_ring import Buffer, Driver, RingMemory, lay_out, make_driver
from tests.support.plain_ring import PlainRing
from tvmm.kvm.memory_map import MemoryMap
from tvmm.kvm.vring import Batch, Vring
from tvmm.kvm.vring_records import F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED

SIZE = 256
BATCHES = (1, 16, 256)
SHAPES = {
    "1 buffer": (1, None),
    "3 buffers": (3, None),
    "3 in a table": (3, 0),
}
FORMATS = {"split": 0, "packed": F_RING_PACKED, "packed, in order": F_RING_PACKED | F_IN_ORDER}
LAPS_C, LAPS_PLAIN = 40, 2


class Bench:
    """A queue with its driver and what is measured on it."""

    def __init__(self, features: int, buffers: int, direct: int | None) -> None:
        self.memory = RingMemory(0x10_0000)
        self.config, tables = lay_out(SIZE, features | F_INDIRECT_DESC | F_EVENT_IDX)
        self.driver: Driver = make_driver(self.memory, self.config, tables)
        self.buffers = [Buffer(0x8_0000 + 4096 * n, 4096, n > 0) for n in range(buffers)]
        self.direct = direct

    def fill(self) -> int:
        """As many chains as there is room for."""
        count = 0
        while self.driver.add(self.buffers, self.direct) is not None:
            count += 1
        self.driver.publish()
        return count

    def c_rate(self, batch_size: int) -> float:
        """Million chains per second through `Vring`."""
        ring, batch = Vring(MemoryMap(self.memory)), Batch(batch_size)
        ring.configure(self.config)
        pop, push, notify = ring.pop, ring.push_batch, ring.should_notify

        def drain() -> None:
            while pop(batch):
                push(batch)
                notify()

        return self._rate(drain, LAPS_C)

    def plain_rate(self, batch_size: int) -> float:
        """The same through the twin."""
        ring = PlainRing(self.memory)
        ring.configure(self.config)

        def drain() -> None:
            while chains := ring.pop(batch_size, 4096):
                ring.push_many([(chain.id, 0) for chain in chains])
                ring.should_notify()

        return self._rate(drain, LAPS_PLAIN)

    def _rate(self, drain: Callable[[], None], laps: int) -> float:
        chains, took = 0, 0.0
        for _ in range(laps):
            count = self.fill()
            started = time.perf_counter()
            drain()
            took += time.perf_counter() - started
            assert len(self.driver.collect()) == count
            chains += count
        return chains / took / 1e6


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    print(f"million chains/s, queue of {SIZE}, EVENT_IDX, median of {runs} runs: C, the Python twin, ratio")
    for form, features in FORMATS.items():
        for shape, (buffers, direct) in SHAPES.items():
            for batch_size in BATCHES:
                fast = Figures(tuple(Bench(features, buffers, direct).c_rate(batch_size) for _ in range(runs)))
                slow = Figures(tuple(Bench(features, buffers, direct).plain_rate(batch_size) for _ in range(runs)))
                ratio = fast.median / slow.median
                what = f"{form:17} {shape:13} batch {batch_size:3}"
                print(f"  {what}: {fast.median:7.2f}  {slow.median:7.4f}  {ratio:6.0f}x")


if __name__ == "__main__":
    main()
