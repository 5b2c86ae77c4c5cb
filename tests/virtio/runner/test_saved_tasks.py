"""Consoles and sources of entropy are saved, and another runner goes on with the record, for the same driver."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.support.task_slot import TaskSlot, serving
from tvmm.kvm.vring_records import InFlight, VringConfig, VringState
from tvmm.state import decode, encode
from tvmm.virtio.console import Console, ConsoleSettings
from tvmm.virtio.console_control import PortSettings
from tvmm.virtio.device import Activation
from tvmm.virtio.features import Console as Feature
from tvmm.virtio.features import Ring
from tvmm.virtio.rng import Rng
from tvmm.virtio.runner.base import QueueRun
from tvmm.virtio.runner.console import CHUNK, ConsoleRun, ConsoleRunner, PortRun
from tvmm.virtio.runner.rng import RngRun, RngRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tvmm.virtio.runner.task import TaskRunner

pytestmark = pytest.mark.timeout(60)

RINGS = (QueueRun, VringState, VringConfig, InFlight)
RECEIVE, TRANSMIT, TO_DRIVER, FROM_DRIVER = range(4)
EMERGENCY = 8


def activation(slot: TaskSlot) -> Activation:
    """What the driver has set up."""
    return Activation(slot.model.accepted, tuple(slot.setups))


@asynccontextmanager
async def running(slot: TaskSlot, runner: TaskRunner) -> AsyncIterator[None]:
    """The runner's task, held at first, in the block."""
    await runner.hold()
    for index, fd in enumerate(slot.calls):
        runner.set_call(index, fd)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runner.run)
            yield
            nursery.cancel_scope.cancel()
    finally:
        runner.close()


def console(**settings: Any) -> Console:
    """A model."""
    return Console(ConsoleSettings(**settings))


@pytest.mark.parametrize("features", [Ring.VERSION_1, Ring.VERSION_1 | Ring.RING_PACKED])
async def test_half_a_chain_of_output(features: int) -> None:
    """A chain that is longer than what is passed on at once is continued where it was, with nothing lost or doubled."""
    slot = TaskSlot(console())
    text = bytes(number % 251 for number in range(CHUNK + 5000))
    runner = ConsoleRunner(slot.model, slot.ends)  # type: ignore[arg-type]
    async with serving(slot, runner):
        slot.activate(runner, features)
        slot.offer(TRANSMIT, text)
        end = runner.ports[0]
        first = await end.receive_some()
        end.consumed(len(first))
        await runner.hold()
        state = runner.save()
        assert state.ports == (PortRun(0, CHUNK),)
        assert decode(encode(state), (ConsoleRun, PortRun, *RINGS)) == state
        model = console()
        model.restore(slot.model.state(), slot.model.accepted)
        other = ConsoleRunner(model, slot.ends)
        async with running(slot, other):
            await other.restore(activation(slot), state)
            assert other.save() == state
            other.release()
            assert first + await other.ports[0].receive_some() == text
            assert await slot.wait_used(TRANSMIT)


async def test_emergency_output_and_input_that_wait() -> None:
    """Bytes past the queues are with one side alone; input in the sender's hands and behind it moves, in order."""
    slot = TaskSlot(console())
    runner = ConsoleRunner(slot.model, slot.ends)  # type: ignore[arg-type]
    async with serving(slot, runner) as nursery:
        slot.activate(runner)
        end = runner.ports[0]
        end.queued_input = lambda: b" and more"
        nursery.start_soon(end.send, b"typed")
        await trio.testing.wait_all_tasks_blocked()
        await runner.hold()
        slot.model.write_config(EMERGENCY, 4, ord("!"))
        state = runner.save()
        assert state.ports == (PortRun(0, 0, b"!", b"typed and more"),)
        passed_on: list[bytes] = []
        other = ConsoleRunner(console(), slot.ends)
        other.model.restore(slot.model.state(), slot.model.accepted)
        async with running(slot, other):
            other.ports[0].put_back_input = passed_on.append
            await other.restore(activation(slot), state)
            assert passed_on == [b"typed and more"]
            with trio.move_on_after(0) as scope:
                await end.receive_some()
            assert scope.cancelled_caught
            other.release()
            assert await other.ports[0].receive_some() == b"!"


async def test_what_is_otherwise_on_this_side_is_told() -> None:
    """Ports and size are those of the side that the driver is on now, once interrupts get through."""
    ports = (PortSettings(console=True), PortSettings("agent"))
    slot = TaskSlot(console(ports=ports))
    runner = ConsoleRunner(slot.model, slot.ends)  # type: ignore[arg-type]
    async with serving(slot, runner):
        slot.activate(runner, Ring.VERSION_1 | Feature.MULTIPORT | Feature.SIZE)
        await runner.hold()
        state = runner.save()
        model = console(ports=ports)
        other = ConsoleRunner(model, slot.ends)
        async with running(slot, other):
            other.ports[1].set_open(False)
            other.resize(132, 50)
            model.restore(slot.model.state(), slot.model.accepted)
            await other.restore(activation(slot), state)
            assert model.ports[1].host_open
            assert model.size == (80, 25)
            with slot.bus_lock:
                other.arrived()
            assert not model.ports[1].host_open
            assert model.size == (132, 50)


async def test_a_waiting_request_for_entropy() -> None:
    """The next runner fills it, without another kick."""
    slot = TaskSlot(Rng())
    runner = RngRunner(slot.model, slot.ends, print)  # type: ignore[arg-type]
    async with serving(slot, runner):
        slot.activate(runner)
        await runner.hold()
        buffer = slot.post(0, 64)
        state = runner.save()
        assert decode(encode(state), (RngRun, *RINGS)) == state
        model = Rng()
        model.restore(slot.model.state(), slot.model.accepted)
        other = RngRunner(model, slot.ends, print)
        async with running(slot, other):
            await other.restore(activation(slot), state)
            other.release()
            assert [count for _, count in await slot.wait_used(0)] == [64]
            assert slot.ram.read(buffer.gpa, 64) != bytes(64)


async def test_records_that_do_not_fit_are_refused() -> None:
    """By the name of what is wrong."""
    slot = TaskSlot(console())
    runner = ConsoleRunner(slot.model, slot.ends)  # type: ignore[arg-type]
    async with serving(slot, runner):
        slot.activate(runner)
        await runner.hold()
        state = runner.save()
        receive, transmit = state.queues
        lost = receive._replace(ring=receive.ring._replace(next_avail=1, in_flight=(InFlight(1, writable=4),)))
        for wrong, word in (
            (None, "ConsoleRun"),
            (state._replace(ports=()), "ports"),
            (state._replace(ports=(PortRun(1),)), "number"),
            (state._replace(ports=(PortRun(0, -1),)), "taken"),
            (state._replace(ports=(PortRun(0, 0, bytes(5000)),)), "emergency"),
            (state._replace(ports=(PortRun(0, 0, b"", "x"),)), "waiting"),  # type: ignore[arg-type]
            (state._replace(queues=(receive,)), "queues"),
            (state._replace(queues=(lost, transmit)), "in_flight"),
            (state._replace(queues=(receive, QueueRun(VringState(), True))), "served"),
        ):
            with pytest.raises(ValueError, match=word):
                await runner.restore(activation(slot), wrong)  # type: ignore[arg-type]
        idle = Activation(0, tuple(setup._replace(ready=False) for setup in slot.setups))
        with pytest.raises(ValueError, match="config"):
            await runner.restore(idle, state)
