"""The C ring against its plain twin: random programs of driver and device, honest and hostile, agree in everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.driver_ring import (
    AVAIL,
    INDIRECT,
    NEXT,
    USED,
    WRITE,
    Buffer,
    PackedDriver,
    RingMemory,
    SplitDriver,
    lay_out,
    make_driver,
)
from tests.support.plain_ring import PlainChain, PlainRing
from tests.virtio.ring_parts import FEATURES, CRing, Mirror, Ring, feature_names
from tvmm.kvm.vring_records import F_RING_PACKED, RingError

LOW = 0x8000
SCENES = 60
SPLIT_SIZES, PACKED_SIZES = (1, 2, 4, 8, 16), (1, 2, 3, 5, 8, 11)
LENGTHS = (0, 1, 15, 16, 24, 32, 64, 4096, 0x9000, 1 << 31, 0xFFFF_FFF0, 0xFFFF_FFFF, 16 * 32768, 16 * 32769)


class Pair:
    """Both rings, each with memory of its own, and one driver that writes both memories."""

    def __init__(self, features: int, size: int, first_id: int) -> None:
        self.memories = RingMemory(LOW), RingMemory(LOW)
        self.config, self.tables = lay_out(size, features)
        self.rings: tuple[Ring, Ring] = CRing(self.memories[0]), PlainRing(self.memories[1])
        self.both = Mirror(*self.memories)
        self.driver = make_driver(self.both, self.config, self.tables, first_id)
        self.size = size
        self.data = self.tables + 512 * size
        self.popped: list[PlainChain] = []
        self.taken: list[PlainChain] = []
        self.honest = True
        self.addresses = (
            *(self.data, self.tables, self.config.descriptor_area, self.config.device_area, 0x2FF8, LOW - 8),
            *(LOW - 4096, RingMemory.ROM, RingMemory.ROM - 1, RingMemory.ROM + 0xFFF, RingMemory.TOP + 0xFF0),
            *(RingMemory.TOP + 0xFFF, 1 << 40, 1 << 63, (1 << 64) - 1, (1 << 64) - 16),
        )
        self.same(lambda ring: ring.configure(self.config))

    def same(self, action: Callable[[Ring], Any]) -> Any:
        """Do it to both; results, records, counters and memory must agree."""
        results = []
        for ring in self.rings:
            try:
                results.append(action(ring))
            except ValueError:
                results.append(ValueError)
        assert results[0] == results[1]
        assert self.rings[0].state() == self.rings[1].state()
        assert self.rings[0].counters == self.rings[1].counters
        assert self.memories[0].contents() == self.memories[1].contents()
        return results[0]

    # -- the driver, honest --------------------------------------------------------------------------------

    def add(self, a: int, b: int) -> None:
        """Some chains of some buffers."""
        for number in range(a % 3 + 1):
            count = (a >> 2) % 5 + 1
            buffers = [
                Buffer(self.data + (b + 977 * n) % (LOW + 0x1000 - self.data), (b >> n) % 700 + 1, n >= (a >> 5) % 6)
                for n in range(count)
            ]
            direct: int | None = None
            if self.config.features & INDIRECT_BIT and (a + number) % 2:
                direct = 0 if self.config.packed else (a >> 8) % count
            self.driver.add(buffers, direct)

    def publish(self, a: int, b: int) -> None:
        """What was added."""
        self.driver.publish()

    def collect(self, a: int, b: int) -> None:
        """What came back; a driver that corrupted its own ring could not make sense of it."""
        if self.honest:
            self.driver.collect()

    def ask(self, a: int, b: int) -> None:
        """For an interrupt soon or later."""
        self.driver.ask_for_interrupt(a % (self.size + 1))

    def refuse(self, a: int, b: int) -> None:
        """Interrupts."""
        self.driver.refuse_interrupts()

    # -- the driver, hostile -------------------------------------------------------------------------------

    def poke(self, a: int, b: int) -> None:
        """Any bytes somewhere in the ring or in its tables."""
        self.honest = False
        start = self.config.descriptor_area
        at = start + a % (self.data - start - 2)
        self.both.write(at, b.to_bytes(2, "little"))

    def descriptor(self, a: int, b: int) -> None:
        """A descriptor out of parts that are each near some border."""
        self.honest = False
        flags = (b & 7) | (AVAIL if b & 8 else 0) | (USED if b & 16 else 0)
        index, link = a % self.size, (a >> 4) % (self.size + 2)
        words = (link, flags) if self.config.packed else (flags, link)
        gpa = self.addresses[(a >> 8) % len(self.addresses)] + (b >> 14)
        length = LENGTHS[(b >> 8) % len(LENGTHS)]
        self.driver.write_descriptor(index, gpa % (1 << 64), length, *words)

    def next_descriptor(self, a: int, b: int) -> None:
        """The same where the device will look next, marked available."""
        self.honest = False
        state = self.rings[0].state()
        if isinstance(self.driver, SplitDriver):
            self.driver.set_index(state.next_avail + 1)
            self.both.write(self.config.driver_area + 4 + 2 * (state.next_avail % self.size), bytes([a % self.size, 0]))
            self.descriptor(a, b)
        else:
            self.descriptor(a & ~0xF, b)
            gpa = self.addresses[(a >> 8) % len(self.addresses)]
            flags = b & (NEXT | WRITE | INDIRECT) | (AVAIL if state.avail_wrap else USED)
            self.driver.write_descriptor(state.next_avail, gpa, LENGTHS[(b >> 8) % len(LENGTHS)], a & 7, flags)

    def index(self, a: int, b: int) -> None:
        """The available index, forward and back; on a packed ring a flag."""
        self.honest = False
        if isinstance(self.driver, SplitDriver):
            self.driver.set_index(self.driver.available + a % (2 * self.size + 3) - self.size)
        else:
            self.both.write(self.config.descriptor_area + 16 * (a % self.size) + 15, bytes([b & 0x80]))

    def table(self, a: int, b: int) -> None:
        """A word of an indirect table."""
        self.honest = False
        self.both.write(self.tables + a % (512 * self.size - 2), (b & 0x1F).to_bytes(2, "little"))

    # -- the device ----------------------------------------------------------------------------------------

    def pop(self, a: int, b: int) -> None:
        """With room for many or for few; not for fewer than the pieces that honest chains are in."""
        chains, iovecs = (a % 4 + 1, b % 9 + (10 if self.honest else 1)) if a & 0x40 else (64, 4096)
        self.popped = self.same(lambda ring: ring.pop(chains, iovecs))
        self.taken += self.popped

    def unpop(self, a: int, b: int) -> None:
        """If nothing of it was given back."""
        count = a % (len(self.popped) + 1)
        if count and all(chain in self.taken for chain in self.popped):
            self.same(lambda ring: ring.unpop(self.popped, count))
            gone = self.popped[len(self.popped) - count :]
            self.popped = self.popped[: len(self.popped) - count]
            self.taken = [chain for chain in self.taken if chain not in gone]

    def push(self, a: int, b: int) -> None:
        """Some of what is out, in any order, with all, some or too many bytes written."""
        used = []
        for _ in range(a % 4 + 1):
            if not self.taken:
                break
            chain = self.taken.pop(b % len(self.taken))
            room = sum(length for _, length in chain.writable)
            used.append((chain.id, min((room, room // 2, 0, room + (a >> 8 == 255))[b >> 4 & 3], 0xFFFF_FFFF)))
        if a >> 8 == 254:
            used.append((b, 0))
        if self.same(lambda ring: ring.push_many(used)) is ValueError:
            # The chains are still the device's.
            self.same(lambda ring: ring.reset())
            self.same(lambda ring: ring.configure(self.config))
            self.taken, self.popped, self.honest = [], [], False

    def notify(self, a: int, b: int) -> None:
        """Or not."""
        self.same(lambda ring: ring.should_notify())

    def kicks(self, a: int, b: int) -> None:
        """On or off."""
        self.same(lambda ring: ring.enable_kicks() if a & 1 else ring.disable_kicks())

    def ready(self, a: int, b: int) -> None:
        """Something there?"""
        self.same(lambda ring: ring.ready())

    def swap(self, a: int, b: int) -> None:
        """Each ring goes on from the record of the other."""
        states = [ring.state() for ring in self.rings]
        self.rings[0].restore(states[1])
        self.rings[1].restore(states[0])
        self.popped = []
        self.same(lambda ring: ring.state())


INDIRECT_BIT = 1 << 28
DEVICE = [Pair.pop, Pair.pop, Pair.push, Pair.push, Pair.notify, Pair.kicks, Pair.unpop, Pair.ready, Pair.swap]
DRIVER = [Pair.add, Pair.add, Pair.publish, Pair.publish, Pair.collect, Pair.ask, Pair.refuse]
HOSTILE = [Pair.poke, Pair.descriptor, Pair.next_descriptor, Pair.next_descriptor, Pair.index, Pair.table]
WORD = st.integers(0, 0xFFFF)


def programs(actions: Sequence[Callable[[Pair, int, int], None]], length: int) -> Any:
    """Lists of steps."""
    names = st.sampled_from(sorted({action.__name__ for action in actions}))
    return st.lists(st.tuples(names, WORD, WORD), max_size=length)


def run(pair: Pair, program: list[tuple[str, int, int]]) -> None:
    """Step by step."""
    for name, a, b in program:
        getattr(pair, name)(a, b)
    pair.pop(0, 0)


QUEUE = st.tuples(st.sampled_from(FEATURES), WORD, st.sampled_from([0, 0xFFFA]))


def make_pair(queue: tuple[int, int, int]) -> Pair:
    """A queue of random format, features, size."""
    features, choice, first_id = queue
    sizes = PACKED_SIZES if features & F_RING_PACKED else SPLIT_SIZES
    return Pair(features, sizes[choice % len(sizes)], first_id)


@settings(deadline=None, max_examples=100)
@given(QUEUE, programs(DEVICE + DRIVER, 60))
def test_honest_programs(queue: tuple[int, int, int], program: list[tuple[str, int, int]]) -> None:
    """A driver that keeps the rules never stops its ring, and both halves say and write the same."""
    pair = make_pair(queue)
    run(pair, program)
    assert pair.rings[0].error is RingError.NONE


@settings(deadline=None, max_examples=120)
@given(QUEUE, programs(DEVICE + DRIVER, 12), programs(DEVICE + DRIVER + HOSTILE, 25))
def test_hostile_programs(
    queue: tuple[int, int, int], honest: list[tuple[str, int, int]], hostile: list[tuple[str, int, int]]
) -> None:
    """Whatever is written where: the same chains, the same errors with the same values, the same memory."""
    run(make_pair(queue), honest + hostile)


@settings(deadline=None, max_examples=60)
@given(QUEUE, st.lists(st.tuples(WORD, WORD), min_size=1, max_size=8))
def test_hostile_descriptors(queue: tuple[int, int, int], words: list[tuple[int, int]]) -> None:
    """A few descriptors near every border, taken at once."""
    pair = make_pair(queue)
    for a, b in words:
        pair.descriptor(a, b)
    pair.next_descriptor(*words[0])
    pair.pop(0, 0)


def corrupt(pair: Pair, random: Random) -> None:
    """One field of one thing that the device is going to read gets a value at or near its border."""
    pair.honest = False
    size, config = pair.size, pair.config
    state = pair.rings[0].state()
    index = (state.next_avail + random.choice((0, 0, 0, 1, 2))) % size
    at = random.choice((config.descriptor_area + 16 * index, pair.tables + 16 * random.randrange(4) + 512 * index))
    word = random.choice((0, 1, 2, 3, size - 1, size, size + 1, 0x7FFF, 0xFFFF, 0x80, 0x8000, 0x81, 0x84, 5, 4))
    kind = random.randrange(7)
    if kind == 0:
        gpa = random.choice(pair.addresses) + random.choice((0, 0, 1, 2, -1))
        pair.both.write(at, (gpa % (1 << 64)).to_bytes(8, "little"))
    elif kind == 1:
        pair.both.write(at + 8, random.choice(LENGTHS).to_bytes(4, "little"))
    elif kind == 2:
        pair.both.write(at + random.choice((12, 14)), word.to_bytes(2, "little"))
    elif kind == 3 and isinstance(pair.driver, SplitDriver):
        pair.driver.set_index(state.next_avail + random.choice((1, size - 1, size, size + 1, -1, -size, 0x8000)))
    elif kind == 4 and isinstance(pair.driver, SplitDriver):
        pair.both.write(config.driver_area + 4 + 2 * index, word.to_bytes(2, "little"))
    elif kind == 5:
        area = config.driver_area + random.choice((0, 2) if config.packed else (0, 4 + 2 * size))
        event = random.choice((word, state.next_used, state.next_used - 1 & 0xFFFF))
        pair.both.write(area, event.to_bytes(2, "little"))
    else:
        pair.next_descriptor(random.randrange(1 << 16), random.randrange(1 << 16))


@pytest.mark.parametrize("features", FEATURES, ids=feature_names)
def test_one_thing_is_wrong(features: int) -> None:
    """An honest queue in which one or two fields are then not what they were: they meet every border many times."""
    random = Random(features)
    stopped = 0
    for _ in range(SCENES):
        pair = make_pair((features, random.randrange(1 << 16), 0xFFFA))
        for _ in range(random.randrange(3)):
            pair.add(random.randrange(1 << 16), random.randrange(1 << 16))
            pair.publish(0, 0)
            pair.pop(random.randrange(1 << 8), random.randrange(1 << 8))
            pair.push(random.randrange(1 << 8), random.randrange(1 << 8))
        pair.add(random.randrange(1 << 16), random.randrange(1 << 16))
        pair.publish(0, 0)
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            corrupt(pair, random)
        pair.pop(random.randrange(1 << 8), random.randrange(1 << 8))
        pair.push(random.randrange(1 << 16), random.randrange(1 << 16))
        pair.notify(0, 0)
        pair.pop(0, 0)
        pair.push(0, 0)
        pair.notify(0, 0)
        stopped += pair.rings[0].error is not RingError.NONE
    assert SCENES // 4 < stopped < SCENES


def test_the_packed_driver_has_its_own_ids() -> None:
    """The ids that programs use are above the queue size too."""
    pair = make_pair((F_RING_PACKED, 0, 0xFFFA))
    assert isinstance(pair.driver, PackedDriver)
    assert pair.driver.add([Buffer(pair.data, 1)]) == 0xFFFA
