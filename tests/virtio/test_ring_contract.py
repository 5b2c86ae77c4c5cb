"""What a virtqueue does for a driver that keeps the rules, in both formats, with all features, in C and in Python."""

from __future__ import annotations

import pytest

from tests.support.driver_ring import DESCRIPTOR, Buffer, RingMemory, SplitDriver, lay_out, make_driver
from tests.virtio.ring_parts import FEATURES, CRing, feature_names, start
from tvmm.kvm.vring import Batch
from tvmm.kvm.vring_records import F_EVENT_IDX, F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED, RingError

each_kind = pytest.mark.parametrize("kind", ["c", "plain"])
each_features = pytest.mark.parametrize("features", FEATURES, ids=feature_names)
SIZES = {0: (1, 2, 8), F_RING_PACKED: (1, 3, 7, 8)}
QUEUES = [(features, size) for features in FEATURES for size in SIZES[features & F_RING_PACKED]]
each_queue = pytest.mark.parametrize(
    ("features", "size"), QUEUES, ids=[f"{feature_names(features)}-{size}" for features, size in QUEUES]
)
each_format = pytest.mark.parametrize("packed", [0, F_RING_PACKED], ids=["split", "packed"])


@each_kind
@each_queue
def test_chains_come_whole_and_go_back(kind: str, features: int, size: int) -> None:
    """Over many laps of the ring: each chain has the driver's buffers in order, and the driver gets id and length."""
    _, ring, driver, data = start(kind, features, size)
    for lap in range(3 * size + 5):
        count = lap % size + 1
        buffers = [Buffer(data + 64 * n, n + 1, n >= count // 2) for n in range(count)]
        direct = 0 if features & F_INDIRECT_DESC and lap % 2 else None
        number = driver.add(buffers, direct)
        assert ring.pop(4, 100) == [], "not published yet"
        driver.publish()
        assert ring.ready()
        [chain] = ring.pop(4, 100)
        assert chain.id == number
        assert chain.readable == tuple(buffer[:2] for buffer in buffers if not buffer.writable)
        assert chain.writable == tuple(buffer[:2] for buffer in buffers if buffer.writable)
        assert not ring.ready()
        room = sum(length for _, length in chain.writable)
        ring.push_many([(chain.id, room // 2)])
        assert driver.collect() == [(number, room // 2)]
        assert not driver.outstanding
    assert ring.error is RingError.NONE
    assert ring.counters.chains == ring.counters.returned == ring.counters.used_entries == 3 * size + 5


@each_kind
@each_queue
def test_a_full_queue_comes_back_in_any_order(kind: str, features: int, size: int) -> None:
    """As many chains as the queue has room for, given back newest first: in order or as they completed."""
    _, ring, driver, data = start(kind, features, size)
    for lap in range(2 * size + 1):
        ids = [driver.add([Buffer(data + n, 1 + lap, n % 2 == 0)]) for n in range(size)]
        assert None not in ids
        assert driver.add([Buffer(data, 1)]) is None
        driver.publish()
        chains = ring.pop(size, size)
        assert [chain.id for chain in chains] == ids
        backwards = [(chain.id, sum(n for _, n in chain.writable)) for chain in reversed(chains)]
        for pair in backwards:
            ring.push_many([pair])
        assert driver.collect() == (backwards[::-1] if features & F_IN_ORDER else backwards)


@each_kind
@each_format
def test_in_order_completions_wait_for_older_ones(kind: str, packed: int) -> None:
    """With IN_ORDER nothing is told until the oldest is done, and then complete ones share an entry."""
    _, ring, driver, data = start(kind, packed | F_IN_ORDER, 8)
    a, b, c, d = (driver.add([Buffer(data, 8), Buffer(data + 8, 8, True)]) for _ in range(4))
    driver.publish()
    assert [chain.id for chain in ring.pop(9, 9)] == [a, b, c, d]
    assert a is not None and b is not None and c is not None and d is not None  # noqa: PT018
    ring.push_many([(c, 8), (b, 5)])
    assert driver.collect() == []
    assert not ring.should_notify()
    ring.push_many([(a, 8)])
    assert driver.collect() == [(a, 8), (b, 5), (c, 8)]
    # a needs no entry of its own, b does: not all of it was written.
    assert ring.counters.used_entries == 2
    ring.push_many([(d, 0)])
    assert driver.collect() == [(d, 0)]


@each_kind
@each_format
def test_buffers_over_regions_are_divided(kind: str, packed: int) -> None:
    """A buffer over two blocks of RAM has two pieces; one over two regions of the same block has one."""
    memory, ring, driver, _ = start(kind, packed, 4)
    driver.add([Buffer(0x2FF0, 0x20), Buffer(memory.low - 4, 12, True), Buffer(memory.TOP, 0x1000, True)])
    driver.publish()
    [chain] = ring.pop(1, 4)
    assert chain.readable == ((0x2FF0, 0x20),)
    assert chain.writable == ((memory.low - 4, 4), (memory.low, 8), (memory.TOP, 0x1000))


@each_kind
@each_format
def test_indirect_tables_over_regions(kind: str, packed: int) -> None:
    """A table that lies in two blocks, with a descriptor across the border, is read as one."""
    memory, ring, _, data = start(kind, packed | F_INDIRECT_DESC, 4)
    config, _ = lay_out(4, packed | F_INDIRECT_DESC)
    driver = make_driver(memory, config, memory.low - 24)
    driver.add([Buffer(data + n, n + 1, n > 1) for n in range(4)], 0)
    driver.publish()
    [chain] = ring.pop(1, 4)
    assert chain.readable + chain.writable == tuple((data + n, n + 1) for n in range(4))


@each_kind
def test_direct_descriptors_before_a_table(kind: str) -> None:
    """2.7.5.3.2: a split chain may begin in the ring and go on in a table."""
    _, ring, driver, data = start(kind, F_INDIRECT_DESC, 8)
    for direct in (0, 1, 3):
        buffers = [Buffer(data + 16 * n, 16, n > 3) for n in range(6)]
        number = driver.add(buffers, direct)
        driver.publish()
        [chain] = ring.pop(1, 6)
        assert chain.id == number
        assert chain.readable + chain.writable == tuple(buffer[:2] for buffer in buffers)
        ring.push_many([(chain.id, 0)])
        driver.collect()


@each_kind
@each_format
def test_a_pop_takes_what_it_has_room_for(kind: str, packed: int) -> None:
    """Bounded by chains and by iovecs; a chain that does not fit comes first next time."""
    _, ring, driver, data = start(kind, packed, 16)
    ids = [driver.add([Buffer(data, 1)] * count) for count in (1, 3, 2, 4)]
    driver.publish()
    assert [chain.id for chain in ring.pop(1, 16)] == ids[:1]
    assert [chain.id for chain in ring.pop(3, 4)] == ids[1:2]
    assert [chain.id for chain in ring.pop(3, 5)] == ids[2:3]
    assert [chain.id for chain in ring.pop(3, 4)] == ids[3:]
    assert ring.pop(3, 4) == []
    assert ring.counters[:3] == (5, 1, 4)


@each_kind
@each_features
def test_chains_that_go_back_into_the_ring(kind: str, features: int) -> None:
    """What is put back comes again, over the end of the ring too."""
    _, ring, driver, data = start(kind, features, 4)
    for lap in range(9):
        driver.add([Buffer(data, lap + 1)])
        driver.add([Buffer(data, lap + 1), Buffer(data, 1, True)])
        driver.publish()
        chains = ring.pop(4, 4)
        before = ring.state()
        ring.unpop(chains, 1)
        assert ring.pop(4, 4) == chains[1:]
        assert ring.state() == before
        ring.unpop(ring.pop(1, 1), 0)
        ring.push_many([(chain.id, 0) for chain in chains])
        assert len(driver.collect()) == 2
    assert ring.counters.chains == 18


def test_only_the_last_batch_goes_back() -> None:
    """Not an older batch, not a chain that was pushed, not more than there are."""
    _, ring, driver, data = start("c", 0, 4)
    assert isinstance(ring, CRing)
    ids = [driver.add([Buffer(data, 1)]) for _ in range(4)]
    driver.publish()
    ring.pop(2, 2)
    older = ring.last
    ring.pop(2, 2)
    with pytest.raises(ValueError, match="cannot go back"):
        super(CRing, ring).unpop(older, 1)
    for count in (3, -1):
        with pytest.raises(ValueError, match="cannot go back"):
            ring.unpop([], count)
    assert ids[3] is not None
    ring.push(ids[3])
    with pytest.raises(ValueError, match="cannot go back"):
        ring.unpop([], 1)
    ring.reset()
    with pytest.raises(ValueError, match="cannot go back"):
        ring.unpop([], 1)


@each_kind
@each_format
def test_mistakes_of_the_device_change_nothing(kind: str, packed: int) -> None:
    """A chain that is not in flight, one named twice, more bytes than there is room for: nothing is given back."""
    _, ring, driver, data = start(kind, packed, 4)
    first, second = driver.add([Buffer(data, 8, True)]), driver.add([Buffer(data, 8)])
    driver.publish()
    ring.pop(2, 2)
    assert first is not None
    assert second is not None
    before = ring.state()
    for wrong in ((first, 9), (second, 1), (77, 0), (1 << 16, 0)):
        with pytest.raises(ValueError, match=r"\d"):
            ring.push_many([wrong])
    for wrong in ((first, 8), (second, 1), (77, 0)):
        with pytest.raises(ValueError, match=r"\d"):
            ring.push_many([(first, 8), wrong])
        assert ring.state() == before
        assert driver.collect() == []
    ring.push_many([(first, 8), (second, 0)])
    assert driver.collect() == [(first, 8), (second, 0)]


@each_kind
@each_queue
def test_the_driver_hears_of_what_it_asked_for(kind: str, features: int, size: int) -> None:
    """An interrupt is due if and only if the position that the driver named was used since the last decision."""
    _, ring, driver, data = start(kind, features, size)
    for lap in range(2 * size + 3):
        for after in range(size):
            count = lap % size + 1
            driver.ask_for_interrupt(after)
            for _ in range(count):
                driver.add([Buffer(data, 1)])
            driver.publish()
            ring.push_many([(chain.id, 0) for chain in ring.pop(size, size)])
            assert ring.should_notify() == (after < count or not features & F_EVENT_IDX)
            assert not ring.should_notify(), "said once"
            driver.refuse_interrupts()
            assert len(driver.collect()) == count
            driver.refuse_interrupts()
    assert ring.counters.interrupts + ring.counters.suppressed == size * (2 * size + 3)


@each_kind
@each_features
def test_a_driver_that_refuses_interrupts_gets_none(kind: str, features: int) -> None:
    """For a whole queue's length."""
    _, ring, driver, data = start(kind, features, 8)
    for _ in range(5):
        driver.refuse_interrupts()
        for _ in range(8):
            driver.add([Buffer(data, 1)])
        driver.publish()
        ring.push_many([(chain.id, 0) for chain in ring.pop(8, 8)])
        assert not ring.should_notify()
        driver.collect()
    assert ring.counters.suppressed == 5


@each_kind
@each_features
def test_kicks_are_asked_for_and_refused(kind: str, features: int) -> None:
    """A kick with the first buffer after enable_kicks, none after disable_kicks, through several laps."""
    _, ring, driver, data = start(kind, features, 4)
    for _ in range(7):
        for wanted in (True, False):
            if wanted:
                assert ring.enable_kicks()
            else:
                ring.disable_kicks()
            for _ in range(3):
                driver.add([Buffer(data, 1)])
            assert driver.publish() == wanted
            ring.push_many([(chain.id, 0) for chain in ring.pop(4, 4)])
            driver.collect()


@each_kind
@each_features
def test_a_buffer_that_came_before_the_wish(kind: str, features: int) -> None:
    """The race: enable_kicks finds it, says so, and leaves kicks off."""
    _, ring, driver, data = start(kind, features, 4)
    assert ring.enable_kicks()
    ring.disable_kicks()
    driver.add([Buffer(data, 1)])
    assert not driver.publish()
    assert not ring.enable_kicks()
    driver.add([Buffer(data, 1)])
    assert not driver.publish()
    assert len(ring.pop(4, 4)) == 2
    assert ring.enable_kicks()
    driver.add([Buffer(data, 1)])
    assert driver.publish()


def test_polling_is_never_kicked() -> None:
    """More buffers than an index has values, in the largest queue: the event index never comes round to the driver."""
    size = 32768
    memory, ring, driver, data = start("c", F_EVENT_IDX, size, 0x100000)
    assert isinstance(ring, CRing)
    assert isinstance(driver, SplitDriver)
    batch = Batch(size)
    memory.write(driver.config.descriptor_area, DESCRIPTOR.pack(data, 1, 0, 0) * size)
    memory.write(driver.config.driver_area + 4, b"".join(head.to_bytes(2, "little") for head in range(size)))
    ring.disable_kicks()
    for count in (32768, 32768, 1, 8191, 8192, 8193, 16384, 32768, 32768, 32767, 32768):
        driver.available = driver.available + count & 0xFFFF
        assert not driver.publish()
        assert super(CRing, ring).pop(batch) == count
        ring.push_batch(batch)


@each_format
def test_the_largest_queue(packed: int) -> None:
    """32768 chains in one pop, and back in one push; then the next lap."""
    _, ring, driver, data = start("c", packed, 32768, 0x100000)
    assert isinstance(ring, CRing)
    batch = Batch(32768)
    for count in (32768, 1):
        for _ in range(count):
            driver.add([Buffer(data, 1)])
        driver.publish()
        assert super(CRing, ring).pop(batch) == count
        assert not ring.ready()
        ring.push_batch(batch)
        assert ring.state().in_flight == ()
        assert len(driver.collect()) == count
        assert ring.should_notify()


@each_kind
def test_the_index_wraps(kind: str) -> None:
    """A split ring's free-running indices go over 65535."""
    _, ring, driver, data = start(kind, F_EVENT_IDX, 8)
    assert isinstance(driver, SplitDriver)
    near = 65530
    ring.restore(ring.state()._replace(next_avail=near, next_used=near))
    driver.available = driver.used = driver._published = near
    for lap in range(12):
        driver.ask_for_interrupt()
        number = driver.add([Buffer(data, lap + 1)])
        driver.publish()
        [chain] = ring.pop(8, 8)
        ring.push_many([(chain.id, 0)])
        assert driver.collect() == [(number, 0)]
        assert ring.should_notify()


@each_kind
@each_format
def test_reset_and_a_new_start(kind: str, packed: int) -> None:
    """After a reset the queue is empty whatever memory says, and a new configuration starts from zero."""
    memory, ring, driver, data = start(kind, packed, 4)
    driver.add([Buffer(data, 1)])
    driver.publish()
    ring.reset()
    assert not ring.ready()
    assert ring.pop(4, 4) == []
    assert ring.enable_kicks()
    assert not ring.should_notify()
    memory.clear()
    config, behind = lay_out(4, packed, base=0x2000)
    assert ring.configure(config) is RingError.NONE
    driver = make_driver(memory, config, behind)
    driver.add([Buffer(data, 1)])
    driver.publish()
    assert len(ring.pop(4, 4)) == 1
    assert ring.counters.pops == 1


def test_memory_without_buffers() -> None:
    """The memory that tests use has the shape that they count on."""
    memory = RingMemory()
    memory.write(memory.low - 2, b"abcd")
    assert memory.read(memory.low - 2, 4) == b"abcd"
