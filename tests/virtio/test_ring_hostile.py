"""Each way in which a driver can break its ring, by name: the ring stops, says why, and nothing else happens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.support.driver_ring import (
    AVAIL,
    DESCRIPTOR,
    INDIRECT,
    NEXT,
    WRITE,
    Buffer,
    Driver,
    RingMemory,
    SplitDriver,
    lay_out,
)
from tests.virtio.ring_parts import CRing, make_ring, start
from tvmm.kvm.calls import ffi
from tvmm.kvm.vring import Batch
from tvmm.kvm.vring_records import F_INDIRECT_DESC, F_RING_PACKED, RingError, VringConfig

SIZE = 4
EVERY = "split packed"
MIB = 1 << 20


class Scene(NamedTuple):
    """A queue of four, with its driver, and free memory."""

    memory: RingMemory
    driver: Driver
    data: int

    def offer(self, *descriptors: tuple[int, int, int]) -> None:
        """A chain at descriptor 0 from (address, length, flags), linked where NEXT says so to the one behind."""
        for index, (gpa, length, flags) in enumerate(descriptors):
            words = (7, flags | AVAIL) if self.driver.config.packed else (flags, index + 1)
            self.driver.write_descriptor(index, gpa, length, *words)
        if isinstance(self.driver, SplitDriver):
            self.driver.set_index(1)

    def table(self, *descriptors: tuple[int, int, int]) -> tuple[int, int, int]:
        """The same in an indirect table; the descriptor that refers to it."""
        for index, (gpa, length, flags) in enumerate(descriptors):
            words = (0, flags) if self.driver.config.packed else (flags, index + 1)
            self.memory.write(self.data + 16 * index, DESCRIPTOR.pack(gpa, length, *words))
        return self.data, 16 * len(descriptors), INDIRECT


class Case(NamedTuple):
    """What a driver does and what is said of it: `value` may count on the scene."""

    error: RingError
    act: Callable[[Scene], None]
    value: Callable[[Scene], int]
    formats: str = EVERY
    features: int = F_INDIRECT_DESC


def offer(*descriptors: tuple[int, int, int]) -> Callable[[Scene], None]:
    """Direct descriptors, with addresses from the scene's data on if they are small."""
    return lambda scene: scene.offer(
        *((scene.data + gpa if gpa < 256 else gpa, length, flags) for gpa, length, flags in descriptors)
    )


def table(*descriptors: tuple[int, int, int], flags: int = 0, count: int | None = None) -> Callable[[Scene], None]:
    """A table of them."""

    def act(scene: Scene) -> None:
        gpa, length, indirect = scene.table(*((0x2000 + at, size, bits) for at, size, bits in descriptors))
        scene.offer((gpa, length if count is None else count, indirect | flags))

    return act


def with_index(value: int, head: int = 0) -> Callable[[Scene], None]:
    """A split ring's available index and first head."""

    def act(scene: Scene) -> None:
        scene.offer((scene.data, 1, 0))
        assert isinstance(scene.driver, SplitDriver)
        scene.memory.write(scene.driver.config.driver_area + 4, head.to_bytes(2, "little"))
        scene.driver.set_index(value)

    return act


def loop(scene: Scene) -> None:
    """0 -> 1 -> 0 on a split ring; NEXT everywhere on a packed one."""
    scene.offer(*[(scene.data, 1, NEXT)] * SIZE)
    if not scene.driver.config.packed:
        scene.driver.write_descriptor(1, scene.data, 1, NEXT, 0)


def table_loop(scene: Scene) -> None:
    """A table's only descriptor continues at itself."""
    scene.memory.write(scene.data, DESCRIPTOR.pack(0x2000, 1, NEXT, 0))
    scene.offer((scene.data, 16, INDIRECT))


def twice(scene: Scene) -> None:
    """The same head in two entries, or one id for two chains."""
    scene.offer((scene.data, 1, 0), (scene.data, 1, 0))
    if isinstance(scene.driver, SplitDriver):
        scene.driver.set_index(2)


TOP_END = RingMemory.TOP + 0x1000
FOUR = 0xFFFF_FFFF
CASES = [
    Case(RingError.INDEX_JUMP, with_index(SIZE + 1), lambda _: SIZE + 1, "split"),
    Case(RingError.INDEX_JUMP, with_index(0xFFFF), lambda _: 0xFFFF, "split"),
    Case(RingError.HEAD_RANGE, with_index(1, SIZE), lambda _: SIZE, "split"),
    Case(RingError.HEAD_RANGE, with_index(1, 0xFFFF), lambda _: 0xFFFF, "split"),
    Case(RingError.ID_IN_FLIGHT, twice, lambda scene: 7 if scene.driver.config.packed else 0),
    Case(RingError.NEXT_RANGE, lambda s: s.driver.write_descriptor(0, s.data, 1, NEXT, SIZE), lambda _: SIZE, "split"),
    Case(RingError.NEXT_RANGE, table((0, 1, NEXT)), lambda _: 1, "split"),
    Case(RingError.CHAIN_TOO_LONG, loop, lambda _: 0),
    Case(RingError.CHAIN_TOO_LONG, table_loop, lambda _: 0, "split"),
    Case(RingError.INDIRECT_REFUSED, table((0, 1, 0)), lambda _: 0, EVERY, 0),
    Case(RingError.INDIRECT_NESTED, table((0, 16, INDIRECT)), lambda _: 0, "split"),
    Case(RingError.INDIRECT_LINKED, table((0, 1, 0), flags=NEXT), lambda _: 0),
    Case(RingError.INDIRECT_LINKED, offer((0, 1, NEXT), (16, 16, INDIRECT)), lambda _: 0, "packed"),
    Case(RingError.INDIRECT_LENGTH, table((0, 1, 0), count=0), lambda _: 0),
    Case(RingError.INDIRECT_LENGTH, table((0, 1, 0), count=24), lambda _: 24),
    Case(RingError.INDIRECT_TOO_LONG, table((0, 1, 0), count=16 * 32769), lambda _: 16 * 32769),
    Case(RingError.INDIRECT_TOO_LONG, table((0, 1, 0), count=FOUR - 15), lambda _: FOUR - 15),
    Case(RingError.INDIRECT_OUTSIDE_RAM, offer((TOP_END - 16, 32, INDIRECT)), lambda _: TOP_END - 16),
    Case(RingError.INDIRECT_OUTSIDE_RAM, offer((1 << 63, 16, INDIRECT)), lambda _: 1 << 63),
    Case(RingError.INDIRECT_OUTSIDE_RAM, offer(((1 << 64) - 16, 32, INDIRECT)), lambda _: (1 << 64) - 16),
    Case(
        RingError.READABLE_AFTER_WRITABLE, offer((0, 1, WRITE | NEXT), (16, 1, 0)), lambda scene: scene.data + 16
    ),
    Case(RingError.READABLE_AFTER_WRITABLE, table((0, 1, WRITE | NEXT), (1, 1, 0)), lambda _: 0x2001),
    Case(RingError.BUFFER_EMPTY, offer((0, 0, 0)), lambda scene: scene.data),
    Case(RingError.BUFFER_EMPTY, table((0, 1, NEXT), (9, 0, 0)), lambda _: 0x2009),
    Case(RingError.BUFFER_WRAPS, offer(((1 << 64) - 2, 3, 0)), lambda _: (1 << 64) - 2),
    Case(RingError.BUFFER_OUTSIDE_RAM, offer(((1 << 64) - 2, 2, 0)), lambda _: (1 << 64) - 2),
    Case(RingError.BUFFER_OUTSIDE_RAM, offer((TOP_END - 1, 2, 0)), lambda _: TOP_END),
    Case(RingError.BUFFER_OUTSIDE_RAM, offer((RingMemory.ROM - 1, 2, 0)), lambda _: RingMemory.ROM - 1),
    Case(RingError.BUFFER_READ_ONLY, offer((RingMemory.ROM, 1, WRITE)), lambda _: RingMemory.ROM),
    Case(RingError.BUFFER_READ_ONLY, offer((0, 1, NEXT), (RingMemory.ROM + 5, 1, WRITE)), lambda _: RingMemory.ROM + 5),
    Case(RingError.TOO_MANY_IOVECS, offer((0, 1, NEXT), (1, 1, NEXT), (2, 1, NEXT), (3, 1, 0)), lambda _: 3),
]


@pytest.mark.parametrize("kind", ["c", "plain"])
@pytest.mark.parametrize(
    ("case", "form"),
    [(case, form) for case in CASES for form in case.formats.split()],
    ids=lambda value: value if isinstance(value, str) else value.error.name,
)
def test_a_broken_rule_stops_the_ring(case: Case, form: str, kind: str) -> None:
    """It has that name and value, is counted, and whatever comes later changes no byte of memory."""
    memory, ring, driver, data = start(kind, case.features | (F_RING_PACKED if form == "packed" else 0), SIZE)
    scene = Scene(memory, driver, data)
    scene.offer((data, 1, 0))
    case.act(scene)
    before = memory.contents()
    assert ring.ready()
    taken = ring.pop(SIZE, 3 if case.error is RingError.TOO_MANY_IOVECS else 99)
    assert ring.error is case.error
    assert ring.state().error_value == case.value(scene)
    assert len(taken) == (case.error is RingError.ID_IN_FLIGHT), "chains before the bad one are good"
    assert ring.counters.errors == 1
    ring.push_many([(chain.id, 0) for chain in taken])
    assert ring.pop(SIZE, 3) == []
    assert not ring.ready()
    assert not ring.should_notify()
    assert ring.enable_kicks()
    ring.disable_kicks()
    assert memory.contents() == before
    assert ring.counters.errors == 1


@pytest.mark.parametrize("kind", ["c", "plain"])
@pytest.mark.parametrize("form", EVERY.split())
def test_a_broken_chain_behind_good_ones(kind: str, form: str) -> None:
    """The good ones are given out with nothing of the bad one, and kept when the device gives them back."""
    _, ring, driver, data = start(kind, F_RING_PACKED if form == "packed" else 0, SIZE)
    ids = [driver.add([Buffer(data, 1)]), driver.add([Buffer(data, 8, True)])]
    driver.add([Buffer(data, 1), Buffer(1 << 40, 1)])
    driver.publish()
    chains = ring.pop(SIZE, 99)
    assert [chain.id for chain in chains] == ids
    assert ring.error is RingError.BUFFER_OUTSIDE_RAM
    ring.push_many([(chains[1].id, 8)])
    with pytest.raises(ValueError, match=r"\d"):
        ring.push_many([(chains[1].id, 8)])
    assert {chain.id: (chain.done, chain.length) for chain in ring.state().in_flight} == {
        chains[0].id: (False, 0),
        chains[1].id: (True, 8),
    }
    assert driver.collect() == []


@pytest.mark.parametrize("kind", ["c", "plain"])
def test_a_packed_table_has_no_flags_but_write(kind: str) -> None:
    """2.8.7: INDIRECT, NEXT and the rest in a packed table are reserved, and ignored."""
    memory, ring, driver, data = start(kind, F_RING_PACKED | F_INDIRECT_DESC, SIZE)
    Scene(memory, driver, data).offer(
        Scene(memory, driver, data).table((0x2000, 1, INDIRECT | NEXT), (0x2010, 16, 0xFFFF))
    )
    [chain] = ring.pop(1, 9)
    assert chain.readable == ((0x2000, 1),)
    assert chain.writable == ((0x2010, 16),)


@pytest.mark.parametrize("kind", ["c", "plain"])
def test_packed_chains_do_not_reach_into_what_is_in_flight(kind: str) -> None:
    """The places of chains that the device still has are not free, whatever flags the driver writes there."""
    _, ring, driver, data = start(kind, F_RING_PACKED, SIZE)
    driver.add([Buffer(data, 1)] * 3)
    driver.publish()
    assert len(ring.pop(1, 9)) == 1
    driver.write_descriptor(3, data, 1, 9, AVAIL | NEXT)
    driver.write_descriptor(0, data, 1, 9, 1 << 15)
    assert ring.pop(1, 9) == []
    assert ring.error is RingError.CHAIN_TOO_LONG




@pytest.mark.parametrize("kind", ["c", "plain"])
@pytest.mark.parametrize("packed", [0, F_RING_PACKED], ids=EVERY.split())
def test_chains_end_at_four_gib(kind: str, packed: int) -> None:
    """2.7.5: exactly 2^32 bytes are a chain, one more is none."""
    for extra in (0, 1):
        memory, ring, driver, data = start(kind, packed | F_INDIRECT_DESC, SIZE, 2 * MIB)
        at, count = 0x10_0000, 4096 + extra
        for index in range(count):
            length = MIB if index < 4096 else 1
            words = (0, WRITE) if packed else (WRITE | (NEXT if index + 1 < count else 0), index + 1)
            memory.write(at + 16 * index, DESCRIPTOR.pack(data, length, *words))
        Scene(memory, driver, data).offer((at, 16 * count, INDIRECT))
        chains = ring.pop(1, count)
        if extra:
            assert ring.error is RingError.TOO_MANY_BYTES
            assert ring.state().error_value == data
        else:
            ring.push_many([(chains[0].id, (1 << 32) - 1)])


PACKED = F_RING_PACKED
ROM, LOW = RingMemory.ROM, 0x8000
GOOD = {0: lay_out(SIZE, 0)[0], PACKED: lay_out(SIZE, PACKED)[0]}
PLACES = [
    *[(RingError.QUEUE_SIZE, 0, {"size": size}, size) for size in (0, 3, 6, 65536, 32769)],
    *[(RingError.QUEUE_SIZE, PACKED, {"size": size}, size) for size in (0, 32769, 65535)],
    (RingError.AREA_MISALIGNED, 0, {"descriptor_area": 0x1008}, 0x1008),
    (RingError.AREA_MISALIGNED, 0, {"driver_area": 0x2001}, 0x2001),
    (RingError.AREA_MISALIGNED, 0, {"device_area": 0x2002}, 0x2002),
    (RingError.AREA_MISALIGNED, PACKED, {"descriptor_area": 0x1008}, 0x1008),
    (RingError.AREA_MISALIGNED, PACKED, {"driver_area": 0x2002}, 0x2002),
    (RingError.AREA_MISALIGNED, PACKED, {"device_area": 0x2002}, 0x2002),
    (RingError.AREA_OUTSIDE_RAM, 0, {"descriptor_area": LOW + 0x2000 - 48}, LOW + 0x2000 - 48),
    (RingError.AREA_OUTSIDE_RAM, 0, {"driver_area": TOP_END - 6 - 2 * SIZE + 2}, TOP_END - 6 - 2 * SIZE + 2),
    (RingError.AREA_OUTSIDE_RAM, 0, {"device_area": (1 << 64) - 4}, (1 << 64) - 4),
    (RingError.AREA_OUTSIDE_RAM, PACKED, {"driver_area": TOP_END}, TOP_END),
    (RingError.AREA_OUTSIDE_RAM, PACKED, {"descriptor_area": (1 << 64) - 16}, (1 << 64) - 16),
    (RingError.AREA_DIVIDED, 0, {"descriptor_area": LOW - 16}, LOW - 16),
    (RingError.AREA_DIVIDED, PACKED, {"descriptor_area": LOW - 48}, LOW - 48),
    (RingError.AREA_READ_ONLY, 0, {"device_area": ROM}, ROM),
    (RingError.AREA_READ_ONLY, PACKED, {"descriptor_area": ROM}, ROM),
    (RingError.AREA_READ_ONLY, PACKED, {"device_area": ROM}, ROM),
    (RingError.AREAS_OVERLAP, 0, {"driver_area": 0x1000 + 16 * SIZE - 2}, 0x1000),
    (RingError.AREAS_OVERLAP, 0, {"driver_area": 0x2000, "device_area": 0x2000 + 4 + 2 * SIZE}, 0x2000),
    (RingError.AREAS_OVERLAP, PACKED, {"driver_area": 0x2000, "device_area": 0x2000}, 0x2000),
    (RingError.AREAS_OVERLAP, PACKED, {"device_area": 0x1000 + 16 * SIZE - 4}, 0x1000 + 16 * SIZE - 4),
    (RingError.NONE, 0, {"descriptor_area": ROM, "driver_area": ROM + 16 * SIZE}, 0),
    (RingError.NONE, PACKED, {"driver_area": ROM}, 0),
    (RingError.NONE, PACKED, {"descriptor_area": TOP_END - 16 * SIZE, "driver_area": LOW + 0x2000 - 4}, 0),
    (RingError.NONE, 0, {"driver_area": TOP_END - 6 - 2 * SIZE}, 0),
]


@pytest.mark.parametrize("kind", ["c", "plain"])
@pytest.mark.parametrize(
    ("error", "packed", "wrong", "value"), PLACES, ids=[f"{case[0].name}-{at}" for at, case in enumerate(PLACES)]
)
def test_where_a_ring_may_be(kind: str, error: RingError, packed: int, wrong: dict[str, int], value: int) -> None:
    """Size, alignment, RAM in one piece, writable where the device writes, no overlap; the rest is fine."""
    memory = RingMemory(LOW)
    ring = make_ring(kind, memory)
    config: VringConfig = GOOD[packed]._replace(**wrong)
    assert ring.configure(config) is error
    assert ring.state().error_value == value
    assert ring.state().config == config
    assert ring.counters.errors == (error is not RingError.NONE)
    assert ring.pop(1, 1) == []
    assert ring.configure(GOOD[packed]) is RingError.NONE, "the next configuration is a new start"


def test_every_error_is_provoked_here() -> None:
    """The tables above are complete."""
    provoked = {case.error for case in CASES} | {case[0] for case in PLACES} | {RingError.TOO_MANY_BYTES}
    assert provoked == set(RingError)


def test_names_and_sentences() -> None:
    """Python and C number the errors alike, and each has a sentence with its value."""
    elements = ffi.typeof("enum tvmm_ring_error").elements
    assert {number: name.removeprefix("TVMM_RING_") for number, name in elements.items()} == {
        int(error): error.name for error in RingError
    }
    sentences = {error.sentence(0x1234) for error in RingError}
    assert len(sentences) == len(RingError)
    assert all("4660" in text or "0x1234" in text for text in sentences - {RingError.NONE.sentence(0)})


@pytest.mark.parametrize("packed", [0, F_RING_PACKED], ids=EVERY.split())
def test_memory_that_changes_during_the_walk(packed: int) -> None:
    """A descriptor that is rewritten all the time gives a piece that is wholly in RAM, or an error, never a mixture."""
    memory, ring, driver, data = start("c", packed, SIZE)
    assert isinstance(ring, CRing)
    number = driver.add([Buffer(data, 16)])
    driver.publish()
    window = memory.blocks["low"].view[0x1000 : 0x1000 + 12]
    good, bad = DESCRIPTOR.pack(data, 16, 0, 0)[:12], DESCRIPTOR.pack(1 << 62, 0xFFFF_0000, 0, 0)[:12]
    begin, end = threading.Event(), threading.Event()

    def flip() -> None:
        begin.set()
        while not end.is_set():
            window[:] = bad
            window[:] = good

    thread = threading.Thread(target=flip)
    thread.start()
    begin.wait()
    fresh = ring.state()
    seen = set()
    try:
        for _ in range(300):
            for chain in ring.pop(1, 1):  # which asserts that each piece is in a region
                assert chain.id == number
            seen.add(ring.error)
            ring.restore(fresh)
    finally:
        end.set()
        thread.join()
    assert seen <= {RingError.NONE, RingError.BUFFER_OUTSIDE_RAM, RingError.BUFFER_WRAPS}


def test_a_batch_has_limits() -> None:
    """At least one chain; iovecs up to the bound of a chain."""
    for chains, iovecs in ((0, 1), (1, 0), (1, 65537)):
        with pytest.raises(ValueError, match="room"):
            Batch(chains, iovecs)
