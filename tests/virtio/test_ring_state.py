"""What is saved of a ring, how it goes on from there, and records that no ring can have."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.driver_ring import Buffer, RingMemory, lay_out
from tests.virtio.ring_parts import FEATURES, feature_names, make_ring, start
from tvmm.kvm.vring_records import (
    F_IN_ORDER,
    F_RING_PACKED,
    InFlight,
    RingError,
    VringState,
    check_state,
)


@pytest.mark.parametrize(("from_kind", "to_kind"), [("c", "c"), ("c", "plain"), ("plain", "c")])
@pytest.mark.parametrize("features", FEATURES, ids=feature_names)
def test_another_ring_goes_on(features: int, from_kind: str, to_kind: str) -> None:
    """After each step the ring is replaced by one made from its record; the driver notices nothing."""
    memory, ring, driver, data = start(from_kind, features, 4)
    kinds = [to_kind, from_kind]

    def move() -> None:
        nonlocal ring
        state = ring.state()
        check_state(state)
        kinds.reverse()
        ring = make_ring(kinds[0], memory)
        ring.restore(state)
        assert ring.state() == state

    for _ in range(7):
        driver.ask_for_interrupt()
        ids = [driver.add([Buffer(data, 4, True)] * count) for count in (1, 2)]
        assert driver.publish()
        move()
        chains = ring.pop(4, 4)
        assert [chain.id for chain in chains] == ids
        move()
        ring.push_many([(chains[1].id, 3)])
        move()
        ring.push_many([(chains[0].id, 4)])
        move()
        assert ring.should_notify()
        move()
        assert ring.enable_kicks()
        move()
        expected = [(ids[0], 4), (ids[1], 3)]
        assert driver.collect() == (expected if features & F_IN_ORDER else expected[::-1])


@pytest.mark.parametrize("kind", ["c", "plain"])
def test_a_queue_without_configuration(kind: str) -> None:
    """Has an empty record, and is one again when it is restored from that."""
    _, ring, driver, data = start(kind, 0, 4)
    driver.add([Buffer(data, 1)])
    driver.publish()
    ring.pop(1, 1)
    ring.restore(VringState())
    assert ring.state() == VringState()
    assert ring.pop(1, 1) == []


@pytest.mark.parametrize("kind", ["c", "plain"])
def test_a_stopped_ring_stays_stopped(kind: str) -> None:
    """With its error, what is in flight and what was given back since."""
    memory, ring, driver, data = start(kind, F_IN_ORDER, 4)
    for gpa in (data, data, 1 << 40):
        driver.add([Buffer(gpa, 1)])
    driver.publish()
    chains = ring.pop(4, 4)
    ring.push_many([(chains[0].id, 0)])
    state = ring.state()
    assert state.error == RingError.BUFFER_OUTSIDE_RAM
    second = make_ring(kind, memory)
    second.restore(state)
    assert second.state() == state
    assert second.pop(4, 4) == []
    second.push_many([(chains[1].id, 0)])
    assert [chain.done for chain in second.state().in_flight] == [True, True]
    assert driver.collect() == []
    assert second.counters.errors == 0, "it was counted where it happened"


def test_badly_configured_ring_goes_on_being_one() -> None:
    """The record of a ring that never worked."""
    memory = RingMemory()
    config = lay_out(4, 0)[0]._replace(size=3)
    ring = make_ring("c", memory)
    ring.configure(config)
    second = make_ring("c", memory)
    second.restore(ring.state())
    assert second.error is RingError.QUEUE_SIZE
    assert second.state() == ring.state()


SPLIT = VringState(lay_out(4, 0)[0], next_avail=2, in_flight=(InFlight(0, 1, 8), InFlight(3)))
PACKED = VringState(
    lay_out(5, F_RING_PACKED)[0], next_avail=1, next_used=3, used_wrap=True, in_flight=(InFlight(9, 3),)
)
ORDER = VringState(lay_out(4, F_IN_ORDER)[0], next_avail=2, in_flight=(InFlight(1), InFlight(0, 1, 8, True, 8)))
TOO_BIG = 1 << 70


def other(**wrong: Any) -> Any:
    """The split configuration with something else in it."""
    return lay_out(4, 0)[0]._replace(**wrong)


SET: Any = 1
"""A flag that is not a bool."""

WRONG: list[tuple[VringState, dict[str, Any], str]] = [
    (SPLIT, {"config": None}, "config"),
    (SPLIT, {"config": (4, 0, 0, 0, 0)}, "config"),
    (SPLIT, {"config": other(size=6)}, "size"),
    (SPLIT, {"config": other(size=-1)}, "size"),
    (SPLIT, {"config": other(device_area=TOO_BIG)}, "device_area"),
    (SPLIT, {"config": other(driver_area="x")}, "driver_area"),
    (SPLIT, {"config": other(device_area=1 << 40)}, "config"),
    (SPLIT, {"config": other(features=1)}, "features"),
    (SPLIT, {"error": 25}, "error"),
    (SPLIT, {"error": True}, "error"),
    (SPLIT, {"error": RingError.AREA_MISALIGNED}, "moved"),
    (SPLIT, {"error_value": TOO_BIG}, "error_value"),
    (SPLIT, {"next_avail": 65536}, "next_avail"),
    (SPLIT, {"next_avail": 3}, "in_flight"),
    (SPLIT, {"next_used": 65535}, "in_flight"),
    (SPLIT, {"next_used": 1.0}, "next_used"),
    (SPLIT, {"avail_wrap": True}, "wrap"),
    (SPLIT, {"used_wrap": 2}, "used_wrap"),
    (SPLIT, {"unsignalled": 65537}, "unsignalled"),
    (SPLIT, {"kicks_wanted": None}, "kicks_wanted"),
    (SPLIT, {"kick_event": 65536}, "kick_event"),
    (SPLIT, {"in_flight": [InFlight(0), InFlight(3)]}, "in_flight"),
    (SPLIT, {"in_flight": (InFlight(0), InFlight(0))}, "twice"),
    (SPLIT, {"in_flight": ((0, 1, 0, False, 0), InFlight(3))}, "InFlight"),
    (SPLIT, {"in_flight": (InFlight(0), InFlight(4))}, "id"),
    (SPLIT, {"in_flight": (InFlight(0, 2),)}, "slots"),
    (SPLIT, {"in_flight": (InFlight(0, 0), InFlight(1))}, "slots"),
    (SPLIT, {"in_flight": (InFlight(0), InFlight(1, 1, (1 << 32) + 1))}, "writable"),
    (SPLIT, {"in_flight": (InFlight(0), InFlight(1, 1, 8, True, 9))}, "length"),
    (SPLIT, {"in_flight": (InFlight(0), InFlight(1, 1, 1 << 32, True, 1 << 32))}, "length"),
    (SPLIT, {"in_flight": (InFlight(0), InFlight(1, 1, 8, False, 1))}, "length"),
    (SPLIT, {"in_flight": (InFlight(0), InFlight(1, 1, 8, SET))}, "done"),
    (SPLIT, {"in_flight": (InFlight(0), InFlight(1, 1, 8, True))}, "nothing to wait for"),
    (SPLIT, {"next_avail": 5, "in_flight": tuple(InFlight(n) for n in range(5))}, "fits the queue"),
    (ORDER, {"in_flight": ORDER.in_flight[::-1]}, "begins"),
    (PACKED, {"next_avail": 5}, "next_avail"),
    (PACKED, {"avail_wrap": True}, "in_flight"),
    (PACKED, {"in_flight": (InFlight(9, 2),)}, "in_flight"),
    (PACKED, {"in_flight": (InFlight(65536, 3),)}, "id"),
    (PACKED, {"in_flight": (InFlight(9, 6),)}, "slots"),
    (PACKED, {"in_flight": (InFlight(9, 3), InFlight(1, 5), InFlight(2, 5))}, "in_flight"),
]


@pytest.mark.parametrize("kind", ["c", "plain"])
@pytest.mark.parametrize("state", [SPLIT, PACKED, ORDER], ids=["split", "packed", "order"])
def test_the_records_below_are_good(state: VringState, kind: str) -> None:
    """Before something in them is changed."""
    ring = make_ring(kind, RingMemory())
    ring.restore(state)
    assert ring.state() == state


@pytest.mark.parametrize(("state", "wrong", "name"), WRONG)
def test_a_record_that_no_ring_can_have(state: VringState, wrong: dict[str, Any], name: str) -> None:
    """Is refused with the field's name, and the ring stays what it was."""
    ring = make_ring("c", RingMemory())
    ring.restore(PACKED)
    with pytest.raises(ValueError, match=name):
        ring.restore(state._replace(**wrong))
    assert ring.state() == PACKED


def test_something_else_is_no_record() -> None:
    """A tuple with the same fields is not trusted to be one."""
    ring = make_ring("c", RingMemory())
    with pytest.raises(ValueError, match="VringState"):
        ring.restore(tuple(SPLIT))  # type: ignore[arg-type]


def test_counters_outlive_reset_and_restore() -> None:
    """They are the object's, not the configuration's."""
    _, ring, driver, data = start("c", 0, 4)
    driver.add([Buffer(data, 1)])
    driver.publish()
    ring.pop(1, 1)
    before = ring.counters
    assert before.chains == 1
    ring.restore(SPLIT)
    ring.reset()
    assert ring.counters == before
