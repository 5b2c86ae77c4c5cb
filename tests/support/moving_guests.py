"""The two ends of a migration without a machine: RAM, a disk's lock, and who runs."""

from __future__ import annotations

import os
import struct
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tvmm.config.memory import MemoryConfig
from tvmm.errors import HostError, ImageError, ProtocolError
from tvmm.kvm.remap import adopt_file, borrow_file
from tvmm.kvm.uffd import can_wait_for_pages
from tvmm.memory.ram import GuestRam
from tvmm.migration.hand_over import MEMFD, can_be_passed, close_all, tap_feature
from tvmm.state import Section

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence

    from tests.support.copied_disks import GuestDisk
    from tvmm.kvm.pages import PageBitmap
    from tvmm.migration.disk_files import DiskOrigin, DiskTarget
    from tvmm.migration.messages import Image

RAM_BYTES = 2 << 20
PAGE = 4096


class Disk:
    """One image for both sides: nobody writes to it without its lock, and only one can have that."""

    def __init__(self) -> None:
        self.holder: object | None = None

    def take(self, who: object) -> None:
        """Lock it."""
        if self.holder not in (None, who):
            raise ImageError("disk image shared.img is in use by another machine (writing)")
        self.holder = who

    def release(self, who: object) -> None:
        """Unlock it."""
        if self.holder is who:
            self.holder = None


class World:
    """Both sides of one guest, and the rule that it runs once at most, with its disk."""

    def __init__(self, *, shared: bool = False, shared_there: bool | None = None) -> None:
        """`shared`: the RAM can be handed over; `shared_there`, at the destination, if that differs."""
        self.disk = Disk()
        self.running: set[str] = set()
        self.source = Leaving(self, shared=shared)
        self.destination = Arriving(self, shared=shared if shared_there is None else shared_there)

    def run(self, who: Side) -> None:
        """`who` lets the guest run."""
        assert self.disk.holder is who, f"{who.name} runs without the disk"
        self.running.add(who.name)
        assert len(self.running) == 1, "the guest runs twice"

    def pause(self, who: Side) -> None:
        """It does not run there any more."""
        self.running.discard(who.name)

    def close(self) -> None:
        """Give the memory back."""
        close_all(self.destination.lent)
        for fd in self.destination.taken:
            os.close(fd)
        self.source.ram.close()
        self.destination.ram.close()


class Side:
    """What both ends have."""

    name = ""

    def __init__(self, world: World, *, shared: bool = False) -> None:
        self.world = world
        self.ram = GuestRam(MemoryConfig(RAM_BYTES, shared=shared))

    async def description(self) -> tuple[tuple[str, str], ...]:
        """The same on both sides."""
        return (("ram", "2M"),)

    async def hashes(self) -> tuple[bytes, ...]:
        """The whole of it, in place of a hash."""
        return tuple(bytes(block.view) for block in self.ram.blocks.values())

    def take_disks(self) -> None:
        """Lock the disk."""
        self.world.disk.take(self)

    def release_disks(self) -> None:
        """Unlock it."""
        self.world.disk.release(self)


class Tracker:
    """Of a guest that writes a page whenever somebody looks, for a while."""

    log = None

    def __init__(self, source: Leaving) -> None:
        self._source = source
        self._looks = 0

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Keep in mind on which thread."""
        self._source.tracking_stopped_on.append(threading.get_ident())

    def sync(self, bitmap: PageBitmap) -> int:
        """The guest writes some pages, fewer each time."""
        self._looks += 1
        if not self._source.is_running:
            return 0
        count = self._source.busy_pages >> self._looks
        for page in range(count):
            self._source.write_page(page, self._looks)
        bitmap.mark("pc.ram", 0, max(count, 1))
        return count

    def spare(self, bitmap: PageBitmap, block_name: str, runs: Sequence[tuple[int, int]]) -> int:
        """As if none of them had been written."""
        told = [page for first, count in runs for page in range(first, first + count)]
        spared = [page for page in told if bitmap.test(block_name, page)]
        words = bitmap.words(block_name)
        for page in spared:
            words[page // 64] &= ~(1 << page % 64)
        return len(spared)

    def vcpu_counts(self) -> list[int]:
        """Not known."""
        return []


class Leaving(Side):
    """A `LeavingGuest` that has the disk and runs."""

    name = "source"

    def __init__(self, world: World, *, shared: bool = False) -> None:
        super().__init__(world, shared=shared)
        self.disks: list[GuestDisk] = []
        """Those that can be copied."""
        self.moved_to = self.serves_pages_to = ""
        self.kept_paused = False
        self.memory_let_go = False
        self.tap_queues: dict[str, list[int]] = {}
        self.taps_gone: set[str] = set()
        self.hints: list[str] = []
        self.free: list[tuple[int, int]] = []
        """Told of when hints are asked for."""
        self.spared = 0
        self.viewers = 0
        self.open_screen: Callable[[], Awaitable[trio.abc.Stream]]
        self.busy_pages = 200
        self.fail_save = False
        self.tracking_stopped_on: list[int] = []
        self.throttled: list[int] = []
        self.on_held: Callable[[], None] = lambda: None
        world.disk.take(self)
        world.running.add(self.name)
        for page in range(0, RAM_BYTES // PAGE, 3):
            self.write_page(page, 0)

    def write_page(self, page: int, version: int) -> None:
        """Something that no other page has."""
        self.ram.write(page * PAGE, struct.pack("<QQ", page + 1, version) * 256)

    @property
    def is_running(self) -> bool:
        """Here."""
        return self.name in self.world.running

    def images(self) -> tuple[Image, ...]:
        """Those of the test."""
        return tuple(disk.offered() for disk in self.disks)

    def open_images(self, places: Sequence[int]) -> list[DiskOrigin]:
        """As they are."""
        return [self.disks[place].origin(place) for place in places]

    def cpu(self) -> bytes:
        """Anything."""
        return b"cpu"

    def taps(self) -> Mapping[str, Sequence[int]]:
        """Those of the test."""
        return self.tap_queues

    def let_go_of_taps(self, names: Collection[str]) -> None:
        """Remembered."""
        self.taps_gone = set(names)

    def tracker(self) -> Tracker:
        """See above."""
        return Tracker(self)

    @asynccontextmanager
    async def on_reset(self, call: Callable[[], None]) -> AsyncIterator[None]:
        """It is never reset."""
        yield

    @asynccontextmanager
    async def held(self) -> AsyncIterator[bool]:
        """Paused in the block."""
        self.world.pause(self)
        self.on_held()
        try:
            yield True
        finally:
            if not self.moved_to and not self.kept_paused:
                self.world.run(self)

    async def save(self) -> tuple[Section, ...]:
        """One section."""
        await trio.lowlevel.checkpoint()
        if self.fail_save:
            raise ImageError("the host's disk is broken")
        return (Section("serial0", 1, 1, b"state"),)

    def begin_hints(self, spare: Callable[[str, Sequence[tuple[int, int]]], int]) -> None:
        """All at once."""
        self.hints.append("begin")
        self.spared = spare("pc.ram", self.free) if self.free else 0

    def stop_hints(self) -> None:
        """Remembered."""
        self.hints.append("stop")

    def end_hints(self) -> None:
        """Remembered."""
        self.hints.append("end")

    def throttle(self, percent: int) -> None:
        """Remembered."""
        self.throttled.append(percent)

    def end(self, peer: str, open_screen: Callable[[], Awaitable[trio.abc.Stream]]) -> int:
        """It lives elsewhere."""
        self.moved_to = peer
        self.open_screen = open_screen
        return self.viewers

    def let_go_of_memory(self) -> None:
        """Of all of it."""
        self.memory_let_go = True
        for block in self.ram.blocks.values():
            borrow_file(block, block.fd)

    def serve_pages(self, peer: str) -> None:
        """It is."""
        assert self.kept_paused
        self.serves_pages_to = peer

    def keep_paused(self) -> None:
        """It may run elsewhere."""
        self.kept_paused = True

    def go_on(self) -> None:
        """It does not."""
        self.kept_paused = False


class Arriving(Side):
    """An `ArrivingGuest`."""

    name = "destination"

    def __init__(self, world: World, *, shared: bool = False) -> None:
        super().__init__(world, shared=shared)
        self.problems: list[str] = []
        self.targets: list[Callable[[Image], DiskTarget]] = []
        """What makes the images of disks that are copied."""
        self.loaded: tuple[Section, ...] = ()
        self.fail_load = self.fail_start = self.fail_borrow = False
        self.announced = 0
        self.screens: list[trio.abc.Stream] = []
        self.has_screen = True
        self.otherwise: list[str] = []
        self.rehearsed = 0
        self.lent: dict[str, int] = {}
        self.late_taps: list[str] = []
        """Those that another one has."""
        self.taps_came: dict[str, list[int]] | None = None
        self.taken: list[int] = []

    async def rehearse(self) -> None:
        """Counted."""
        await trio.lowlevel.checkpoint()
        self.rehearsed += 1

    def has_room(self) -> bool:
        """Always."""
        return True

    def features(self) -> frozenset[str]:
        """What it was made for, and post-copy, where the host has userfaultfd."""
        found = {MEMFD} if can_be_passed(self.ram) else set()
        found |= {"storage"} if self.targets else set()
        found |= set(map(tap_feature, self.late_taps))
        return frozenset(found | ({"postcopy"} if can_wait_for_pages(self.ram.blocks["pc.ram"]) else set()))

    def copy_problems(self, images: tuple[Image, ...] | None) -> Sequence[str]:
        """What is wanted has to be what is offered."""
        return [] if bool(images) is bool(self.targets) else ["disks are to be copied by one side alone"]

    def open_targets(self, images: tuple[Image, ...]) -> list[DiskTarget | None]:
        """Files of the test's, all of them."""
        return [make(image) for make, image in zip(self.targets, images, strict=True)]

    async def tap_problems(self, coming: Collection[str]) -> Sequence[str]:
        """Nobody gives up what is not coming."""
        return [f"tap {name} is in use" for name in self.late_taps if name not in coming]

    async def take_taps(self, taps: Mapping[str, list[int]]) -> None:
        """What came for each of the test's, or nothing."""
        self.taps_came = {name: list(fds) for name, fds in taps.items()}
        for name in self.late_taps:
            if not taps.get(name):
                raise HostError(f"tap {name} is in use")
            self.taken.extend(taps[name])
            taps[name].clear()

    async def borrow_memory(self, files: dict[str, int]) -> None:
        """To look at."""
        if self.fail_borrow:
            raise HostError("the host does not map a file as pc.ram")
        for name, block in self.ram.blocks.items():
            borrow_file(block, files[name])
            self.lent[name] = files.pop(name)

    def cpu_problems(self, cpu: bytes) -> Sequence[str]:
        """As the test wants it."""
        return self.problems

    def differences(self, theirs: Sequence[tuple[str, str]], ours: Sequence[tuple[str, str]]) -> Sequence[str]:
        """In words."""
        return [] if theirs == ours else ["ram is 2M here and something else there"]

    async def load(self, sections: tuple[Section, ...], ran_at_ns: int) -> None:
        """Keep them."""
        assert 0 < ran_at_ns <= time.perf_counter_ns()
        await trio.lowlevel.checkpoint()
        for block in self.ram.blocks.values() if self.lent else ():
            # As KVM writes its clocks.
            block.view[5 * PAGE : 5 * PAGE + 5] = b"clock"
        if self.fail_load:
            raise ProtocolError("section serial0: it is damaged")
        self.loaded = sections

    async def loaded_otherwise(self, sections: tuple[Section, ...]) -> Sequence[str]:
        """As the test wants it."""
        return self.otherwise

    async def start(self, running: bool) -> None:
        """Run."""
        await trio.lowlevel.checkpoint()
        if self.fail_start:
            raise ImageError("the guest cannot be started")
        for name in list(self.lent):
            adopt_file(self.ram.blocks[name], self.lent.pop(name))
        self.world.run(self)

    def show_screen(self, stream: trio.abc.Stream) -> None:
        """Kept."""
        if not self.has_screen:
            raise ImageError("this machine has no screen")
        self.screens.append(stream)

    def announce(self) -> None:
        """Counted."""
        self.announced += 1
