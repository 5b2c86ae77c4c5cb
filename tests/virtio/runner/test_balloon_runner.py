"""The balloon's runner, with a driver's rings: pages that go and come, hostile numbers, statistics, hints, resets."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from struct import pack

import pytest
import trio
import trio.testing

from tests.support.driver_ring import Buffer
from tests.support.task_slot import TaskSlot, serving
from tests.virtio.devices import make_balloon
from tests.virtio.ring_parts import FEATURES, feature_names
from tvmm.config.memory import MemoryConfig
from tvmm.kvm.discard import resident_bytes
from tvmm.kvm.vring_records import InFlight, VringConfig, VringState
from tvmm.memory.ram import GuestRam
from tvmm.memory.regions import Region
from tvmm.state import decode, encode
from tvmm.virtio.balloon import CHAIN_BYTES, TURN_PAGES
from tvmm.virtio.device import Activation
from tvmm.virtio.features import Balloon as Feature
from tvmm.virtio.features import Ring
from tvmm.virtio.runner.balloon import BalloonRun, BalloonRunner
from tvmm.virtio.runner.balloon_memory import BalloonMemory
from tvmm.virtio.runner.base import QueueRun

PATIENCE_S = 20
INFLATE, DEFLATE, STATS, HINT, REPORT = range(5)
ALL = Ring.VERSION_1 | 0x3F
UNPOISONED = ALL & ~Feature.PAGE_POISON
PAGE = 4096
FIRST_FREE = 0x300
"""A page number above all that the driver needs for itself."""
RAM_PAGES = 2048
pytestmark = pytest.mark.timeout(60)
each_features = pytest.mark.parametrize("features", FEATURES, ids=feature_names)


class Rig:
    """A slot, its runner, and what the user was told."""

    def __init__(self) -> None:
        self.model = make_balloon()
        self.slot = TaskSlot(self.model)
        self.warnings: list[str] = []
        self.memory = BalloonMemory(self.slot.ram)
        self.slot.ram.dirty_log = self.slot.log
        self.runner = BalloonRunner(self.model, self.slot.ends, self.memory, self.warnings.append)

    def page(self, number: int) -> bytes:
        """What the guest finds there."""
        return self.slot.ram.read(number * PAGE, PAGE)

    def write(self, numbers: Iterable[int]) -> None:
        """The guest uses these pages."""
        for number in numbers:
            self.slot.ram.write(number * PAGE, pack("<Q", number) * 512)

    def written(self, number: int) -> bool:
        """Whether a page is as `write` left it."""
        return self.page(number) == pack("<Q", number) * 512

    async def tell(self, queue: int, numbers: list[int]) -> None:
        """A buffer of page numbers, given back."""
        self.slot.offer(queue, pack(f"<{len(numbers)}I", *numbers))
        assert [length for _, length in await self.slot.wait_used(queue)] == [0]

    async def hint(self, *parts: int | tuple[int, int]) -> None:
        """Numbers of requests, and (first, count) of pages that are free; all given back."""
        for part in parts:
            if isinstance(part, tuple):
                self.slot.add(HINT, Buffer(part[0] * PAGE, part[1] * PAGE, True))
            else:
                self.slot.offer(HINT, pack("<I", part))
        count = 0
        while count < len(parts):
            count += len(await self.slot.wait_used(HINT))


@asynccontextmanager
async def rig(features: int = UNPOISONED) -> AsyncIterator[Rig]:
    """A runner that serves."""
    with trio.fail_after(PATIENCE_S):
        made = Rig()
        async with serving(made.slot, made.runner):
            made.slot.activate(made.runner, features)
            yield made


@each_features
async def test_pages_go_and_come_back_empty(features: int) -> None:
    """In every ring format; what is inflated is zero, its neighbours are not touched, and it can be used again."""
    async with rig(UNPOISONED | features) as made:
        made.write(range(FIRST_FREE, FIRST_FREE + 64))
        gone = [FIRST_FREE + number for number in (1, 2, 3, 10, 63, 2)]
        await made.tell(INFLATE, gone)
        for number in range(FIRST_FREE, FIRST_FREE + 64):
            assert made.written(number) != (number in gone)
            assert number not in gone or made.page(number) == bytes(PAGE)
        await made.tell(DEFLATE, gone[:3])
        made.write(gone)
        assert all(map(made.written, gone))
        assert made.runner.counters._replace(strange=0) == (5, 3, 0, 0, 0, 0)
        assert made.runner.rings[INFLATE].counters.errors == 0


@pytest.mark.parametrize("shared", [False, True])
async def test_memory_leaves_the_process(shared: bool) -> None:
    """Of both kinds of memory: what the host has given shrinks by what is inflated, and grows again with use."""
    ram = GuestRam(MemoryConfig(64 << 20, shared=shared))
    block = ram.blocks["pc.ram"]
    try:
        assert resident_bytes(block) < 1 << 20
        for number in range(64 << 8):
            ram.write(number * PAGE, b"x")
        assert resident_bytes(block) == 64 << 20
        memory = BalloonMemory(ram)
        runs, strange = memory.pages(range(16 << 8, 64 << 8))
        memory.give_back(runs)
        assert (strange, resident_bytes(block)) == (0, 16 << 20)
        ram.write(20 << 20, b"y")
        assert 16 << 20 < resident_bytes(block) <= 18 << 20
    finally:
        ram.close()


async def test_prealloc_fetches_what_comes_back() -> None:
    """Pages that leave the balloon are there before the guest touches them."""
    ram = GuestRam(MemoryConfig(16 << 20, prealloc=True))
    block = ram.blocks["pc.ram"]
    try:
        memory = BalloonMemory(ram, prealloc=True)
        runs, _ = memory.pages(range(512, 2048))
        memory.give_back(runs)
        assert resident_bytes(block) == 10 << 20
        memory.take(runs[:1])
        assert resident_bytes(block) == 16 << 20
    finally:
        ram.close()


def test_only_the_main_blocks_memory_is_taken() -> None:
    """Around the hole of a PC, and not what a screen or a ROM has there."""
    ram = GuestRam(MemoryConfig(8 << 20))
    try:
        ram.add_block("vga.vram", 1 << 20)
        ram.regions.add(Region(0x1000_0000, 1 << 20, "vga.vram", 0))
        ram.regions.add(Region(0x2000_0000, 1 << 20, "pc.ram", 0, read_only=True))
        ram.regions.add(Region(0x3000_0000, 1 << 20, "pc.ram", 1 << 20))
        memory = BalloonMemory(ram)
        numbers = [2047, 2048, 0x1_0000, 0x2_0000, 0x3_0000, 0x3_00FF, 0x3_0100, 0xFFFF_FFFF, 0]
        assert memory.pages(numbers) == ([(0, 1), (2047, 1), (256, 1), (511, 1)], 5)
    finally:
        ram.close()


def test_only_whole_pages_are_free() -> None:
    """Of pieces that overlap and begin anywhere; those of another block are left out."""
    ram = GuestRam(MemoryConfig(8 << 20))
    try:
        whole = BalloonMemory(ram).whole_pages
        assert whole([("pc.ram", 100, 2 * PAGE), ("pc.ram", 3 * PAGE, PAGE - 1), ("vga.vram", 0, PAGE)]) == [(1, 1)]
        pieces = [("pc.ram", 5 * PAGE, 3 * PAGE), ("pc.ram", 4 * PAGE, 2 * PAGE), ("pc.ram", 4 * PAGE, 8 * PAGE)]
        assert whole(pieces) == [(4, 8)]
        assert whole([("pc.ram", 0, PAGE), ("pc.ram", PAGE, PAGE), ("pc.ram", 3 * PAGE, PAGE)]) == [(0, 2), (3, 1)]
    finally:
        ram.close()


async def test_hostile_numbers_harm_nobody() -> None:
    """Numbers without RAM are counted; of an endless buffer the first part is taken, and the queue goes on."""
    async with rig() as made:
        made.write([FIRST_FREE])
        await made.tell(INFLATE, [RAM_PAGES, 0xFFFF_FFFF, 0xFFFF_FFFF, FIRST_FREE, 1 << 20])
        assert made.page(FIRST_FREE) == bytes(PAGE)
        assert (made.runner.counters.inflated, made.runner.counters.strange) == (1, 3)
        made.slot.offer(INFLATE, pack("<I", RAM_PAGES) * (TURN_PAGES + 1) + pack("<I", FIRST_FREE))
        await made.slot.wait_used(INFLATE)
        assert (made.runner.counters.inflated, made.runner.counters.strange) == (1, 4)
        await made.tell(INFLATE, [FIRST_FREE])
        assert made.runner.counters.inflated == 2
        made.slot.offer(INFLATE, b"\1\2\3")
        await made.slot.wait_used(INFLATE)
        assert made.slot.reasons == []


async def test_many_long_buffers_take_turns() -> None:
    """All of them are served, no more than fits at once."""
    async with rig() as made:
        gpa = made.slot.place(CHAIN_BYTES)
        for number in range(TURN_PAGES):
            made.slot.ram.write(gpa + 4 * number, pack("<I", RAM_PAGES + number))
        for _ in range(6):
            made.slot.drivers[INFLATE].add([Buffer(gpa, CHAIN_BYTES)])
        made.slot.publish(INFLATE)
        count = 0
        while count < 6:
            count += len(await made.slot.wait_used(INFLATE))
        assert made.runner.counters.strange == 6 * TURN_PAGES


@pytest.mark.parametrize(
    ("queue", "writable", "words"),
    [
        (INFLATE, True, "not only to be read"),
        (DEFLATE, True, "not only to be read"),
        (STATS, True, "not only to be read"),
        (REPORT, False, "not only to be written"),
        (HINT, False, "not 4 bytes"),
    ],
)
async def test_wrong_buffers_ask_for_a_reset(queue: int, writable: bool, words: str) -> None:
    """Each queue has one kind of buffers; after a reset it serves again."""
    async with rig() as made:
        slot = made.slot
        slot.add(queue, Buffer(slot.place(8), 8, writable))
        await slot.broken.wait()
        assert len(slot.reasons) == 1
        assert slot.reasons[0].startswith(f"queue {queue}: ")
        assert words in slot.reasons[0]
        slot.restart(made.runner)
        made.write([FIRST_FREE])
        await made.tell(INFLATE, [FIRST_FREE])
        assert made.page(FIRST_FREE) == bytes(PAGE)


async def test_what_goes_is_marked_for_migration() -> None:
    """Pages that are inflated or reported have changed, and who copies RAM is told."""
    async with rig() as made:
        made.write(range(FIRST_FREE, FIRST_FREE + 200))
        made.slot.log.start()
        await made.tell(INFLATE, [FIRST_FREE, FIRST_FREE + 70])
        made.slot.add(REPORT, Buffer((FIRST_FREE + 100) * PAGE, 3 * PAGE, True))
        await made.slot.wait_used(REPORT)
        words = memoryview(bytearray(RAM_PAGES // 8)).cast("Q")
        made.slot.log.merge_into("pc.ram", words)
        marked = {page for page in range(RAM_PAGES) if words[page // 64] >> page % 64 & 1}
        gone = {FIRST_FREE + number for number in (0, 70, 100, 101, 102)}
        assert gone <= marked
        assert not {FIRST_FREE + number for number in (1, 69, 71, 99, 103)} & marked


async def test_reports_are_punched() -> None:
    """Free pages go, in pieces of any size; parts of pages stay."""
    async with rig() as made:
        made.write(range(FIRST_FREE, FIRST_FREE + 20))
        start = FIRST_FREE * PAGE
        made.slot.add(REPORT, Buffer(start, 2 * PAGE, True), Buffer(start + 5 * PAGE + 1, 3 * PAGE, True))
        await made.slot.wait_used(REPORT)
        gone = [number for number in range(20) if not made.written(FIRST_FREE + number)]
        assert gone == [0, 1, 6, 7]
        assert made.runner.counters.reported == 4


async def test_poison_is_respected() -> None:
    """A guest that wants to find what it put into free pages does."""
    async with rig(ALL) as made:
        made.model.write_config(12, 4, 0xAAAA_AAAA)
        made.write([FIRST_FREE])
        made.slot.add(REPORT, Buffer(FIRST_FREE * PAGE, PAGE, True))
        await made.slot.wait_used(REPORT)
        assert made.written(FIRST_FREE)
        assert made.runner.counters.reported == 0
        spared: list[object] = []

        def spare(runs: list[tuple[int, int]]) -> int:
            spared.append(runs)
            return 0

        assert made.runner.begin_hints(spare)
        await made.hint(0x8000_0001, (FIRST_FREE, 2))
        assert spared == []
        made.model.write_config(12, 4, 0)
        made.slot.add(REPORT, Buffer(FIRST_FREE * PAGE, PAGE, True))
        await made.slot.wait_used(REPORT)
        assert made.page(FIRST_FREE) == bytes(PAGE)


# -- statistics -----------------------------------------------------------------------------------------------


def entry(tag: int, value: int) -> bytes:
    """One statistic."""
    return pack("<HQ", tag, value)


async def test_statistics_when_they_are_wanted() -> None:
    """The first buffer is kept; it goes back when newer ones are wanted, and the next one has them."""
    async with rig() as made:
        made.slot.offer(STATS, entry(4, 100) + entry(5, 200))
        await trio.testing.wait_all_tasks_blocked()
        assert made.model.stats == {4: 100, 5: 200}
        assert made.slot.drivers[STATS].collect() == []
        async with trio.open_nursery() as nursery:
            answers: list[bool] = []

            async def ask() -> None:
                answers.append(await made.runner.fresh_stats(PATIENCE_S))

            for round_number in range(5):
                nursery.start_soon(ask)
                assert [length for _, length in await made.slot.wait_used(STATS)] == [0]
                made.slot.offer(STATS, entry(4, round_number))
                while len(answers) <= round_number:
                    await trio.testing.wait_all_tasks_blocked()
                assert made.model.stats == {4: round_number}
        assert answers == [True] * 5


async def test_a_driver_that_sends_none(autojump_clock: trio.testing.MockClock) -> None:
    """The wait has an end; so it has with a driver that never gave a buffer, and with none at all."""
    made = Rig()
    async with serving(made.slot, made.runner):
        assert not await made.runner.fresh_stats(5)
        made.slot.activate(made.runner, Ring.VERSION_1)
        assert not await made.runner.fresh_stats(5)
        made.slot.restart(made.runner)
        made.slot.reset(made.runner)
        made.slot.activate(made.runner, ALL)
        assert not await made.runner.fresh_stats(5)


async def test_statistics_at_an_interval(autojump_clock: trio.testing.MockClock) -> None:
    """At once, then as often as was said, until it is said otherwise."""
    made = Rig()
    async with serving(made.slot, made.runner) as nursery:
        made.slot.activate(made.runner, UNPOISONED)
        made.slot.offer(STATS, entry(4, 0))
        times: list[float] = []

        async def driver() -> None:
            while True:
                await made.slot.wait_used(STATS)
                times.append(round(trio.current_time() - start, 3))
                made.slot.offer(STATS, entry(4, len(times)))

        nursery.start_soon(driver)
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        made.runner.set_interval(10)
        await trio.sleep(35)
        made.runner.set_interval(0)
        await trio.sleep(100)
        assert [round(at) for at in times] == [0, 10, 20, 30]
        with pytest.raises(ValueError, match="interval"):
            made.runner.set_interval(-1)


# -- hints ----------------------------------------------------------------------------------------------------


async def test_hints_of_the_present_round() -> None:
    """Pages count that follow the number of this request; others are given back all the same."""
    async with rig() as made:
        spared: list[list[tuple[int, int]]] = []

        def spare(runs: list[tuple[int, int]]) -> int:
            spared.append(runs)
            return 1

        await made.hint((FIRST_FREE, 1), 0x8000_0001, (FIRST_FREE, 1))
        assert made.runner.begin_hints(spare)
        first = 0x8000_0001
        await made.hint((FIRST_FREE, 2), first - 1, (FIRST_FREE + 2, 2), first, (FIRST_FREE + 4, 4))
        await made.hint((FIRST_FREE + 8, 8), 0, (FIRST_FREE + 16, 1))
        made.runner.stop_hints()
        await made.hint((FIRST_FREE + 17, 1), first, (FIRST_FREE + 18, 1))
        made.runner.end_hints()
        await made.hint((FIRST_FREE + 19, 1), 1, (FIRST_FREE + 20, 1))
        # The first one was told before the request with that number, and the driver has not taken it back since.
        told = {number for runs in spared for first, count in runs for number in range(first, first + count)}
        assert told == {FIRST_FREE + number for number in (0, 1, *range(4, 16))}
        assert made.runner.counters.spared == len(spared)


async def test_no_driver_no_hints() -> None:
    """A machine whose guest gives none is not asked."""
    async with rig(Ring.VERSION_1) as made:
        assert not made.runner.begin_hints(lambda runs: 0)
        made.runner.stop_hints()
        made.runner.end_hints()
        made.slot.reset(made.runner)
        assert not made.runner.begin_hints(lambda runs: 0)


# -- life -----------------------------------------------------------------------------------------------------


class SlowMemory(BalloonMemory):
    """Takes its time on the worker thread."""

    def __init__(self, ram: GuestRam) -> None:
        super().__init__(ram)
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def give_back(self, runs: object) -> None:
        """After `go_on`."""
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        super().give_back(runs)  # type: ignore[arg-type]


@asynccontextmanager
async def busy() -> AsyncIterator[tuple[Rig, SlowMemory]]:
    """A runner whose thread is giving a page back, until it is told to go on."""
    made = Rig()
    memory = SlowMemory(made.slot.ram)
    made.runner._memory = memory
    with trio.fail_after(PATIENCE_S):
        async with serving(made.slot, made.runner):
            made.slot.activate(made.runner, UNPOISONED)
            made.write([FIRST_FREE])
            made.slot.offer(INFLATE, pack("<I", FIRST_FREE))
            await trio.to_thread.run_sync(memory.begun.wait)
            yield made, memory
            memory.go_on.set()


@pytest.mark.parametrize("what", ["device", "queue"])
async def test_a_reset_waits_for_the_thread(what: str) -> None:
    """The driver has its pages back when no more can be taken from it, and nothing is written into its old rings."""
    async with busy() as (made, memory):
        done: list[bool] = []
        with made.slot.bus_lock:
            if what == "device":
                made.runner.reset(lambda: done.append(memory.go_on.is_set()))
            else:
                made.runner.stop_queue(DEFLATE, lambda: done.append(True))
                assert done == [True]
                done.clear()
                made.runner.stop_queue(INFLATE, lambda: done.append(memory.go_on.is_set()))
        assert done == []
        memory.go_on.set()
        while not done:
            await trio.testing.wait_all_tasks_blocked()
        assert done == [True]
        assert made.slot.drivers[INFLATE].collect() == []
        assert made.page(FIRST_FREE) == bytes(PAGE)


async def test_a_hold_waits_for_the_thread() -> None:
    """After it no page goes and no ring is written; what was in flight is done."""
    async with busy() as (made, memory):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.runner.hold)
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            memory.go_on.set()
        assert len(made.slot.drivers[INFLATE].collect()) == 1
        made.write([FIRST_FREE])
        made.slot.offer(INFLATE, pack("<I", FIRST_FREE))
        await trio.testing.wait_all_tasks_blocked()
        assert made.written(FIRST_FREE)
        made.runner.release()
        await made.slot.wait_used(INFLATE)
        assert made.page(FIRST_FREE) == bytes(PAGE)


async def test_a_host_that_takes_none_back() -> None:
    """The user is told once; the guest is told that it is done, which is true of its side."""
    async with rig() as made:
        made.memory._block.size += PAGE
        made.memory._regions = [(RAM_PAGES, 16, RAM_PAGES)]
        for _ in range(2):
            await made.tell(INFLATE, [RAM_PAGES + 1])
        assert len(made.warnings) == 1
        assert made.warnings[0].startswith("balloon: the host takes no pages of pc.ram back: ")


async def test_changes_are_told_at_most_once_a_second(autojump_clock: trio.testing.MockClock) -> None:
    """The first at once, the last in any case."""
    made = Rig()
    told: list[tuple[float, int]] = []
    made.runner.on_change = lambda: told.append((round(trio.current_time() - start), made.model.actual))
    async with serving(made.slot, made.runner):
        made.slot.activate(made.runner)
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        for pages in range(1, 50):
            with made.slot.bus_lock:
                made.model.write_config(4, 4, pages)
            await trio.sleep(0.1)
        await trio.sleep(100)
    assert told[0][0] == 0
    assert told[-1][1] == 49
    assert 5 <= len(told) <= 7


async def test_saved_and_restored() -> None:
    """Rings and statistics go on elsewhere; hints are over there."""
    first, second = Rig(), Rig()
    with trio.fail_after(PATIENCE_S):
        async with serving(first.slot, first.runner), serving(second.slot, second.runner):
            first.slot.activate(first.runner, UNPOISONED)
            first.slot.offer(STATS, entry(4, 100))
            await first.tell(INFLATE, [FIRST_FREE])
            assert first.runner.begin_hints(lambda runs: 0)
            await first.hint(0x8000_0001, (FIRST_FREE, 1))
            await first.runner.hold()
            run = decode(encode(first.runner.save()), (BalloonRun, QueueRun, VringState, VringConfig, InFlight))
            assert all(not queue.ring.in_flight for queue in run.queues)
            await second.runner.hold()
            second.slot.activate(second.runner, UNPOISONED)
            second.slot.reset(second.runner)
            second.model.restore(first.model.state(), first.model.accepted)
            second.slot.ram.write(0, first.slot.ram.read(0, 4 << 20))
            await second.runner.restore(Activation(UNPOISONED, tuple(first.slot.setups)), run)
            second.slot.drivers[:] = first.slot.drivers
            for ring in second.slot.drivers:
                ring.memory = second.slot.ram
            with second.slot.bus_lock:
                second.runner.arrived()
            second.runner.release()
            assert second.model.read_config(8, 4) == 1
            second.write([FIRST_FREE + 1])
            await second.tell(INFLATE, [FIRST_FREE + 1])
            assert second.page(FIRST_FREE + 1) == bytes(PAGE)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(second.runner.fresh_stats, PATIENCE_S)
                await second.slot.wait_used(STATS)
                second.slot.offer(STATS, entry(4, 7))
            assert second.model.stats == {4: 7}
            first.runner.release()
