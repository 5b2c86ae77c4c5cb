"""A disk within its limits: what waits and what does not, and that nobody waits for a limit but the guest."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.support.disk_driver import (
    ALL,
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    OK,
    OUT,
    WRITE_ZEROES,
    Disk,
    Pending,
    disk,
    ranges,
)
from tests.virtio.runner.disks import Backend
from tests.virtio.runner.test_blk_errors import Owner
from tests.virtio.runner.test_saved_disk import RINGS, TYPES, activation, another
from tvmm.config.limits import NO_LIMITS, Limits, Rate
from tvmm.state import decode, encode
from tvmm.virtio.features import Blk as Feature

PATIENCE_S = 30
SLOW = Limits(operations=Rate(1))
"""What waits for this does so for as long as a test takes."""


async def until(condition: Callable[[], bool]) -> None:
    """Return when it holds."""
    with trio.fail_after(PATIENCE_S):
        while not condition():
            await trio.sleep(0)


def add(one: Disk, count: int, kind: int = IN, queue: int = 0) -> list[Pending]:
    """So many requests of 4096 bytes, shown to the device. Each takes three entries of the ring's 256."""
    assert count <= 80
    added = [
        one.add(kind, 8 * number, data=b"" if kind == IN else bytes([number]) * 4096, room=4096 if kind == IN else 0,
                queue=queue)
        for number in range(count)
    ]  # fmt: skip
    one.slot.publish(queue)
    return [pending for pending in added if pending is not None]


async def collect(one: Disk, count: int, queue: int = 0) -> None:
    """Until so many are answered, all of them well."""
    with trio.fail_after(PATIENCE_S):
        while len(one.answers) < count:
            await one.collect(queue)
    assert {answer.status for answer in one.answers.values()} == {OK}


async def throttled(one: Disk, count: int, kind: int = IN, queue: int = 0) -> list[Pending]:
    """So many requests of which one has come back, and the others wait."""
    added = add(one, count, kind, queue)
    await collect(one, 1, queue)
    await until(lambda: one.runner.limit_waits > 0)
    return added


# -- waiting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", RINGS)
async def test_what_waits_goes_on_when_the_limit_is_lifted(plain: Path, ring: str) -> None:
    """One request of 16 passes; the driver need not kick for more; without a limit all come at once."""
    async with disk(plain, limits=SLOW) as one:
        one.activate(RINGS[ring])
        await throttled(one, 16)
        assert one.runner.info().counters.reads == 1
        one.add(IN, 0, room=4096)
        assert not one.slot.drivers[0].publish()
        one.runner.set_limits(NO_LIMITS)
        await collect(one, 17)


async def test_every_engine_waits(backend: Backend, path: Path) -> None:
    """A limit that is raised is obeyed by what waits already, whatever makes the system calls."""
    async with disk(path, limits=SLOW, **backend.options) as one:
        one.activate()
        await throttled(one, 16)
        one.runner.set_limits(Limits(operations=Rate(10_000)))
        await collect(one, 16)
        one.answers.clear()
        one.runner.set_limits(Limits(bytes_in=Rate(1)))
        add(one, 4)
        await collect(one, 1)
        one.answers.clear()
        one.runner.set_limits(Limits(bytes_in=Rate(1 << 30)))
        await collect(one, 3)
        # And it does not miss a kick afterwards.
        assert (await one.ask(IN, 0, room=512)).status == OK


async def test_a_waiting_queue_sleeps(plain: Path) -> None:
    """It neither looks for work nor uses the processor."""
    async with disk(plain, limits=Limits(operations_out=Rate(1)), poll_us=1000) as one:
        one.activate()
        await throttled(one, 8, OUT)
        before = time.process_time()
        # Two more of them, at one a second.
        await collect(one, 3)
        assert time.process_time() - before < 1


@pytest.mark.parametrize(("kind", "limits"), [(OUT, Limits(bytes_out=Rate(1))), (IN, Limits(operations_in=Rate(1)))])
async def test_one_direction_does_not_hold_the_other_up(plain: Path, kind: int, limits: Limits) -> None:
    """Writes that wait are overtaken by reads, and the other way round."""
    async with disk(plain, limits=limits) as one:
        one.activate()
        waiting = await throttled(one, 8, kind)
        others = add(one, 60, OUT if kind == IN else IN)
        await collect(one, 61)
        assert set(others) < set(one.answers)
        assert len(set(waiting) & set(one.answers)) == 1
        one.runner.set_limits(NO_LIMITS)
        await collect(one, 68)


async def test_a_huge_request_passes(plain: Path) -> None:
    """One byte and one operation a second: a megabyte is read, and paid for by who comes next."""
    async with disk(plain, limits=Limits(Rate(1), Rate(1))) as one:
        one.activate()
        assert (await one.ask(IN, 0, room=1 << 20)).status == OK
        add(one, 1)
        await until(lambda: one.runner.limit_waits > 0)
        assert not one.answers
        one.runner.set_limits(SLOW)
        await collect(one, 1)


async def test_queues_share_one_bucket(plain: Path) -> None:
    """Of four queues with a request each one is served."""
    async with disk(plain, queues=4, limits=SLOW) as one:
        one.activate(ALL | Feature.MQ)
        for queue in range(4):
            add(one, 1, queue=queue)
        await until(lambda: one.runner.limit_waits >= 3)
        assert one.runner.info().counters.reads == 1
        one.runner.set_limits(Limits(operations=Rate(1000)))
        for queue in range(4):
            while not any(pending for pending in one.answers):
                await one.collect(queue)
            one.answers.clear()
        assert [counters.reads for counters in one.runner.info().queues] == [1] * 4


async def test_queues_get_the_same(plain: Path) -> None:
    """Two queues that always want more: neither has much more than the other."""
    async with disk(plain, queues=2, limits=Limits(operations=Rate(2000))) as one:
        one.activate(ALL | Feature.MQ)

        async def reader(queue: int) -> None:
            add(one, 64, queue=queue)
            while sum(counters.reads for counters in one.runner.info().queues) < 2000:
                for pending in await one.collect(queue):
                    del one.answers[pending]
                    one.add(IN, 0, room=4096, queue=queue)
                one.slot.publish(queue)

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for queue in range(2):
                    nursery.start_soon(reader, queue)
        counts = [counters.reads for counters in one.runner.info().queues]
        assert min(counts) > max(counts) / 10, counts


async def test_the_rate(backend: Backend, path: Path) -> None:
    """8 MiB at 8 MiB/s, a bucket of 0.8 MiB: not in less than 0.85 s, however fast the host is."""
    async with disk(path, limits=Limits(bytes=Rate(8 << 20)), **backend.options) as one:
        one.activate()
        start = time.monotonic()
        for number in range(128):
            if number >= 16:
                await collect(one, 1)
                del one.answers[next(iter(one.answers))]
            one.add(IN, 0, room=65536)
            one.slot.publish(0)
        while one.runner.info().counters.reads < 128:
            await one.collect()
        took = time.monotonic() - start
        assert one.runner.info().counters.read_bytes == 8 << 20
        assert 0.85 < took < 10


def near(found: int, wanted: int) -> bool:
    """Billionths of tokens that came in at one a second meanwhile do not matter."""
    return wanted <= found / 10**9 <= wanted + PATIENCE_S


async def test_what_counts_as_what(plain: Path) -> None:
    """Reads are counted in, others out; flushes and discards have no bytes, zeroes have; an identity is free."""
    full = 1_000_000
    one_a_second = Rate(1, full)
    limits = Limits(one_a_second, one_a_second)
    sides = Limits(Rate(), Rate(), one_a_second, one_a_second, one_a_second, one_a_second)
    for given, places in ((limits, (0, 2)), (sides, (4, 6, 8, 10))):
        async with disk(plain, limits=given) as one:
            one.activate()
            for _ in range(100):
                assert (await one.ask(FLUSH)).status == OK
                assert (await one.ask(DISCARD, data=ranges((64, 8, 0)))).status == OK
                assert (await one.ask(GET_ID, room=20)).status == OK
            for kind, data in ((OUT, bytes(8192)), (WRITE_ZEROES, ranges((64, 8, 0), (80, 8, 1)))):
                for _ in range(10):
                    assert (await one.ask(kind, 0, data)).status == OK
            for _ in range(50):
                assert (await one.ask(IN, 0, room=512)).status == OK
            levels = [one.runner._limiter.levels()[place] for place in places]
            into, out = (50 * 512, 50), (20 * 8192, 220)
            costs = (*into, *out) if len(places) == 4 else tuple(map(sum, zip(into, out, strict=True)))
            assert all(near(level, full - cost) for level, cost in zip(levels, costs, strict=True)), (levels, costs)


# -- nobody else waits --------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize(
    ("kind", "limits"),
    [(IN, SLOW), (OUT, Limits(bytes_out=Rate(1))), (IN, Limits(Rate(1 << 20), operations_in=Rate(1)))],
    ids=["total", "writes", "mixed"],
)


@BOTH
async def test_reset(plain: Path, kind: int, limits: Limits) -> None:
    """A driver that starts anew does not wait for what it forgets; the next one is limited as before."""
    async with disk(plain, limits=limits) as one:
        one.activate()
        await throttled(one, 80, kind)
        await one.reset()
        assert sum(one.runner.info().counters[:2]) == 1
        one.answers.clear()
        one.activate()
        one.runner.set_limits(NO_LIMITS)
        add(one, 20, kind)
        await collect(one, 20)


@BOTH
async def test_cancelled(plain: Path, kind: int, limits: Limits) -> None:
    """The machine ends while requests wait."""
    async with disk(plain, limits=limits) as one:
        one.activate()
        with trio.move_on_after(PATIENCE_S) as scope:
            await throttled(one, 80, kind)
        assert not scope.cancelled_caught
        start = time.monotonic()
    assert time.monotonic() - start < PATIENCE_S


@BOTH
@pytest.mark.parametrize("ring", RINGS)
async def test_hold_and_release(plain: Path, ring: str, kind: int, limits: Limits) -> None:
    """A machine that is paused does not wait for a limit. Afterwards nothing is lost, and nothing done twice."""
    async with disk(plain, limits=limits) as one:
        one.activate(RINGS[ring])
        await throttled(one, 40, kind)
        for _ in range(3):
            with trio.fail_after(PATIENCE_S):
                await one.runner.hold()
            assert sum(one.runner.info().counters[:2]) < 10
            one.runner.release()
        assert one.runner.info().counters.retried == 0
        one.runner.set_limits(NO_LIMITS)
        await collect(one, 40)
        assert sum(one.runner.info().counters[:2]) == 40


@BOTH
@pytest.mark.parametrize("ring", RINGS)
async def test_migrate(plain: Path, ring: str, kind: int, limits: Limits) -> None:
    """What waits moves along, and goes on under the limits of the other side, which has none."""
    async with disk(plain, limits=limits, locking=False) as one:
        one.activate(RINGS[ring])
        await throttled(one, 40, kind)
        with trio.fail_after(PATIENCE_S):
            await one.runner.hold()
        state = one.runner.save()
        assert not state.queues[0].stopped
        assert decode(encode(state), TYPES) == state
        async with another(one, plain) as runner:
            await runner.restore(activation(one), state)
            assert runner.save() == state
            assert runner.limits == NO_LIMITS
            runner.release()
            await collect(one, 40)
        if kind == OUT:
            content = plain.read_bytes()
            assert all(content[4096 * at : 4096 * (at + 1)] == bytes([at]) * 4096 for at in range(40))


async def test_shrink(plain: Path) -> None:
    """A disk gets another size while writes wait; those that are behind its end then fail."""
    async with disk(plain, limits=Limits(operations_out=Rate(1))) as one:
        one.activate()
        await throttled(one, 32, OUT)
        with trio.fail_after(PATIENCE_S):
            await one.runner.resize(16 * 4096)
        one.runner.set_limits(NO_LIMITS)
        with trio.fail_after(PATIENCE_S):
            while len(one.answers) < 32:
                await one.collect()
        statuses = [answer.status for answer in one.answers.values()]
        assert statuses.count(OK) == 16


@pytest.mark.parametrize("aio", ["threads", "io_uring"])
async def test_errors_and_limits(plain: Path, aio: str) -> None:
    """Queues that stop over errors again and again, with a limit: everything is done in the end."""
    async with disk(
        plain, faults=200_000, werror="stop", rerror="stop", aio=aio, limits=Limits(operations_out=Rate(2000))
    ) as one:
        owner = Owner(one)
        one.activate()
        add(one, 40, OUT)
        add(one, 40, IN)
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:

                async def mend() -> None:
                    while True:
                        await owner.wait()
                        await one.runner.hold()
                        one.runner.release()

                nursery.start_soon(mend)
                await collect(one, 80)
                nursery.cancel_scope.cancel()


async def test_anything_at_any_time(backend: Backend, path: Path) -> None:
    """Limits, holds and requests of all kinds in any order on two queues: each is answered, and all data is there."""
    chance = random.Random(6)
    some = [
        NO_LIMITS, SLOW, Limits(Rate(1 << 20)), Limits(operations=Rate(3000)), Limits(operations_out=Rate(5000)),
        Limits(bytes_in=Rate(4 << 20), bytes_out=Rate(1 << 20)), Limits(Rate(8 << 20, 16 << 20, 2), Rate(2000)),
    ]  # fmt: skip
    async with disk(path, queues=2, **backend.options) as one:
        one.activate(ALL | Feature.MQ)

        async def driver(queue: int) -> None:
            for step in range(60):
                sector = 2048 * queue + 8 * step
                data = bytes([chance.randrange(1, 256)]) * 4096
                assert (await one.ask(OUT, sector, data, queue=queue)).status == OK
                assert (await one.ask(IN, sector, room=4096, queue=queue)).data == data

        async def owner() -> None:
            while True:
                one.runner.set_limits(chance.choice(some))
                if chance.random() < 0.3:
                    await one.runner.hold()
                    one.runner.release()
                await trio.lowlevel.checkpoint()
                for _ in range(chance.randrange(50)):
                    await trio.sleep(0)

        with trio.fail_after(2 * PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(owner)
                async with trio.open_nursery() as drivers:
                    for queue in range(2):
                        drivers.start_soon(driver, queue)
                nursery.cancel_scope.cancel()
