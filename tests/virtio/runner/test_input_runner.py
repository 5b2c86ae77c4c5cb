"""The input device's runner, with a driver's rings: events, shortage of buffers, lights, bad drivers, moving."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from struct import pack, unpack

import pytest
import trio
import trio.testing

from tests.support.driver_ring import Buffer
from tests.support.task_slot import TaskSlot, serving
from tests.virtio.devices import make_keyboard, make_tablet
from tests.virtio.ring_parts import FEATURES, feature_names
from tvmm.kvm.vring_records import InFlight, VringConfig, VringState
from tvmm.state import decode, encode
from tvmm.virtio.device import Activation
from tvmm.virtio.features import Ring
from tvmm.virtio.input import WAITING_GROUPS, Input
from tvmm.virtio.runner.base import QueueRun
from tvmm.virtio.runner.input import InputRun, InputRunner

PATIENCE_S = 20
EVENTS, STATUS = range(2)
KEY, LED, SYN = 1, 0x11, 0
END = (SYN, 0, 0)
A, B = 30, 48
pytestmark = pytest.mark.timeout(60)
each_features = pytest.mark.parametrize("features", FEATURES, ids=feature_names)


class Rig:
    """A slot, its runner, and the buffers that the driver has offered."""

    def __init__(self, model: Input) -> None:
        self.model = model
        self.slot = TaskSlot(model)
        self.runner = InputRunner(model, self.slot.ends)
        self.buffers: dict[int, Buffer] = {}

    def offer(self, count: int) -> None:
        """That many more buffers for events."""
        for _ in range(count):
            buffer = Buffer(self.slot.place(8), 8, True)
            self.buffers[self.slot.add(EVENTS, buffer)] = buffer

    def type(self, *keys: tuple[int, bool]) -> None:
        """One group, as a hub sends it."""
        with self.slot.bus_lock:
            for code, down in keys:
                self.model.press(code, down)
            self.model.sync()
            self.runner.deliver()

    def events(self) -> list[tuple[int, int, int]]:
        """What has come; the buffers are not offered again."""
        got = []
        for number, length in self.slot.drivers[EVENTS].collect():
            assert length == 8
            kind, code, value = unpack("<HHi", self.slot.ram.read(self.buffers.pop(number).gpa, 8))
            got.append((kind, code, value))
        return got


@asynccontextmanager
async def rig(model: Input | None = None, features: int = Ring.VERSION_1) -> AsyncIterator[Rig]:
    """A runner that serves."""
    with trio.fail_after(PATIENCE_S):
        made = Rig(model or make_keyboard())
        async with serving(made.slot, made.runner):
            made.slot.activate(made.runner, features)
            yield made


@each_features
async def test_events_reach_the_driver(features: int) -> None:
    """In every ring format, many times around the ring: at once, whole groups, in order."""
    async with rig(features=features | Ring.VERSION_1) as made:
        for turn in range(50):
            made.offer(2)
            made.type((A, turn % 2 == 0))
            assert made.events() == [(KEY, A, 1 - turn % 2), END]
        assert made.runner.rings[EVENTS].counters.errors == 0


async def test_groups_wait_for_buffers() -> None:
    """Without any the next kick brings them; with too few for a group none of it comes."""
    async with rig() as made:
        made.type((A, True))
        made.type((A, False), (B, True))
        assert made.events() == []
        made.offer(2)
        await trio.testing.wait_all_tasks_blocked()
        assert made.events() == [(KEY, A, 1), END]
        made.offer(2)
        await trio.testing.wait_all_tasks_blocked()
        assert made.events() == []
        made.offer(1)
        made.type()
        assert made.events() == [(KEY, A, 0), (KEY, B, 1), END]


async def test_the_task_looks_again_for_the_rest(autojump_clock: trio.testing.MockClock) -> None:
    """Buffers that come without a kick, since some were there, are found in time."""
    async with rig(features=Ring.VERSION_1 | Ring.EVENT_IDX) as made:
        made.offer(1)
        made.type((A, True))
        await trio.sleep(5)
        assert made.events() == []
        made.offer(1)
        await trio.sleep(2)
        assert made.events() == [(KEY, A, 1), END]


async def test_a_driver_that_stays_away() -> None:
    """What is too much is dropped; when it is back it hears what is down, and keys go up."""
    async with rig() as made:
        for turn in range(2 * WAITING_GROUPS + 1):
            made.type((A, turn % 2 == 0))
        made.type((B, True))
        made.offer(8)
        await trio.testing.wait_all_tasks_blocked()
        assert made.events() == [(KEY, A, 1), (KEY, B, 1), END]
        made.type((A, False))
        assert made.events() == [(KEY, A, 0), END]


@each_features
async def test_lights(features: int) -> None:
    """Status events come in and their buffers go back."""
    async with rig(features=features | Ring.VERSION_1) as made:
        for event, leds in (((LED, 1, 1), 4), ((LED, 0, 1), 6), ((LED, 1, 0), 2)):
            made.slot.offer(STATUS, pack("<HHI", *event))
            assert [length for _, length in await made.slot.wait_used(STATUS)] == [0]
            assert made.model.leds == leds


async def test_ready_is_told() -> None:
    """From DRIVER_OK to the reset there is a driver, and who waits hears of both."""
    async with rig() as made:
        seen: list[bool] = []
        made.runner.on_ready = lambda: seen.append(made.runner.ready)
        assert made.runner.ready
        made.slot.restart(made.runner)
        with made.slot.bus_lock:
            made.runner.stop_queue(EVENTS, lambda: None)
        assert seen[0] is False
        assert seen[-2:] == [True, False]


@pytest.mark.parametrize("queue", [EVENTS, STATUS])
async def test_bad_buffers_ask_for_a_reset(queue: int) -> None:
    """Wrong direction, or too small: the device is given up until it is reset."""
    async with rig() as made:
        if queue == EVENTS:
            made.slot.post(EVENTS, 7)
            made.type((A, True))
        else:
            made.slot.post(STATUS, 8)
        await made.slot.broken.wait()
        assert "event" in made.slot.reasons[0]
        assert made.runner.ready == (queue == STATUS)
        made.slot.reset(made.runner)
        made.slot.activate(made.runner)
        made.offer(2)
        made.type((B, True))
        assert made.events() == [(KEY, B, 1), END]


async def test_hold_and_release() -> None:
    """Held, nothing is touched; then what waited comes."""
    async with rig() as made:
        made.offer(4)
        await made.runner.hold()
        made.type((A, True))
        await trio.testing.wait_all_tasks_blocked()
        assert made.events() == []
        assert made.runner.ready
        made.runner.release()
        await trio.testing.wait_all_tasks_blocked()
        assert made.events() == [(KEY, A, 1), END]


async def test_it_moves() -> None:
    """Another runner goes on with the record, for the same driver, with what waited."""
    async with rig(make_tablet()) as made:
        with made.slot.bus_lock:
            made.model.move(3, 4)
            made.model.sync()
            made.runner.deliver()
        made.offer(3)
        await made.runner.hold()
        state, run = made.model.state(), made.runner.save()
        assert decode(encode(run), (InputRun, QueueRun, VringState, VringConfig, InFlight)) == run
        model = make_tablet()
        model.restore(state, made.model.accepted)
        other = InputRunner(model, made.slot.ends)
        await other.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.run)
            await other.restore(Activation(made.model.accepted, tuple(made.slot.setups)), run)
            assert (other.ready, other.save()) == (True, run)
            other.release()
            await trio.testing.wait_all_tasks_blocked()
            assert made.events() == [(3, 0, 3), (3, 1, 4), END]
            nursery.cancel_scope.cancel()
        other.close()
