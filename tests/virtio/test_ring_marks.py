"""What a ring writes into guest memory is marked for migration: in every format, wherever its areas lie."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.driver_ring import Buffer, RingMemory, lay_out, make_driver
from tests.support.plain_ring import PlainChain
from tests.support.watch import Page, Watch
from tests.virtio.ring_parts import FEATURES, CRing, feature_names
from tvmm.kvm.device_log import PAGE_SIZE, DeviceLog
from tvmm.kvm.memory_map import MemoryMap
from tvmm.kvm.vring import Batch, Vring
from tvmm.kvm.vring_records import F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, RingError

LOW = 0x10_0000
STEPS = ("add", "add", "add", "pop", "pop", "push", "push", "push", "unpop", "kicks", "no kicks", "notify")


class Scene:
    """A queue of several pages and its driver. Each step of the device is checked by itself."""

    def __init__(self, features: int, size: int, base: int) -> None:
        self.memory = RingMemory(LOW)
        self.log = DeviceLog(self.memory)
        self.config, tables = lay_out(size, features, base)
        self.driver = make_driver(self.memory, self.config, tables, 0xFFF0)
        self.ring = CRing(self.memory, self.log)
        assert self.ring.configure(self.config) is RingError.NONE
        self.indirect = bool(features & F_INDIRECT_DESC)
        self.data = tables + (512 * size if self.indirect else 0)
        self.out: list[PlainChain] = []
        self.last: list[PlainChain] = []
        self.changed = 0
        packed = bool(features & F_RING_PACKED)
        self.may = self.pages(self.config.device_area, 4 if packed else 6 + 8 * size)
        if packed:
            self.may |= self.pages(self.config.descriptor_area, 16 * size)
        self.watch = Watch(self.memory, self.log)

    def pages(self, gpa: int, length: int) -> set[Page]:
        """Those that have the bytes."""
        return {
            (region.block, page)
            for region, offset, count in self.memory.regions.spans(gpa, length)
            for page in range(offset // PAGE_SIZE, (offset + count - 1) // PAGE_SIZE + 1)
        }

    def step(self, name: str, random: Random) -> None:
        """One of `STEPS`, and the look at what it has written: marked, and nothing marked where it may not write."""
        ring = self.ring
        if name == "add":
            for _ in range(random.choice((1, 3, 200))):
                count = random.randrange(1, 5)
                places = [self.data + 64 * random.randrange(1000) for _ in range(count)]
                buffers = [Buffer(gpa, 64, random.random() < number / 3) for number, gpa in enumerate(places)]
                buffers.sort(key=lambda buffer: buffer.writable)
                self.driver.add(buffers, 0 if self.indirect and random.random() < 0.5 else None)
            self.driver.publish()
        elif name == "pop":
            self.last = ring.pop(random.choice((1, 7, 256)), 4096)
            self.out += self.last
        elif name == "unpop" and self.last and all(chain in self.out for chain in self.last):
            count = random.randrange(len(self.last) + 1)
            ring.unpop(self.last, count)
            for _ in range(count):
                self.out.remove(self.last.pop())
        elif name == "push":
            order = random.random() < 0.7
            chains = [
                self.out.pop(0 if order else random.randrange(len(self.out)))
                for _ in range(min(len(self.out), random.choice((1, 5, 300))))
            ]
            rooms = [sum(length for _, length in chain.writable) for chain in chains]
            full = random.random() < 0.5
            ring.push_many(
                [(chain.id, room if full else room // 2) for chain, room in zip(chains, rooms, strict=True)]
            )
        elif name == "kicks":
            ring.enable_kicks()
        elif name == "no kicks":
            ring.disable_kicks()
        elif name == "notify":
            ring.should_notify()
        changed, marked = self.watch.check()
        assert marked <= self.may
        self.changed += len(changed)
        if name in ("add", "unpop", "notify"):
            assert not marked
        if name == "push":
            self.driver.collect()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(FEATURES),
    st.integers(0, 255),
    st.sampled_from([1, 2, 16, 256, 512]),
    st.lists(st.sampled_from(STEPS), max_size=40),
    st.randoms(use_true_random=False),
)
def test_every_step_marks_what_it_writes(features: int, at: int, size: int, steps: list[str], random: Random) -> None:
    """Any steps on queues of any size that begin anywhere in a page: each page that a step changed is marked."""
    scene = Scene(features, size, 0x3000 + 16 * at)
    for name in steps:
        scene.step(name, random)


@pytest.mark.parametrize("features", FEATURES, ids=feature_names)
def test_many_times_around(features: int) -> None:
    """A long life of a queue of many pages; it does write."""
    random = Random(features)
    size = 1000 if features & F_RING_PACKED else 1024
    scene = Scene(features & ~F_INDIRECT_DESC, size, 0x3FF0)
    for _ in range(300):
        scene.step(random.choice(STEPS), random)
    assert scene.ring.counters.chains > size
    assert scene.changed > 40
    assert len(scene.may) > 2


@pytest.mark.parametrize("features", FEATURES, ids=feature_names)
def test_nothing_is_marked_while_the_log_is_off(features: int) -> None:
    """Rings work as ever, and the log has no bitmaps."""
    memory = RingMemory(LOW)
    log = DeviceLog(memory)
    config, tables = lay_out(16, features)
    driver, ring = make_driver(memory, config, tables), CRing(memory, log)
    ring.configure(config)
    driver.add([Buffer(0x9000, 64, True)])
    driver.publish()
    [chain] = ring.pop(4, 16)
    ring.push(chain.id, 64)
    ring.enable_kicks()
    assert driver.collect() == [(chain.id, 64)]
    assert not log.raw.blocks[0].words


def test_a_suppressed_ring_moves_its_event_along() -> None:
    """With EVENT_IDX and kicks off, the event index that follows the driver is written by `pop`, and marked."""
    scene = Scene(F_EVENT_IDX, 512, 0x4000)
    scene.ring.disable_kicks()
    scene.watch.check()
    event = scene.config.device_area + 4 + 8 * 512
    moved = 0
    for _ in range(40):
        while scene.driver.add([Buffer(scene.data, 8)]) is not None:
            pass
        scene.driver.publish()
        chains = scene.ring.pop(512, 512)
        changed, marked = scene.watch.check()
        moved += len(changed)
        assert marked == changed <= scene.pages(event, 2)
        scene.ring.push_many([(chain.id, 0) for chain in chains])
        scene.watch.check()
        scene.driver.collect()
    assert moved


def test_fill_marks_what_it_writes() -> None:
    """`fill` writes as much as there is room for, says how much, and marks no page behind that."""
    memory = RingMemory(LOW)
    log = DeviceLog(memory)
    guest = MemoryMap(memory, log)
    config, tables = lay_out(16, 0)
    driver, ring, batch = make_driver(memory, config, tables), Vring(guest), Batch(4)
    ring.configure(config)
    pieces = [Buffer(0x1_0FFE, 4, True), Buffer(0x2_0000, 2 * PAGE_SIZE, True), Buffer(0x3_0000, PAGE_SIZE, True)]
    driver.add(pieces)
    driver.publish()
    ring.pop(batch)
    [chain] = batch.chains
    watch = Watch(memory, log)
    assert guest.fill(batch.writable(chain), b"x" * 6) == 6
    assert watch.check() == ({("low", 0x10), ("low", 0x11), ("low", 0x20)},) * 2
    assert guest.fill(batch.writable(chain), b"y" * 4) == 4
    assert watch.check() == ({("low", 0x10), ("low", 0x11)},) * 2
    assert guest.fill(batch.writable(chain), b"z" * 4 * PAGE_SIZE) == 4 + 3 * PAGE_SIZE
    every = {("low", page) for page in (0x10, 0x11, 0x20, 0x21, 0x30)}
    assert watch.check() == (every, every)
    assert guest.fill(batch.writable(chain), b"") == 0
    assert watch.check() == (set(), set())
    assert memory.read(0x1_0FFE, 4) == b"zzzz"
