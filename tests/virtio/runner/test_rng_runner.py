"""The entropy device's runner, and with it the base of runners that are tasks: kicks, interrupts, resets, holds."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.driver_ring import Buffer
from tests.support.task_slot import TaskSlot, serving
from tests.virtio.devices import ALL_RING, make_rng
from tests.virtio.ring_parts import FEATURES, feature_names
from tvmm.errors import UserError
from tvmm.kvm.serve import CALL_NONE, CALL_PYTHON
from tvmm.virtio.features import Ring
from tvmm.virtio.rng import MAX_FILL, Rng
from tvmm.virtio.runner.rng import RngRunner

PATIENCE_S = 20
QUEUE = 0
pytestmark = pytest.mark.timeout(60)
each_features = pytest.mark.parametrize("features", FEATURES, ids=feature_names)


class Rig:
    """A slot, its runner, and what the user was told."""

    def __init__(self, model: Rng, filename: str) -> None:
        self.warnings: list[str] = []
        self.slot = TaskSlot(model)
        self.runner = RngRunner(model, self.slot.ends, self.warnings.append, filename)


@asynccontextmanager
async def rig(
    model: Rng | None = None, filename: str = "/dev/urandom", features: int = Ring.VERSION_1
) -> AsyncIterator[Rig]:
    """A runner that serves."""
    with trio.fail_after(PATIENCE_S):
        made = Rig(model or make_rng(), filename)
        async with serving(made.slot, made.runner):
            made.slot.activate(made.runner, features)
            yield made


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A source whose bytes can be told apart: 128 KiB in which no four bytes come twice."""
    path = tmp_path / "numbers"
    path.write_bytes(b"".join(number.to_bytes(4, "big") for number in range(1 << 15)))
    return path


@each_features
async def test_fills_buffers(features: int) -> None:
    """In every ring format, many times around the ring, a buffer comes back full of bytes that do not repeat."""
    async with rig(features=features | Ring.VERSION_1) as made:
        seen = {await made.slot.get(QUEUE, 64) for _ in range(40)}
        assert len(seen) == 40
        assert {len(data) for data in seen} == {64}
        counters = made.runner.rings[QUEUE].counters
        assert counters.kicks <= 40
        assert (counters.returned, counters.errors) == (40, 0)
        assert made.runner.given_bytes == 40 * 64


async def test_no_byte_is_given_twice(numbers: Path) -> None:
    """Many buffers of odd sizes, some in pieces, get what the source has, in its order and without a hole."""
    async with rig(filename=str(numbers)) as made:
        slot, got = made.slot, b""
        for sizes in ((1,), (3, 5, 7), (1000,), (4096, 1), (17,)) * 3:
            buffers = [Buffer(slot.place(size), size, True) for size in sizes]
            slot.add(QUEUE, *buffers)
            [(_, length)] = await slot.wait_used(QUEUE)
            assert length == sum(sizes)
            got += b"".join(slot.ram.read(buffer.gpa, buffer.length) for buffer in buffers)
        assert got == numbers.read_bytes()[: len(got)]


async def test_a_long_buffer_is_capped() -> None:
    """A buffer of a megabyte gets as much as one request may have, and the used length says so."""
    async with rig() as made:
        buffer = made.slot.post(QUEUE, 1 << 20)
        assert [length for _, length in await made.slot.wait_used(QUEUE)] == [MAX_FILL]
        assert made.slot.ram.read(buffer.gpa + MAX_FILL, 4096) == bytes(4096)


async def test_readable_buffer_asks_for_a_reset_once() -> None:
    """The device is given up, nothing is written, the error counted; after a reset it serves again."""
    async with rig() as made:
        slot = made.slot
        bad = Buffer(slot.place(64), 64, True)
        slot.add(QUEUE, Buffer(slot.place(8), 8), bad)
        await slot.broken.wait()
        os.eventfd_write(slot.kicks[QUEUE], 1)
        await trio.testing.wait_all_tasks_blocked()
        assert slot.reasons == ["queue 0: a buffer for random bytes that is not only writable"]
        assert made.runner.rings[QUEUE].counters.errors == 1
        assert slot.drivers[QUEUE].collect() == []
        assert slot.ram.read(bad.gpa, 64) == bytes(64)
        slot.reset(made.runner)
        slot.activate(made.runner)
        assert len(await slot.get(QUEUE, 16)) == 16


async def test_broken_ring_asks_for_a_reset_once() -> None:
    """An index that jumps, and kicks on end: one sentence, and no work for a dead queue."""
    async with rig() as made:
        driver = made.slot.drivers[QUEUE]
        made.slot.ram.write(driver.config.driver_area + 2, (5000).to_bytes(2, "little"))
        made.runner.notify(QUEUE)
        await made.slot.broken.wait()
        for _ in range(5):
            made.runner.notify(QUEUE)
            await trio.testing.wait_all_tasks_blocked()
        assert made.slot.reasons == ["queue 0: the available index jumped by more than the queue size, to 5000"]
        assert made.runner.rings[QUEUE].counters.kicks == 6


async def test_queue_in_no_memory_is_reported() -> None:
    """A ring outside of RAM is found at activation."""
    async with rig() as made:
        made.slot.reset(made.runner)
        with made.slot.bus_lock:
            setup = made.slot.setups[QUEUE]._replace(desc=1 << 40)
            made.runner.start_queue(setup)
        assert made.slot.reasons == ["queue 0: the ring's part at 0x10000000000 is not wholly in RAM"]


async def test_interrupts_go_where_they_are_told() -> None:
    """To the eventfd, to the slot, to nobody: changed at any time, and each buffer comes back all the same."""
    async with rig() as made:
        slot, runner = made.slot, made.runner
        await slot.get(QUEUE, 1)
        assert slot.used == []
        runner.set_call(QUEUE, CALL_PYTHON)
        slot.post(QUEUE, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(slot.drivers[QUEUE].collect()) == 1
        assert slot.used == [QUEUE]
        runner.set_call(QUEUE, CALL_NONE)
        slot.post(QUEUE, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(slot.drivers[QUEUE].collect()) == 1
        assert slot.used == [QUEUE]
        assert runner.rings[QUEUE].counters.interrupts == 3


async def test_kick_through_the_transport() -> None:
    """`notify` does what the eventfd does."""
    async with rig() as made:
        slot = made.slot
        slot.drivers[QUEUE].add([Buffer(slot.place(4), 4, True)])
        slot.drivers[QUEUE].publish()
        made.runner.notify(QUEUE)
        assert [length for _, length in await slot.wait_used(QUEUE)] == [4]


async def test_hold_and_release() -> None:
    """Between the two no buffer is touched, however often it is kicked; afterwards all are served."""
    async with rig() as made:
        slot, runner = made.slot, made.runner
        await runner.hold()
        await runner.hold()
        buffer = slot.post(QUEUE, 32)
        runner.notify(QUEUE)
        await trio.testing.wait_all_tasks_blocked()
        runner.release()
        await trio.testing.wait_all_tasks_blocked()
        assert slot.drivers[QUEUE].collect() == []
        assert slot.ram.read(buffer.gpa, 32) == bytes(32)
        runner.release()
        assert [length for _, length in await slot.wait_used(QUEUE)] == [32]


async def test_reset_while_the_source_is_slow(tmp_path: Path) -> None:
    """A reset does not wait for the source, its buffer stays as it is; the bytes that come late go to the next one."""
    path = tmp_path / "slow"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    async with rig(filename=str(path)) as made:
        slot, runner = made.slot, made.runner
        buffer = slot.post(QUEUE, 8)
        await trio.testing.wait_all_tasks_blocked()
        slot.reset(runner)
        slot.activate(runner)
        os.write(writer, b"late")
        while runner.given_bytes == 0 and not runner.spare_bytes:
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert slot.ram.read(buffer.gpa, 8) == bytes(8)
        assert await slot.get(QUEUE, 8) == b"late"
    os.close(writer)


async def test_stop_and_start_of_the_queue() -> None:
    """A queue that was taken back is not touched; set up again it is served."""
    async with rig() as made:
        slot, runner = made.slot, made.runner
        done: list[int] = []
        with slot.bus_lock:
            runner.stop_queue(QUEUE, lambda: done.append(QUEUE))
        assert done == [QUEUE]
        slot.post(QUEUE, 8)
        runner.notify(QUEUE)
        await trio.testing.wait_all_tasks_blocked()
        assert slot.drivers[QUEUE].collect() == []
        with slot.bus_lock:
            runner.start_queue(slot.setups[QUEUE])
        assert [length for _, length in await slot.wait_used(QUEUE)] == [8]


async def test_ten_thousand_resets() -> None:
    """The driver resets and starts again in the middle of requests, ten thousand times, and is served at the end."""
    async with rig() as made:
        for turn in range(10_000):
            if turn % 4 == 0:
                made.slot.post(QUEUE, 16)
            if turn % 8 == 0:
                await trio.testing.wait_all_tasks_blocked()
            made.slot.restart(made.runner)
        assert made.slot.reasons == []
        assert len(await made.slot.get(QUEUE, 16)) == 16


@pytest.mark.parametrize("limit", [1, 100, 5000])
async def test_rate_limit(autojump_clock: trio.testing.MockClock, limit: int) -> None:
    """Five seconds give the bucket's content and five times the rate, not a byte more and hardly one less."""
    async with rig(Rng(max_bytes=limit, ring=ALL_RING)) as made:
        start = trio.current_time()
        got = 0
        while got < 6 * limit:
            got += len(await made.slot.get(QUEUE, 64))
        elapsed = trio.current_time() - start
        assert got <= limit * (1 + elapsed) + 1
        assert elapsed < 5.1 + 64 / limit


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 200)), max_size=30), st.sampled_from(FEATURES))
def test_any_order_of_events(events: list[tuple[int, int]], features: int) -> None:
    """Buffers, holds, resets and kicks in any order: each buffer that was not reset comes back once, and full."""

    async def main() -> None:
        async with rig(features=features | Ring.VERSION_1) as made:
            slot, holds = made.slot, 0
            waiting: dict[int, int] = {}
            for what, size in events:
                if what == 0 and len(waiting) < 6:
                    buffer = Buffer(slot.place(size), size, True)
                    waiting[slot.add(QUEUE, buffer)] = size
                elif what == 1:
                    await (made.runner.hold() if not holds else trio.lowlevel.checkpoint())
                    holds = 1
                elif what == 2 and holds:
                    made.runner.release()
                    holds = 0
                elif what == 3:
                    slot.restart(made.runner)
                    waiting.clear()
                if not holds:
                    await trio.testing.wait_all_tasks_blocked()
                for number, length in slot.drivers[QUEUE].collect():
                    assert waiting.pop(number) == length
            if holds:
                made.runner.release()
            while waiting:
                for number, length in await slot.wait_used(QUEUE):
                    assert waiting.pop(number) == length
            assert slot.reasons == []

    trio.run(main)


async def test_source_that_ends(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """A short file: the guest gets what there is, the user is told once, and more bytes go on where it ended."""
    # The clock is not to jump while a thread reads.
    autojump_clock.autojump_threshold = 0.02
    path = tmp_path / "short"
    path.write_bytes(b"12345")
    async with rig(filename=str(path)) as made:
        assert await made.slot.get(QUEUE, 8) == b"12345"
        buffer = made.slot.post(QUEUE, 8)
        await trio.sleep(10)
        assert made.warnings == [f"no random bytes from {path}: it has ended; the guest waits for more"]
        assert made.slot.drivers[QUEUE].collect() == []
        with path.open("ab") as file:
            file.write(b"678")
        await made.slot.wait_used(QUEUE)
        assert made.slot.ram.read(buffer.gpa, 3) == b"678"


async def test_source_without_poll() -> None:
    """A character device is read as a file is."""
    async with rig(filename="/dev/zero") as made:
        assert await made.slot.get(QUEUE, 100) == bytes(100)
        assert made.runner.given_bytes == 100


@pytest.mark.parametrize("name", ["", ".", "missing"])
def test_no_source(name: str, tmp_path: Path) -> None:
    """An empty name, a directory, a missing file: one line that names it."""
    filename = str(tmp_path / name) if name else ""
    slot = TaskSlot(make_rng())
    with pytest.raises(UserError) as caught:
        RngRunner(make_rng(), slot.ends, print, filename)
    assert "random bytes" in str(caught.value)
    assert filename in str(caught.value)
    slot.close()


async def test_descriptors_are_given_back(numbers: Path) -> None:
    """A runner that was cancelled and closed leaves none."""
    before = len(os.listdir("/proc/self/fd"))
    async with rig(filename=str(numbers)) as made:
        assert stat.S_ISREG(os.fstat(made.runner._fd).st_mode)
        made.slot.post(QUEUE, 8)
    assert len(os.listdir("/proc/self/fd")) == before
